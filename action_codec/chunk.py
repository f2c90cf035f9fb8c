"""Chunks on a clock: which row is due, which are past, which are committed, and how to hold still."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from wamserve.action_codec.arrays import Array, checked
from wamserve.action_codec.errors import CodecError
from wamserve.action_codec.layout import Block, Layout
from wamserve.action_codec.rotations import rotation_form
from wamserve.action_codec.se3 import (
    deltas_framewise_from_poses,
    inverse,
    pose_from_pose_vector,
    pose_vector_from_pose,
    poses_from_deltas_anchored,
    poses_from_deltas_framewise,
    require_pose,
)

# Share of a period by which two clocks may disagree about a tick before a row counts as past.
TICK_SLACK = 1e-6


@dataclass(frozen=True, eq=False)
class TimedChunk:
    """Rows of one layout, one per control step."""

    actions: Array  # [H, D] raw units
    start: float  # seconds: when row 0 is due
    period: float  # seconds between rows
    # block name -> pose [4, 4] that row 0 of a relative block starts from; needed only to mix relative blocks
    anchors: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = np.shape(self.actions)
        if len(shape) != 2:
            raise CodecError("a timed chunk is one chunk", seen=list(shape), expected="[H, D]")
        actions = checked("chunk", self.actions, shape[1])
        if not (self.period > 0.0 and math.isfinite(self.start) and math.isfinite(self.period)):
            raise CodecError("chunk clock is not a clock", seen=f"start {self.start}, period {self.period}")
        object.__setattr__(self, "actions", actions)
        object.__setattr__(
            self, "anchors", {name: require_pose(p, f"anchor {name!r}") for name, p in self.anchors.items()}
        )

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def end(self) -> float:
        """When the last row has been held for one period."""
        return self.start + len(self.actions) * self.period

    def anchor(self, block: Block) -> Array:
        """The pose row 0 of `block` starts from. CodecError where the chunk does not know it."""
        if block.name not in self.anchors:
            raise CodecError(
                f"block {block.name!r} is relative, and the chunk does not say what to",
                seen=", ".join(self.anchors) or "no anchors",
                fix=f"TimedChunk(..., anchors={{{block.name!r}: pose}})",
            )
        return self.anchors[block.name]


def row_due(start: float, period: float, now: float) -> int:
    """Row whose time is nearest to `now`, the later of two; below 0 before the chunk, at least H after it."""
    return math.floor((now - start) / period + 0.5 + TICK_SLACK)


def past_rows(start: float, period: float, now: float, slack: float = TICK_SLACK) -> int:
    """How many leading rows were due before `now`: ceil((now - start) / period), never below 0.

    slack: share of a period by which `now` may trail a tick that is about to be served. A player whose ticks
    jitter gives its own, below 1; at 0.5 the first row left is the one `row_due` names.
    """
    return max(0, math.ceil((now - start) / period - slack))


def drop_past_rows(chunk: TimedChunk, layout: Layout, now: float, slack: float = TICK_SLACK) -> TimedChunk:
    """The rows still to come at `now`, as `past_rows` counts: row 0 is due then or later. May be empty.

    Anchors of framewise blocks move to the pose the first kept row starts from.
    """
    layout.check(chunk.actions, "chunk")
    gone = min(past_rows(chunk.start, chunk.period, now, slack), len(chunk))
    if gone == 0:
        return chunk
    anchors = dict(chunk.anchors)
    for block in relative_blocks(layout):
        if block.name in anchors and block.of_kind.reference == "framewise":
            targets = targets_from_values(block, chunk.actions[:gone, block.columns], anchors[block.name])
            anchors[block.name] = targets[-1]
    return TimedChunk(chunk.actions[gone:], chunk.start + gone * chunk.period, chunk.period, anchors)


def hold_row(row: ArrayLike, layout: Layout) -> Array:
    """The row [D] that keeps a robot where `row` [D] left it.

    Absolute targets, anchored poses and grippers repeat. Framewise deltas become the identity and commands
    zero: repeating those would keep the robot moving.
    """
    held = layout.check(row, "row").copy()
    if held.ndim != 1:
        raise CodecError("holding starts from one row", seen=list(held.shape), expected=f"[{layout.width}]")
    for block in layout.blocks:
        kind = block.of_kind
        if kind.reference in ("framewise", "command"):
            held[block.columns] = 0.0
            if kind.rotation is not None:
                held[block.rotation_columns] = rotation_form(kind.rotation).from_matrix(np.eye(3))
    return held


def extend_with_hold(actions: ArrayLike, layout: Layout, rows: int) -> Array:
    """[H, D] -> [rows, D] by holding after the last row; CodecError for an empty or too long chunk."""
    a = layout.check(actions)
    if a.ndim != 2 or not 0 < len(a) <= rows:
        raise CodecError("chunk cannot be extended", seen=list(a.shape), expected=f"1 .. {rows} rows")
    return np.concatenate([a, np.tile(hold_row(a[-1], layout), (rows - len(a), 1))])


def committed_rows(chunk: TimedChunk, layout: Layout, start: float, rows: int) -> Array:
    """What the robot will do anyway: up to `rows` rows of the running chunk from the one nearest to `start`.

    Anchored blocks are told from the pose at `start`, as a chunk beginning there would tell them.
    """
    a = layout.check(chunk.actions, "chunk")
    first = row_due(chunk.start, chunk.period, start)
    if first < 0:
        raise CodecError(
            "rows before the running chunk are not known",
            seen=f"start {start:.3f}",
            expected=f"{chunk.start:.3f}",
        )
    out = a[first : first + rows].copy()
    for block in relative_blocks(layout):
        if block.of_kind.reference == "anchored" and 0 < first < len(a):
            form = str(block.of_kind.rotation)
            reached = pose_from_pose_vector(a[first - 1, block.columns], form)
            moved = inverse(reached) @ pose_from_pose_vector(out[:, block.columns], form)
            out[:, block.columns] = pose_vector_from_pose(moved, form)
    return out


def freeze_prefix(actions: ArrayLike, committed: ArrayLike, layout: Layout) -> Array:
    """[H, D] with its first P rows replaced by the committed [P, D]; both start at the same time and pose.

    The first free row of a framewise block is told from where the prefix ends, so that every later target of
    the chunk stays where the model put it.
    """
    a = layout.check(actions).copy()
    p = layout.check(committed, "committed rows")
    if a.ndim != 2 or p.ndim != 2 or len(p) > len(a):
        raise CodecError(
            "committed rows do not fit the chunk",
            seen=f"{list(p.shape)} into {list(a.shape)}",
            expected="P <= H",
        )
    if len(p) == 0:
        return a
    for block in relative_blocks(layout):
        if block.of_kind.reference == "framewise" and len(p) < len(a):
            targets = targets_from_values(block, a[: len(p) + 1, block.columns], np.eye(4))
            prefix = targets_from_values(block, p[:, block.columns], np.eye(4))
            a[len(p), block.columns] = values_from_targets(block, targets[-1:], prefix[-1])[0]
    a[: len(p)] = p
    return a


def prefix_weights(rows: int, frozen: int, free: int) -> Array:
    """How firmly each row is tied to the previous chunk, [rows]: 1 for `frozen` rows, 0 for the last `free`.

    Between them c (e^c - 1) / (e - 1) with c falling linearly: the soft mask of real-time chunking
    (arXiv 2506.07339, eq. 5; frozen = d, free = s).
    """
    if frozen < 0 or free < 0 or frozen + free > rows:
        raise CodecError(
            "prefix does not fit the chunk",
            seen=f"frozen {frozen}, free {free}",
            expected=f"sum at most {rows}",
        )
    c = np.clip((rows - free - np.arange(rows)) / (rows - free - frozen + 1.0), 0.0, 1.0)
    weights = c * np.expm1(c) / np.expm1(1.0)
    weights[:frozen] = 1.0
    return weights


def relative_blocks(layout: Layout) -> tuple[Block, ...]:
    """Blocks whose rows mean nothing without the pose they start from."""
    return tuple(b for b in layout.blocks if b.of_kind.reference in ("framewise", "anchored"))


def targets_from_values(block: Block, values: ArrayLike, anchor: ArrayLike | None = None) -> Array:
    """A pose block's numbers [H, w] -> the poses [H, 4, 4] its rows aim at; `anchor` [4, 4] if relative."""
    poses = pose_from_pose_vector(values, str(block.of_kind.rotation))
    if block.of_kind.reference == "framewise":
        return poses_from_deltas_framewise(_anchor(block, anchor), poses)[1:]
    if block.of_kind.reference == "anchored":
        return poses_from_deltas_anchored(_anchor(block, anchor), poses)[1:]
    return poses


def values_from_targets(block: Block, targets: ArrayLike, anchor: ArrayLike | None = None) -> Array:
    """The inverse of `targets_from_values`: poses [H, 4, 4] -> the block's numbers [H, w]."""
    poses = checked("target", targets, 4, 4)
    if block.of_kind.reference == "framewise" and len(poses):
        poses = deltas_framewise_from_poses(np.concatenate([_anchor(block, anchor)[None], poses]))
    elif block.of_kind.reference == "anchored":
        poses = inverse(_anchor(block, anchor)) @ poses
    return pose_vector_from_pose(poses, str(block.of_kind.rotation))


def _anchor(block: Block, anchor: ArrayLike | None) -> Array:
    if anchor is None:
        raise CodecError(f"block {block.name!r} is relative: the pose it starts from is missing")
    return checked("anchor", anchor, 4, 4)

"""Two or more chunks into one: every block by its own kind.

Joints and positions mix linearly, rotations along geodesics, relative blocks as absolute targets told from
the pose they now start from, and grippers never: one opinion is chosen, since half-closed is neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from wamserve.action_codec.arrays import Array, checked, one_of
from wamserve.action_codec.chunk import (
    TICK_SLACK,
    TimedChunk,
    drop_past_rows,
    relative_blocks,
    row_due,
    targets_from_values,
    values_from_targets,
)
from wamserve.action_codec.errors import CodecError
from wamserve.action_codec.layout import Block, Layout
from wamserve.action_codec.rotations import interpolate_matrix, mean_matrix, rotation_form

# median: the weighted middle opinion, the newer one in a tie (of two: the heavier). newest: the last one.
GripperRule = Literal["median", "newest"]


def linear_ramp(rows: int) -> Array:
    """Shares of the new chunk rising evenly inside 0 .. 1: [1, 2, ..., rows] / (rows + 1)."""
    return np.arange(1, rows + 1) / (rows + 1.0)


def reanchor(chunk: TimedChunk, layout: Layout, poses: Mapping[str, ArrayLike]) -> TimedChunk:
    """The same absolute targets told from `poses`: relative block name -> pose [4, 4] where it now is."""
    actions = layout.check(chunk.actions, "chunk").copy()
    anchors = dict(chunk.anchors)
    for block in relative_blocks(layout):
        pose = _pose(block, poses)
        told = _rows_told_anew(block, 0, len(actions))
        targets = targets_from_values(block, actions[:told, block.columns], chunk.anchor(block))
        actions[:told, block.columns] = values_from_targets(block, targets, pose)
        anchors[block.name] = pose
    return TimedChunk(actions, chunk.start, chunk.period, anchors)


def switch_chunks(
    old: TimedChunk,
    new: TimedChunk,
    layout: Layout,
    now: float,
    poses: Mapping[str, ArrayLike] | None = None,
    slack: float = TICK_SLACK,
) -> TimedChunk:
    """The rows of `new` still to come at `now`; rows that arrived too late are dropped, not replayed.

    Relative blocks continue from where `old` has brought the robot by then, or from `poses` if measured.
    slack: as in `past_rows`.
    """
    live = drop_past_rows(new, layout, now, slack)
    if not relative_blocks(layout) or len(live) == 0:
        return live
    return reanchor(live, layout, _where(old, layout, live.start, poses))


def blend_chunks(
    old: TimedChunk,
    new: TimedChunk,
    layout: Layout,
    weights: ArrayLike,
    poses: Mapping[str, ArrayLike] | None = None,
    gripper: GripperRule = "median",
) -> TimedChunk:
    """`new`, with its first rows mixed with those `old` holds for the same times.

    weights: [n] share of `new` per row, 0 .. 1; rows past n, or past the end of `old`, are `new` alone.
    poses: relative block name -> pose [4, 4] at new.start; default: where `old` aims by then.
    Rows are paired by nearest time; CodecError where the periods differ.
    """
    one_of("gripper rule", gripper, GripperRule)
    share = checked("weights", weights)
    if share.ndim != 1 or (share < 0.0).any() or (share > 1.0).any():
        raise CodecError(
            "blend weights are shares of the newer chunk", seen=share.tolist(), expected="[n], 0 .. 1"
        )
    shift = _shift(old, new)
    count = max(0, min(len(share), len(new), len(old) - shift))
    actions = layout.check(new.actions, "newer chunk").copy()
    layout.check(old.actions, "older chunk")
    anchors = dict(new.anchors)
    if relative_blocks(layout):
        poses = _where(old, layout, new.start, poses)
    weights = np.stack([1.0 - share[:count], share[:count]])
    for block in layout.blocks:
        mixed = _opinion(block, new).copy()
        if count:
            pairs = np.stack([_opinion(block, old)[shift : shift + count], mixed[:count]])
            mixed[:count] = _mean(block, pairs, weights, gripper)
        pose = None
        if block in relative_blocks(layout):
            pose = anchors[block.name] = _pose(block, poses or {})
        told = _rows_told_anew(block, count, len(new))
        actions[:told, block.columns] = _values(block, mixed[:told], pose)
    return TimedChunk(actions, new.start, new.period, anchors)


def temporal_ensemble(
    chunks: Sequence[TimedChunk],
    layout: Layout,
    now: float,
    decay: float = 0.01,
    poses: Mapping[str, ArrayLike] | None = None,
    gripper: GripperRule = "median",
) -> Array:
    """The row [D] due at `now`, averaged over every chunk that has one (ACT, arXiv 2304.13705).

    chunks: oldest first. Chunk i of those with a row weighs exp(-decay * i), i = 0 the oldest, so a larger
    decay trusts older chunks more. poses: relative block name -> pose [4, 4] the row starts from.
    """
    one_of("gripper rule", gripper, GripperRule)
    due = [(chunk, row_due(chunk.start, chunk.period, now)) for chunk in chunks]
    due = [(chunk, row) for chunk, row in due if 0 <= row < len(chunk)]
    if not due:
        raise CodecError("no chunk has a row for this time", seen=f"now {now:.3f}", expected=_spans(chunks))
    weights = np.exp(-decay * np.arange(len(due)))
    weights /= weights.sum()
    out = np.empty(layout.width)
    for block in layout.blocks:
        opinions = np.stack([_opinion(block, chunk, layout)[row] for chunk, row in due])
        mean = _mean(block, opinions[:, None], weights[:, None], gripper)
        pose = _pose(block, poses or {}) if block in relative_blocks(layout) else None
        out[block.columns] = _values(block, mean, pose)[0]
    return out


def _rows_told_anew(block: Block, mixed: int, rows: int) -> int:
    """Leading rows to rewrite when the first `mixed` targets and the starting pose have changed.

    An anchored row is told from the start; a framewise one from the row before, so one more than was mixed.
    """
    reference = block.of_kind.reference
    return rows if reference == "anchored" else min(mixed + 1, rows) if reference == "framewise" else mixed


def _opinion(block: Block, chunk: TimedChunk, layout: Layout | None = None) -> Array:
    """What a chunk wants of a block, row by row, where it may be mixed: numbers, matrices or poses."""
    actions = layout.check(chunk.actions, "chunk") if layout is not None else chunk.actions
    values = actions[:, block.columns]
    kind = block.of_kind
    if kind.blend == "rotation":
        return rotation_form(str(kind.rotation)).to_matrix(values)
    if kind.blend == "pose":
        relative = kind.reference in ("framewise", "anchored")
        return targets_from_values(block, values, chunk.anchor(block) if relative else None)
    return values


def _mean(block: Block, opinions: Array, weights: Array, gripper: GripperRule) -> Array:
    """One opinion out of K: [K, N, ...] and weights [K, N] summing to 1 over K, oldest first -> [N, ...]."""
    blend = block.of_kind.blend
    if blend == "gripper":
        return opinions[-1] if gripper == "newest" else _weighted_median(opinions, weights)
    if blend == "rotation":
        return _mean_rotation(opinions, weights)
    mean: Array = np.einsum("kn,kn...->n...", weights, opinions)
    if blend == "pose":
        mean[:, :3, :3] = _mean_rotation(opinions[:, :, :3, :3], weights)
        mean[:, 3] = (0.0, 0.0, 0.0, 1.0)
    return mean


def _mean_rotation(matrices: Array, weights: Array) -> Array:
    if len(matrices) == 2:
        return interpolate_matrix(matrices[0], matrices[1], weights[1])
    return mean_matrix(matrices, weights)


def _weighted_median(opinions: Array, weights: Array) -> Array:
    order = np.argsort(opinions[..., 0], axis=0, kind="stable")  # [K, N]
    reached = np.cumsum(np.take_along_axis(weights, order, axis=0), axis=0)
    middle = np.argmax(reached >= 0.5 - 1e-12, axis=0)[None]
    above = np.minimum(middle + 1, len(order) - 1)
    tied = np.abs(np.take_along_axis(reached, middle, axis=0) - 0.5) < 1e-12
    here, there = (np.take_along_axis(order, index, axis=0) for index in (middle, above))
    chosen = np.where(tied, np.maximum(here, there), here)  # of two halves the newer
    return np.take_along_axis(opinions, chosen[..., None], axis=0)[0]


def _values(block: Block, mixed: Array, pose: Array | None) -> Array:
    """The inverse of `_opinion`, relative blocks told from `pose`."""
    kind = block.of_kind
    if kind.blend == "rotation":
        return rotation_form(str(kind.rotation)).from_matrix(mixed)
    if kind.blend == "pose":
        return values_from_targets(block, mixed, pose)
    return mixed


def _where(
    old: TimedChunk, layout: Layout, time: float, poses: Mapping[str, ArrayLike] | None
) -> Mapping[str, ArrayLike]:
    """Where each relative block stands at `time`: measured, or the last target `old` set before then."""
    if poses is not None:
        return poses
    first = min(max(row_due(old.start, old.period, time), 0), len(old))
    reached: dict[str, ArrayLike] = {}
    for block in relative_blocks(layout):
        anchor = old.anchor(block)
        targets = targets_from_values(block, old.actions[:first, block.columns], anchor)
        reached[block.name] = targets[-1] if first else anchor
    return reached


def _pose(block: Block, poses: Mapping[str, ArrayLike]) -> Array:
    if block.name not in poses:
        raise CodecError(
            f"block {block.name!r} is relative: the pose it now starts from is missing",
            seen=", ".join(poses) or "no poses",
            fix=f"poses={{{block.name!r}: pose}}",
        )
    return checked(f"pose {block.name!r}", poses[block.name], 4, 4)


def _shift(old: TimedChunk, new: TimedChunk) -> int:
    """Row of `old` due when `new` starts."""
    if abs(old.period - new.period) > 1e-6 * new.period:
        raise CodecError(
            "chunks of different periods cannot be blended",
            seen=f"{old.period:g} s",
            expected=f"{new.period:g} s",
        )
    shift = row_due(old.start, old.period, new.start)
    if shift < 0:
        raise CodecError(
            "the older chunk starts after the newer one", seen=old.start, expected=f"<= {new.start}"
        )
    return shift


def _spans(chunks: Sequence[TimedChunk]) -> str:
    return ", ".join(f"{c.start:.3f} .. {c.end:.3f}" for c in chunks) or "at least one chunk"

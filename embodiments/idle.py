"""Which action rows move nothing: training tells the model how many, as `"idle_frame": "k out of N."`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from wamserve.action_codec import rotations
from wamserve.action_codec.arrays import Array, Mask
from wamserve.action_codec.errors import CodecError
from wamserve.action_codec.layout import Block, Layout

POSITION_M_S = 0.005  # slower than this is still
ROTATION_DEG_S = 1.5
JOINT_RAD_S = 0.005
GRIPPER_STEP = 0.01  # change from row to row, own units
SHORTEST = 3  # rows; shorter rests do not count


def idle_rows(layout: Layout, raw: ArrayLike, rate_hz: int) -> int:
    """Idle rows among raw rows [N, D]: everything still, and for at least three rows on end.

    As in training: the position numbers of all blocks share one norm and rotations are judged block by block,
    both by their own size; joints and grippers by the change from the row before, so the first row never
    moves. Positions that are no deltas (fingertips) therefore keep every row from being idle.
    """
    rows = layout.check(raw)
    if rows.ndim != 2 or rate_hz <= 0:
        raise CodecError(
            "idle rows are counted in one chunk at a rate",
            seen=f"{list(rows.shape)} at {rate_hz} Hz",
            expected=f"[N, {layout.width}] at > 0 Hz",
        )
    moved = np.zeros(len(rows))  # squared
    idle = np.ones(len(rows), bool)
    for block in layout.blocks:
        values = rows[:, block.columns]
        positions = _positions(block, values)
        moved += np.einsum("ni,ni->n", positions, positions)
        idle &= _still(block, values[:, positions.shape[1] :], rate_hz)
    idle &= np.sqrt(moved) < POSITION_M_S / rate_hz
    edges = np.flatnonzero(np.diff(np.concatenate([[False], idle, [False]]).astype(int)))
    lengths = edges[1::2] - edges[::2]
    return int(lengths[lengths >= SHORTEST].sum())


def _positions(block: Block, values: Array) -> Array:
    """The columns of a block that are positions or their deltas: the first three, all, or none."""
    if block.of_kind.position:
        return values[:, :3]
    return values if block.kind in ("position_abs", "osc_position") else values[:, :0]


def _still(block: Block, values: Array, rate_hz: int) -> Mask:
    """Whether what a block holds besides positions [N, w] stands still, row by row."""
    if values.shape[1] == 0:
        return np.ones(len(values), bool)
    if block.of_kind.rotation is not None:
        turn = rotations.rotation_form(block.of_kind.rotation).to_matrix(values)
        angle = np.degrees(rotations.angle_between(np.eye(3), turn))
        return np.asarray(angle < ROTATION_DEG_S / rate_hz)
    change = np.abs(np.diff(values, axis=0, prepend=values[:1]))
    limit = GRIPPER_STEP if block.of_kind.blend == "gripper" else JOINT_RAD_S / rate_hz
    return np.all(change < limit, axis=1)

"""Which action rows move nothing: training tells the model how many, as `"idle_frame": "k out of N."`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from wamserve.action_codec import rotations
from wamserve.action_codec.arrays import Array, Mask
from wamserve.action_codec.layout import Block, Layout

POSITION_M_S = 0.005  # slower than this is still
ROTATION_DEG_S = 1.5
JOINT_RAD_S = 0.005
GRIPPER_STEP = 0.01  # change from row to row, own units
SHORTEST = 3  # rows; shorter rests do not count


def idle_rows(layout: Layout, raw: ArrayLike, rate_hz: int) -> int:
    """Idle rows among raw rows [N, D]: every block still, and for at least three rows on end.

    Pose blocks are deltas and judged by their own size; other blocks by the change from the row before, so
    the first row never moves.
    """
    rows = layout.check(raw)
    idle = np.ones(len(rows), bool)
    for block in layout.blocks:
        idle &= _still(block, rows[:, block.columns], rate_hz)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], idle, [False]]).astype(int)))
    lengths = edges[1::2] - edges[::2]
    return int(lengths[lengths >= SHORTEST].sum())


def _still(block: Block, values: Array, rate_hz: int) -> Mask:
    kind = block.of_kind
    if kind.reference in ("framewise", "anchored", "command") and kind.blend in ("pose", "rotation"):
        turn = values[:, 3:] if kind.position else values
        angle = rotations.angle_between(np.eye(3), rotations.matrix_from_rot6d(turn))
        still = np.degrees(angle) < ROTATION_DEG_S / rate_hz
        if kind.position:
            still &= np.linalg.norm(values[:, :3], axis=1) < POSITION_M_S / rate_hz
        return still
    if kind.reference == "command":
        return np.linalg.norm(values, axis=1) < POSITION_M_S / rate_hz
    change = np.abs(np.diff(values, axis=0, prepend=values[:1]))
    if kind.blend == "gripper":
        return np.all(change < GRIPPER_STEP, axis=1)
    return np.all(change < JOINT_RAD_S / rate_hz, axis=1)

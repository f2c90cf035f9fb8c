"""Where a joint contract's rows put the flange, and where any contract's rows put its bodies."""

from __future__ import annotations

import numpy as np

from wamserve.action_codec import se3
from wamserve.action_codec.normalizers import RawActions
from wamserve.embodiments import adapters
from wamserve.embodiments.contract import Embodiment, Kinematics


def flange_poses(kinematics: Kinematics, joints: np.ndarray) -> np.ndarray:
    """Joint angles [T, J] rad -> flange in the base, float64 [T, 4, 4] m; modified Denavit-Hartenberg."""
    joints = np.asarray(joints, dtype=np.float64)
    pose = np.tile(np.eye(4), (len(joints), 1, 1))
    for i, (a, d, alpha) in enumerate(zip(kinematics.a, kinematics.d, kinematics.alpha, strict=True)):
        cos, sin = np.cos(joints[:, i]), np.sin(joints[:, i])
        ca, sa = np.cos(alpha), np.sin(alpha)
        link = np.zeros((len(joints), 4, 4))
        link[:, 0, 0], link[:, 0, 1], link[:, 0, 3] = cos, -sin, a
        link[:, 1, 0], link[:, 1, 1], link[:, 1, 2], link[:, 1, 3] = sin * ca, cos * ca, -sa, -d * sa
        link[:, 2, 0], link[:, 2, 1], link[:, 2, 2], link[:, 2, 3] = sin * sa, cos * sa, ca, d * ca
        link[:, 3, 3] = 1.0
        pose = pose @ link
    pose[:, :3, 3] += kinematics.flange * pose[:, :3, 2]
    return pose


def trajectories(embodiment: Embodiment, raw: np.ndarray) -> dict[str, np.ndarray]:
    """Raw rows [N, D] -> body name -> poses [N + 1, 4, 4] (joint contracts: [N, 4, 4]), for RRE, RTE and ATE.

    Pose blocks are integrated from the identity; joint targets go through the contract's kinematics.
    {} where a contract speaks of no pose (PushT positions, controller commands): the metrics do not apply.
    """
    model = embodiment.model
    tracks = {block.track for block in model.blocks if block.track}
    if tracks:
        start = {track: np.eye(4) for track in tracks}
        return dict(adapters.decode_poses(embodiment, RawActions(raw), start))
    chain = embodiment.wire.kinematics
    joints = [block for block in model.blocks if block.kind == "joint_abs"]
    if chain is None or len(joints) != 1 or joints[0].stop - joints[0].start != len(chain.a):
        return {}
    return {"flange": flange_poses(chain, raw[:, joints[0].start : joints[0].stop])}


def zero_motion(embodiment: Embodiment, first: np.ndarray, rows: int) -> np.ndarray:
    """Raw rows [rows, D] of a robot that stays: identity deltas, zero commands, `first` held."""
    row = np.array(first, dtype=np.float64)
    for block in embodiment.model.layout.blocks:
        kind = block.of_kind
        columns = slice(block.start, block.stop)
        if kind.reference in ("framewise", "anchored"):
            row[columns] = se3.pose9_from_pose(np.eye(4))
        elif kind.reference == "command":
            row[columns] = (1, 0, 0, 0, 1, 0) if kind.rotation == "rot6d" else 0.0
    return np.tile(row, (rows, 1))

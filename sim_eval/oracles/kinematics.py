"""Forward and inverse kinematics of an arm from the Denavit-Hartenberg chain its contract declares."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from wamserve.embodiments.contract import JointLimits, Kinematics

# robosuite's Panda: the grip site, seen from the last joint. The hand is turned by -135 degrees about z.
PANDA_GRIP = np.eye(4)
PANDA_GRIP[:3, :3] = Rotation.from_euler("z", -135, degrees=True).as_matrix()
PANDA_GRIP[2, 3] = 0.2035  # m
HOME = np.array([0.0, 0.2, 0.0, -2.6, 0.0, 2.9, 0.785])  # rad, the elbow posture the null space is drawn to


def frames(chain: Kinematics, joints: np.ndarray, tool: np.ndarray = PANDA_GRIP) -> np.ndarray:
    """Joint angles [J] -> poses [J + 1, 4, 4] of every joint frame and of the tool, in the arm's base."""
    out, pose = [], np.eye(4)
    for a, d, alpha, theta in zip(chain.a, chain.d, chain.alpha, joints, strict=True):
        ct, st, ca, sa = np.cos(theta), np.sin(theta), np.cos(alpha), np.sin(alpha)
        pose = pose @ np.array(
            [
                [ct, -st, 0.0, a],
                [st * ca, ct * ca, -sa, -d * sa],
                [st * sa, ct * sa, ca, d * ca],
                [0.0, 0.0, 0.0, 1.0],
            ]
        )
        out.append(pose)
    out.append(pose @ tool)
    return np.array(out)


def joints_for_pose(
    chain: Kinematics,
    limits: JointLimits,
    start: np.ndarray,
    target: np.ndarray,
    steps: int = 4,
    damping: float = 0.02,
) -> np.ndarray:
    """Joint angles [J] near `start` that bring the grip site to `target` [4, 4] in the arm's base.

    Damped least squares with the null space drawn to HOME; stays inside the limits. A few steps converge
    for targets a few centimetres away, which is how a path is followed; it is not a global solver.
    """
    q = np.array(start, dtype=np.float64)
    for _ in range(steps):
        poses = frames(chain, q)
        tip = poses[-1]
        axes = poses[:-1, :3, 2]  # [J, 3] joint axes
        jacobian = np.concatenate([np.cross(axes, tip[:3, 3] - poses[:-1, :3, 3]), axes], axis=1).T  # [6, J]
        turn = Rotation.from_matrix(target[:3, :3] @ tip[:3, :3].T).as_rotvec()
        error = np.concatenate([target[:3, 3] - tip[:3, 3], turn])
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + damping**2 * np.eye(6))
        null = (np.eye(len(q)) - inverse @ jacobian) @ (0.1 * (HOME - q))
        q = np.clip(q + inverse @ error + null, limits.low, limits.high)
    return q

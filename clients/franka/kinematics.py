"""Where the arm's frames are for given joint angles: a pure function of the contract's kinematic table."""

from __future__ import annotations

import numpy as np

from wamserve.embodiments.contract import Kinematics


def link_poses(chain: Kinematics, joints: np.ndarray) -> np.ndarray:
    """Joint angles [..., J], rad -> poses [..., J + 1, 4, 4] of the joint frames and the flange, in the base.

    Modified Denavit-Hartenberg (Craig): each joint is Rx(alpha) Tx(a) Rz(q) Tz(d). Metres.
    """
    joints = np.asarray(joints, np.float64)
    ct, st = np.cos(joints), np.sin(joints)
    ca, sa = np.cos(chain.alpha), np.sin(chain.alpha)
    step = np.zeros((*joints.shape, 4, 4))
    step[..., 0, 0], step[..., 0, 1], step[..., 0, 3] = ct, -st, chain.a
    step[..., 1, 0], step[..., 1, 1] = st * ca, ct * ca
    step[..., 1, 2], step[..., 1, 3] = -sa, -np.asarray(chain.d) * sa
    step[..., 2, 0], step[..., 2, 1] = st * sa, ct * sa
    step[..., 2, 2], step[..., 2, 3] = ca, np.asarray(chain.d) * ca
    step[..., 3, 3] = 1.0
    pose = step[..., 0, :, :]
    poses = [pose]
    for joint in range(1, joints.shape[-1]):
        pose = pose @ step[..., joint, :, :]
        poses.append(pose)
    flange = np.eye(4)
    flange[2, 3] = chain.flange
    poses.append(pose @ flange)
    return np.stack(poses, axis=-3)


def tool_position(chain: Kinematics, joints: np.ndarray, tool: float) -> np.ndarray:
    """Joint angles [..., J] -> the point `tool` metres along z from the flange, [..., 3] in the base."""
    flange = link_poses(chain, joints)[..., -1, :, :]
    return flange[..., :3, 3] + tool * flange[..., :3, 2]

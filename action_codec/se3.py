"""Rigid poses [..., 4, 4] (metres), the deltas between them, and the pose vectors a model reads.

A pose T = [R p; 0 1] is a body seen from its parent frame. N + 1 poses make N deltas:
    framewise   dT_i = T_i^-1 T_(i+1)      the body frame of the earlier pose; poses are T_(i+1) = T_i dT_i
    anchored    dT_i = T_0^-1 T_(i+1)      the body frame of the first pose;   poses are T_(i+1) = T_0 dT_i
A constant change of body frame, T -> T F (a tool offset, or a rotation R -> R C), acts on deltas as
dT -> F^-1 dT F. It cancels in every round trip, so only comparison with known vectors can catch a wrong one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from wamserve.action_codec.arrays import Array, checked, first_row
from wamserve.action_codec.errors import CodecError
from wamserve.action_codec.rotations import matrix_from_rot6d, require_rotation, rotation_form

POSE9 = 9  # [dx, dy, dz, column 0 (3), column 1 (3)]


def pose_from_matrix(matrix: ArrayLike, position: ArrayLike | None = None) -> Array:
    """Rotation [..., 3, 3] and position [..., 3] m (default: origin) -> pose [..., 4, 4]."""
    m = require_rotation(matrix)
    if position is None:
        return _assemble(m, np.zeros(3))
    return _assemble(m, checked("position", position, 3))


def require_pose(poses: ArrayLike, what: str = "pose") -> Array:
    """The poses as float64 [..., 4, 4]; CodecError naming the first row that is not rigid."""
    p = checked(what, poses, 4, 4)
    require_rotation(p[..., :3, :3], what)
    bad = (p[..., 3, :] != (0.0, 0.0, 0.0, 1.0)).any(axis=-1)
    if bad.any():
        raise CodecError(
            f"{what} {first_row(bad)} has a wrong bottom row",
            seen=p[..., 3, :][bad][0].tolist() if p.ndim > 2 else p[3].tolist(),
            expected="[0, 0, 0, 1]",
        )
    return p


def inverse(poses: ArrayLike) -> Array:
    """T^-1 = [R^-1, -R^-1 p; 0, 1] of rigid poses [..., 4, 4].

    Stored rotations are orthonormal to 1e-7 only (float32), and R^T would leave that in every delta: enough
    to see where a normalizer is narrow. One Newton step from R^T leaves its square.
    """
    p = checked("pose", poses, 4, 4)
    r = p[..., :3, :3]
    rt = np.swapaxes(r, -1, -2)
    back = 2.0 * rt - rt @ r @ rt
    return _assemble(back, -_rotate(back, p[..., :3, 3]))


def compose(first: ArrayLike, *others: ArrayLike) -> Array:
    """T_1 @ T_2 @ ...: each later pose is seen from the body frame of the one before it."""
    out = checked("pose", first, 4, 4)
    for other in others:
        out = out @ checked("pose", other, 4, 4)
    return out


def reframe_poses(poses: ArrayLike, offset: ArrayLike) -> Array:
    """T -> T F: the same motion told by a body frame that lies at F [4, 4] in the old one."""
    return compose(poses, require_pose(offset, "offset"))


def reframe_deltas(deltas: ArrayLike, offset: ArrayLike) -> Array:
    """dT -> F^-1 dT F: what `reframe_poses` does to the deltas of the same motion."""
    f = require_pose(offset, "offset")
    return compose(inverse(f), deltas, f)


def rotate_body_frame(poses: ArrayLike, rotation: ArrayLike) -> Array:
    """R -> R C with C [3, 3]; positions stay."""
    return reframe_poses(poses, pose_from_matrix(rotation))


def deltas_framewise_from_poses(poses: ArrayLike) -> Array:
    """[..., T + 1, 4, 4] -> [..., T, 4, 4], dT_i = T_i^-1 T_(i+1)."""
    p = _trajectory(poses)
    return inverse(p[..., :-1, :, :]) @ p[..., 1:, :, :]


def deltas_anchored_from_poses(poses: ArrayLike) -> Array:
    """[..., T + 1, 4, 4] -> [..., T, 4, 4], dT_i = T_0^-1 T_(i+1)."""
    p = _trajectory(poses)
    return inverse(p[..., :1, :, :]) @ p[..., 1:, :, :]


def poses_from_deltas_framewise(start: ArrayLike, deltas: ArrayLike) -> Array:
    """Integrates a chunk: start [..., 4, 4], deltas [..., T, 4, 4] -> poses [..., T + 1, 4, 4] with start.

    The chain is a parallel prefix product: log2(T) batched multiplications instead of T single ones.
    """
    d = checked("delta", deltas, 4, 4)
    s = checked("start pose", start, 4, 4)
    batch = np.broadcast_shapes(s.shape[:-2], d.shape[:-3])
    poses = np.empty((*batch, d.shape[-3] + 1, 4, 4))
    poses[..., 0, :, :] = s
    poses[..., 1:, :, :] = d
    reach = 1
    while reach < poses.shape[-3]:
        # Invariant: poses[i] holds the product of the last `reach` factors up to i.
        poses[..., reach:, :, :] = poses[..., :-reach, :, :] @ poses[..., reach:, :, :]
        reach *= 2
    return poses


def poses_from_deltas_anchored(start: ArrayLike, deltas: ArrayLike) -> Array:
    """start [..., 4, 4], deltas [..., T, 4, 4] -> poses [..., T + 1, 4, 4], start included."""
    d = checked("delta", deltas, 4, 4)
    s = checked("start pose", start, 4, 4)[..., None, :, :]
    after = s @ d
    return np.concatenate([np.broadcast_to(s, (*after.shape[:-3], 1, 4, 4)), after], axis=-3)


def pose9_from_pose(poses: ArrayLike, translation_scale: float = 1.0) -> Array:
    """[..., 4, 4] -> [..., 9] = [scale * p, column 0, column 1]. Poses and deltas alike."""
    p = checked("pose", poses, 4, 4)
    out = np.empty((*p.shape[:-2], POSE9))
    np.multiply(p[..., :3, 3], translation_scale, out=out[..., :3])
    out[..., 3:6], out[..., 6:] = p[..., :3, 0], p[..., :3, 1]
    return out


def pose_from_pose9(pose9: ArrayLike, translation_scale: float = 1.0) -> Array:
    """[..., 9] -> rigid [..., 4, 4]; positions are divided by the scale, rot6d to the nearest rotation."""
    v = checked("pose9", pose9, POSE9)
    return _assemble(matrix_from_rot6d(v[..., 3:]), v[..., :3] / translation_scale)


def pose_vector_from_pose(poses: ArrayLike, form: str, translation_scale: float = 1.0) -> Array:
    """[..., 4, 4] -> [scale * p (3), rotation in `form`], `form` one of rotations.FORMS."""
    p = checked("pose", poses, 4, 4)
    rotation = rotation_form(form).from_matrix(p[..., :3, :3])
    return np.concatenate([p[..., :3, 3] * translation_scale, rotation], axis=-1)


def pose_from_pose_vector(vector: ArrayLike, form: str, translation_scale: float = 1.0) -> Array:
    """[scale * p (3), rotation in `form`] -> rigid [..., 4, 4]."""
    known = rotation_form(form)
    v = checked(f"pose vector (position, {form})", vector, 3 + known.width)
    return _assemble(known.to_matrix(v[..., 3:]), v[..., :3] / translation_scale)


def _assemble(matrix: Array, position: Array) -> Array:
    batch = np.broadcast_shapes(matrix.shape[:-2], position.shape[:-1])
    pose = np.zeros((*batch, 4, 4))
    pose[..., :3, :3], pose[..., :3, 3], pose[..., 3, 3] = matrix, position, 1.0
    return pose


def _rotate(matrix: Array, vector: Array) -> Array:
    rotated: Array = (matrix @ vector[..., None])[..., 0]
    return rotated


def _trajectory(poses: ArrayLike) -> Array:
    p = require_pose(poses)
    if p.ndim < 3 or p.shape[-3] < 2:
        raise CodecError("deltas need at least two poses", seen=list(p.shape), expected="[..., T + 1, 4, 4]")
    return p

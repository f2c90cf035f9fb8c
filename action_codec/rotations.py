"""Rotations in every form a robot or model speaks; the 3x3 matrix is the hub and float64 the only precision.

Conventions (each has a test that breaks it):
    matrix      [..., 3, 3], columns are the body axes seen from the parent frame
    rot6d       [..., 6], column 0 then column 1 of the matrix; the identity is [1, 0, 0, 0, 1, 0]
    rot9d       [..., 9], the matrix row by row (another order than rot6d)
    quat_xyzw   [..., 4], scalar last; quat_wxyz: scalar first; both signs read, w >= 0 written
    euler_xyz   [..., 3] rad, extrinsic: R = Rz(yaw) @ Ry(pitch) @ Rx(roll), vector = [roll, pitch, yaw]
    axis_angle  [..., 3] rad, unit axis times angle, angle in [0, pi]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from wamserve.action_codec.arrays import Array, checked, first_row
from wamserve.action_codec.errors import CodecError

# rot6d columns whose cross product is below this share of their mean square length span no plane.
DEGENERATE = 1e-6
# Largest |R^T R - I| still called a rotation: float32 datasets reach 1e-6.
ROTATION_TOLERANCE = 1e-4
IDENTITY_ROT6D = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def matrix_from_rot6d(rot6d: ArrayLike) -> Array:
    """The rotation nearest to [c0 | c1 | c0 x c1] in the Frobenius norm: [..., 6] -> [..., 3, 3].

    This is U V^T of the SVD. As c0 x c1 is orthogonal to both columns it has the closed form
    [c0 c1] (C^T C)^(-1/2) and their cross product. It is not Gram-Schmidt: both columns share the correction.
    Raises CodecError naming the first row whose columns are zero or collinear.
    """
    x = checked("rot6d", rot6d, 6)
    c0, c1 = x[..., :3], x[..., 3:]
    g00 = np.einsum("...i,...i->...", c0, c0)
    g01 = np.einsum("...i,...i->...", c0, c1)
    g11 = np.einsum("...i,...i->...", c1, c1)
    normal = _cross(c0, c1)
    area = np.sqrt(np.einsum("...i,...i->...", normal, normal))
    trace = g00 + g11
    usable = area > DEGENERATE * 0.5 * trace  # False for zeros and for overflow
    if not usable.all():
        bad = ~usable
        raise CodecError(
            f"rot6d {first_row(bad)} spans no plane, so it is no rotation",
            seen=x[bad][0].tolist() if x.ndim > 1 else x.tolist(),
            expected="two columns that are neither zero nor parallel",
        )
    scale = area * np.sqrt(trace + 2.0 * area)
    a, b, d = ((g11 + area) / scale)[..., None], (g01 / scale)[..., None], ((g00 + area) / scale)[..., None]
    matrix = np.empty((*x.shape[:-1], 3, 3))
    matrix[..., 0] = a * c0 - b * c1
    matrix[..., 1] = d * c1 - b * c0
    matrix[..., 2] = normal / area[..., None]
    return matrix


def rot6d_from_matrix(matrix: ArrayLike) -> Array:
    """Column 0, then column 1: [..., 3, 3] -> [..., 6]."""
    m = checked("matrix", matrix, 3, 3)
    out = np.empty((*m.shape[:-2], 6))
    out[..., :3], out[..., 3:] = m[..., 0], m[..., 1]
    return out


def matrix_from_rot9d(rot9d: ArrayLike) -> Array:
    """[..., 9] row by row -> the nearest rotation [..., 3, 3]. Raises CodecError where it is singular."""
    x = checked("rot9d", rot9d, 9)
    u, singular, vt = np.linalg.svd(x.reshape(*x.shape[:-1], 3, 3))
    sign = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    # Without a clear third direction the sign of the determinant is an accident.
    bad = ~(singular[..., 1] + sign * singular[..., 2] > DEGENERATE * singular[..., 0])
    if bad.any():
        raise CodecError(
            f"rot9d {first_row(bad)} has no nearest rotation", expected="a matrix near a rotation"
        )
    u[..., :, 2] *= sign[..., None]
    nearest: Array = u @ vt
    return nearest


def rot9d_from_matrix(matrix: ArrayLike) -> Array:
    """Row by row: [..., 3, 3] -> [..., 9]."""
    m = checked("matrix", matrix, 3, 3)
    return m.reshape(*m.shape[:-2], 9).copy()


def matrix_from_quat_xyzw(quat_xyzw: ArrayLike) -> Array:
    """[..., 4] of any non-zero length -> [..., 3, 3]. Raises CodecError naming a row of zero length."""
    q = checked("quat_xyzw", quat_xyzw, 4)
    return _matrix_from_quat(q, "quat_xyzw")


def matrix_from_quat_wxyz(quat_wxyz: ArrayLike) -> Array:
    """[..., 4] of any non-zero length -> [..., 3, 3]. Raises CodecError naming a row of zero length."""
    q = checked("quat_wxyz", quat_wxyz, 4)
    return _matrix_from_quat(quat_xyzw_from_quat_wxyz(q), "quat_wxyz")


def quat_xyzw_from_matrix(matrix: ArrayLike) -> Array:
    """Rotations [..., 3, 3] -> unit [..., 4] with w >= 0, by their largest component (Shepperd)."""
    m = require_rotation(matrix)
    m00, m11, m22 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    # Each row of `candidates` is 4 q_k q for k = x, y, z, w; the largest q_k is well conditioned.
    candidates = np.empty((*m.shape[:-2], 4, 4))
    candidates[..., 0, 0] = 1.0 + m00 - m11 - m22
    candidates[..., 1, 1] = 1.0 - m00 + m11 - m22
    candidates[..., 2, 2] = 1.0 - m00 - m11 + m22
    candidates[..., 3, 3] = 1.0 + m00 + m11 + m22
    candidates[..., 0, 1] = candidates[..., 1, 0] = m[..., 1, 0] + m[..., 0, 1]
    candidates[..., 0, 2] = candidates[..., 2, 0] = m[..., 2, 0] + m[..., 0, 2]
    candidates[..., 1, 2] = candidates[..., 2, 1] = m[..., 2, 1] + m[..., 1, 2]
    candidates[..., 0, 3] = candidates[..., 3, 0] = m[..., 2, 1] - m[..., 1, 2]
    candidates[..., 1, 3] = candidates[..., 3, 1] = m[..., 0, 2] - m[..., 2, 0]
    candidates[..., 2, 3] = candidates[..., 3, 2] = m[..., 1, 0] - m[..., 0, 1]
    best = np.argmax(np.diagonal(candidates, axis1=-2, axis2=-1), axis=-1)
    q: Array = np.take_along_axis(candidates, best[..., None, None], axis=-2)[..., 0, :]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    return np.where(q[..., 3:] < 0.0, -q, q)


def quat_wxyz_from_matrix(matrix: ArrayLike) -> Array:
    """Rotations [..., 3, 3] -> unit [..., 4], scalar first, w >= 0."""
    return quat_wxyz_from_quat_xyzw(quat_xyzw_from_matrix(matrix))


def quat_xyzw_from_quat_wxyz(quat_wxyz: ArrayLike) -> Array:
    return checked("quat_wxyz", quat_wxyz, 4)[..., [1, 2, 3, 0]]


def quat_wxyz_from_quat_xyzw(quat_xyzw: ArrayLike) -> Array:
    return checked("quat_xyzw", quat_xyzw, 4)[..., [3, 0, 1, 2]]


def matrix_from_euler_xyz(euler_xyz: ArrayLike) -> Array:
    """Extrinsic [roll, pitch, yaw] rad [..., 3] -> Rz(yaw) @ Ry(pitch) @ Rx(roll) [..., 3, 3]."""
    e = checked("euler_xyz", euler_xyz, 3)
    c, s = np.cos(e), np.sin(e)
    cx, cy, cz = c[..., 0], c[..., 1], c[..., 2]
    sx, sy, sz = s[..., 0], s[..., 1], s[..., 2]
    m = np.empty((*e.shape[:-1], 3, 3))
    m[..., 0, 0], m[..., 0, 1], m[..., 0, 2] = cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx
    m[..., 1, 0], m[..., 1, 1], m[..., 1, 2] = sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx
    m[..., 2, 0], m[..., 2, 1], m[..., 2, 2] = -sy, cy * sx, cy * cx
    return m


def euler_xyz_from_matrix(matrix: ArrayLike) -> Array:
    """Rotations -> [roll, pitch, yaw] rad, pitch in [-pi/2, pi/2]. At pitch = +-pi/2 yaw is 0 by choice."""
    m = require_rotation(matrix)
    horizontal = np.hypot(m[..., 0, 0], m[..., 1, 0])
    locked = horizontal < 1e-7
    roll = np.where(locked, np.arctan2(-m[..., 1, 2], m[..., 1, 1]), np.arctan2(m[..., 2, 1], m[..., 2, 2]))
    pitch = np.arctan2(-m[..., 2, 0], horizontal)
    yaw = np.where(locked, 0.0, np.arctan2(m[..., 1, 0], m[..., 0, 0]))
    return np.stack([roll, pitch, yaw], axis=-1)


def matrix_from_axis_angle(axis_angle: ArrayLike) -> Array:
    """Rotation vectors [..., 3] rad -> [..., 3, 3]; exact for the zero vector, accurate for tiny ones."""
    v = checked("axis_angle", axis_angle, 3)
    angle = np.sqrt(np.einsum("...i,...i->...", v, v))
    a = np.sinc(angle / np.pi)  # sin(t) / t
    b = 0.5 * np.sinc(angle / (2.0 * np.pi)) ** 2  # (1 - cos(t)) / t^2
    x, y, z = v[..., 0], v[..., 1], v[..., 2]
    m = np.empty((*v.shape[:-1], 3, 3))
    m[..., 0, 0], m[..., 1, 1], m[..., 2, 2] = (
        1.0 - b * (y * y + z * z),
        1.0 - b * (x * x + z * z),
        1.0 - b * (x * x + y * y),
    )
    m[..., 0, 1], m[..., 1, 0] = b * x * y - a * z, b * x * y + a * z
    m[..., 0, 2], m[..., 2, 0] = b * x * z + a * y, b * x * z - a * y
    m[..., 1, 2], m[..., 2, 1] = b * y * z - a * x, b * y * z + a * x
    return m


def axis_angle_from_matrix(matrix: ArrayLike) -> Array:
    """Rotations [..., 3, 3] -> rotation vectors [..., 3] rad, length in [0, pi]; the identity gives zeros."""
    q = quat_xyzw_from_matrix(matrix)
    length = np.sqrt(np.einsum("...i,...i->...", q[..., :3], q[..., :3]))
    angle = 2.0 * np.arctan2(length, q[..., 3])
    # angle / length -> 2 as the rotation vanishes; below 1e-150 the ratio itself would be 0/0.
    tiny = length < 1e-150
    ratio = np.where(tiny, 2.0, angle / np.where(tiny, 1.0, length))
    return q[..., :3] * ratio[..., None]


def snap_tiny_axis_angle(axis_angle: ArrayLike, below: float = 1e-6) -> Array:
    """Rotation vectors shorter than `below` rad become exact zeros; the others are unchanged (copy).

    Controllers such as robosuite's OSC treat an exactly zero rotation as "keep the goal", and rot6d round
    trips in float32 turn zeros into 1e-8.
    """
    v = checked("axis_angle", axis_angle, 3)
    return np.where(np.linalg.norm(v, axis=-1, keepdims=True) < below, 0.0, v)


def require_rotation(matrix: ArrayLike, what: str = "matrix", tolerance: float = ROTATION_TOLERANCE) -> Array:
    """The matrices as float64 [..., 3, 3]; CodecError naming the first row that is no rotation."""
    m = checked(what, matrix, 3, 3)
    error, determinant = _orthogonality(m)
    bad = (error > tolerance) | (determinant <= 0.0)
    if bad.any():
        index = tuple(np.argwhere(np.atleast_1d(bad))[0])
        raise CodecError(
            f"{what} {first_row(bad)} is not a rotation",
            seen=f"max |R^T R - I| = {np.atleast_1d(error)[index]:.3g}, "
            f"det R = {np.atleast_1d(determinant)[index]:.3g}",
            expected=f"at most {tolerance:g}, and det R = +1",
        )
    return m


def angle_between(a: ArrayLike, b: ArrayLike) -> Array:
    """Geodesic angle in rad between rotations [..., 3, 3]: by atan2, so equal rotations give 0, not 1e-4."""
    m = np.swapaxes(checked("matrix", a, 3, 3), -1, -2) @ checked("matrix", b, 3, 3)
    x, y, z = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    return np.asarray(np.arctan2(np.sqrt(x * x + y * y + z * z), trace - 1.0))


def interpolate_matrix(a: ArrayLike, b: ArrayLike, weight: ArrayLike) -> Array:
    """The point a share `weight` [...] along the geodesic from a to b, all [..., 3, 3]."""
    start = checked("matrix", a, 3, 3)
    step = axis_angle_from_matrix(np.swapaxes(start, -1, -2) @ checked("matrix", b, 3, 3))
    moved: Array = start @ matrix_from_axis_angle(step * checked("weight", weight)[..., None])
    return moved


def mean_matrix(matrices: ArrayLike, weights: ArrayLike) -> Array:
    """Weighted geodesic mean over the first axis: [K, ..., 3, 3], weights [K, ...] -> [..., 3, 3].

    Minimises the sum of w_k angle^2 (Karcher), from the heaviest member, by at most 20 Gauss-Newton steps;
    for two members it is the geodesic point. The mean of rotations half a turn apart is not unique.
    """
    members = require_rotation(matrices)
    share = checked("weights", weights, *members.shape[:-2])
    share = share / share.sum(axis=0)
    heaviest = np.argmax(share, axis=0)[None, ..., None, None]
    mean: Array = np.take_along_axis(members, heaviest, axis=0)[0]
    for _ in range(20):
        tangent = axis_angle_from_matrix(np.swapaxes(mean, -1, -2) @ members)
        step = np.einsum("k...,k...i->...i", share, tangent)
        mean = mean @ matrix_from_axis_angle(step)
        if np.abs(step).max(initial=0.0) < 1e-12:
            break
    return mean


@dataclass(frozen=True)
class RotationForm:
    """One way to write a rotation as a vector."""

    width: int
    from_matrix: Callable[[ArrayLike], Array]
    to_matrix: Callable[[ArrayLike], Array]


FORMS: dict[str, RotationForm] = {
    "rot6d": RotationForm(6, rot6d_from_matrix, matrix_from_rot6d),
    "rot9d": RotationForm(9, rot9d_from_matrix, matrix_from_rot9d),
    "quat_xyzw": RotationForm(4, quat_xyzw_from_matrix, matrix_from_quat_xyzw),
    "quat_wxyz": RotationForm(4, quat_wxyz_from_matrix, matrix_from_quat_wxyz),
    "euler_xyz": RotationForm(3, euler_xyz_from_matrix, matrix_from_euler_xyz),
    "axis_angle": RotationForm(3, axis_angle_from_matrix, matrix_from_axis_angle),
}


def rotation_form(name: str) -> RotationForm:
    """The form called `name`. Raises CodecError listing the known ones."""
    if name not in FORMS:
        raise CodecError(f"rotation form {name!r} is unknown", expected=", ".join(FORMS))
    return FORMS[name]


def _matrix_from_quat(q: Array, what: str) -> Array:
    norm2 = np.einsum("...i,...i->...", q, q)
    bad = ~(norm2 > 1e-20)
    if bad.any():
        raise CodecError(
            f"{what} {first_row(bad)} has zero length, so it is no rotation", seen="[0, 0, 0, 0]"
        )
    x, y, z, w = q[..., 0], q[..., 1], q[..., 2], q[..., 3]
    s = 2.0 / norm2
    m = np.empty((*q.shape[:-1], 3, 3))
    m[..., 0, 0], m[..., 0, 1], m[..., 0, 2] = (
        1 - s * (y * y + z * z),
        s * (x * y - z * w),
        s * (x * z + y * w),
    )
    m[..., 1, 0], m[..., 1, 1], m[..., 1, 2] = (
        s * (x * y + z * w),
        1 - s * (x * x + z * z),
        s * (y * z - x * w),
    )
    m[..., 2, 0], m[..., 2, 1], m[..., 2, 2] = (
        s * (x * z - y * w),
        s * (y * z + x * w),
        1 - s * (x * x + y * y),
    )
    return m


def _cross(a: Array, b: Array) -> Array:
    out = np.empty(np.broadcast_shapes(a.shape, b.shape))
    out[..., 0] = a[..., 1] * b[..., 2] - a[..., 2] * b[..., 1]
    out[..., 1] = a[..., 2] * b[..., 0] - a[..., 0] * b[..., 2]
    out[..., 2] = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    return out


def _orthogonality(m: Array) -> tuple[Array, Array]:
    """Per row max |R^T R - I| and det R."""
    error = np.abs(np.swapaxes(m, -1, -2) @ m - np.eye(3)).max(axis=(-2, -1))
    determinant = np.einsum("...i,...i->...", _cross(m[..., 0], m[..., 1]), m[..., 2])
    return error, determinant

"""Recorded robot motion through the codec: the reference's rows within tolerance, wrong conventions caught.

Each convention is one replaceable step of `Codec`. The right steps meet the goldens; `BROKEN` swaps one step
at a time, and each swap must miss them by at least ten tolerances. A wrong step used in both directions still
round trips, which is why goldens and not round trips do the judging.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from wamserve.action_codec import se3
from wamserve.action_codec.actions import ModelActions, RawActions
from wamserve.action_codec.gripper import (
    FRACTION_ONE_IS_CLOSED,
    FRACTION_ONE_IS_OPEN,
    open_fraction_from_gripper,
)
from wamserve.action_codec.normalizers import normalizer_from_stats, scale_normalizer
from wamserve.action_codec.rotations import (
    angle_between,
    matrix_from_euler_xyz,
    matrix_from_quat_wxyz,
    matrix_from_quat_xyzw,
    matrix_from_rot6d,
    rot6d_from_matrix,
)

RAW_TOLERANCE = 5e-6  # raw units, against float32 goldens
POSE_TOLERANCE = 2e-5  # m
ANGLE_TOLERANCE = 0.01  # deg
BLOCKS = {
    "droid_lerobot": {"eef": (0, 9)},
    "bridge_orig_lerobot": {"eef": (0, 9)},
    "umi": {"eef": (0, 9)},
    "umi_native60hz": {"eef": (0, 9)},
    "robomind-franka": {"eef": (0, 9)},
    "robomind-franka_native30hz": {"eef": (0, 9)},
    "hand_pose": {"camera": (0, 9), "right_wrist": (9, 18), "left_wrist": (33, 42)},
}
CASES = [(name, block) for name, blocks in BLOCKS.items() for block in blocks]


@dataclass(frozen=True)
class Codec:
    """The steps from recorded columns to action rows and back, each one a convention."""

    matrix: Any = matrix_from_euler_xyz
    rot6d: Any = rot6d_from_matrix
    matrix_of_rot6d: Any = matrix_from_rot6d
    frame: Any = np.asarray
    deltas: Any = se3.deltas_framewise_from_poses
    integrate: Any = se3.poses_from_deltas_framewise
    gripper: Any = FRACTION_ONE_IS_CLOSED
    gripper_offset: int = 0
    stride: int = 1

    def encode(self, position, rotation, gripper, turn):
        """Columns of N + 1 recorded rows -> [N, 10]."""
        rows = slice(None, None, self.stride)
        poses = se3.pose_from_matrix(self.matrix(rotation[rows]), position[rows])
        deltas = self.deltas(se3.rotate_body_frame(poses, self.frame(turn)))
        opened = open_fraction_from_gripper(gripper[rows], self.gripper)
        opened = opened[self.gripper_offset : len(deltas) + self.gripper_offset]
        return np.c_[deltas[:, :3, 3], self.rot6d(deltas[:, :3, :3]), opened]

    def decode(self, start, rows):
        """[N, 9+] -> poses [N + 1, 4, 4]."""
        deltas = se3.pose_from_matrix(self.matrix_of_rot6d(rows[:, 3:9]), rows[:, :3])
        return self.integrate(start, deltas)


def integrate_in_world(start, deltas):
    poses = [np.asarray(start, float)]
    for delta in deltas:
        poses.append(delta @ poses[-1])
    return np.stack(poses)


def gram_schmidt(rot6d):
    c0 = rot6d[:, :3] / np.linalg.norm(rot6d[:, :3], axis=1, keepdims=True)
    c1 = rot6d[:, 3:] - (rot6d[:, 3:] * c0).sum(1, keepdims=True) * c0
    c1 /= np.linalg.norm(c1, axis=1, keepdims=True)
    return np.stack([c0, c1, np.cross(c0, c1)], axis=-1)


def intrinsic(euler):
    return np.swapaxes(matrix_from_euler_xyz(-np.asarray(euler)), -1, -2)


def deltas_of_inverse_poses(poses):
    return se3.deltas_framewise_from_poses(se3.inverse(poses))


def integrate_inverse_poses(start, deltas):
    return se3.inverse(se3.poses_from_deltas_framewise(se3.inverse(start), deltas))


def matrix_of_interleaved(vector):
    return matrix_from_rot6d(vector.reshape(-1, 3, 2).transpose(0, 2, 1).reshape(-1, 6))


BROKEN = {
    "rot6d rows for columns": {
        "rot6d": lambda m: m[:, :2].reshape(-1, 6),
        "matrix_of_rot6d": lambda v: np.swapaxes(matrix_from_rot6d(v), -1, -2),
    },
    "rot6d columns interleaved": {
        "rot6d": lambda m: m[:, :, :2].reshape(-1, 6),
        "matrix_of_rot6d": matrix_of_interleaved,
    },
    "frame transposed": {"frame": np.transpose},
    "frame omitted": {"frame": lambda turn: np.eye(3)},
    "deltas in the world frame": {
        "deltas": lambda p: p[1:] @ se3.inverse(p[:-1]),
        "integrate": integrate_in_world,
    },
    "deltas anchored to the first pose": {
        "deltas": se3.deltas_anchored_from_poses,
        "integrate": se3.poses_from_deltas_anchored,
    },
    "deltas of the inverse poses": {
        "deltas": deltas_of_inverse_poses,
        "integrate": integrate_inverse_poses,
    },
    "euler intrinsic for extrinsic": {"matrix": intrinsic},
    "euler angles reversed": {"matrix": lambda e: matrix_from_euler_xyz(e[:, ::-1])},
    "gripper flipped": {"gripper": FRACTION_ONE_IS_OPEN},
    "gripper one step late": {"gripper_offset": 1},
    "every second row": {"stride": 2},
}
DECODABLE = [name for name, steps in BROKEN.items() if {"rot6d", "integrate"} & set(steps)]
TRACKS = [("av", "forward"), ("av", "left"), ("av", "right"), ("camera_pose", "traj")]


@pytest.fixture(scope="module")
def goldens(shared):
    return {path.stem: np.load(path) for path in (shared / "golden/actions").glob("*.npz")}


def droid(golden):
    cartesian = golden["raw_cartesian_position"]
    return cartesian[:, :3], cartesian[:, 3:], golden["raw_action_gripper"], golden["to_opencv"]


def decode_error(poses, golden):
    metres = np.abs(poses[:, :3, 3] - golden[:, :3, 3]).max()
    return metres, np.rad2deg(angle_between(poses[:, :3, :3], golden[:, :3, :3])).max()


@pytest.mark.parametrize(("name", "block"), CASES)
def test_recorded_poses_encode_to_the_reference_rows_and_decode_back(goldens, name, block):
    golden = goldens[name]
    poses, columns = golden[f"{block}_poses_abs"], slice(*BLOCKS[name][block])
    rows = se3.pose9_from_pose(se3.deltas_framewise_from_poses(poses))
    np.testing.assert_allclose(rows, golden["action_raw"][:, columns], atol=RAW_TOLERANCE)
    decoded = se3.poses_from_deltas_framewise(poses[0], se3.pose_from_pose9(golden["action_raw"][:, columns]))
    metres, degrees = decode_error(decoded, golden[f"{block}_poses_dec"])
    assert metres < POSE_TOLERANCE and degrees < ANGLE_TOLERANCE


@pytest.mark.parametrize("name", BLOCKS)
def test_recorded_rows_normalize_to_the_reference_and_back(goldens, name):
    golden = goldens[name]
    stats = {"q01": golden["q01"], "q99": golden["q99"]}
    raw = golden["action_raw"]
    normalizer = normalizer_from_stats("quantile", stats)
    tolerance = 1e-4 + 4 * np.spacing(np.abs(raw)) / normalizer.half_width
    assert (np.abs(normalizer.model_from_raw(raw) - golden["action_norm"]) <= tolerance).all()
    clamped = normalizer_from_stats("quantile", stats, clamp=True).model_from_raw(raw)
    assert (np.abs(clamped - golden["action_norm_clamped"]) <= tolerance).all()
    again = normalizer.to_raw(ModelActions(golden["action_norm"])).values
    np.testing.assert_allclose(again, raw, atol=RAW_TOLERANCE)


@pytest.mark.parametrize(("name", "track"), TRACKS)
def test_scaled_trajectories_integrate_to_the_reference_poses(goldens, name, track):
    golden, scale = goldens[name], 1.35 if name == "av" else 1.0
    model, expected = golden[f"{track}_model_action"], golden[f"{track}_poses_abs"]
    metres = scale_normalizer([scale] * 3 + [1.0] * 6).to_raw(ModelActions(model))
    np.testing.assert_allclose(metres.values, golden[f"{track}_delta_metres"], atol=RAW_TOLERANCE)
    poses = se3.poses_from_deltas_framewise(expected[0], se3.pose_from_pose9(metres.values))
    distance, degrees = decode_error(poses, expected)
    assert distance < POSE_TOLERANCE and degrees < ANGLE_TOLERANCE
    again = se3.pose9_from_pose(se3.deltas_framewise_from_poses(expected), translation_scale=scale)
    np.testing.assert_allclose(again, golden[f"{track}_reencoded_model_action"], atol=2e-5)
    # Multiplying where the reference divides moves the end of the path by metres.
    wrong = se3.poses_from_deltas_framewise(expected[0], se3.pose_from_pose9(model, 1 / scale))
    assert name != "av" or decode_error(wrong, expected)[0] > 1.0


def test_the_right_conventions_meet_the_droid_golden(goldens):
    golden, codec = goldens["droid_lerobot"], Codec()
    rows = codec.encode(*droid(golden))
    np.testing.assert_allclose(rows, golden["action_raw"], atol=RAW_TOLERANCE)
    metres, degrees = decode_error(codec.decode(golden["eef_poses_abs"][0], rows), golden["eef_poses_abs"])
    assert metres < POSE_TOLERANCE and degrees < ANGLE_TOLERANCE


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_encoding_convention_misses_the_golden(goldens, name):
    golden = goldens["droid_lerobot"]
    rows = replace(Codec(), **BROKEN[name]).encode(*droid(golden))
    error = np.abs(rows - golden["action_raw"][: len(rows)]).max()
    assert error > 10 * RAW_TOLERANCE, f"{name} went unnoticed: {error}"


@pytest.mark.parametrize("name", DECODABLE)
def test_a_broken_decoding_convention_misses_the_golden_although_it_round_trips(goldens, name):
    golden, codec = goldens["droid_lerobot"], replace(Codec(), **BROKEN[name])
    start, expected = golden["eef_poses_abs"][0], golden["eef_poses_abs"]
    metres, _ = decode_error(codec.decode(start, golden["action_raw"]), expected)
    assert metres > 10 * POSE_TOLERANCE, f"{name} went unnoticed: {metres} m"
    there_and_back = codec.decode(start, codec.encode(*droid(golden)))
    assert decode_error(there_and_back, expected)[0] < POSE_TOLERANCE


def test_gram_schmidt_is_not_the_nearest_rotation(goldens):
    golden = goldens["codec_unit"]
    noisy, expected = golden["noisy_rot6d"].astype(float), golden["noisy_rot6d_svd_matrix"]
    wrong = gram_schmidt(noisy)
    np.testing.assert_allclose(wrong, golden["noisy_rot6d_gram_schmidt_matrix"], atol=1e-5)
    assert np.rad2deg(angle_between(wrong, expected)).max() > 1.0
    assert np.rad2deg(angle_between(matrix_from_rot6d(noisy), expected)).max() < ANGLE_TOLERANCE


def test_a_swapped_quaternion_order_misses_the_umi_golden(goldens):
    golden = goldens["umi"]
    camera, offset = golden["raw_camera_traj_xyz_wxyz"], golden["eef_in_camera"]
    for read, right in ((matrix_from_quat_wxyz, True), (matrix_from_quat_xyzw, False)):
        poses = se3.pose_from_matrix(read(camera[:, 3:]), camera[:, :3])
        rows = se3.pose9_from_pose(se3.deltas_framewise_from_poses(se3.reframe_poses(poses, offset)))
        error = np.abs(rows - golden["action_raw"][:, :9]).max()
        assert error < RAW_TOLERANCE if right else error > 10 * RAW_TOLERANCE


def test_a_forgotten_tool_offset_misses_the_umi_golden(goldens):
    golden = goldens["umi"]
    rows = se3.pose9_from_pose(se3.deltas_framewise_from_poses(golden["camera_poses_abs"]))
    assert np.abs(rows - golden["action_raw"][:, :9]).max() > 10 * RAW_TOLERANCE


def test_native_rate_rows_miss_the_golden_of_the_strided_ones(goldens):
    native, strided = goldens["robomind-franka_native30hz"], goldens["robomind-franka"]
    pose = native["raw_end_effector"]
    gripper = native["raw_action_joint"][:, 7]
    for stride, right in ((3, True), (1, False)):
        rows = Codec(stride=stride).encode(pose[:, :3], pose[:, 3:], gripper, native["to_opencv"])
        count = min(len(rows), len(strided["action_raw"]))
        error = np.abs(rows[:count] - strided["action_raw"][:count]).max()
        assert error < RAW_TOLERANCE if right else error > 10 * RAW_TOLERANCE


def test_statistics_of_another_robot_with_the_same_domain_id_miss_the_golden(goldens):
    golden, other = goldens["droid_lerobot"], goldens["robomind-franka"]
    normalizer = normalizer_from_stats("quantile", {"q01": other["q01"], "q99": other["q99"]})
    model = normalizer.to_model(RawActions(golden["action_raw"])).values
    assert np.abs(model[:, :3] - golden["action_norm"][:, :3]).max() > 0.1
    # Both are 10 wide, so no width check can tell them apart, but translations shrink four times.
    own = normalizer_from_stats("quantile", {"q01": golden["q01"], "q99": golden["q99"]})
    assert (normalizer.half_width / own.half_width)[:3].max() > 4


def test_the_clamp_of_droid_costs_at_most_its_stated_bound(goldens):
    golden = goldens["droid_lerobot"]
    raw = golden["action_raw"].astype(float)
    normalizer = normalizer_from_stats(
        "quantile_rot", {"q01": golden["q01"], "q99": golden["q99"]}, clamp=True
    )
    again = normalizer.to_raw(normalizer.to_model(RawActions(raw))).values
    outside = np.maximum(np.maximum(raw - golden["q99"], golden["q01"] - raw), 0.0)
    np.testing.assert_allclose(np.abs(again - raw), outside, atol=1e-12)
    assert 0.01 < outside.max() < 0.011  # the reference loses 0.0106 on this episode

"""Every stored action vector of real episodes is reproduced from raw columns, by contract alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from wamserve.action_codec import rotations, se3
from wamserve.action_codec.actions import ModelActions, RawActions
from wamserve.action_codec.gripper import SIGN_ONE_IS_CLOSED, gripper_from_gripper
from wamserve.embodiments.adapters import commands, decode_poses, encode, encode_chunk, state_row
from wamserve.embodiments.contract import load, read_stats
from wamserve.embodiments.idle import idle_rows
from wamserve.embodiments.units import chunk_normalizer


def hand_columns(data) -> dict[str, np.ndarray]:
    columns = {
        "observation.state.camera_position": data["raw_camera_position"],
        "observation.state.camera_rotation": data["raw_camera_rotation_xyzw"],
    }
    for side in ("right", "left"):
        points = np.zeros((len(data["raw_camera_position"]), 21, 3))
        points[:, data["keypoint_idx"]] = data[f"raw_{side}_keypoints_cam"]
        turns = np.zeros((len(points), 84))
        turns[:, :4] = data[f"raw_{side}_wrist_rot_xyzw"]
        columns[f"observation.state.hand_{side}_cam"] = points.reshape(-1, 63)
        columns[f"observation.state.hand_{side}_cam_rotation"] = turns
    return columns


COLUMNS = {
    "bridge_orig_lerobot": lambda d: {"observation.state": d["raw_state"], "action": d["raw_action"]},
    "umi": lambda d: {
        "observation.state.right_main_camera_trajectory_xyz_wxyz": d["raw_camera_traj_xyz_wxyz"],
        "observation.state.right_gripper_width_m": d["raw_gripper_width_m"],
    },
    "droid_lerobot_midtrain": lambda d: {
        "observation.state.cartesian_position": d["raw_cartesian_position"],
        "observation.state.gripper_position": d["raw_state_gripper"],
        "observation.state.joint_positions": d["raw_state_joint"],
        "action.gripper_position": d["raw_action_gripper"],
        "action.joint_position": d["raw_action_joint"],
    },
    "robomind-franka": lambda d: {
        "observation.states.end_effector": d["raw_end_effector"],
        "actions.joint_position": d["raw_action_joint"],
    },
    "hand_pose": hand_columns,
}
COLUMNS["droid_lerobot"] = COLUMNS["droid_lerobot_midtrain"]

# golden file -> (contract, {track: name of its arrays in the file})
CASES = {
    "bridge_orig_lerobot": ("bridge_orig_lerobot", {"eef": "eef"}),
    "umi": ("umi", {"eef": "eef"}),
    "umi_native60hz": ("umi", {"eef": "eef"}),
    "droid_lerobot": ("droid_lerobot_midtrain", {"eef": "eef"}),
    "robomind-franka": ("robomind-franka", {"eef": "eef"}),
    "robomind-franka_native30hz": ("robomind-franka", {"eef": "eef"}),
    "hand_pose": (
        "hand_pose",
        {"camera": "camera", "right_wrist": "right_wrist", "left_wrist": "left_wrist"},
    ),
}


def golden(shared, name):
    return np.load(shared / "golden" / "actions" / f"{name}.npz")


def normalized_tolerance(raw, q01, q99):
    """1e-4 plus four float32 ulps of the raw value, in units of the dimension's half-width."""
    return 1e-4 + 4.0 * np.spacing(np.abs(raw).astype(np.float32)) / (0.5 * (q99 - q01))


@pytest.mark.parametrize("name", CASES)
def test_raw_actions_and_normalized_actions_are_the_stored_ones(shared, name):
    contract, _ = CASES[name]
    data, embodiment = golden(shared, name), load(contract)
    encoded = encode(embodiment, COLUMNS[contract](data))
    raw = data["action_raw"]
    np.testing.assert_allclose(encoded.raw.values, raw, atol=5e-6, rtol=0)
    tolerance = normalized_tolerance(raw, data["q01"], data["q99"])
    clamped = embodiment.model.normalizer.clamp
    expected = data["action_norm_clamped" if clamped else "action_norm"]
    assert (np.abs(encoded.model.values - expected) <= tolerance).all()


@pytest.mark.parametrize("name", CASES)
def test_poses_decode_to_the_recorded_ones(shared, name):
    contract, tracks = CASES[name]
    data, embodiment = golden(shared, name), load(contract)
    encoded = encode(embodiment, COLUMNS[contract](data))
    for track, stored in tracks.items():
        recorded = data[f"{stored}_poses_abs"].astype(np.float64)
        np.testing.assert_allclose(encoded.poses[track], recorded, atol=2e-6)
    start = {track: encoded.poses[track][0] for track in tracks}
    decoded = decode_poses(embodiment, RawActions(data["action_raw"]), start)
    for track, stored in tracks.items():
        for reference in (data[f"{stored}_poses_dec"], data[f"{stored}_poses_abs"]):
            reference = reference.astype(np.float64)
            assert np.abs(decoded[track][:, :3, 3] - reference[:, :3, 3]).max() < 2e-5
            angle = rotations.angle_between(decoded[track][:, :3, :3], reference[:, :3, :3])
            assert np.degrees(angle).max() < 0.01


@pytest.mark.parametrize("name", CASES)
def test_idle_rows_are_counted_as_in_training(shared, name):
    contract, _ = CASES[name]
    data, embodiment = golden(shared, name), load(contract)
    rate = 10 if "native" in name else embodiment.model.rate_hz  # native rows were labelled 10 Hz
    raw, stored = data["action_raw"], data["idle_frames_per_chunk"]
    counted = [
        idle_rows(embodiment.model.layout, raw[16 * i : 16 * i + 16], rate) for i in range(len(stored))
    ]
    assert counted == stored.tolist()


def test_joint_policy_chunks_begin_with_the_measured_state(shared):
    data, embodiment = golden(shared, "droid_lerobot"), load("droid_lerobot")
    columns = COLUMNS["droid_lerobot"](data)
    for start, stored in zip(data["joint_pos_chunk_starts"], data["joint_pos_use_state_chunks"], strict=True):
        chunk = encode_chunk(embodiment, columns, int(start))
        assert chunk.state_rows == 1 and chunk.values.shape == (33, 8)
        np.testing.assert_allclose(chunk.values, stored, atol=1e-7)


def test_midtrain_state_row_is_the_absolute_pose(shared):
    data, embodiment = golden(shared, "droid_lerobot"), load("droid_lerobot_midtrain")
    columns = COLUMNS["droid_lerobot"](data)
    stored = data["midtrain_use_state_chunk0"]
    np.testing.assert_allclose(state_row(embodiment, columns, 0), stored[0], atol=1e-6)
    np.testing.assert_allclose(encode_chunk(embodiment, columns, 0).values, stored[1:], atol=5e-6)


def test_midtrain_commands_return_to_the_robots_own_poses(shared):
    """The reply undoes the axes' renaming: what the robot is told is what its recorder would have written."""
    data, embodiment = golden(shared, "droid_lerobot"), load("droid_lerobot_midtrain")
    told = data["raw_cartesian_position"].astype(np.float64)
    recorded = se3.pose_from_pose_vector(told, "euler_xyz")
    rows = commands(embodiment, RawActions(data["action_raw"]), {"eef": recorded[0]})
    assert rows.shape == (192, 8)
    np.testing.assert_allclose(rows[:, :3], told[1:, :3], atol=2e-5)
    angle = rotations.angle_between(rotations.matrix_from_quat_xyzw(rows[:, 3:7]), recorded[1:, :3, :3])
    assert np.degrees(angle).max() < 0.01
    np.testing.assert_allclose(rows[:, 7], data["raw_action_gripper"][:-1], atol=1e-6)


@pytest.mark.parametrize(
    ("contract", "name", "trips"),
    [("av", "av", ["forward", "left", "right"]), ("camera_pose", "camera_pose", ["traj"])],
)
def test_scaled_translations_decode_to_metres(shared, contract, name, trips):
    data, embodiment = golden(shared, name), load(contract)
    normalizer = chunk_normalizer(embodiment.model)
    for trip in trips:
        raw = normalizer.to_raw(ModelActions(data[f"{trip}_model_action"]))
        np.testing.assert_allclose(raw.values, data[f"{trip}_delta_metres"], atol=5e-6)
        poses = data[f"{trip}_poses_abs"].astype(np.float64)
        decoded = decode_poses(embodiment, raw, {"camera": poses[0]})["camera"]
        assert np.abs(decoded[:, :3, 3] - poses[:, :3, 3]).max() < 2e-5
        poses = decoded
        again = encode(embodiment, {"camera.pose": poses}).model.values
        np.testing.assert_allclose(again, data[f"{trip}_reencoded_model_action"], atol=1e-5)


def test_libero_commands_go_through_rot6d_and_back(shared):
    data, embodiment = golden(shared, "libero"), load("libero")
    encoded = encode(embodiment, {"action": data["dataset_action_7d"]})
    np.testing.assert_allclose(encoded.raw.values, data["action_raw_6d"], atol=5e-6)
    tolerance = normalized_tolerance(
        data["action_raw_6d"], data["stats_global_raw_q01"], data["stats_global_raw_q99"]
    )
    assert (np.abs(encoded.model.values - data["action_norm_quantile_rot"]) <= tolerance).all()
    assert np.abs(encoded.model.values - data["action_norm_WRONG_global_key"]).max() > 0.1
    back = commands(embodiment, chunk_normalizer(embodiment.model).to_raw(encoded.model))
    np.testing.assert_allclose(back, data["env_action_zero_one"], atol=2e-6)
    still = np.linalg.norm(data["dataset_action_7d"][:, 3:6], axis=1) == 0.0
    assert still.any() and (back[still, 3:6] == 0.0).all()


def test_libero_gripper_opens_at_one_in_the_model_and_at_minus_one_in_the_simulator(shared):
    data, embodiment = golden(shared, "libero"), load("libero")
    rows = np.zeros((7, 10))
    rows[:, 3] = rows[:, 7] = 1.0
    rows[:, 9] = data["gripper_model"]
    told = commands(embodiment, RawActions(rows))[:, 6]
    np.testing.assert_allclose(told, data["gripper_env_zero_one"], atol=1e-12)


def test_libero_rows_in_the_other_rotation_forms(shared):
    """The 13 and 7 numbers wide rows that some checkpoints use: the same rotation, written differently."""
    data = golden(shared, "libero")
    told = data["dataset_action_7d"].astype(np.float64)
    turn = rotations.matrix_from_axis_angle(told[:, 3:6])
    for stored, form in (("action_raw_9d", "rot9d"), ("action_raw_3d", "axis_angle")):
        written = rotations.rotation_form(form).from_matrix(turn)
        rows = np.concatenate([told[:, :3], written, told[:, 6:]], axis=1)
        np.testing.assert_allclose(data[stored], rows, atol=5e-6)


def test_libero_statistics_are_the_stored_ones_and_undo_the_normalization(shared):
    data, embodiment = golden(shared, "libero"), load("libero")
    declared = embodiment.model.normalizer
    for key in ("global", "global_raw"):
        stats = read_stats(dataclasses.replace(declared, key=key), "libero")
        for quantity in ("q01", "q99", "mean", "std", "min", "max"):
            np.testing.assert_allclose(stats[quantity], data[f"stats_{key}_{quantity}"], rtol=1e-6, atol=1e-9)
    rows = ModelActions(data["action_norm_quantile_rot"])
    raw = chunk_normalizer(embodiment.model).to_raw(rows)
    np.testing.assert_allclose(raw.values, data["server_denormalized"], atol=2e-6)


def test_libero_grippers_that_are_signs_already_pass_through(shared):
    data = golden(shared, "libero")
    same = gripper_from_gripper(data["gripper_model"], SIGN_ONE_IS_CLOSED, SIGN_ONE_IS_CLOSED, "clip")
    np.testing.assert_allclose(same, data["gripper_env_pm_one"], atol=1e-12)


def test_libero_measured_poses_are_axis_angle_and_turn_to_the_camera_axes(shared):
    data = golden(shared, "libero")
    poses = se3.pose_from_pose_vector(data["state_8d"][:, :6], "axis_angle")
    np.testing.assert_allclose(poses, data["abs_pose_native"], atol=2e-6)
    renamed = se3.rotate_body_frame(poses, np.transpose(RZ_BACK))  # Rz(+90 deg)
    np.testing.assert_allclose(renamed, data["abs_pose_opencv"], atol=2e-6)


def broken(embodiment, **changes):
    """The same contract with something wrong in its first track."""
    track = dataclasses.replace(embodiment.model.tracks[0], **changes)
    model = dataclasses.replace(embodiment.model, tracks=(track, *embodiment.model.tracks[1:]))
    return dataclasses.replace(embodiment, model=model)


RZ_BACK = ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
EYE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("droid_lerobot", {"frame_transform": RZ_BACK}),  # transposed
        ("droid_lerobot", {"frame_transform": EYE}),  # forgotten
        ("umi", {"rotation_format": "quat_xyzw"}),  # the column is wxyz
        ("umi", {"tool_offset": tuple(map(tuple, np.eye(4)))}),  # camera instead of fingertips
        ("bridge_orig_lerobot", {"frame_transform": RZ_BACK}),
        ("robomind-franka", {"inverse": True}),
        ("hand_pose", {"rotation_format": "quat_wxyz"}),
    ],
)
def test_a_wrong_frame_is_caught_by_the_stored_vectors(shared, name, changes):
    contract, _ = CASES[name]
    data, wrong = golden(shared, name), broken(load(contract), **changes)
    encoded = encode(wrong, COLUMNS[contract](data))
    assert np.abs(encoded.raw.values - data["action_raw"]).max() > 1e-3
    # A round trip would not have told: it uses the wrong frame twice.
    start = {track: poses[0] for track, poses in encoded.poses.items()}
    for track, poses in decode_poses(wrong, encoded.raw, start).items():
        np.testing.assert_allclose(poses, encoded.poses[track], atol=1e-9)


@pytest.mark.parametrize("change", ["polarity", "time_offset", "column"])
def test_a_wrong_gripper_is_caught_by_the_stored_vectors(shared, change):
    name = "umi" if change == "time_offset" else "robomind-franka"
    data, embodiment = golden(shared, name), load(name)
    gripper = embodiment.model.blocks[-1]
    if change == "polarity":
        source = dataclasses.replace(gripper.gripper_source, polarity="one_is_open")
        gripper = dataclasses.replace(gripper, gripper_source=source)
    elif change == "column":
        source = dataclasses.replace(gripper.gripper_source, column="actions.joint_position[6]")
        gripper = dataclasses.replace(gripper, gripper_source=source)
    else:
        gripper = dataclasses.replace(gripper, time_offset=0)
    blocks = (*embodiment.model.blocks[:-1], gripper)
    wrong = dataclasses.replace(embodiment, model=dataclasses.replace(embodiment.model, blocks=blocks))
    values = encode(wrong, COLUMNS[name](data)).raw.values
    assert np.abs(values - data["action_raw"]).max() > 1e-4


def test_a_wrong_stride_is_caught_by_the_stored_vectors(shared):
    native, thinned = golden(shared, "robomind-franka_native30hz"), golden(shared, "robomind-franka")
    columns = {name: values[::2] for name, values in COLUMNS["robomind-franka"](native).items()}
    wrong = encode(load("robomind-franka"), columns).raw.values[: len(thinned["action_raw"])]
    assert np.abs(wrong - thinned["action_raw"]).max() > 1e-3

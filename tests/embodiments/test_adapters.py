"""Columns become action rows and come back, for every contract and nothing but the contract."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wamserve.action_codec import rotations, se3
from wamserve.action_codec.actions import ModelActions, RawActions
from wamserve.action_codec.errors import CodecError
from wamserve.embodiments.adapters import (
    chunk_starts,
    commands,
    decode_poses,
    encode,
    encode_chunk,
    reach,
    robot_from_codec_pose,
    state_row,
)
from wamserve.embodiments.contract import load, names, read_stats
from wamserve.embodiments.units import chunk_normalizer

UNCLAMPED = [name for name in names() if not load(name).model.normalizer.clamp]
CLAMPED = [name for name in names() if load(name).model.normalizer.clamp]


@pytest.mark.parametrize("name", names())
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
def test_decoded_deltas_return_to_the_poses_they_came_from(made_up, name, seed):
    embodiment = load(name)
    encoded = encode(embodiment, made_up(embodiment, 24, seed))
    assert encoded.raw.values.shape == (24 - reach(embodiment), embodiment.model.width)
    decoded = decode_poses(embodiment, encoded.raw, {track: p[0] for track, p in encoded.poses.items()})
    assert set(decoded) == {block.track for block in embodiment.model.blocks if block.track}
    # fractal's published tool offset is a rotation to 4e-8 only, which the decoder projects away.
    tolerance = 1e-6 if name == "fractal" else 1e-9
    for track, poses in decoded.items():
        np.testing.assert_allclose(poses, encoded.poses[track], atol=tolerance)


@pytest.mark.parametrize("name", UNCLAMPED)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
def test_unclamped_model_space_is_lossless(made_up, name, seed):
    embodiment = load(name)
    encoded = encode(embodiment, made_up(embodiment, 20, seed))
    back = chunk_normalizer(embodiment.model).actions.to_raw(encoded.model)
    np.testing.assert_allclose(back.values, encoded.raw.values, atol=1e-9)


@pytest.mark.parametrize("name", CLAMPED)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
def test_clamped_model_space_loses_what_lies_beyond_the_quantiles_and_no_more(made_up, name, seed):
    embodiment = load(name)
    encoded = encode(embodiment, made_up(embodiment, 20, seed))
    assert np.abs(encoded.model.values).max() <= 1.0
    stats = read_stats(embodiment.model.normalizer, name)
    raw = encoded.raw.values
    beyond = np.maximum(np.maximum(stats["q01"] - raw, raw - np.asarray(stats["q99"])), 0.0)
    back = chunk_normalizer(embodiment.model).actions.to_raw(encoded.model).values
    np.testing.assert_allclose(np.abs(back - raw), beyond, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in names() if load(name).wire.reply.form == "pose_targets"])
def test_pose_replies_are_told_in_the_robots_own_frame(made_up, name):
    embodiment = load(name)
    encoded = encode(embodiment, made_up(embodiment, 12, 3))
    tracks = [block.track for block in embodiment.model.blocks if block.track]
    robot = {t: robot_from_codec_pose(embodiment.model.track(t), encoded.poses[t]) for t in tracks}
    rows = commands(embodiment, encoded.raw, {track: poses[0] for track, poses in robot.items()})
    assert rows.shape == (11, embodiment.wire.reply.width)
    column = 0
    for block in embodiment.model.blocks:
        if block.track:
            np.testing.assert_allclose(rows[:, column : column + 3], robot[block.track][1:, :3, 3], atol=1e-6)
            turned = rotations.matrix_from_quat_xyzw(rows[:, column + 3 : column + 7])
            np.testing.assert_allclose(turned, robot[block.track][1:, :3, :3], atol=1e-6)
            column += 7
        else:
            assert column in [gripper.index for gripper in embodiment.wire.reply.grippers]
            column += 1


def test_reply_gripper_is_the_recorded_command_again(made_up):
    embodiment = load("agibotworld")
    columns = made_up(embodiment, 10, 5)
    encoded = encode(embodiment, columns)
    start = {t: np.eye(4) for t in ("head", "right", "left")}
    rows = commands(embodiment, encoded.raw, start)
    effector = columns["observation.states.effector.position"]  # left, right
    np.testing.assert_allclose(rows[:, 14], effector[1:, 1], atol=1e-9)
    np.testing.assert_allclose(rows[:, 22], effector[1:, 0], atol=1e-9)


def test_moving_base_carries_every_body_with_it(made_up):
    """A base that moves 1 m while the arms hold still moves both hands and the head by 1 m."""
    embodiment = load("agibotworld")
    columns = made_up(embodiment, 4, 1)
    for body in ("head_camera_link", "gripper_r_base_link", "gripper_l_base_link"):
        columns[f"body.{body}"] = np.broadcast_to(np.eye(4), (4, 4, 4)).copy()
    columns["observation.states.robot.position"] = np.array([[0.0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]])
    columns["observation.states.robot.orientation"] = np.zeros((4, 4))  # reported as all zero: not turned
    rows = encode(embodiment, columns).raw.values
    np.testing.assert_allclose(rows[0, :3], [1, 0, 0], atol=1e-12)  # head: axes as they are
    np.testing.assert_allclose(rows[0, 9:12], [0, -1, 0], atol=1e-12)  # right: seen from axes at Rz(+90)
    np.testing.assert_allclose(rows[0, 19:22], [0, 1, 0], atol=1e-12)  # left: Rz(-90)
    np.testing.assert_allclose(rows[1:, [0, 1, 2, 9, 10, 11]], 0.0, atol=1e-12)


def test_agibot_gripper_is_open_at_zero_and_clipped(made_up):
    embodiment = load("agibotworld")
    columns = made_up(embodiment, 3, 1)
    columns["observation.states.effector.position"] = np.array([[0.0, 60.0], [120.0, 30.0], [150.0, -3.0]])
    rows = encode(embodiment, columns).raw.values
    np.testing.assert_allclose(rows[:, 18], [0.75, 1.0], atol=1e-12)  # right, one row ahead
    np.testing.assert_allclose(rows[:, 28], [0.0, 0.0], atol=1e-12)  # left


def test_fractal_gripper_follows_the_command_not_the_opposite_state(made_up):
    embodiment = load("fractal")
    columns = made_up(embodiment, 3, 1)
    columns["action"][:, 6], columns["observation.state"][:, 7] = [1.0, 0.0, 1.0], [0.1, 0.9, 0.9]
    np.testing.assert_allclose(encode(embodiment, columns).raw.values[:, 9], [1.0, 0.0])
    np.testing.assert_allclose(state_row(embodiment, columns, 0)[9], 0.9)


def test_fractal_flange_is_163_mm_behind_the_tool_point(made_up):
    embodiment = load("fractal")
    columns = made_up(embodiment, 2, 1)
    columns["observation.state"][:, :7] = [0.5, 0, 0.5, 0, 0, 0, 1]
    pose = encode(embodiment, columns).poses["eef"][0]
    np.testing.assert_allclose(pose[:3, 3], [0.5 - 0.005061848, -0.001671772, 0.5 - 0.163514480], atol=1e-9)
    # C = Rz(-90) turns the flange's axes: its new x axis is its old -y.
    np.testing.assert_allclose(pose[:3, 0], [0.000868643, -0.999998748, -0.001332735], atol=2e-6)


def test_fingertips_are_seen_from_the_wrist_of_the_later_row(made_up):
    embodiment = load("hand_pose_escale")
    columns = made_up(embodiment, 5, 2)
    rows, poses = encode(embodiment, columns).raw.values, encode(embodiment, columns).poses
    tip = columns["right_hand.hand_keypoints"].reshape(5, 21, 3)[3, 8]  # index finger at row 3, camera frame
    world = poses["camera"][3] @ np.append(tip, 1.0)
    np.testing.assert_allclose(poses["right_wrist"][3] @ np.append(rows[2, 21:24], 1.0), world, atol=1e-9)


def test_world_to_camera_columns_are_inverted():
    embodiment = load("hand_pose_escale")
    camera = se3.pose_from_matrix(rotations.matrix_from_euler_xyz([0.1, 0.2, 0.3]), [1.0, 2.0, 3.0])
    told = se3.pose_vector_from_pose(se3.inverse(camera), "quat_xyzw")
    columns = {"camera.pose_world2cam": np.repeat(np.concatenate([told[3:], told[:3]])[None], 2, axis=0)}
    for side in ("left", "right"):
        columns[f"{side}_hand.hand_keypoints"] = np.zeros((2, 21, 3))
        columns[f"{side}_ee_pose"] = np.tile([0.0, 0, 0, 1, 0, 0, 0], (2, 1))
    np.testing.assert_allclose(encode(embodiment, columns).poses["camera"][0], camera, atol=1e-12)


@pytest.mark.parametrize("name", names())
def test_chunks_never_leave_the_episode(made_up, name):
    embodiment = load(name)
    model = embodiment.model
    length = model.chunk + reach(embodiment) + 2
    columns = made_up(embodiment, length, 4)
    starts = list(chunk_starts(embodiment, length))
    assert starts == [0, 1, 2]
    for start in starts:
        assert len(encode_chunk(embodiment, columns, start)) == model.chunk + model.state_row
    with pytest.raises(CodecError, match="leaves the episode"):
        encode_chunk(embodiment, columns, 3)
    assert not list(chunk_starts(embodiment, model.chunk - 1))


def test_history_rows_precede_the_state_row(made_up):
    panda = load("panda_joint")
    embodiment = dataclasses.replace(panda, model=dataclasses.replace(panda.model, history=2))
    columns = made_up(embodiment, 40, 6)
    chunk = encode_chunk(embodiment, columns, 5)
    assert chunk.state_rows == 3 and len(chunk) == 35
    np.testing.assert_allclose(chunk.values[:2, :7], columns["action.joint_position"][3:5])
    np.testing.assert_allclose(chunk.values[2, :7], columns["observation.state.joint_position"][5])
    np.testing.assert_allclose(chunk.values[3, :7], columns["action.joint_position"][5])


def test_joint_reply_closes_at_one_and_model_opens_at_one(made_up):
    embodiment = load("panda_joint")
    columns = made_up(embodiment, 33, 7)
    chunk = encode_chunk(embodiment, columns, 0)
    np.testing.assert_allclose(chunk.values[1:, 7], 1.0 - columns["action.gripper_position"][:32, 0])
    np.testing.assert_allclose(commands(embodiment, chunk)[:, 7], columns["action.gripper_position"][:32, 0])


def test_osc_commands_survive_the_model_row_including_exact_zeros(made_up):
    embodiment = load("panda_osc")
    columns = made_up(embodiment, 16, 8)
    columns["action"][3, 3:6] = 0.0
    back = commands(embodiment, encode(embodiment, columns).raw)
    np.testing.assert_allclose(back, columns["action"], atol=1e-9)
    assert (back[3, 3:6] == 0.0).all()


BAD = [
    ("missing key", lambda c: c.pop("action"), "column 'action' is missing; seen: observation.state"),
    (
        "too narrow",
        lambda c: c.update(action=c["action"][:, :5]),
        "column 'action' has the wrong width; seen: 5",
    ),
    (
        "NaN",
        lambda c: c["observation.state"].__setitem__((4, 2), np.nan),
        "column 'observation.state' row 4 is not finite",
    ),
    ("lengths", lambda c: c.update(action=c["action"][:-1]), "columns differ in length"),
]


BAD += [
    (
        "scalar",
        lambda c: c.update({"observation.state": 1.0}),
        "column 'observation.state' is not one episode's",
    ),
    ("text", lambda c: c.update(action="open"), "column 'action' is not an array of numbers"),
    (
        "batch",
        lambda c: c.update({k: np.stack([v, v]) for k, v in c.items()}),
        "column 'observation.state' is not one episode's; seen: [2, 20, 7]",
    ),
    ("empty", lambda c: c.update({k: v[:0] for k, v in c.items()}), "the episode is too short; seen: 0 rows"),
    ("one row", lambda c: c.update({k: v[:1] for k, v in c.items()}), "seen: 1 rows; expected: at least 2"),
]


@pytest.mark.parametrize(("what", "spoil", "message"), BAD, ids=[bad[0] for bad in BAD])
def test_bad_columns_are_named(made_up, what, spoil, message):
    columns = made_up(load("bridge_orig_lerobot"), 20)
    spoil(columns)
    with pytest.raises(CodecError) as error:
        encode(load("bridge_orig_lerobot"), columns)
    assert message in str(error.value)


def test_a_matrix_that_is_no_rotation_is_named_by_row(made_up):
    columns = made_up(load("robomind-ur"), 8)
    columns["body.attachment_site"][5, :3, :3] *= 1.01
    with pytest.raises(CodecError) as error:
        encode(load("robomind-ur"), columns)
    assert "column 'body.attachment_site' row 5 is not a rotation" in str(error.value)
    assert "det R = 1.03" in str(error.value)


def test_a_start_that_is_no_pose_is_refused(made_up):
    embodiment = load("bridge_orig_lerobot")
    raw = encode(embodiment, made_up(embodiment, 4)).raw
    for follow in (decode_poses, commands):
        with pytest.raises(CodecError, match="start pose of track 'eef' row 0 is not a rotation"):
            follow(embodiment, raw, {"eef": np.diag([2.0, 1.0, 1.0, 1.0])})


@pytest.mark.parametrize("row", [-1, 8])
def test_a_state_row_outside_the_episode_is_refused(made_up, row):
    with pytest.raises(CodecError, match=f"the state row leaves the episode; seen: row {row}; expected: 0:8"):
        state_row(load("panda_joint"), made_up(load("panda_joint"), 8), row)


def test_a_zero_quaternion_is_refused_where_it_is_not_declared_to_mean_anything(made_up):
    columns = made_up(load("fractal"), 8)
    columns["observation.state"][2, 3:7] = 0.0
    with pytest.raises(CodecError, match="row 2 has zero length"):
        encode(load("fractal"), columns)


def test_model_actions_cannot_be_sent_to_a_robot(made_up):
    embodiment = load("panda_osc")
    encoded = encode(embodiment, made_up(embodiment, 16))
    with pytest.raises(CodecError, match="ModelActions were given where RawActions belong"):
        commands(embodiment, encoded.model)
    with pytest.raises(CodecError, match="wrong width"):
        commands(embodiment, RawActions(encoded.raw.values[:, :9]))


def test_scale_multiplies_metres_on_the_way_in():
    rows = np.zeros((1, 9))
    rows[0, :3], rows[0, [3, 7]] = [1.0, 2.0, 3.0], 1.0
    model = chunk_normalizer(load("av").model).actions.to_model(RawActions(rows)).values[0]
    np.testing.assert_allclose(model, [1.35, 2.70, 4.05, 1, 0, 0, 0, 1, 0])
    back = chunk_normalizer(load("av").model).actions.to_raw(ModelActions(model[None])).values
    np.testing.assert_allclose(back, rows)

"""Deltas, chains and frames against the reference trajectory, and the axioms that hold for any motion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wamserve.action_codec import se3
from wamserve.action_codec.errors import CodecError
from wamserve.action_codec.rotations import angle_between, matrix_from_axis_angle

FORM_OF_GOLDEN = {
    "rot6d": "rot6d",
    "rot9d": "rot9d",
    "quat_xyzw": "quat_xyzw",
    "euler_xyz": "euler_xyz",
    "axisangle": "axis_angle",
}
DELTAS = {"framewise": se3.deltas_framewise_from_poses, "anchored": se3.deltas_anchored_from_poses}
POSES = {"framewise": se3.poses_from_deltas_framewise, "anchored": se3.poses_from_deltas_anchored}


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden/actions/codec_unit.npz")


def trajectory(numbers):
    """[T, 6] -> poses [T, 4, 4]."""
    return se3.pose_from_matrix(matrix_from_axis_angle(numbers[..., 3:]), numbers[..., :3])


trajectories = arrays(np.float64, (9, 6), elements=st.floats(-2.0, 2.0, allow_subnormal=False)).map(
    trajectory
)


@pytest.mark.parametrize("convention", ["framewise", "anchored"])
@pytest.mark.parametrize("name", FORM_OF_GOLDEN)
def test_deltas_of_the_golden_trajectory_in_every_rotation_form(golden, convention, name):
    expected = golden[f"traj_rel_backward_{convention}_{name}"]
    poses = golden["traj_poses_abs"]
    vector = se3.pose_vector_from_pose(DELTAS[convention](poses), FORM_OF_GOLDEN[name])
    if name == "quat_xyzw":
        expected = expected * np.r_[1, 1, 1, np.ones(4)]
        vector[:, 3:] *= np.sign((vector[:, 3:] * expected[:, 3:]).sum(-1, keepdims=True))
    np.testing.assert_allclose(vector, expected, atol=5e-6)
    decoded = POSES[convention](poses[0], se3.pose_from_pose_vector(expected, FORM_OF_GOLDEN[name]))
    np.testing.assert_allclose(decoded, golden[f"traj_dec_backward_{convention}"], atol=2e-5)
    assert np.rad2deg(angle_between(decoded[:, :3, :3], poses[:, :3, :3])).max() < 0.01


def test_absolute_pose_vectors_and_translation_scale(golden):
    poses = golden["traj_poses_abs"]
    np.testing.assert_allclose(se3.pose9_from_pose(poses[1:]), golden["traj_abs9d"], atol=5e-6)
    scaled = se3.pose9_from_pose(se3.deltas_framewise_from_poses(poses), translation_scale=1.35)
    np.testing.assert_allclose(scaled, golden["traj_rel_scaled135"], atol=5e-6)
    decoded = se3.poses_from_deltas_framewise(poses[0], se3.pose_from_pose9(scaled, translation_scale=1.35))
    np.testing.assert_allclose(decoded, golden["traj_dec_scaled135"], atol=2e-5)


def test_turning_the_body_frame_conjugates_the_deltas(golden):
    poses, turn = golden["traj_poses_abs"], golden["to_opencv_rz90"]
    by_poses = se3.deltas_framewise_from_poses(se3.rotate_body_frame(poses, turn))
    by_deltas = se3.reframe_deltas(se3.deltas_framewise_from_poses(poses), se3.pose_from_matrix(turn))
    np.testing.assert_allclose(se3.pose9_from_pose(by_poses), golden["traj_opencv_rel_rot6d"], atol=5e-6)
    np.testing.assert_allclose(by_deltas, by_poses, atol=1e-6)


def test_a_delta_by_hand():
    # Facing +y after a quarter turn about z, one metre along world +y is one metre straight ahead (+x).
    start = se3.pose_from_matrix(matrix_from_axis_angle([0, 0, np.pi / 2]), [5.0, 0.0, 0.0])
    after = start.copy()
    after[1, 3] = 1.0
    delta = se3.deltas_framewise_from_poses(np.stack([start, after]))[0]
    np.testing.assert_allclose(se3.pose9_from_pose(delta), [1, 0, 0, 1, 0, 0, 0, 1, 0], atol=1e-12)


@given(trajectories)
@settings(max_examples=80, deadline=None)
def test_decoding_undoes_encoding_for_both_conventions(poses):
    for name, deltas in DELTAS.items():
        vectors = se3.pose9_from_pose(deltas(poses))
        decoded = POSES[name](poses[0], se3.pose_from_pose9(vectors))
        np.testing.assert_allclose(decoded, poses, atol=1e-10)


@given(trajectories, trajectories)
@settings(max_examples=60, deadline=None)
def test_poses_form_a_group(a, b):
    c = a[::-1]
    unit = np.broadcast_to(np.eye(4), a.shape)
    np.testing.assert_allclose(se3.compose(a, se3.inverse(a)), unit, atol=1e-10)
    np.testing.assert_allclose(se3.compose(se3.inverse(a), a), unit, atol=1e-10)
    np.testing.assert_allclose(
        se3.compose(se3.compose(a, b), c), se3.compose(a, se3.compose(b, c)), atol=1e-10
    )
    np.testing.assert_allclose(
        se3.inverse(se3.compose(a, b)), se3.compose(se3.inverse(b), se3.inverse(a)), atol=1e-10
    )
    np.testing.assert_allclose(se3.compose(a, np.eye(4)), a)


@given(trajectories, trajectories)
@settings(max_examples=60, deadline=None)
def test_reframing_commutes_with_encoding_and_world_motion_does_not_matter(poses, others):
    offset, world = others[0], others[1]
    reframed = se3.deltas_framewise_from_poses(se3.reframe_poses(poses, offset))
    plain = se3.deltas_framewise_from_poses(poses)
    np.testing.assert_allclose(reframed, se3.reframe_deltas(plain, offset), atol=1e-9)
    np.testing.assert_allclose(se3.deltas_framewise_from_poses(se3.compose(world, poses)), plain, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 2, 3, 16, 31, 32, 33, 60])
def test_prefix_product_equals_step_by_step_integration(rows):
    rng = np.random.default_rng(rows)
    start, deltas = trajectory(rng.normal(size=6)), trajectory(rng.normal(size=(2, rows, 6)))
    poses = se3.poses_from_deltas_framewise(start, deltas)
    assert poses.shape == (2, rows + 1, 4, 4)
    for batch in range(2):
        pose = start
        for row in range(rows):
            np.testing.assert_allclose(poses[batch, row], pose, atol=1e-11)
            pose = pose @ deltas[batch, row]
        np.testing.assert_allclose(poses[batch, rows], pose, atol=1e-11)


def test_a_thousand_chained_steps_stay_rigid():
    deltas = trajectory(np.random.default_rng(0).normal(scale=0.05, size=(1000, 6)))
    se3.require_pose(se3.poses_from_deltas_framewise(np.eye(4), deltas))


def test_bad_poses_get_one_clear_error():
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[2, :3, :3] *= 2
    with pytest.raises(CodecError, match=r"pose row 2 is not a rotation; seen: max \|R\^T R - I\| = 3"):
        se3.deltas_framewise_from_poses(poses)
    poses[2] = np.eye(4).T
    poses[2, 3, 0] = 0.5
    with pytest.raises(
        CodecError, match=r"pose row 2 has a wrong bottom row; seen: \[0\.5, 0\.0, 0\.0, 1\.0\]"
    ):
        se3.require_pose(poses)
    with pytest.raises(CodecError, match="at least two poses"):
        se3.deltas_framewise_from_poses(np.eye(4)[None])
    with pytest.raises(CodecError, match="pose9 row 1 is not finite"):
        se3.pose_from_pose9([[0, 0, 0, 1, 0, 0, 0, 1, 0], [np.nan, 0, 0, 1, 0, 0, 0, 1, 0]])
    with pytest.raises(CodecError, match=r"pose9 has the wrong width; seen: \[2, 10\]"):
        se3.pose_from_pose9(np.ones((2, 10)))
    with pytest.raises(CodecError, match="is not a rotation"):
        se3.rotate_body_frame(np.eye(4), [[1, 1, 0], [0, 1, 0], [0, 0, 1]])


def test_a_body_at_rest_has_no_delta_though_its_matrix_is_stored_in_float32():
    turn = matrix_from_axis_angle([0.3, -0.7, 1.9]).astype(np.float32)
    poses = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = turn, [0.1, 0.2, 1.3]
    assert np.abs(turn.T.astype(np.float64) @ turn - np.eye(3)).max() > 1e-8
    np.testing.assert_allclose(
        se3.deltas_framewise_from_poses(poses), np.tile(np.eye(4), (2, 1, 1)), atol=1e-13
    )

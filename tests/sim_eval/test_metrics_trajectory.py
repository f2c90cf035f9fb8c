"""RRE, RTE, ATE and action errors against hand numbers, evo and stored values."""

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from wamserve.action_codec.errors import CodecError
from wamserve.sim_eval.metrics import policy, trajectory


def pose(x=0.0, y=0.0, yaw_deg=0.0):
    out = np.eye(4)
    out[:3, :3] = Rotation.from_euler("z", yaw_deg, degrees=True).as_matrix()
    out[:2, 3] = x, y
    return out


def test_constant_drift_gives_the_hand_numbers():
    # recorded: 1 m ahead per step; predicted: 1.1 m ahead per step, no turn
    recorded = np.stack([pose(i) for i in range(4)])
    predicted = np.stack([pose(1.1 * i) for i in range(4)])
    score = trajectory.trajectory_score(predicted, recorded)
    assert score.rre_deg_mean == 0 and score.steps == 3
    assert score.rte_m_mean == pytest.approx(0.1) and score.rte_m_rmse == pytest.approx(0.1)
    assert score.ate_m_mean == pytest.approx((0 + 0.1 + 0.2 + 0.3) / 4)
    assert score.ate_m_rmse == pytest.approx(math.sqrt((0.01 + 0.04 + 0.09) / 4))
    assert score.fde_m == pytest.approx(0.3)


def test_a_turn_is_measured_in_the_body_frame_of_the_step():
    recorded = np.stack([pose(), pose(1, 0)])
    predicted = np.stack([pose(), pose(1, 0, yaw_deg=3)])
    rre, rte = trajectory.relative_pose_errors(predicted, recorded)
    assert rre == pytest.approx([3.0], abs=1e-9) and rte == pytest.approx([0.0], abs=1e-12)


def test_the_first_pose_is_shared_and_nothing_else_is_aligned():
    # the same path seen from another start is free of error; a scaled one is not
    recorded = np.stack([pose(i, 0.1 * i, 5 * i) for i in range(5)])
    elsewhere = pose(7, -2, 40) @ recorded
    assert trajectory.absolute_position_errors(elsewhere, recorded) == pytest.approx(np.zeros(5), abs=1e-12)
    half = recorded.copy()
    half[:, :3, 3] *= 0.5
    assert trajectory.trajectory_score(half, recorded).ate_m_mean > 0.9


def test_world_frame_composition_is_noticed():
    # body-frame deltas composed on the wrong side give another path
    rng = np.random.default_rng(0)
    deltas = [pose(0.1, 0, float(rng.uniform(2, 9))) for _ in range(10)]
    right, wrong = [np.eye(4)], [np.eye(4)]
    for delta in deltas:
        right.append(right[-1] @ delta)
        wrong.append(delta @ wrong[-1])
    assert trajectory.trajectory_score(np.stack(wrong), np.stack(right)).ate_m_mean > 0.01


def test_identical_float32_rotations_have_no_angle():
    turn = Rotation.random(200, rng=np.random.default_rng(1)).as_matrix().astype(np.float32)
    poses = np.tile(np.eye(4, dtype=np.float32), (200, 1, 1))
    poses[:, :3, :3] = turn
    rre, _ = trajectory.relative_pose_errors(poses, poses)
    assert rre.max() < 1e-5
    product = np.einsum("nji,njk->nik", turn, turn)  # what arccos in float32 would see
    arccos = np.degrees(np.arccos(np.clip((np.trace(product, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert arccos.max() > 0.01


@pytest.mark.parametrize("degrees", [0.0, 1e-7, 0.001, 90.0, 179.999, 180.0])
def test_angle_is_exact_from_zero_to_half_a_turn(degrees):
    matrix = Rotation.from_rotvec(np.radians(degrees) * np.array([0.6, 0, 0.8])).as_matrix()
    assert trajectory.rotation_angle_deg(matrix) == pytest.approx(degrees, abs=1e-9)


@pytest.mark.parametrize("name", ["forward", "left", "right"])
def test_pose_errors_equal_the_stored_reference_values(shared, name):
    stored = np.load(shared / "golden/actions/metrics.npz")
    predicted, recorded = stored[f"{name}_pred"], stored[f"{name}_gt"]
    rre, rte = trajectory.relative_pose_errors(predicted, recorded)
    assert rre == pytest.approx(stored[f"{name}__rre_deg_per_frame"], abs=1e-9)
    assert rte == pytest.approx(stored[f"{name}__rte_m_per_frame"], abs=1e-9)
    score = trajectory.trajectory_score(predicted, recorded)
    assert score.rre_deg_mean == pytest.approx(float(stored[f"{name}__rre_mean"]), abs=1e-9)
    assert score.rre_deg_rmse == pytest.approx(float(stored[f"{name}__rre_rmse"]), abs=1e-9)
    assert score.rte_m_mean == pytest.approx(float(stored[f"{name}__rte_mean"]), abs=1e-9)
    assert score.rte_m_rmse == pytest.approx(float(stored[f"{name}__rte_rmse"]), abs=1e-9)
    assert score.ate_m_mean == pytest.approx(float(stored[f"{name}__ate_origin_mean"]), abs=1e-9)
    assert score.ate_m_rmse == pytest.approx(float(stored[f"{name}__ate_origin_rmse"]), abs=1e-9)
    assert score.fde_m == pytest.approx(float(stored[f"{name}__fde"]), abs=1e-9)


def test_pose_errors_equal_evo(shared):
    metrics = pytest.importorskip("evo.core.metrics", reason="evo is not installed")
    from evo.core.trajectory import PosePath3D

    stored = np.load(shared / "golden/actions/metrics.npz")
    recorded, predicted = stored["left_gt"], stored["left_pred"]
    pair = PosePath3D(poses_se3=list(recorded)), PosePath3D(poses_se3=list(predicted))
    pair[1].align_origin(pair[0])
    ours = trajectory.trajectory_score(predicted, recorded)

    def evo(metric):
        metric.process_data(pair)
        return metric.get_statistic(metrics.StatisticsType.mean), metric.get_statistic(
            metrics.StatisticsType.rmse
        )

    def steps(relation):
        return metrics.RPE(relation, delta=1, delta_unit=metrics.Unit.frames, all_pairs=False)

    part = metrics.PoseRelation
    assert (ours.rre_deg_mean, ours.rre_deg_rmse) == pytest.approx(
        evo(steps(part.rotation_angle_deg)), abs=1e-9
    )
    assert (ours.rte_m_mean, ours.rte_m_rmse) == pytest.approx(evo(steps(part.translation_part)), abs=1e-9)
    assert (ours.ate_m_mean, ours.ate_m_rmse) == pytest.approx(
        evo(metrics.APE(part.translation_part)), abs=1e-9
    )


def test_action_error_equals_the_stored_reference_value(shared):
    stored = np.load(shared / "golden/actions/metrics.npz")
    # the reference sums in float32
    assert trajectory.action_mse(stored["act_pred"], stored["act_gt"]) == pytest.approx(
        0.011200083419680595, abs=1e-9
    )
    per = trajectory.action_mse_per_dimension(stored["act_pred"], stored["act_gt"])
    assert per.shape == (10,) and per.mean() == pytest.approx(
        trajectory.action_mse(stored["act_pred"], stored["act_gt"]), abs=1e-15
    )


def test_broken_trajectories_are_refused():
    good = np.stack([pose(i) for i in range(3)])
    sheared = good.copy()
    sheared[1, 0, 1] = 0.1
    for bad, words in ((sheared, "orthonormal"), (good[:2], "length"), (good[:, :3], "trajectory")):
        with pytest.raises(CodecError, match=words):
            trajectory.trajectory_score(bad, good)
    with pytest.raises(CodecError, match="do not match"):
        trajectory.action_mse(np.zeros((3, 2)), np.zeros((4, 2)))
    with pytest.raises(CodecError, match="finite"):
        trajectory.action_mse(np.array([[np.nan]]), np.zeros((1, 1)))


def test_best_of_k_takes_the_nearest_sample():
    recorded = np.zeros((4, 2))
    samples = [np.full((4, 2), 3.0), np.full((4, 2), 0.5), np.full((4, 2), -1.0)]
    assert policy.min_action_mse(samples, recorded) == 0.25
    clips = [np.full((2, 4, 4, 3), level, np.uint8) for level in (40, 10)]
    assert policy.max_psnr(clips, np.zeros((2, 4, 4, 3), np.uint8)) == pytest.approx(
        20 * math.log10(255 / 10)
    )
    with pytest.raises(CodecError, match="no samples"):
        policy.min_action_mse([], recorded)


def test_coverage_is_a_mean_of_the_means_of_each_start():
    # start a: 1.0, start b: 0.2 and 0.4 -> (1.0 + 0.3) / 2, while the pooled mean is 1.6 / 3
    score = policy.coverage_score(["a", "b", "b"], [1.0, 0.2, 0.4], [1.0, 0.6, 0.4])
    assert score.final_mean == pytest.approx(0.65) and score.max_mean == pytest.approx(0.75)
    assert score.final_pooled == pytest.approx(1.6 / 3)
    assert (score.starts, score.rollouts) == (2, 3)
    with pytest.raises(CodecError, match="coverage"):
        policy.coverage_score(["a"], [0.5], [0.4])

"""Forward and inverse dynamics through a Policy: known errors give known scores, beside their baselines."""

import json
from dataclasses import replace

import numpy as np
import pytest

from wamserve.action_codec.errors import ContractError, RunError
from wamserve.clients.policy import ActionChunk, Prediction
from wamserve.embodiments.adapters import encode_chunk
from wamserve.embodiments.contract import load
from wamserve.sim_eval import kinematics, results_cli
from wamserve.sim_eval.clips import clips_of
from wamserve.sim_eval.episodes_report import lines, score_episodes
from wamserve.sim_eval.forward_dynamics import score_fd
from wamserve.sim_eval.identity import IdentityModel
from wamserve.sim_eval.inverse_dynamics import score_id
from wamserve.sim_eval.open_loop import score_policy
from wamserve.sim_eval.recorded import RecordedEpisode, read_episode

ROWS = 16  # of a pusht chunk
PUSHT = load("pusht")


def episode(toys, number, rows=2 * ROWS, speed=2.0):
    """A square that moves to where its action says: action t is its position at t + 1."""
    start = np.array([2.0, 8.0 * number])
    position = start + speed * np.outer(np.arange(rows + 1), [1.0, 0.5 * number])
    return RecordedEpisode(
        name=f"toy/{number}",
        embodiment=PUSHT,
        instruction="push the square",
        frames=np.stack([toys.toy_frame(p) for p in position]),
        raw=position[1:],
        columns={"action": position, "observation.state": position},
    )


class ToyModel:
    """Knows the toy world exactly: draws the square where the actions say, and reads it off the frames."""

    def __init__(self, toys, deaf=False):
        self.toys, self.deaf, self.asked = toys, deaf, []

    def infer(self, request):
        self.asked.append(request)
        if request.mode == "fd":
            first = request.observation.images["canvas"]
            later = [first if self.deaf else self.toys.toy_frame(p) for p in request.actions]
            return Prediction(video=np.stack([first, *later]))
        if request.mode == "id":
            at = [np.argwhere(frame[..., 0] > 200).min(axis=0)[::-1] for frame in request.video]
            return Prediction(ActionChunk(np.array(at[1:], float), 0.0, 0.1))
        step = np.array([request.seed % 3, 0.0])  # samples differ by their seed
        rows = request.observation.state["agent_pos"] + np.outer(np.arange(1, ROWS + 1), step)
        return Prediction(ActionChunk(rows, 0.0, 0.1))

    def reset(self, session=""): ...


def test_exact_model_is_exact_and_the_frozen_one_is_not(toys):
    clips = clips_of([episode(toys, 1), episode(toys, 2)])
    report = score_fd(ToyModel(toys), clips)
    assert len(clips) == 4 and report.model.psnr_db == np.inf and report.model.ssim == pytest.approx(1.0)
    assert 10 < report.copy_first_frame.psnr_db < 25 and report.copy_first_frame.ssim < 0.99
    assert report.copy_first_frame.psnr_moving_db < report.copy_first_frame.psnr_db
    assert report.other_actions == "another episode" and report.sensitivity_db > 0
    assert len(report.rollout_db) == 2 * ROWS and report.rollout_chunks == 2


def test_model_that_does_not_hear_its_actions_equals_the_copy_and_has_no_sensitivity(toys):
    clips = clips_of([episode(toys, 1), episode(toys, 2)])
    report = score_fd(ToyModel(toys, deaf=True), clips)
    assert report.model == report.copy_first_frame and report.sensitivity_db == 0.0
    assert report.rollout_db == report.rollout_copy_db


def test_rollout_starts_every_chunk_from_the_last_imagined_frame(toys):
    model = ToyModel(toys, deaf=True)
    one = episode(toys, 1)
    score_fd(model, clips_of([one]), rollout_chunks=2)
    chained = model.asked[-2:]
    for request in chained:  # a deaf model never leaves frame 0: both chunks are asked from it
        assert np.array_equal(request.observation.images["canvas"], one.frames[0])
    assert np.array_equal(chained[1].actions, one.raw[ROWS:])


def test_a_single_episode_swaps_in_its_own_farthest_stretch(toys):
    report = score_fd(ToyModel(toys), clips_of([episode(toys, 1)]))
    assert report.other_actions == "another stretch of the same episode" and report.sensitivity_db > 0


def test_horizon_rises_in_error_for_a_model_that_stands_still(toys):
    by_horizon = score_fd(ToyModel(toys, deaf=True), clips_of([episode(toys, 1)])).model.psnr_by_horizon_db
    assert len(by_horizon) == ROWS and all(np.diff(by_horizon) <= 1e-9)


def test_inverse_dynamics_of_the_exact_model_is_zero_and_baselines_are_hand_numbers(toys):
    one = episode(toys, 0)  # moves right by 2 a row
    report = score_id(ToyModel(toys), clips_of([one]))
    assert report.model.mse_raw == 0.0 and report.model.mse_model == 0.0 and report.model.poses == {}
    # staying at the first target: gaps 0, 2, ... 30 in x, none in y
    assert report.zero_motion.mse_raw == pytest.approx(np.mean((2.0 * np.arange(16)) ** 2) / 2)
    assert report.zero_motion.mse_raw_by_block == {"target": pytest.approx(report.zero_motion.mse_raw)}
    # pusht's model space: 64 px are a unit
    assert report.zero_motion.mse_model == pytest.approx(report.zero_motion.mse_raw / 64**2)
    middle = one.raw.mean(axis=0)
    expected = np.mean([np.mean((clip.raw - middle) ** 2) for clip in clips_of([one])])
    assert report.mean_action.mse_raw == pytest.approx(expected)


def test_policy_is_scored_by_its_nearest_sample(toys):
    one = episode(toys, 0)
    report = score_policy(ToyModel(toys), clips_of([one], limit=1), samples=3)
    # samples move by 0, 1 and 2 a row; the third is what was done
    assert report.mse_min == pytest.approx(0.0) and report.samples == 3 and report.psnr_max_db is None
    gaps = [np.mean(((2 - step) * np.arange(1, 17)) ** 2) / 2 for step in (0, 1, 2)]
    assert report.mse_mean == pytest.approx(np.mean(gaps))


def test_modes_that_the_contract_lacks_are_refused(toys):
    with pytest.raises(RunError, match="cannot be scored this way"):
        score_episodes(ToyModel(toys), "toy", [episode(toys, 1)], modes=("video",))
    with pytest.raises(RunError, match="long enough"):
        clips_of([episode(toys, 1, rows=ROWS - 1)])


@pytest.mark.parametrize(
    ("folder", "contract", "modes", "bodies"),
    [
        ("bridge_lerobot_example", "bridge_orig_lerobot", ("fd", "id"), ["eef"]),
        ("umi_lerobot_example", "umi", ("fd", "id"), ["eef"]),
        ("human_hand_pose_lerobot_example", "hand_pose", ("fd",), []),
    ],
)
def test_recorded_episodes_have_baselines(shared, folder, contract, modes, bodies):
    embodiment = load(contract)
    one = read_episode(shared / "data/episodes" / folder, embodiment, rows=20)
    assert np.array_equal(one.raw[:ROWS], np.asarray(encode_chunk(embodiment, one.columns, 0).values)[-ROWS:])
    report = score_episodes(IdentityModel(embodiment), "identity", [one], modes, limit=1, rollout_chunks=1)
    assert report.fd.model == report.fd.copy_first_frame and 10 < report.fd.model.psnr_db < 30
    assert report.fd.sensitivity_db == 0.0
    if "id" in modes:
        zero, model = report.id.zero_motion.poses, report.id.model.poses
        assert list(zero) == bodies and zero == model  # nobody moves in either
        assert 0.1 < zero["eef"].rre_deg_mean < 10 and 0 < zero["eef"].rte_m_mean < 0.1
    assert len(lines(report)) > 3


def test_another_contract_is_refused(shared):
    with pytest.raises(ContractError, match="another rate"):
        read_episode(shared / "data/episodes/umi_lerobot_example", load("bridge_orig_lerobot"))


def test_flange_is_where_the_simulator_has_it():
    mujoco = pytest.importorskip("mujoco")
    robosuite = pytest.importorskip("robosuite")
    model = mujoco.MjModel.from_xml_path(robosuite.__path__[0] + "/models/assets/robots/panda/robot.xml")
    data = mujoco.MjData(model)
    # robosuite puts the hand 0.5 mm short of the flange
    chain = replace(load("droid_lerobot").wire.kinematics, flange=float(model.body("right_hand").pos[2]))
    joints = np.random.default_rng(0).uniform(-1.5, 1.5, (20, 7))
    names = [f"joint{i}" for i in range(1, 8)]
    hand, base = model.body("right_hand").id, model.body("link0").id
    for row, pose in zip(joints, kinematics.flange_poses(chain, joints), strict=True):
        for name, angle in zip(names, row, strict=True):
            data.joint(name).qpos = angle
        mujoco.mj_kinematics(model, data)
        turn = data.xmat[base].reshape(3, 3)
        seen = turn.T @ (data.xpos[hand] - data.xpos[base])
        np.testing.assert_allclose(pose[:3, 3], seen, atol=1e-5)  # the model file rounds its quaternions


def test_joint_contracts_are_scored_at_the_flange(toys):
    robot = load("droid_lerobot")
    rows = np.zeros((4, 8))
    rows[:, 0] = np.radians([0, 10, 20, 30])  # the base turns: 10 degrees a row
    path = kinematics.trajectories(robot, rows)["flange"]
    from wamserve.sim_eval.metrics.trajectory import trajectory_score

    still = kinematics.trajectories(robot, kinematics.zero_motion(robot, rows[0], 4))["flange"]
    score = trajectory_score(still, path)
    assert score.rre_deg_mean == pytest.approx(10.0)
    assert score.fde_m == pytest.approx(2 * 0.088 * np.sin(np.radians(15)), abs=1e-9)
    assert kinematics.trajectories(PUSHT, np.zeros((4, 2))) == {}  # positions are no poses


@pytest.mark.slow
def test_a_network_of_random_weights_scores_below_a_frozen_picture(toys):
    load_module = pytest.importorskip("wamserve.policy_server.load")
    policy = load_module.random_policy("tiny-nano", "pusht")
    report = score_episodes(
        policy, "random", [episode(toys, 1, rows=ROWS)], ("fd", "id", "policy"), samples=2, rollout_chunks=1
    )
    assert report.fd.model.psnr_db < report.fd.copy_first_frame.psnr_db - 5
    assert report.id.model.mse_model > report.id.zero_motion.mse_model
    assert report.open_loop.mse_min <= report.open_loop.mse_mean and report.open_loop.psnr_max_db < 20


def test_verbs_score_view_compare_export_and_score_the_export_again(toys, tmp_path, capsys, monkeypatch):
    for name, rows in (("a", [1, 0, 1]), ("b", [1, 1, 1])):
        toys.toy_run(tmp_path / name, {"toy/Push": rows}, policy=name, horizon=6, steps=20).close()
    monkeypatch.setattr(
        results_cli,
        "opener",
        lambda store, frames, python=None: None if frames == "seen" else toys.ToyTask,
    )
    assert results_cli.score(tmp_path / "a") == 0
    assert json.loads((tmp_path / "a/scores.json").read_text())["successes"] == 2
    assert results_cli.compare((tmp_path / "a", tmp_path / "b")) == 0
    assert results_cli.view((tmp_path,), videos=1) == 0
    assert (tmp_path / "index.html").is_file() and (tmp_path / "a/report.html").is_file()
    assert results_cli.export(tmp_path / "a", tmp_path / "set") == 0
    code = results_cli.score_episodes(
        tmp_path / "set", "identity", "pusht", episodes=(0, 1), out=tmp_path / "dynamics.json"
    )
    said = capsys.readouterr().out
    assert code == 0 and "not distinguishable" in said and "copy of frame 0" in said
    saved = json.loads((tmp_path / "dynamics.json").read_text())
    assert saved["fd"]["model"] == saved["fd"]["copy_first_frame"] and saved["clips"] == 2

"""Demonstrations come back from disk as the contract reads them, pushes flagged, seeds obeyed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wamserve.clients.policy import ActionChunk, Prediction
from wamserve.embodiments.adapters import encode_chunk
from wamserve.embodiments.contract import load
from wamserve.sim_eval.lerobot import DatasetWriter
from wamserve.training.demonstrate import Demonstration, Disturbance, _within, demonstrate, disturbance_for
from wamserve.training.language import PARAPHRASES, paraphrase
from wamserve.training.record import add_demonstration, source_episodes

PANDA = load("panda_joint")


class Rig:
    """A task whose state is the command of the step before; it succeeds at step 6."""

    class spec:
        name, instruction, max_steps = "rig/Rig", "lift the cube", 60

    def reset(self, init, seed):
        self.rng = np.random.default_rng(seed)
        self.joints, self.steps = self.rng.uniform(-0.1, 0.1, 7) + [0, 0.6, 0, -2, 0, 2.7, 0.8], 0

    def render(self):
        return {name: np.full((96, 96, 3), 3 * self.steps, np.uint8) for name in ("agentview", "wrist")}

    def state(self):
        return {"joint_position": self.joints, "gripper_position": np.array([0.25])}

    def privileged(self):
        return {"joints": self.joints}

    def step(self, action):
        self.joints, self.steps = action[:7], self.steps + 1

    def success(self):
        return self.steps >= 6


class Still:
    """Wishes to stay where it is, hand closed (1 on the wire)."""

    def infer(self, request):
        joints = request.observation.state["joint_position"]
        return Prediction(ActionChunk(np.tile([*joints, 1.0], (32, 1)), 0.0, 1 / 15))


def demo(init=0, disturbance=None) -> Demonstration:
    return demonstrate(
        Rig(),
        Still(),
        PANDA,
        instruction="lift the cube",
        init=init,
        seed=3,
        disturbance=disturbance,
        after=4,
    )


def test_recording_goes_on_past_success_for_as_long_as_asked():
    made = demo()
    assert made.success
    assert len(made) == 9  # success is seen after the sixth command; three more follow
    assert not made.disturbed.any()


def test_only_the_push_is_flagged_and_the_oracle_answers_it():
    made = demo(disturbance=Disturbance(share=1.0, latest=2, length=(3, 3), size=0.5))
    (rows,) = np.nonzero(made.disturbed)
    assert len(rows) == 3
    assert (np.diff(rows) == 1).all()
    moved = made.actions[rows, :7] - made.states["joint_position"][rows[0]]
    np.testing.assert_allclose(moved, np.outer([1 / 3, 2 / 3, 1], moved[2]), atol=1e-6)  # it does not add up
    still = ~made.disturbed
    np.testing.assert_allclose(made.actions[still, :7], made.states["joint_position"][still], atol=1e-6)


def test_a_push_is_sized_in_the_units_of_the_reply():
    assert disturbance_for(PANDA).size < 0.5  # rad
    pusht = disturbance_for(load("pusht"))
    assert 20 < pusht.size < 100  # px
    assert disturbance_for(load("pusht"), share=0.25) == replace(pusht, share=0.25)


def test_a_push_ends_at_the_edge_of_the_field():
    field, rng = load("pusht"), np.random.default_rng(0)
    for _ in range(50):
        kept = _within(field, rng.normal(256, 400, 2))
        assert (kept >= 0).all() and (kept <= 512).all()
    np.testing.assert_array_equal(_within(PANDA, np.full(8, 9.0)), np.full(8, 9.0))


def test_the_same_seed_gives_the_same_episode_and_another_start_another():
    np.testing.assert_array_equal(demo(1).actions, demo(1).actions)
    assert not np.array_equal(demo(1).actions, demo(2).actions)


def test_rows_return_from_disk_in_the_models_polarity(tmp_path):
    made = demo(disturbance=Disturbance(share=1.0))
    writer = DatasetWriter(tmp_path / "set", 15, PANDA.wire.robot)
    add_demonstration(writer, PANDA, made, 0, "fast")
    failed = Demonstration(**{**made.__dict__, "success": False})
    add_demonstration(writer, PANDA, failed, 1, "fast")
    (episode,) = source_episodes(tmp_path / "set", PANDA)  # failures are kept on disk and not imitated
    np.testing.assert_array_equal(episode.disturbed, made.disturbed)
    assert episode.canvas.shape == (len(made), 96, 192, 3)
    columns = {k: np.concatenate([v, np.repeat(v[-1:], 40, 0)]) for k, v in episode.columns.items()}
    rows = encode_chunk(PANDA, columns, 2).values
    np.testing.assert_allclose(rows[0, :7], made.states["joint_position"][2], atol=1e-6)
    assert rows[0, 7] == pytest.approx(0.75)  # 0.25 closed on the wire is 0.75 open to the model
    np.testing.assert_allclose(rows[1, :7], made.actions[2, :7], atol=1e-6)
    assert rows[1, 7] == pytest.approx(0.0)


def test_every_way_to_say_a_task_is_used_and_the_plain_one_most():
    said = [paraphrase("lift the red cube", 1, number) for number in range(400)]
    assert set(said) == set(PARAPHRASES["lift the red cube"])
    assert said.count("lift the red cube") > 180
    assert paraphrase("fold the towel", 1, 0) == "fold the towel"

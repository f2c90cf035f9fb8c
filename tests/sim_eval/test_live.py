"""A task behind reset and step ends as the task ends, and shows privileged state only when asked to."""

from __future__ import annotations

import numpy as np

from wamserve.clients.adapters.gym import GymMap
from wamserve.sim_eval.live import TaskEnv


class Corridor:
    """One number; reaching 3 is success."""

    class spec:
        name, max_steps, states = "rig/Corridor", 5, (("position", 1),)

    def reset(self, init, seed):
        self.x, self.seed = float(init), seed

    def step(self, action):
        self.x += float(action[0])

    def render(self):
        return {"top": np.zeros((4, 4, 3), np.uint8)}

    def state(self):
        return {"position": np.array([self.x])}

    def privileged(self):
        return {"goal": 3.0}

    def success(self):
        return self.x >= 3


def test_success_ends_the_episode_with_a_reward_of_one():
    env = TaskEnv(Corridor(), init=1)
    env.reset(seed=0)
    assert env.step(np.array([1.0]))[1:] == (0.0, False, False, {"is_success": False})
    assert env.step(np.array([1.0]))[1:] == (1.0, True, False, {"is_success": True})


def test_the_tasks_step_limit_truncates():
    env = TaskEnv(Corridor(), init=0)
    env.reset(seed=0)
    ends = [env.step(np.array([0.0]))[3] for _ in range(5)]
    assert ends == [False, False, False, False, True]


def test_initial_state_is_seeded_as_in_an_evaluation():
    first, second = TaskEnv(Corridor(), 0), TaskEnv(Corridor(), 1)
    first.reset(seed=7), second.reset(seed=7)
    assert first.task.seed != second.task.seed
    other = TaskEnv(Corridor(), 0)
    other.reset(seed=7)
    assert other.task.seed == first.task.seed


def test_privileged_state_is_sent_by_name_to_a_policy_that_declares_it():
    env = TaskEnv(Corridor(), 0, privileged=True)
    seen, _ = env.reset(seed=0)
    names = env.state_names()
    assert names == ["position", "privileged/goal"]
    mapping = GymMap({"top": "top"}, {n: n for n in names}, "go", 0.1)
    observation = mapping.observation(seen, 0.0)
    assert observation.state["privileged/goal"].tolist() == [3.0]
    blind, _ = TaskEnv(Corridor(), 0).reset(seed=0)
    assert set(blind) == {"top", "position"}

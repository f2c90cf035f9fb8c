"""Virtual time counts whole control steps; every seed follows from the run's."""

import pytest

from wamserve.action_codec.errors import TaskError
from wamserve.sim_eval import seeds
from wamserve.sim_eval.clock import Latency, VirtualClock, steps_of


@pytest.mark.parametrize(
    ("latency_ms", "rate_hz", "steps"),
    [(0, 15, 0), (180, 15, 3), (200, 15, 3), (201, 15, 4), (1, 15, 1), (50, 20, 1), (600, 15, 9)],
)
def test_an_inference_costs_its_time_rounded_up_to_control_steps(latency_ms, rate_hz, steps):
    assert steps_of(latency_ms, rate_hz) == steps


def test_clock_moves_only_when_a_step_is_taken():
    clock = VirtualClock(15)
    assert clock() == clock() == 0.0
    for _ in range(30):
        clock.tick()
    assert clock() == pytest.approx(2.0)


def test_latency_is_a_number_of_milliseconds_or_measured():
    assert Latency.parse("measured").charged_ms(12.5) == 12.5
    assert Latency.parse("180").charged_ms(12.5) == 180
    assert str(Latency.parse("180.0")) == "180"
    for wrong in ("-1", "fast", "nan", "inf"):
        with pytest.raises(TaskError, match="--latency 180"):
            Latency.parse(wrong)


def test_an_initial_state_is_the_same_for_every_repeat_and_policy_but_questions_differ():
    assert seeds.init_seed(0, "a/b", 3) == seeds.init_seed(0, "a/b", 3)
    assert seeds.episode_seed(0, "a/b", 3, 0) != seeds.episode_seed(0, "a/b", 3, 1)
    episode = seeds.episode_seed(0, "a/b", 3, 0)
    asked = {seeds.request_seed(episode, step) for step in range(100)}
    assert len(asked) == 100
    assert all(0 <= seed < 2**31 for seed in asked)
    # Parts are kept apart: ("1", "23") is not ("12", "3").
    assert seeds.derive(1, 23) != seeds.derive(12, 3)

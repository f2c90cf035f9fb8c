"""The loop between task and policy, against rows counted by hand. The task and policy here are exact."""

from dataclasses import replace

import numpy as np
import pytest

from wamserve.action_codec.errors import ContractError, PolicyError, TaskError
from wamserve.clients.policy import ActionChunk, Ledger, Prediction
from wamserve.embodiments.contract import load
from wamserve.sim_eval.check_fit import check_fit, check_observation
from wamserve.sim_eval.clock import Latency
from wamserve.sim_eval.policies import Facts, NoopPolicy, facts_of, resolve
from wamserve.sim_eval.rollout import Loop, rollout
from wamserve.sim_eval.task import TaskSpec, WorkItem

PUSHT = load("pusht")
ITEM = WorkItem("toy/Line", 0, 0, 5, 6)


class Line:
    """A finger that is where it is told; succeeds at `goal` steps."""

    def __init__(self, steps=12, goal=None):
        self.wire = PUSHT.wire
        image = self.wire.images[0]
        self.spec = TaskSpec(
            name="toy/Line",
            instruction="go",
            contract="pusht",
            rate_hz=10,
            max_steps=steps,
            settle_steps=0,
            views=((image.name, image.height, image.width),),
            image_orientation="upright",
            states=(("agent_pos", 2),),
            action_width=2,
            init_states="seeded",
            init_count=None,
            simulator="toy",
        )
        self.goal, self.rows, self.renders = goal, [], 0

    def reset(self, init, seed):
        self.rows, self.at = [], np.zeros(2)

    def step(self, action):
        self.rows.append(float(action[0]))
        self.at = np.asarray(action)

    def render(self):
        self.renders += 1
        image = self.wire.images[0]
        return {image.name: np.full((image.height, image.width, 3), len(self.rows), np.uint8)}

    def state(self):
        return {"agent_pos": self.at}

    def privileged(self):
        return {"secret": np.ones(1)}

    def hold(self):
        return np.array([-1.0, -1.0])

    def success(self):
        return self.goal is not None and len(self.rows) >= self.goal

    def progress(self):
        return len(self.rows) / 100

    def sim_state(self):
        return np.array([len(self.rows)], dtype=np.float64)

    def restore(self, sim_state): ...

    def close(self): ...


class Told:
    """Row k of the chunk asked for at step s is 100 s + k."""

    def __init__(self, rows=16):
        self.requests, self.rows = [], rows

    def __call__(self, request):
        self.requests.append(request)
        rows = 100.0 * request.step + np.arange(self.rows)
        chunk = ActionChunk(np.stack([rows, rows], 1), request.observation.time, 0.1)
        return Prediction(chunk, seed=request.seed, ledger=Ledger(denoise_ms=7, forwards=4)), 40.0


def run(task, ask, **loop):
    return rollout(task, ask, ITEM, Loop(**{"horizon": 4, **loop}))


def test_without_latency_rows_are_played_from_the_first_until_the_next_question():
    task, ask = Line(10), Told()
    run(task, ask)
    assert [request.step for request in ask.requests] == [0, 4, 8]
    assert task.rows == [0, 1, 2, 3, 400, 401, 402, 403, 800, 801]


def test_charged_latency_holds_at_first_and_drops_rows_already_in_the_past():
    task, ask = Line(10), Told()
    episode = run(task, ask, latency=Latency(180))  # 2 steps at 10 Hz
    # Held until step 2; rows 0 and 1 of every chunk are past when it arrives.
    assert task.rows == [-1, -1, 2, 3, 4, 5, 402, 403, 404, 405]
    assert [(c.step, c.ready, c.latency_ms) for c in episode.chunks] == [
        (0, 2, 180),
        (4, 6, 180),
        (8, 10, 180),
    ]
    assert [c.rows_used for c in episode.chunks] == [4, 4, 0]
    assert list(episode.recording["action_chunk"]) == [-1, -1, 0, 0, 0, 0, 1, 1, 1, 1]


def test_measured_latency_charges_what_the_call_took():
    task = Line(4)
    episode = run(task, Told(), latency=Latency(None))  # 40 ms at 10 Hz: one step
    assert task.rows == [-1, 1, 2, 3]
    assert episode.chunks[0].latency_ms == episode.chunks[0].wall_ms == 40.0


def test_a_latency_longer_than_the_horizon_asks_again_as_soon_as_it_can():
    ask = Told()
    run(Line(20), ask, latency=Latency(600), horizon=4)  # 6 steps
    assert [request.step for request in ask.requests] == [0, 6, 12, 18]


def test_frozen_prefix_sends_the_rows_that_will_have_run():
    ask = Told()
    run(Line(10), ask, latency=Latency(200), horizon=4, strategy="frozen_prefix", max_prefix_rows=8)
    assert ask.requests[0].prefix is None
    np.testing.assert_array_equal(ask.requests[1].prefix[:, 0], [4, 5])
    assert [request.delay for request in ask.requests] == [2, 2, 2]


def test_roll_forward_tells_the_state_expected_at_arrival():
    ask = Told()
    run(Line(8), ask, latency=Latency(200), horizon=4, strategy="roll_forward")
    np.testing.assert_array_equal(ask.requests[1].observation.state["agent_pos"], [5, 5])


def test_a_chunk_that_runs_out_is_held_at_its_last_row():
    task = Line(6)
    run(task, Told(rows=3), horizon=6)
    assert task.rows == [0, 1, 2, 2, 2, 2]


def test_cameras_are_rendered_only_when_the_policy_is_asked():
    task = Line(12)
    episode = run(task, Told())
    assert task.renders == 3
    assert [int(view[0, 0, 0]) for view in episode.recording[f"view/{task.wire.images[0].name}"]] == [0, 4, 8]
    blind = Line(12)
    run(blind, Told(), images=False)
    assert blind.renders == 0


def test_what_only_a_simulator_knows_is_sent_only_when_it_is_declared():
    ask = Told()
    run(Line(1), ask)
    assert list(ask.requests[0].observation.state) == ["agent_pos"]
    run(Line(1), ask, privileged=True)
    assert "privileged/secret" in ask.requests[1].observation.state


def test_success_ends_the_episode_and_the_recording_has_one_state_more_than_actions():
    episode = run(Line(12, goal=5), Told())
    assert episode.success
    assert episode.steps == 5
    assert len(episode.recording["actions"]) == 5
    assert episode.recording["sim_states"].ravel().tolist() == [0, 1, 2, 3, 4, 5]
    assert episode.max_progress == pytest.approx(0.05)


def test_a_chunk_of_another_width_or_with_nan_is_refused():
    def wide(request):
        return Prediction(ActionChunk(np.zeros((4, 3)), 0.0, 0.1)), 1.0

    def nan(request):
        return Prediction(ActionChunk(np.full((4, 2), np.nan), 0.0, 0.1)), 1.0

    for wrong in (wide, nan):
        with pytest.raises(PolicyError, match="does not fit"):
            run(Line(), wrong)


def test_a_policy_of_another_robot_is_refused_with_the_differing_fields():
    task, own = Line(), facts_of(NoopPolicy(PUSHT))
    check_fit(task.spec, task.wire, own)
    with pytest.raises(ContractError, match=r"rate_hz: policy 15, task 10"):
        check_fit(task.spec, task.wire, facts_of(NoopPolicy(load("panda_joint"))))
    with pytest.raises(ContractError, match="does not say which robot"):
        check_fit(task.spec, task.wire, Facts())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rate_hz", 20),
        ("image_orientation", "rotated_180"),
        ("views", (("top", 96, 96),)),
        ("action_width", 3),
    ],
)
def test_a_task_that_does_not_deliver_what_its_contract_says_is_refused(field, value):
    task = Line()
    with pytest.raises(TaskError, match=field):
        check_fit(replace(task.spec, **{field: value}), task.wire, facts_of(NoopPolicy(PUSHT)))


def test_the_first_observation_itself_is_looked_at():
    task = Line()
    task.reset(0, 0)
    check_observation(task)
    task.render = lambda: {}
    with pytest.raises(TaskError, match="view 'top'"):
        check_observation(task)
    task.state = lambda: {"agent_pos": np.array([np.nan, 0])}
    with pytest.raises(TaskError, match="agent_pos"):
        check_observation(task, images=False)


def test_a_policy_that_is_nowhere_is_an_error_that_says_what_can_be_typed():
    with pytest.raises(PolicyError, match="oracle, noop, ws://"):
        resolve("no_such_module:thing", PUSHT, "pusht/PushT")

"""PushT's oracle: its formulas are the simulator's, its plan follows from the state, it solves the task."""

from importlib.util import find_spec

import numpy as np
import pytest

from wamserve.action_codec.errors import RequestError
from wamserve.clients.policy import Observation, Request
from wamserve.embodiments.contract import load
from wamserve.sim_eval import catalog
from wamserve.sim_eval.oracles.policy import oracle_for
from wamserve.sim_eval.rollout import Loop
from wamserve.sim_eval.seeds import init_seed
from wamserve.sim_eval.task import WorkItem
from wamserve.sim_eval.worker import MakeTask
from wamserve.sim_eval.workers import Here

pytestmark = pytest.mark.skipif(not find_spec("gym_pusht"), reason="gym-pusht is not installed")
NAME, CONTRACT = "pusht/PushT", load("pusht")


@pytest.fixture(scope="module")
def task():
    return catalog.make(NAME, CONTRACT, "fast")


def planned(bodies, seed=0):
    state = {"agent_pos": bodies[:2], "privileged/bodies": bodies}
    return oracle_for(NAME, CONTRACT).infer(Request(Observation({}, state, ""), seed=seed)).chunk.actions


def test_the_formulas_know_the_simulators_block(task):
    from wamserve.sim_eval.oracles.pusht_pushes import FINGER, GYRATION
    from wamserve.sim_eval.oracles.pusht_ways import CORNERS
    from wamserve.sim_eval.suites.pusht import bars

    task.reset(0, 0)
    block = task._env.block
    assert block.moment / block.mass == pytest.approx(GYRATION)
    assert [shape.radius for shape in task._env.agent.shapes] == [FINGER]
    corners = np.array([v for bar in bars(task._env) for v in bar.get_vertices()]) - block.center_of_gravity
    for corner in CORNERS:
        assert np.linalg.norm(corners - corner, axis=1).min() < 1e-9
    np.testing.assert_array_equal([corners.min(0), corners.max(0)], [CORNERS.min(0), CORNERS.max(0)])


@pytest.mark.parametrize(
    ("turn", "expected"), [(0.0, [256, 271, 256, 376]), (np.pi / 2, [241, 256, 136, 256])]
)
def test_asked_where_the_block_lies_the_oracle_names_its_bar_and_its_stem(turn, expected):
    """The bar's middle is 15 px from the block's origin, the stem's end 120 px, both along its y."""
    bodies = np.array([50.0, 60.0, 0, 0, 256, 256, 0, 0, turn, 0])
    state = {"agent_pos": bodies[:2], "privileged/bodies": bodies}
    looking = oracle_for(NAME, load("pusht_block"))
    rows = looking.infer(Request(Observation({}, state, ""), seed=0)).chunk.actions
    np.testing.assert_allclose(rows, np.tile(expected, (16, 1)), atol=1e-9)


@pytest.mark.parametrize("place", range(8))
def test_a_push_moves_and_turns_the_block_as_the_formula_says(place):
    """Twenty px of the centre of gravity from every place, in pymunk and on paper."""
    from wamserve.sim_eval.oracles.pusht import physics
    from wamserve.sim_eval.oracles.pusht_pushes import PLACES, after, finger_way, spot

    world, length = physics(), 20.0
    lever = PLACES[place, 5] * PLACES[place, 3:5].mean()
    start, way = np.array(spot(place, lever, 0.5)), finger_way(lever, length) + 0.5
    origin = np.array([256.0, 256.0])  # of the block, which is not turned
    cog = world.centred(*origin, 0.0)[:2]
    world.put(np.array([*(cog + start), 0, 0, *origin, 0, 0, 0, 0]))
    for share in np.linspace(0.05, 1, 40).clip(max=1):
        world.step(cog + start + PLACES[place, :2] * way * share)
    for _ in range(10):
        world.step(cog + start + PLACES[place, :2] * way)
    block = world.env.block
    pose = world.centred(*block.position, block.angle)
    ex, ey, turn = after(place, lever, length, 0.0, 0.0, 0.0)
    np.testing.assert_allclose(pose[:2] - cog, [-ex, -ey], atol=3.0)
    assert pose[2] == pytest.approx(-turn, abs=0.05)


def test_the_same_state_has_the_same_plan_whatever_was_asked_before(task):
    task.reset(0, 5)
    bodies = task.sim_state()
    first = planned(bodies)
    task.reset(0, 6)
    planned(task.sim_state())
    np.testing.assert_array_equal(planned(bodies, seed=9), first)


def test_a_plan_asked_for_later_is_the_rest_of_the_one_before(task):
    task.reset(0, 5)
    first = planned(task.sim_state())
    for row in first[:6]:
        task.step(row)
    np.testing.assert_allclose(planned(task.sim_state())[:10], first[6:], atol=2.0)


def test_states_a_pixel_apart_mostly_have_plans_a_few_pixels_apart(task):
    rng, apart = np.random.default_rng(0), []
    for seed in range(30):
        task.reset(0, seed)
        bodies = task.sim_state()
        beside = bodies + np.array([*rng.normal(0, 1, 2), 0, 0, *rng.normal(0, 1, 2), 0, 0, 0, 0])
        apart.append(np.abs(planned(bodies) - planned(beside)).mean())
    assert np.median(apart) < 4.0


def test_a_target_is_never_far_from_the_finger(task):
    from wamserve.sim_eval.oracles.pusht import physics

    for seed in range(5):
        task.reset(0, seed)
        world = physics()
        world.put(task.sim_state())
        for _ in range(60):
            target = world.target()
            assert np.linalg.norm(target - np.array(world.env.agent.position)) < 45.0
            world.step(target)


@pytest.mark.parametrize("horizon", [4, 16])
def test_the_oracle_pushes_the_block_onto_its_outline(horizon):
    here, count = Here(MakeTask("pusht", "fast")), 10
    items = [WorkItem(NAME, i, 0, i, init_seed(0, NAME, i)) for i in range(count)]
    loop = Loop(horizon, privileged=True, images=False)
    episodes = list(here.run(oracle_for(NAME, CONTRACT), loop, items))
    assert sum(episode.success for episode in episodes) >= count - 1
    assert np.mean([episode.steps for episode in episodes]) < 150


def test_without_privileged_state_it_says_what_it_needs():
    with pytest.raises(RequestError, match="bodies"):
        oracle_for(NAME, CONTRACT).infer(Request(Observation({}, {"agent_pos": np.zeros(2)}, "")))

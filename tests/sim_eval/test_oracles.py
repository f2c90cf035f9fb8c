"""Scripted oracles solve their tasks through the contract, and a broken convention takes that away."""

import os
import subprocess
import sys
import tarfile
from importlib.util import find_spec

import numpy as np
import pytest

from wamserve.action_codec.errors import RequestError, TaskError
from wamserve.clients.policy import Observation, Request
from wamserve.embodiments.contract import load
from wamserve.sim_eval import catalog
from wamserve.sim_eval.check_task import check_task
from wamserve.sim_eval.evaluate import evaluate
from wamserve.sim_eval.mistakes import Broken, action_mistakes, image_mistakes
from wamserve.sim_eval.oracles.pick_place import Scene, decide, turn_between
from wamserve.sim_eval.oracles.policy import oracle_for
from wamserve.sim_eval.oracles.seeing import SeeingPolicy, find, on_table
from wamserve.sim_eval.policies import NoopPolicy
from wamserve.sim_eval.rollout import Loop
from wamserve.sim_eval.seeds import init_seed
from wamserve.sim_eval.task import WorkItem
from wamserve.sim_eval.worker import MakeTask
from wamserve.sim_eval.workers import Here

pytestmark = pytest.mark.skipif(not find_spec("robosuite"), reason="robosuite is not installed")


def items(name, count=3):
    return [WorkItem(name, i, 0, i, init_seed(0, name, i)) for i in range(count)]


def successes(name, contract, policy, count=3, horizon=8, **loop):
    here = Here(MakeTask(contract, "fast"))
    options = {"privileged": True, "images": False, **loop}
    return [e.success for e in here.run(policy, Loop(horizon, **options), items(name, count))]


@pytest.mark.parametrize("contract", ["panda_joint", "panda_osc"])
@pytest.mark.parametrize(
    "name", ["robosuite/Lift", "robosuite/Stack", "robosuite/PickPlaceCan", "two_cubes/green"]
)
def test_the_oracle_solves_the_task_at_any_horizon(name, contract):
    oracle = oracle_for(name, load(contract))
    assert all(successes(name, contract, oracle))
    assert all(successes(name, contract, oracle, horizon=load(contract).wire.chunk))


@pytest.mark.parametrize("contract", ["panda_joint", "panda_osc"])
def test_a_flipped_gripper_never_lifts(contract):
    flip = action_mistakes(load(contract))["gripper flipped"]
    oracle = Broken(oracle_for("robosuite/Lift", load(contract)), rows=flip)
    assert not any(successes("robosuite/Lift", contract, oracle))


def test_the_wrong_instruction_lifts_the_wrong_cube_and_fails():
    """The seeing policy obeys the instruction; told the other colour it lifts the other cube."""

    class Contrary(SeeingPolicy):
        def infer(self, request):
            from dataclasses import replace

            seen = request.observation
            swapped = {"red": "green", "green": "red"}
            color = "green" if "green" in seen.instruction else "red"
            told = seen.instruction.replace(color, swapped[color])
            return super().infer(replace(request, observation=replace(seen, instruction=told)))

    contract = load("panda_osc")
    options = {"count": 2, "privileged": False, "images": True}
    assert all(successes("two_cubes/red", "panda_osc", SeeingPolicy(contract), **options))
    assert not any(successes("two_cubes/red", "panda_osc", Contrary(contract), **options))


def test_noise_leaves_the_path_and_the_oracle_comes_back():
    clean, noisy = (oracle_for("robosuite/Lift", load("panda_osc"), noise) for noise in (0.0, 0.15))
    assert all(successes("robosuite/Lift", "panda_osc", noisy))
    task = catalog.make("robosuite/Lift", load("panda_osc"), "fast")
    task.reset(0, 0)
    state = {f"privileged/{k}": np.asarray(v) for k, v in task.privileged().items()}
    request = Request(Observation({}, state, "lift"), seed=3)
    a, b = clean.infer(request).chunk.actions, noisy.infer(request).chunk.actions
    assert not np.allclose(a[:, :6], b[:, :6])
    np.testing.assert_array_equal(a[:, 6], b[:, 6])  # grippers are left alone
    np.testing.assert_array_equal(b, noisy.infer(request).chunk.actions)


def test_a_finger_axis_has_no_sign():
    x = np.array([1.0, 0.0])
    assert abs(turn_between(x, np.array([0.0, 1.0]))) == pytest.approx(np.pi / 2)  # either way round
    for angle in (0.3, -0.3):
        wanted = np.array([np.cos(angle), np.sin(angle)])
        assert turn_between(x, wanted) == pytest.approx(angle)
        assert turn_between(x, -wanted) == pytest.approx(angle)


def test_the_plan_recovers_an_object_that_was_dropped():
    task = catalog.make("robosuite/Lift", load("panda_joint"), "fast")
    task.reset(0, 0)
    scene = Scene.from_state({f"privileged/{k}": np.asarray(v) for k, v in task.privileged().items()})
    from dataclasses import replace

    held = replace(scene, eef_pos=scene.grasp_pos, grasped=True, gripper_told=1.0, gripper_width=0.04)
    assert decide(held).closed
    dropped = replace(held, grasped=False, gripper_width=0.0, eef_pos=scene.grasp_pos + [0, 0, 0.1])
    assert not decide(dropped).closed
    assert decide(dropped).pos[2] < dropped.eef_pos[2]


def test_an_oracle_without_privileged_state_says_what_it_needs():
    oracle = oracle_for("robosuite/Lift", load("panda_joint"))
    with pytest.raises(RequestError, match="grasp_pos"):
        oracle.infer(Request(Observation({}, {}, "lift")))
    with pytest.raises(TaskError, match="no oracle"):
        oracle_for("robosuite/Door", load("panda_joint"))


def test_a_cube_is_found_where_it_is_and_not_in_broken_pictures():
    task = catalog.make("two_cubes/red", load("panda_osc"), "fast")
    for seed in range(4):
        task.reset(0, seed)
        images = task.render()
        pixel = find(images["agentview"], "red")
        at = on_table(pixel, *images["agentview"].shape[:2])
        np.testing.assert_allclose(at[:2], task.privileged()["grasp_pos"][:2], atol=0.015)
        assert find(image_mistakes()["channels reversed (BGR)"](images)["agentview"], "red") is None


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["robosuite/Lift", "two_cubes/red", "pusht/PushT"])
def test_every_check_of_a_task_passes(name):
    failed = [finding for finding in check_task(name, episodes=3) if finding.passed is False]
    assert not failed


def test_the_oracle_served_over_the_websocket_is_evaluated_like_any_policy(tmp_path):
    from wamserve.sim_eval.clock import Latency
    from wamserve.sim_eval.evaluate import Plan
    from wamserve.sim_eval.store import RunStore

    factory = "wamserve.sim_eval.oracles.policy:panda_joint_oracle"
    server = subprocess.Popen(
        [sys.executable, "-m", "wam", "serve", "--factory", factory, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        url = next(line.split()[-1] for line in server.stdout if line.startswith("ready at"))
        plan = Plan(
            *("robosuite/Lift", url, 2, 1, 0, 1, 0, Latency(0.0), 8, "switch", None, "fast", True, False)
        )
        outcome = evaluate(plan, tmp_path / "run")
        assert outcome.successes == 2
        with RunStore.open(outcome.run) as run:
            assert run.info.protocol.policy.name == "oracle"
            recording = run.recording(run.episodes()[0])
            assert recording["view/agentview"].shape[0] == len(recording["chunk_step"])
    finally:
        server.terminate()
        server.wait(20)


def test_noop_fails_where_the_oracle_succeeds():
    assert not any(
        successes("robosuite/Lift", "panda_joint", NoopPolicy(load("panda_joint")), 2, privileged=False)
    )


@pytest.fixture(scope="module")
def meshes(shared, tmp_path_factory):
    """LIBERO's meshes for tests, unpacked; they are not part of the project."""
    if not find_spec("libero"):
        pytest.skip("LIBERO is not installed")
    archives = sorted((shared / "data" / "libero").glob("*.tar.xz"))
    if not archives:
        pytest.skip("no LIBERO meshes for tests")
    folder = tmp_path_factory.mktemp("libero_assets")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    before = os.environ.get("WAMSERVE_LIBERO_ASSETS")
    os.environ["WAMSERVE_LIBERO_ASSETS"] = str(folder)
    yield folder
    if before is None:
        del os.environ["WAMSERVE_LIBERO_ASSETS"]
    else:
        os.environ["WAMSERVE_LIBERO_ASSETS"] = before


def test_a_libero_task_repeats_from_its_initial_state_and_its_oracle_solves_it(meshes):
    name = "libero_object/0"
    task = catalog.make(name, load("libero"), "fast")
    assert task.spec.init_count == 50
    assert task.spec.instruction == "pick up the alphabet soup and place it in the basket"
    ends = []
    for init in (3, 5, 3):
        task.reset(init, 0)
        assert not task.success()
        rng = np.random.default_rng(0)
        for _ in range(15):
            task.step(rng.uniform(-0.5, 0.5, 7))
        ends.append(task.sim_state())
    np.testing.assert_array_equal(ends[0], ends[2])
    assert not np.array_equal(ends[0], ends[1])
    with pytest.raises(TaskError, match=r"0 \.\. 49"):
        task.reset(50, 0)
    task.close()
    assert sum(successes(name, None, oracle_for(name, load("libero")), count=2)) >= 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
def test_every_libero_task_loads_takes_its_initial_states_and_evaluates_success(meshes, suite):
    for name in catalog.task_names(suite):
        task = catalog.make(name, load("libero"), "fast")
        assert task.spec.init_count == 50
        for state in task._inits:
            task.restore(state)
            np.testing.assert_array_equal(task.sim_state(), state)
            assert task.success() is False
        task.reset(0, 0)
        task.step(task.hold())
        assert task.success() is False
        assert set(task.render()) == {"agentview", "wrist"}
        task.close()

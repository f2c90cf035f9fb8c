"""The shipped simulators keep their word: determinism, pictures, units, initial states."""

import io
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from wamserve.action_codec.errors import ContractError, TaskError
from wamserve.embodiments.contract import load
from wamserve.sim_eval import catalog
from wamserve.sim_eval.check_fit import check_observation
from wamserve.sim_eval.oracles.kinematics import frames, joints_for_pose

pytestmark = pytest.mark.skipif(not find_spec("robosuite"), reason="robosuite is not installed")


@pytest.fixture(scope="module")
def lift():
    task = catalog.make("robosuite/Lift", load("panda_joint"), "full")
    yield task
    task.close()


def after(task, seed, steps=15):
    task.reset(0, seed)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        row = task.hold()
        task.step(row + rng.normal(0, 0.05, row.shape))
    return task.sim_state()


@pytest.mark.parametrize("name", ["robosuite/Lift", "two_cubes/green", "pusht/PushT", "gym/Pendulum-v1"])
def test_the_listed_instruction_is_the_one_a_task_gives(name):
    task = catalog.make(name, catalog.contract_of(name), "fast")
    assert catalog.instructions(name) == [task.spec.instruction]
    task.close()


def test_a_suites_instructions_are_listed_once_each():
    assert catalog.instructions("two_cubes") == ["lift the red cube", "lift the green cube"]
    assert len(catalog.instructions("libero_spatial")) == 10
    with pytest.raises(TaskError, match="no suite 'nonsense'"):
        catalog.instructions("nonsense")


@pytest.mark.parametrize(
    "name", ["robosuite/Lift", "robosuite/Stack", "robosuite/PickPlaceCan", "two_cubes/red"]
)
@pytest.mark.parametrize("contract", ["panda_joint", "panda_osc"])
def test_an_episode_does_not_know_the_one_before(name, contract):
    task = catalog.make(name, load(contract), "fast")
    first = after(task, 7)
    assert not np.array_equal(first, after(task, 9))
    np.testing.assert_array_equal(first, after(task, 7))
    task.close()


def test_looking_does_not_change_what_happens(lift):
    first = after(lift, 3)
    lift.reset(0, 3)
    rng = np.random.default_rng(3)
    for _ in range(15):
        lift.render(), lift.privileged(), lift.success()
        row = lift.hold()
        lift.step(row + rng.normal(0, 0.05, row.shape))
    np.testing.assert_array_equal(first, lift.sim_state())


def test_a_stored_state_brings_its_picture_back(lift):
    after(lift, 11)
    state, picture = lift.sim_state(), lift.render()
    lift.reset(0, 12)
    lift.restore(state)
    for name, frame in lift.render().items():
        np.testing.assert_array_equal(frame, picture[name])


def test_the_fast_profile_is_another_picture_and_says_so(lift):
    fast = catalog.make("robosuite/Lift", load("panda_joint"), "fast")
    for task in (lift, fast):
        task.reset(0, 1)
    assert fast.spec.render_profile == "fast"
    assert not np.array_equal(fast.render()["agentview"], lift.render()["agentview"])
    fast.close()


def test_joint_targets_are_tracked_and_kept_inside_the_limits(lift):
    lift.reset(0, 2)
    target = lift.hold()
    target[0] += 0.2
    for _ in range(15):
        lift.step(target)
    assert abs(lift.state()["joint_position"][0] - target[0]) < 0.02
    wild = target.copy()
    wild[1] = 100.0
    for _ in range(10):
        lift.step(wild)
    assert lift.state()["joint_position"][1] < 1.7628 + 0.05
    with pytest.raises(ContractError, match="not an action row"):
        lift.step(np.full(8, np.nan))


def test_the_gripper_is_open_at_0_and_closed_at_1_as_the_contract_says(lift):
    lift.reset(0, 2)
    for end in (1.0, 0.0):
        row = lift.hold()
        row[7] = end
        for _ in range(12):
            lift.step(row)
        assert abs(lift.state()["gripper_position"][0] - end) < 0.15


def test_forward_kinematics_of_the_contract_is_the_simulators(lift):
    wire = lift.wire
    for seed in (1, 2):
        after(lift, seed)
        hidden = lift.privileged()
        tip = frames(wire.kinematics, lift.state()["joint_position"])[-1]
        np.testing.assert_allclose(tip[:3, 3] + hidden["base_pos"], hidden["eef_pos"], atol=1e-6)
        goal = tip.copy()
        goal[:3, 3] += [0.02, -0.03, 0.01]
        joints = joints_for_pose(wire.kinematics, wire.joints, lift.state()["joint_position"], goal, steps=20)
        np.testing.assert_allclose(frames(wire.kinematics, joints)[-1], goal, atol=2e-3)


def test_a_suite_refuses_a_contract_it_does_not_speak():
    with pytest.raises(ContractError, match="panda_joint, panda_osc"):
        catalog.contract_of("robosuite/Lift", "droid_lerobot")


def test_pusht_draws_the_finger_where_the_state_says_and_scores_like_gym_pusht():
    task = catalog.make("pusht/PushT", load("pusht"))
    task.reset(0, 4)
    check_observation(task)
    assert task.progress() == pytest.approx(task._env._get_coverage(), abs=1e-12)
    state, picture = task.sim_state(), task.render()["top"]
    for _ in range(20):
        task.step(np.array([256.0, 256.0]))
    task.restore(state)
    np.testing.assert_array_equal(task.render()["top"], picture)


def test_any_gymnasium_environment_with_a_vector_action_is_a_task():
    task = catalog.make("gym/Pendulum-v1", None)
    assert task.spec.states == (("observation", 3),)
    first = []
    for seed in (3, 4, 3):
        task.reset(0, seed)
        task.step(np.array([0.5]))
        first.append(task.state()["observation"])
    np.testing.assert_array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])
    with pytest.raises(TaskError, match="no vector action"):
        catalog.make("gym/CartPole-v1", None)
    with pytest.raises(TaskError, match="cannot make"):
        catalog.make("gym/NoSuchThing-v9", None)


def test_every_libero_task_has_fifty_initial_states_read_without_torch():
    from wamserve.sim_eval.suites import libero_boot as boot

    counts = {suite: len(stems) for suite, stems in boot.task_map().items() if suite in catalog.LIBERO}
    assert counts == {
        "libero_spatial": 10,
        "libero_object": 10,
        "libero_goal": 10,
        "libero_10": 10,
        "libero_90": 90,
    }
    for suite in catalog.LIBERO[:4]:
        for stem in boot.task_map()[suite]:
            states = boot.init_states(suite, stem)
            assert states.shape[0] == 50
            assert np.isfinite(states).all()
    assert boot.language("KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it") == (
        "turn on the stove and put the moka pot on it"
    )
    assert boot.language("STUDY_SCENE10_x_y") == "x y"


def test_an_initial_state_file_that_would_run_code_is_refused(tmp_path, monkeypatch):
    from wamserve.sim_eval.suites import libero_boot as boot

    class Evil:
        def __reduce__(self):
            return (print, ("owned",))

    folder = tmp_path / "init_files" / "s"
    folder.mkdir(parents=True)
    buffer = io.BytesIO()
    pickle.dump(Evil(), buffer)
    with zipfile.ZipFile(folder / "t.pruned_init", "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
    monkeypatch.setattr(boot, "package", lambda: tmp_path)
    with pytest.raises(TaskError, match="print has no place in an array"):
        boot.init_states("s", "t")


def test_missing_meshes_are_an_error_that_says_where_they_belong(tmp_path, monkeypatch):
    from wamserve.sim_eval.suites import libero_boot as boot

    monkeypatch.setenv(boot.ASSETS_VARIABLE, str(tmp_path))
    with pytest.raises(TaskError, match="wam sims install libero"):
        boot.assets()


def test_a_wire_half_that_asks_for_an_unknown_camera_is_refused():
    contract = load("panda_osc")
    image = replace(contract.wire.images[0], name="left_shoulder")
    odd = replace(contract, wire=replace(contract.wire, images=(image,)))
    with pytest.raises(TaskError, match="left_shoulder"):
        catalog.make("robosuite/Lift", odd)


THEIRS = """
import sys
import numpy as np
import robosuite

arrays = np.load(sys.argv[1])
own = robosuite.make(
    "Lift",
    robots="Panda",
    has_renderer=False,
    has_offscreen_renderer=True,
    use_camera_obs=False,
    hard_reset=False,  # another reset would draw another size of cube
    seed=0,
)
own.reset()
own.sim.set_state_from_flattened(arrays["state"])
own.sim.forward()
views = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
np.savez(sys.argv[2], **{
    view: own.sim.render(camera_name=camera, height=arrays[view][0], width=arrays[view][1])[::-1]
    for view, camera in views.items()
})
"""


def test_pictures_are_those_robosuite_itself_renders(lift, tmp_path):
    """Against robosuite's own offscreen renderer, bit for bit, in a process that has no other GL context."""
    from wamserve.sim_eval.render import choose_gl

    choose_gl()
    lift.reset(0, 5)
    asked, drawn = tmp_path / "asked.npz", tmp_path / "drawn.npz"
    np.savez(asked, state=lift.sim_state(), **{name: (h, w) for name, h, w in lift.spec.views})
    done = subprocess.run(
        [sys.executable, "-c", THEIRS, str(asked), str(drawn)], capture_output=True, text=True
    )
    assert drawn.is_file(), done.stderr
    with np.load(drawn) as theirs:
        for name, picture in lift.render().items():
            np.testing.assert_array_equal(picture, theirs[name])

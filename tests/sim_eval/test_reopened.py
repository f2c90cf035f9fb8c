"""A recorded run's tasks come back as they were: shortened, told otherwise, under another interpreter."""

import os
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest

from wamserve.action_codec.errors import ContractError, RunError, TaskError
from wamserve.embodiments.contract import load
from wamserve.sim_eval import catalog
from wamserve.sim_eval.clock import Latency
from wamserve.sim_eval.evaluate import Plan, evaluate
from wamserve.sim_eval.remote_task import RemoteTask
from wamserve.sim_eval.reopened import opener
from wamserve.sim_eval.results_cli import score_store
from wamserve.sim_eval.store import RunStore
from wamserve.sim_eval.task import Task
from wamserve.sim_eval.worker import MakeTask

pytest.importorskip("gym_pusht")

PLAN = Plan(
    *("pusht/PushT", "noop", 1, 1, 0, 0, 0, Latency(0.0), 8, "switch", None, "full", True, False),
    max_steps=6,
    instruction="leave the T alone",
)


@pytest.fixture
def remote():
    task = RemoteTask(sys.executable, MakeTask(None, "full"), "pusht/PushT")
    yield task
    task.close()


def test_a_task_in_another_process_is_the_task(remote):
    here = catalog.make("pusht/PushT", load("pusht"))
    assert isinstance(remote, Task) and remote.spec == here.spec and remote.wire == here.wire
    for task in (remote, here):
        task.reset(0, 5)
        task.step(np.array([100.0, 400.0]))
    assert remote.render().keys() == here.render().keys()
    for theirs, ours in ((remote.render(), here.render()), (remote.state(), here.state())):
        for name, value in ours.items():
            np.testing.assert_array_equal(theirs[name], value)
    np.testing.assert_array_equal(remote.hold(), here.hold())
    np.testing.assert_array_equal(remote.sim_state(), here.sim_state())
    assert remote.progress() == here.progress() and remote.success() is False
    begun = here.sim_state()
    remote.step(np.array([256.0, 256.0]))
    assert not np.array_equal(remote.sim_state(), begun)
    remote.restore(begun)
    np.testing.assert_array_equal(remote.sim_state(), begun)


def test_what_goes_wrong_in_another_process_is_said_here(remote):
    with pytest.raises(TaskError, match="no suite"):
        RemoteTask(sys.executable, MakeTask("panda_joint", "full"), "libero_nowhere/0")
    with pytest.raises(ContractError, match="not an action row"):
        remote.step(np.zeros(9))


def test_a_mistake_in_another_process_brings_its_traceback(remote):
    with pytest.raises(RunError, match="IndexError"):
        remote.restore(np.zeros(0))


def test_a_simulator_that_dies_is_an_error_and_no_wait(remote):
    os.kill(remote._process.pid, signal.SIGKILL)
    with pytest.raises(RunError, match="exit code -9"):
        remote.render()


@pytest.mark.parametrize("python", [None, sys.executable])
def test_a_run_is_judged_again_by_the_tasks_it_was_made_of(tmp_path, python):
    evaluate(PLAN, tmp_path / "run")
    with RunStore.open(tmp_path / "run") as store:
        (spec,) = store.info.protocol.tasks
        assert (spec.max_steps, spec.instruction) == (6, "leave the T alone")
        task = opener(store, "rendered", python)(spec)
        assert isinstance(task, RemoteTask) is (python is not None)
        task.close()
        assert score_store(store, "rendered", verify=True, python=python).episodes == 1
        with pytest.raises(RunError, match=r"rate_hz: 20 recorded, 10\S* here.*--frames seen"):
            opener(store, "rendered", python)(replace(spec, rate_hz=20))
        assert opener(store, "seen") is None


def test_a_run_of_another_interpreter_says_which_and_starts_nothing_by_itself(tmp_path, monkeypatch):
    evaluate(PLAN, tmp_path / "run")
    recorder = sys.executable
    monkeypatch.setattr(sys, "executable", "/another/python")
    with RunStore.open(tmp_path / "run") as store:
        (spec,) = store.info.protocol.tasks
        with pytest.raises(RunError, match=f"try: --python {recorder}"):
            opener(store, "rendered")(replace(spec, simulator="another"))

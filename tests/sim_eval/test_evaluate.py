"""Whole runs on PushT, the quickest simulator: resuming, killing, worker counts."""

import os
import signal
import subprocess
import sys
import time
import venv
from dataclasses import replace

import numpy as np
import pytest

from wamserve.action_codec.errors import ContractError, RunError, TaskError
from wamserve.sim_eval.cli import check_task_verb
from wamserve.sim_eval.clock import Latency
from wamserve.sim_eval.evaluate import Plan, evaluate
from wamserve.sim_eval.policies import NoopPolicy
from wamserve.sim_eval.store import RunStore

pytest.importorskip("gym_pusht")

PLAN = Plan(
    target="pusht/PushT",
    policy="noop",
    episodes=4,
    repeats=1,
    first_init=0,
    workers=0,
    seed=0,
    latency=Latency(0.0),
    horizon=8,
    strategy="switch",
    contract=None,
    profile="full",
    deterministic=True,
    video=False,
    max_steps=24,
)


def test_results_do_not_depend_on_the_number_of_workers(toys, tmp_path):
    plan = replace(PLAN, policy="oracle", episodes=3)
    for workers in (0, 1, 2):
        evaluate(replace(plan, workers=workers), tmp_path / str(workers))
    toys.same(tmp_path / "0", tmp_path / "1")
    toys.same(tmp_path / "0", tmp_path / "2")


def test_seeds_change_initial_states_and_repeats_share_them(toys, tmp_path):
    evaluate(replace(PLAN, episodes=4, repeats=2), tmp_path / "a")
    evaluate(replace(PLAN, episodes=4, repeats=2, seed=1), tmp_path / "b")
    (rows, arrays, _), (_, others, _) = toys.contents(tmp_path / "a"), toys.contents(tmp_path / "b")
    assert [row[0][1:] for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    starts = [array["sim_states"][0] for array in arrays]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2])
    assert not np.array_equal(starts[0], others[0]["sim_states"][0])


def test_a_finished_run_is_told_again_and_not_touched(tmp_path):
    first = evaluate(PLAN, tmp_path / "run")
    before = (tmp_path / "run" / "episodes.sqlite").read_bytes()
    assert evaluate(PLAN, tmp_path / "run") == first
    assert (tmp_path / "run" / "episodes.sqlite").read_bytes() == before
    with pytest.raises(RunError, match="latency"):
        evaluate(replace(PLAN, latency=Latency(100)), tmp_path / "run")


def test_no_episodes_is_an_error():
    with pytest.raises(TaskError, match="needs episodes"):
        evaluate(replace(PLAN, episodes=0))


def test_measured_latency_cannot_be_deterministic():
    with pytest.raises(TaskError, match="never the same twice"):
        evaluate(replace(PLAN, latency=Latency(None)))


def test_a_policy_of_another_robot_stops_before_the_first_step(tmp_path):
    from wamserve.embodiments.contract import load

    with pytest.raises(ContractError, match="panda_osc"):
        evaluate(PLAN, tmp_path / "run", policy=NoopPolicy(load("panda_osc")))
    assert not (tmp_path / "run").exists()


def test_an_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(TaskError, match="pusht/PushT"):
        evaluate(replace(PLAN, target="pusht/Push"))
    with pytest.raises(TaskError, match="wam eval pusht"):
        evaluate(replace(PLAN, target="push"))


def test_a_simulator_that_dies_has_its_episode_run_again(toys, tmp_path):
    from wamserve.sim_eval import workers

    killed = []
    original = workers.Crew._answer

    def answer(crew, policy, taken):
        if not killed:
            killed.append(taken[0][0].process.pid)
            os.kill(killed[0], signal.SIGKILL)
        original(crew, policy, taken)

    workers.Crew._answer = answer
    try:
        evaluate(replace(PLAN, workers=2), tmp_path / "run")
    finally:
        workers.Crew._answer = original
    assert killed
    evaluate(PLAN, tmp_path / "quiet")
    toys.same(tmp_path / "quiet", tmp_path / "run")


class Counting(NoopPolicy):
    """Costs the same for one question as for many; notes how many came together."""

    def __init__(self, contract):
        super().__init__(contract)
        self.batches = []

    def infer(self, request):
        return self.infer_batch([request])[0]

    def infer_batch(self, requests):
        self.batches.append(len(requests))
        time.sleep(0.1)
        return [NoopPolicy.infer(self, request) for request in requests]


def test_the_questions_of_all_workers_gather_into_one_batch(toys, tmp_path):
    from wamserve.embodiments.contract import load

    policy, quiet = Counting(load("pusht")), NoopPolicy(load("pusht"))
    plan = replace(PLAN, episodes=6, horizon=2, deterministic=False)
    evaluate(replace(plan, workers=3), tmp_path / "run", policy=policy)
    with RunStore.open(tmp_path / "run") as run:
        batch = [chunk.batch for row in run.episodes() for chunk in run.chunks(row.id)]
    assert sum(policy.batches) == len(batch)
    assert max(batch) == max(policy.batches) == 3
    assert sum(policy.batches) / len(policy.batches) > 1.5  # 3 where every worker has a core to itself
    evaluate(plan, tmp_path / "alone", policy=quiet)
    toys.same(tmp_path / "alone", tmp_path / "run")


def test_deterministic_mode_asks_singly_unless_the_policy_says_batches_change_nothing(tmp_path):
    from wamserve.embodiments.contract import load

    class Undeclared(Counting):
        describe = None

        def __getattribute__(self, name):
            if name == "describe":
                raise AttributeError(name)
            return super().__getattribute__(name)

    policy = Undeclared(load("pusht"))
    evaluate(replace(PLAN, workers=2, episodes=2), tmp_path / "run", policy=policy)
    assert set(policy.batches) == {1}


def test_checking_nothing_is_not_a_pass():
    with pytest.raises(TaskError, match="no task was named"):
        check_task_verb(())


def test_workers_under_another_interpreter_bring_its_tasks_and_versions(tmp_path):
    """An environment of links to this one's packages, one of them said to be another version."""
    home, theirs = tmp_path / "env", {}
    venv.create(home, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    # addsitedir, unlike a mere path, also follows the links of editable packages.
    found = [path for path in sys.path if path.endswith("site-packages")]
    (site / "here.pth").write_text("\n".join(f"import site; site.addsitedir({path!r})" for path in found))
    (site / "pymunk-6.0.0.dist-info").mkdir()
    (site / "pymunk-6.0.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: pymunk\nVersion: 6.0.0\n"
    )
    plan = replace(PLAN, python=str(home / "bin" / "python"), workers=1, episodes=1)
    for name, python in (("here", sys.executable), ("there", plan.python)):
        evaluate(replace(plan, python=python), tmp_path / name)
        with RunStore.open(tmp_path / name) as run:
            theirs[name] = dict(run.info.protocol.versions)
    assert set(theirs["here"]) == {"wamserve", "numpy", "gymnasium", "gym-pusht", "pymunk"}
    assert theirs["there"].pop("pymunk") == "6.0.0" != theirs["here"].pop("pymunk")
    assert theirs["there"] == theirs["here"]
    with pytest.raises(TaskError, match="at least one worker"):
        evaluate(replace(plan, workers=0))
    with pytest.raises(TaskError, match="no task 'pusht/Push'"):
        evaluate(replace(plan, target="pusht/Push"))
    with pytest.raises(TaskError, match="an interpreter with wamserve"):
        evaluate(replace(plan, python="/bin/false"))


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(toys, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        toys.command(run, 200),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
    )
    # The row of an episode is in place before the next one's recording.
    while not (run / "episodes").is_dir() or len(list((run / "episodes").glob("*.npz"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[0]
    assert process.returncode == 130, said
    assert "the same command resumes" in said
    with RunStore.open(run) as store:
        assert 0 < len(store.done()) < 200
        assert not store.finished


def test_the_first_line_says_what_runs_and_the_last_where_it_lies(toys, tmp_path):
    done = subprocess.run(toys.command(tmp_path / "run", 2), capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    assert lines[0].startswith("wam eval: pusht, 2 episodes a task by noop")
    assert lines[-1] == f"run: {tmp_path / 'run'}"
    assert "0/2 = 0.0 % (95 % Wilson 0.0 .. 65.8)" in lines[-2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_ray_cluster_runs_the_same_episodes_to_the_same_results(toys, tmp_path):
    pytest.importorskip("ray")
    plan = replace(PLAN, policy="noop", episodes=3, workers=2)
    evaluate(replace(plan, executor="ray"), tmp_path / "ray")
    evaluate(replace(plan, workers=0), tmp_path / "here")
    toys.same(tmp_path / "here", tmp_path / "ray")


class LearnedFast(NoopPolicy):
    """A policy whose card says that it learned from fast pictures."""

    def describe(self):
        return {"card": {"render_profile": "fast"}}


@pytest.mark.parametrize(("asked", "rendered"), [(None, "fast"), ("full", "full")])
def test_pictures_are_rendered_as_the_policy_learned_them_unless_it_is_asked_otherwise(
    tmp_path, asked, rendered
):
    from wamserve.embodiments.contract import load

    plan = replace(PLAN, target="robosuite/Lift", profile=asked, episodes=1, max_steps=2)
    evaluate(plan, tmp_path / "run", policy=LearnedFast(load("panda_joint")))
    with RunStore.open(tmp_path / "run") as run:
        (task,) = run.info.protocol.tasks
        assert task.render_profile == rendered


@pytest.mark.parametrize("workers", [0, 1])
def test_another_instruction_is_told_and_makes_another_protocol(tmp_path, workers):
    heard = set()

    class Listening(NoopPolicy):
        def infer(self, request):
            heard.add(request.observation.instruction)
            return super().infer(request)

    plan = replace(PLAN, episodes=1, workers=workers)
    own, told = tmp_path / "own", tmp_path / "told"
    evaluate(plan, own)
    from wamserve.embodiments.contract import load

    policy = Listening(load("pusht"))
    evaluate(replace(plan, instruction="leave the T alone"), told, policy=policy)
    assert heard == {"leave the T alone"}
    with RunStore.open(own) as first, RunStore.open(told) as second:
        assert next(iter(second.episodes())).instruction == "leave the T alone"
        assert first.info.protocol_sha256 != second.info.protocol_sha256

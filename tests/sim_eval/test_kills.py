"""SIGKILL at random moments: the same command resumes, nothing is lost, repeated or left running."""

import random
import signal
import subprocess
import time

import psutil
import pytest

from wamserve.sim_eval.store import RunStore

pytest.importorskip("gym_pusht")


def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_gone(processes, patience_s=60):
    until = time.monotonic() + patience_s
    while any(map(alive, processes)):
        assert time.monotonic() < until, "a worker outlives its command"
        time.sleep(0.01)


def killed_and_resumed(toys, tmp_path, kills, episodes, workers):
    """Every second kill falls anywhere in a start-up, the others soon after an episode.

    With workers, one kill in three takes a worker first, which is no end of the run, and then the rest.
    """
    quiet, run, chance = tmp_path / "quiet", tmp_path / "run", random.Random(0)
    began = time.monotonic()
    assert subprocess.run(toys.command(quiet, 1, workers), capture_output=True).returncode == 0
    startup_s = time.monotonic() - began
    assert subprocess.run(toys.command(tmp_path / "whole", episodes), capture_output=True).returncode == 0

    def recorded():
        return len(list((run / "episodes").glob("*.npz")))

    seen = 0
    for kill in range(kills):
        process = psutil.Popen(
            toys.command(run, episodes, workers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + (60 if kill % 2 else chance.uniform(0, startup_s))
        while recorded() <= seen and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1) if kill % 2 else 0)
        children = process.children(recursive=True)
        if children and kill % 3 == 1:
            chance.choice(children).send_signal(signal.SIGKILL)
            time.sleep(chance.uniform(0, 0.1))
            children = [*children, *process.children(recursive=True)]
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_gone(children)
        assert process.returncode == -signal.SIGKILL, "this kill came too late to matter"
        seen = recorded()
    assert 0 < seen < episodes
    done = subprocess.run(toys.command(run, episodes, workers), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    toys.same(tmp_path / "whole", run)
    with RunStore.open(run) as store:
        assert store.finished
        assert len(store.episodes()) == len(store.done()) == episodes


def test_three_kills_lose_nothing_and_repeat_nothing(toys, tmp_path):
    killed_and_resumed(toys, tmp_path, 3, 80, workers=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [0, 2])
def test_twenty_kills_at_random_moments_lose_nothing_and_repeat_nothing(toys, tmp_path, workers):
    killed_and_resumed(toys, tmp_path, 20, 400, workers)

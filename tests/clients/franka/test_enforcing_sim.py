"""Real franky against franka-sim, which enforces an FR3's limits and communication reflexes. Minutes long."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

spec = importlib.util.spec_from_file_location("franka_rig", Path(__file__).with_name("rig.py"))
rig = sys.modules.setdefault("franka_rig", importlib.util.module_from_spec(spec))
spec.loader.exec_module(rig)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SIM_PYTHON = rig.ROOT / ".venv-frankasim" / "bin" / "python"
ARM = "127.0.0.1"
SECONDS = 8
# Every run meets a refused outlier and a server that stalls for 0.8 s.
ROUGH = json.dumps({"outlier": [3.0], "stall": [5.0]})


@contextlib.contextmanager
def enforcing_simulator(folder):
    rig.need_franky()
    if not SIM_PYTHON.exists():
        pytest.skip("franka-sim is not installed (make .venv-frankasim/.ready)")
    (assets,) = (rig.ROOT / ".venv-franka").glob("lib/python3*/site-packages/franky_sim/assets")
    command = [SIM_PYTHON, "-u", rig.HERE / "enforcing_sim.py", assets / "fr3.xml", assets / "meshes", folder]
    with rig.only_simulator(), rig.running(command, folder / "sim.log", "ready for new client"):
        yield


@pytest.fixture
def arm(tmp_path):
    with enforcing_simulator(tmp_path):
        yield ARM


def reflexes(run) -> list[str]:
    return [event["text"] for event in run.of_kind("fault")]


def one_run(folder, uri, backend, *, typed=("recover", "move"), seconds=SECONDS, instruction=ROUGH, flags=()):
    folder.mkdir(parents=True)
    flags = ["--home", "--seconds", seconds, "--backend", backend, *flags]
    client = rig.start_client(folder, uri, ARM, *flags, instruction=instruction, typed=typed)
    return rig.finish(client, folder, seconds + 60)


@pytest.mark.parametrize("backend", ["position", "impedance"])
def test_fourteen_of_fifteen_rough_runs_end_without_a_reflex(arm, tmp_path, backend):
    clean, lines = 0, []
    with rig.policy_server(tmp_path) as (uri, _server):
        for number in range(15):
            run = one_run(tmp_path / f"run{number}", uri, backend)
            good = run.code == 0 and not reflexes(run)
            clean += good
            tracking = run.report.get("tracking") or {}
            ended = run.report.get("stopped_by") or run.output[-300:]
            cycles = run.report.get("success_rate_least")
            lines.append(f"{number}: {'clean' if good else ended} {tracking} least success rate {cycles}")
            print(lines[-1], flush=True)
    assert clean >= 14, "\n".join(lines)


def children(pid):
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(word) for word in listed.split()]


@pytest.mark.parametrize("backend", ["position", "impedance"])
def test_injected_faults_end_as_the_documents_say(arm, tmp_path, backend):
    """Frozen for 50 ms: a communication reflex, which only a typed word clears. Killed: the arm stands."""
    outcomes = {}
    with rig.policy_server(tmp_path) as (uri, _server):

        def start(name, **options):
            folder = tmp_path / name
            folder.mkdir()
            flags = ["--home", "--seconds", 20, "--backend", backend]
            client = rig.start_client(folder, uri, ARM, *flags, **options)
            rig.wait_for(folder / "client.log", "playing", client, 60)
            return client, folder

        client, folder = start("sigstop")
        os.kill(client.pid, signal.SIGSTOP)
        time.sleep(0.05)
        os.kill(client.pid, signal.SIGCONT)
        run = rig.finish(client, folder, 30)
        outcomes["SIGSTOP 50 ms"] = run.report["stopped_by"]
        assert run.code == 1
        assert any("communication_constraints_violation" in text for text in reflexes(run))

        again = one_run(tmp_path / "recovered", uri, backend, seconds=4)
        assert again.code == 0, again.output
        outcomes["a fresh run after it"] = again.report["stopped_by"]

        client, folder = start("sigkill")
        client.kill()
        client.wait()
        client.stdin.close()
        time.sleep(2.0)
        again = one_run(tmp_path / "after kill", uri, backend, seconds=4)
        outcomes["kill -9, then a fresh run"] = again.report.get("stopped_by", again.output[-200:])
        assert again.code == 0, again.output

        client, folder = start("network")
        for pid in children(client.pid):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        run = rig.finish(client, folder, 40)
        outcomes["network process killed"] = run.report["stopped_by"]
        assert run.report["stopped_by"].startswith("chunk: stop") and not reflexes(run)
        assert np.ptp(run.steps()["q"][-60:], axis=0).max() < 0.02
    for name, outcome in outcomes.items():
        print(f"{backend}: {name}: {outcome}", flush=True)


def test_after_a_reflex_nothing_moves_until_the_error_is_cleared(arm):
    """Provoked with an FR3's motions under a Panda's limits, which franky takes for its own defaults."""
    said = rig.ask_arm("recover", arm)
    assert said["before"] == "" and "discontinuity" in said["fault"]
    assert said["needs"].startswith("Reflex")
    assert not said["moved_unrecovered"] and "Reflex" in said["refused"]
    assert said["after"] == "" and said["home"] < 0.01

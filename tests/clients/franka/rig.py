"""Real processes on loopback: an FCI simulator, our policy server, and `wam run franka` with real franky."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
ROBOT_PYTHON = ROOT / ".venv-franka" / "bin" / "python"  # make .venv-franka/.ready
WAM = [sys.executable, "-m", "wam"]
ROBOT_WAM = [str(ROBOT_PYTHON), "-m", "wam"]
VIEWS = ("wrist", "exterior_1", "exterior_2")


def need_franky():
    if not ROBOT_PYTHON.exists():
        pytest.skip("franky and franky-sim are not installed (make .venv-franka/.ready)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(file: Path, text: str, process: subprocess.Popen, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while text not in (file.read_text() if file.exists() else ""):
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"{process.args}: no {text!r} in\n{file.read_text()[-2000:]}")
        time.sleep(0.1)


@contextlib.contextmanager
def running(command, log: Path, ready: str, seconds: float = 90.0, **options):
    with open(log, "w") as out:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, **options
        )
        try:
            wait_for(log, ready, process, seconds)
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@contextlib.contextmanager
def only_simulator():
    """Waits for the machine's other FCI simulator to end: two starve each other, and share a port."""
    with open(Path(tempfile.gettempdir()) / "wamserve-fci-simulator.lock", "w") as lock:
        deadline = time.monotonic() + 300.0
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    pytest.skip("another FCI simulator has been running for five minutes")
                time.sleep(0.5)
        yield


@contextlib.contextmanager
def simulator(folder: Path, address: str):
    need_franky()
    command = [ROBOT_PYTHON, HERE / "fci_sim.py", address]
    with only_simulator(), running(command, folder / "sim.log", "ready", 90.0):
        yield


@contextlib.contextmanager
def policy_server(folder: Path, port: int = 0, factory: str = "Scripted", **arguments):
    port = port or free_port()
    script = HERE / "scripted.py"
    command = [*WAM, "serve", "--factory", f"{script}:{factory}", "--port", port]
    command += ["--factory-args", json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with running(command, folder / "server.log", "ready at", env=environment) as process:
        yield f"ws://127.0.0.1:{port}", process


class Run:
    """A finished `wam run franka`."""

    def __init__(self, code: int, output: str, folder: Path) -> None:
        self.code, self.output, self.folder = code, output, folder
        report = folder / "report.json"
        self.report = json.loads(report.read_text()) if report.exists() else {}
        events = folder / "events.jsonl"
        self.events = (
            [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
        )

    def of_kind(self, kind: str) -> list[dict]:
        return [event for event in self.events if event["kind"] == kind]

    def steps(self) -> dict[str, np.ndarray]:
        parts = [dict(np.load(path)) for path in sorted(self.folder.glob("steps-*.npz"))]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def ask_arm(question: str, address: str) -> dict:
    """The answer of arm_scripts.py."""
    command = [ROBOT_PYTHON, HERE / "arm_scripts.py", question, address]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def start_client(folder: Path, uri: str, address: str, *flags, instruction="follow", typed=("move",)):
    """The client as a person starts it, who types the words of `typed` when asked for them."""
    command = [*ROBOT_WAM, "run", "franka", "--policy", uri, "--robot-ip", address, "--no-dry-run"]
    command += [
        "--no-realtime",
        "--instruction",
        instruction,
        "--record",
        folder / "run",
        "--tcp-speed",
        "0.5",
    ]
    if "--cameras" not in flags:
        command += ["--cameras", *(f"{view}=grey" for view in VIEWS)]
    process = subprocess.Popen(
        [str(word) for word in [*command, *flags]],
        stdin=subprocess.PIPE,
        stdout=(folder / "client.log").open("w"),
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(HERE)},  # where `--cameras VIEW=sim:twin:NAME` is found
        text=True,
    )
    threading.Thread(target=answer, args=(process, folder / "client.log", typed), daemon=True).start()
    return process


def answer(process, log, typed) -> None:
    """Types the word asked for where it is one of `typed`, and "no" otherwise."""
    asked = 0
    while process.poll() is None:
        words = re.findall(r"Type '(\w+)' and Enter", log.read_text())
        for word in words[asked:]:
            asked += 1
            process.stdin.write(f"{word if word in typed else 'no'}\n")
            process.stdin.flush()
        if "move" in words:
            return
        time.sleep(0.05)


def finish(process: subprocess.Popen, folder: Path, seconds: float) -> Run:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        process.stdin.close()
    return Run(process.returncode, (folder / "client.log").read_text(), folder / "run")

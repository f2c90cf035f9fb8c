"""Overhead of the policy server beside openpi-server 0.1.0, in one run, driven by the real openpi client.

    .venv/bin/python benchmarks/server.py          (needs `make .venv-openpi/.ready`)

The request is DROID's: three 360x640 views, joints, gripper, prompt. The engine is instant, or sleeps 50 ms a
batch, so that what is measured is wire, queue and preparation. Requests go to the servers in turns, so that a
busy machine is busy for all of them: twenty to each in any order, as a robot asks one server again and again,
and then one to each, so that every server has lost its caches to the others when it is asked. One start of a
server can be half as fast as its next (where its buffers come to lie), so all are started several times.
Reported: p50, p99 and processor time of a request as ratios to openpi-server's; throughput with 8 clients.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from wamserve.clients.policy import ActionChunk, Prediction, Request
from wamserve.embodiments import canvas
from wamserve.embodiments.contract import load
from wamserve.policy_server.serving.served import Served

HERE = Path(__file__).resolve()
_WARM_UP = 20  # requests before those that count
OPENPI_PYTHON = HERE.parents[1] / ".venv-openpi" / "bin" / "python"

_OPENPI_SERVER = """
import sys, time, numpy as np
from openpi_server import WebsocketPolicyServer
class Instant:
    def infer(self, obs):
        time.sleep(float(sys.argv[2]))
        return {"action": np.zeros((32, 8), np.float32)}
WebsocketPolicyServer(Instant(), host="127.0.0.1", port=int(sys.argv[1])).serve_forever()
"""

_CLIENTS = """
import json, random, sys, threading, time, numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy
ports, (clients, rounds, laps, warm_up) = json.loads(sys.argv[1]), map(int, sys.argv[2:])
def view(seed):
    y, x, c = np.ogrid[:360, :640, :3]
    return ((3 * y + 5 * x + 7 * c + 11 * seed) % 256).astype(np.uint8)
obs = {"observation/wrist_image_left": view(0), "observation/exterior_image_1_left": view(1),
       "observation/exterior_image_2_left": view(2),
       "observation/joint_position": np.array([0, -.63, 0, -2.51, 0, 1.88, 0], np.float32),
       "observation/gripper_position": np.zeros(1, np.float32), "prompt": "Pick up the banana"}
if clients == 1:
    policies = [WebsocketClientPolicy("127.0.0.1", port) for port in ports]
    times = [[] for _ in ports]
    for lap in range((warm_up + rounds) // laps):
        for spent, policy in random.sample(list(zip(times, policies)), len(ports)):
            for _ in range(laps):
                start = time.perf_counter()
                reply = policy.infer(obs)
                spent.append(time.perf_counter() - start)
                assert reply["action"].shape == (32, 8)
    print(json.dumps([spent[warm_up:] for spent in times]))
else:
    def drive(policy):
        for _ in range(rounds):
            policy.infer(obs)
    crowds = [[WebsocketClientPolicy("127.0.0.1", port) for _ in range(clients)] for port in ports]
    spent = [0.0] * len(ports)
    for lap in range(laps + 1):
        for i, policies in enumerate(crowds):
            threads = [threading.Thread(target=drive, args=(policy,)) for policy in policies]
            start = time.perf_counter()
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            if lap: spent[i] += time.perf_counter() - start
    print(json.dumps([laps * clients * rounds / each for each in spent]))
"""


class Instant:
    """A policy without a network. With a contract it composes the canvas, as every real policy must."""

    def __init__(self, contract: str = "", seconds: float = 0.0) -> None:
        self.contract = load(contract) if contract else None
        self.seconds = seconds
        self.answer = Prediction(ActionChunk(np.zeros((32, 8), np.float32), 0.0, 1 / 15))

    def describe(self) -> dict[str, object]:
        return Served.of(self.contract, composed=True) if self.contract is not None else {}

    def infer(self, request: Request) -> Prediction:
        return self.infer_batch([request])[0]

    def infer_batch(self, requests: list[Request]) -> list[Prediction]:
        if self.contract is not None:
            for request in requests:
                canvas.frame(self.contract.model.canvas, request.observation.images)
        time.sleep(self.seconds)
        return [self.answer] * len(requests)

    def reset(self, session: str = "") -> None: ...


def start_openpi(port: int, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(OPENPI_PYTHON), "-c", _OPENPI_SERVER, str(port), str(seconds)], stderr=subprocess.DEVNULL
    )


def start_ours(
    port: int, contract: str, seconds: float, wait_ms: float | None = None
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "wam", "serve", "--port", str(port), "--factory", f"{HERE}:Instant"]
    command += ["--factory-args", json.dumps({"contract": contract, "seconds": seconds})]
    if wait_ms is not None:
        command += ["--batch-wait-ms", str(wait_ms)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def drive(ports: list[int], clients: int, rounds: int, laps: int = 1) -> list:
    arguments = [json.dumps(ports), str(clients), str(rounds), str(laps), str(_WARM_UP)]
    done = subprocess.run(
        [str(OPENPI_PYTHON), "-W", "ignore", "-c", _CLIENTS, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


LATENCY = ("openpi-server 0.1.0", "wire alone", "wire + checks + canvas")


def latency(rounds: int, starts: int, block: int) -> dict[str, np.ndarray]:
    """Name -> [starts, 3]: p50, p99 and processor time in ms of a request, one client, instant engine."""
    found: dict[str, list[list[float]]] = {name: [] for name in LATENCY}
    for start in range(starts):
        ports = [18411 + 10 * start + i for i in range(len(LATENCY))]
        servers = [
            start_openpi(ports[0], 0.0),
            start_ours(ports[1], "", 0.0),
            start_ours(ports[2], "droid_lerobot", 0.0),
        ]
        with serving(servers, ports):
            before = [cpu_s(server) for server in servers]
            times = drive(ports, 1, rounds, block)
            # A handshake is in it too.
            cpu = [
                (cpu_s(server) - since) / (rounds + _WARM_UP)
                for server, since in zip(servers, before, strict=True)
            ]
        for name, each, spent in zip(LATENCY, times, cpu, strict=True):
            found[name].append([*(1e3 * np.percentile(each, [50, 99])), 1e3 * spent])
    return {name: np.array(rows) for name, rows in found.items()}


def throughput(rounds: int, seconds: float) -> dict[str, float]:
    """Name -> requests per second of eight clients, the engine taking `seconds` a batch."""
    ports = [18414, 18415, 18416, 18417]
    servers = [
        start_openpi(ports[0], seconds),
        start_ours(ports[1], "droid_lerobot", seconds),
        start_ours(ports[2], "droid_lerobot", seconds, wait_ms=0.0),
        start_ours(ports[3], "droid_lerobot", seconds, wait_ms=1e3 * seconds),
    ]
    names = (LATENCY[0], "by default", "--batch-wait-ms 0", f"--batch-wait-ms {1e3 * seconds:g}")
    with serving(servers, ports):
        return dict(zip(names, drive(ports, 8, 20, max(1, rounds // 200)), strict=True))


@contextlib.contextmanager
def serving(servers: list[subprocess.Popen[bytes]], ports: list[int]) -> Iterator[None]:
    try:
        wait_until_listening(ports)
        yield
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait()


def measure(rounds: int, seconds: float, starts: int, blocks: list[int]) -> None:
    """Prints latency and throughput with their ratios to openpi-server's."""
    for block in blocks:
        found = latency(rounds, starts, block)
        peer = found[LATENCY[0]]
        print(
            f"one client, instant engine, {block} requests to a server before the next one's turn\n"
            f"medians of {starts} starts; ratio: median (lowest .. highest)"
        )
        print(f"  {'':24}" + "".join(f"{what + ' ms':>10}{'ratio':>22}" for what in ("p50", "p99", "cpu")))
        for name, rows in found.items():
            row = f"  {name:24}"
            for value, ratio in zip(np.median(rows, axis=0), (rows / peer).T, strict=True):
                row += f"{value:10.2f}{np.median(ratio):8.2f} ({ratio.min():4.2f} .. {ratio.max():4.2f})"
            print(row, flush=True)
    rates = throughput(rounds, seconds)
    print(f"eight clients, {1e3 * seconds:g} ms a batch    requests/s")
    for name, rate in rates.items():
        print(f"  {name:28}{rate:8.1f}    {rate / rates[LATENCY[0]]:.2f} times openpi-server's")


def cpu_s(server: subprocess.Popen[bytes]) -> float:
    """Processor seconds of a server and its engine so far."""
    process = psutil.Process(server.pid)
    spent = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in spent)


def wait_until_listening(ports: list[int]) -> None:
    import socket

    deadline = time.monotonic() + 60
    for port in ports:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--engine-ms", type=float, default=50.0)
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--blocks", type=int, nargs="+", default=[20, 1])
    arguments = parser.parse_args()
    measure(arguments.rounds, arguments.engine_ms / 1e3, arguments.starts, arguments.blocks)

"""Thirty-two clients, most of them rude: no reply is lost or crossed, and the server does not grow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import serving_messages as messages
import serving_policies as policies
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from wamserve.clients import wam_v1, wire
from wamserve.clients.messages import Failure, Infer, Open, Reply
from wamserve.clients.policy import Observation, Request

CAP = 2**20  # message cap of the server under test


class Tally:
    """What happened, over all clients."""

    def __init__(self) -> None:
        self.answered = self.lost = self.crossed = self.refused = self.rude = 0
        self.reasons: list[str] = []  # of lost replies


def rows(seed: int, pixels: int) -> np.ndarray:
    images = {"canvas": messages.picture(32, 32, pixels)}
    state = {"joint_position": messages.JOINTS, "gripper_position": messages.OPEN}
    return policies.rows_for(Request(Observation(images, state), seed=seed))


def note(tally: Tally, actions: np.ndarray, seed: int, pixels: int) -> None:
    if np.array_equal(actions, rows(seed, pixels)):
        tally.answered += 1
    else:
        tally.crossed += 1


async def plain(url: str, draw: random.Random, tally: Tally) -> None:
    """A polite openpi client, some requests long."""
    async with connect(url, compression=None, max_size=None, open_timeout=60) as websocket:
        await websocket.recv()
        for _ in range(draw.randint(1, 20)):
            seed, pixels = draw.randrange(2**31), draw.randrange(250)
            fields = messages.small(seed=seed, **{"observation/image": messages.picture(32, 32, pixels)})
            await websocket.send(messages.packed(fields))
            reply = await websocket.recv()
            if isinstance(reply, str):
                tally.lost += 1
            else:
                note(tally, wire.decode(reply)["action"], seed, pixels)


async def ours(url: str, draw: random.Random, tally: Tally) -> None:
    """Four requests in flight, matched by id end to end."""
    ours = {"subprotocols": ["wam.v1"], "open_timeout": 60}  # a starved test machine is no lost reply
    async with connect(url, compression=None, max_size=None, **ours) as websocket:
        await websocket.recv()
        await websocket.send(wam_v1.encode_request(Open()))
        await websocket.recv()
        sent: dict[int, tuple[int, int]] = {}
        for number in range(draw.randint(4, 24)):
            seed, pixels = draw.randrange(2**31), draw.randrange(250)
            state = {"joint_position": messages.JOINTS, "gripper_position": messages.OPEN}
            seen = Observation({"canvas": messages.picture(32, 32, pixels)}, state, "go")
            await websocket.send(wam_v1.encode_request(Infer(number, Request(seen, seed=seed))))
            sent[number] = seed, pixels
            if len(sent) == 4:
                await _take(websocket, sent, tally)
        while sent:
            await _take(websocket, sent, tally)


async def _take(websocket, sent, tally) -> None:
    message = wam_v1.decode_reply(await websocket.recv())
    if isinstance(message, Reply) and message.request_id in sent:
        note(tally, message.prediction.chunk.actions, *sent.pop(message.request_id))
    elif isinstance(message, Failure) and message.kind == "overloaded":
        sent.pop(message.request_id)
        tally.refused += 1
    else:
        tally.crossed += 1


async def leaver(url: str, draw: random.Random, tally: Tally) -> None:
    """Asks, and is gone before the answer."""
    async with connect(url, compression=None, max_size=None, close_timeout=0.1) as websocket:
        await websocket.recv()
        await websocket.send(messages.packed(messages.small()))
        await asyncio.sleep(draw.random() * 0.02)
        websocket.transport.abort()
    tally.rude += 1


async def half_closed(url: str, draw: random.Random, tally: Tally) -> None:
    """Shuts its sending side down in the middle of a frame."""
    async with connect(url, compression=None, max_size=None, close_timeout=0.2) as websocket:
        await websocket.recv()
        websocket.transport.write(b"\x82\xfe\x10\x00abcd" + b"x" * draw.randrange(1000))
        websocket.transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionClosed):
            await websocket.recv()
    tally.rude += 1


async def slow_reader(url: str, draw: random.Random, tally: Tally) -> None:
    """Sends several requests and reads none of the answers for a while."""
    async with connect(url, compression=None, max_size=None, max_queue=1, close_timeout=0.2) as websocket:
        await websocket.recv()
        websocket.transport.pause_reading()
        for _ in range(3):
            await websocket.send(messages.packed(messages.small()))
        await asyncio.sleep(draw.random())
        websocket.transport.resume_reading()
        for _ in range(3):
            await websocket.recv()
    tally.rude += 1


async def flooder(url: str, draw: random.Random, tally: Tally) -> None:
    """Sends a frame over the cap, or bytes that are no message."""
    async with connect(url, compression=None, max_size=None, close_timeout=0.2) as websocket:
        await websocket.recv()
        with contextlib.suppress(ConnectionClosed):
            await websocket.send(draw.randbytes(draw.choice([9, 3000, CAP + 1])))
            await websocket.recv()
    tally.rude += 1


async def client(url: str, number: int, until: float, tally: Tally) -> None:
    draw = random.Random(number)
    kinds = [plain, ours] if number % 2 else [plain, ours, leaver, half_closed, slow_reader, flooder]
    while time.monotonic() < until:
        kind = draw.choice(kinds)
        try:
            await kind(url, draw, tally)
        except (ConnectionClosed, OSError, InvalidStatus, TimeoutError) as error:
            if kind in (plain, ours):
                tally.lost += 1
                tally.reasons.append(f"{kind.__name__}: {type(error).__name__}: {error}")


def metric(server_url: str, name: str) -> float:
    import urllib.request

    with urllib.request.urlopen(server_url.replace("ws", "http", 1) + "/metrics", timeout=10) as reply:
        found = re.search(rf"^{name} (\S+)$", reply.read().decode(), re.MULTILINE)
    assert found is not None, name
    return float(found.group(1))


async def soak(seconds: float, clients: int = 32) -> tuple[Tally, float]:
    """Returns the tally and the growth of the serving process's memory after its first third, a fraction."""
    arguments = ["--factory", policies.spec("echo"), "--factory-args", json.dumps({"delay_s": 0.002})]
    command = [sys.executable, "-m", "wam", "serve", "--port", "0", "--max-message-mb", "1", *arguments]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout.readline().startswith("serving ")
        url = server.stdout.readline().split()[-1]
        idle_tasks = metric(url, "wam_tasks")
        tally, start = Tally(), time.monotonic()
        running = [
            asyncio.create_task(client(url, number, start + seconds, tally)) for number in range(clients)
        ]
        await asyncio.sleep(seconds / 3)
        process = psutil.Process(server.pid)
        early = process.memory_info().rss
        async with asyncio.timeout(seconds + 60):
            await asyncio.gather(*running)
        growth = process.memory_info().rss / early - 1
        async with asyncio.timeout(30):
            while await asyncio.to_thread(metric, url, "wam_connections"):
                await asyncio.sleep(0.1)
        assert metric(url, "wam_tasks") <= idle_tasks
        assert metric(url, "wam_queue_depth") == 0 and metric(url, "wam_shared_bytes") == 0
        assert metric(url, "wam_engine_restarts") == 0
    finally:
        server.terminate()
        assert server.wait(30) == 0
    print(f"{vars(tally)}, memory grew by {growth:.2%}")
    return tally, growth


async def test_rude_clients_for_twenty_seconds():
    tally, growth = await soak(20.0)
    assert (tally.lost, tally.crossed) == (0, 0)
    assert tally.answered > 100 and tally.rude > 20
    assert growth < 0.15  # seconds see an allocator filling its arenas; a slow leak is for the ten minutes


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_rude_clients_for_ten_minutes():
    tally, growth = await soak(600.0)
    assert (tally.lost, tally.crossed) == (0, 0)
    assert tally.answered > 3000 and tally.rude > 600
    assert growth < 0.05

"""Two ranks, a guidance branch each, answer as one does; a rank that dies takes the other along, in words."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wamserve.action_codec.errors import RequestError
from wamserve.embodiments.contract import load
from wamserve.policy_server.blank import blank_request
from wamserve.policy_server.engine.engine import Engine
from wamserve.policy_server.engine.options import EngineOptions
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.serving.engine import Engine as EngineGroup
from wamserve.policy_server.serving.engine import EngineSpec

from .conftest import NoVAE

PROGRAM = Path(__file__).parent / "rank_program.py"


def start_pair(calls, **extra):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
    env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **extra}
    return [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(calls)],
            env={**env, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


@pytest.fixture
def one_thread():
    """As each rank has: the number of threads decides how a product is cut, and so its rounding."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_two_ranks_equal_one_and_each_other_to_the_bit(nano, compare, one_thread):
    ranks = start_pair(2)
    outs = [rank.communicate(timeout=240) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outs[0][1][-2000:]
    first, second = (json.loads(out[0]) for out in outs)
    assert [one["actions"] for one in first] == [one["actions"] for one in second], "ranks walk in step"
    assert [one["forwards"] for one in first] == [4, 4], "four in a row, where one rank runs eight, or five"
    for call, guidance in enumerate((Guidance(3.0), Guidance(3.0, (960.0, 1001.0)))):
        plain, alone, _ = compare(nano, guidance=guidance, seed=call)
        got = torch.tensor(first[call]["actions"])
        assert (got - plain.actions).abs().max() < 3e-5
        assert (got - alone.actions).abs().max() < 1e-6


@pytest.mark.parametrize("dies", ["0", "1"])
def test_a_rank_that_dies_ends_the_other_with_a_clear_error(dies):
    ranks = start_pair(2, DIES=dies)
    errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    survivor = 1 - int(dies)
    assert ranks[int(dies)].returncode == 9
    assert ranks[survivor].returncode == 1, "no exception that a server could take for a bad request"
    assert f"rank {dies} is gone" in errors[survivor]


def test_one_process_alone_is_refused(nano, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RequestError, match="guidance runs in parallel on two ranks; seen: WORLD_SIZE 1"):
        Engine(nano, NoVAE(), EngineOptions(cfg_parallel=True))


def test_a_server_of_two_ranks_answers_and_comes_back_when_one_is_killed():
    """The robot's socket stays; its request fails in words, and the next ones are answered again."""
    asyncio.run(_kill_a_rank())


async def _answer(engine, request):
    heard = asyncio.get_running_loop().create_future()
    engine.submit([request], [], heard.set_result)
    return await heard


async def _kill_a_rank():
    options = {
        "preset": "tiny-nano",
        "embodiment": "pusht",
        "engine": {"cfg_parallel": True},
        "device": "cpu",
    }
    spec = EngineSpec("wamserve.policy_server.load:random_policy", options, ranks=2, backoff_s=0.05)
    request = blank_request(load("pusht"), seed=1)
    engine = EngineGroup(spec)
    engine.start()
    try:
        async with asyncio.timeout(120):
            await engine.ready.wait()
        before = await _answer(engine, request)
        assert before.results[0].ledger.forwards == 4, "eight forwards, two at a time"
        os.kill(engine.pids[1], signal.SIGKILL)
        async with asyncio.timeout(120):
            while engine.ready.is_set():
                await asyncio.sleep(0.01)
            assert engine.restarts == 1 and "died (signal SIGKILL)" in str(engine.error)
            await engine.ready.wait()
        after = await _answer(engine, request)
        assert (before.results[0].chunk.actions == after.results[0].chunk.actions).all()
    finally:
        await engine.stop()

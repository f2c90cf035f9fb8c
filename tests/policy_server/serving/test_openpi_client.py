"""The real openpi-client 0.1.2, in an environment of its own, against a live server."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import serving_messages as messages

PYTHON = Path(__file__).parents[3] / ".venv-openpi" / "bin" / "python"

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="openpi-client is not set up: make .venv-openpi/.ready"
)

# Reads requests from a file, sends them one by one, writes what came back: arrays as lists, errors as text.
_DRIVER = """
import json, sys
import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy
port, folder = int(sys.argv[1]), sys.argv[2]
client = WebsocketClientPolicy("127.0.0.1", port)
requests = np.load(folder + "/requests.npy", allow_pickle=True)
answers = [{"metadata": client.get_server_metadata()}]
for request in requests:
    try:
        reply = client.infer(request)
        answers.append({k: {"shape": v.shape, "dtype": str(v.dtype), "rows": v.tolist()}
                        if isinstance(v, np.ndarray) else v for k, v in reply.items()})
    except Exception as error:
        answers.append({"error": f"{type(error).__name__}: {error}"})
print(json.dumps(answers))
"""


@pytest.fixture
def openpi(tmp_path):
    """`answers = await openpi(server, [fields, …])`: metadata first, then one per request."""

    async def drive(server, requests, timeout=120.0):
        boxed = np.empty(len(requests), object)
        boxed[:] = requests
        np.save(tmp_path / "requests.npy", boxed, allow_pickle=True)
        process = await asyncio.create_subprocess_exec(
            str(PYTHON), "-W", "ignore", "-c", _DRIVER, str(server.port), str(tmp_path),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(timeout):
            out, error = await process.communicate()
        assert process.returncode == 0, error.decode()
        return json.loads(out)

    return drive


async def test_cosmos_and_three_view_requests_are_answered(serving, openpi):
    async with serving(arguments={"embodiment": "droid_lerobot"}) as server:
        metadata, one, three = await openpi(server, [messages.cosmos(), messages.three_views()])
    assert metadata == {"metadata": {}}
    for reply in (one, three):
        assert (reply["action"]["shape"], reply["action"]["dtype"]) == ([32, 8], "float32")
        assert np.isfinite(reply["action"]["rows"]).all()


async def test_libero_requests_are_answered_with_actions(serving, openpi):
    async with serving(arguments={"embodiment": "libero"}) as server:
        _, reply = await openpi(server, [messages.openpi_libero()])
    assert reply["actions"]["shape"] == [16, 7]


async def test_the_velocity_client_is_refused_in_words_and_the_next_request_is_served(serving, openpi):
    async with serving(arguments={"embodiment": "droid_lerobot"}) as server:
        _, refused, served = await openpi(server, [messages.openpi_droid(), messages.cosmos()])
    assert refused["error"].startswith("RuntimeError") and "joint velocities" in refused["error"]
    assert served["action"]["shape"] == [32, 8]


async def test_kill_9_mid_request_is_an_error_and_the_same_client_goes_on(serving, openpi):
    async with serving() as server:
        _, died, served = await openpi(server, [messages.small(prompt="die"), messages.small()])
        assert "SIGKILL" in died["error"] and served["action"]["shape"] == [32, 8]
        assert server.engine.restarts == 1


async def test_the_client_waits_through_a_load_longer_than_its_handshake(serving, openpi):
    async with serving("slow_load", {"load_s": 3.0}, wait=False) as server:
        _, reply = await openpi(server, [messages.small()])
    assert reply["action"]["shape"] == [32, 8]


async def _inference_of(seconds, serving, openpi, talk, get):
    start = serving("busy", {"busy_s": seconds})
    async with start as server:
        asked = asyncio.create_task(openpi(server, [messages.small()], seconds + 120))
        while not server.scheduler.engine._pending:  # until the request is in the engine
            await asyncio.sleep(0.05)
        loop = asyncio.get_running_loop()
        health, handshakes = [], []
        while server.scheduler.engine._pending:
            began = loop.time()
            assert (await get(server, "/healthz"))[0] == 200
            health.append(loop.time() - began)
            began = loop.time()
            async with talk(server) as second:
                handshakes.append(loop.time() - began)
                await second.recv()
            await asyncio.sleep(max(0.1, seconds / 50))
        _, reply = await asked
    assert reply["action"]["shape"] == [32, 8]
    assert len(health) > 5
    return health, handshakes


async def test_a_long_inference_that_holds_every_core_blocks_nobody(serving, openpi, talk, get):
    health, handshakes = await _inference_of(5.0, serving, openpi, talk, get)
    # The median, because other work of a test machine may take a core away for longer.
    assert np.median(health) < 0.1 and np.median(handshakes) < 0.1


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_minute_of_inference_costs_nobody_the_connection(serving, openpi, talk, get):
    health, handshakes = await _inference_of(60.0, serving, openpi, talk, get)
    assert np.median(health) < 0.1 and np.median(handshakes) < 0.1

"""A live server: what plain clients meet on the wire, whatever the engine and the neighbours do."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import serving_messages as messages
import serving_policies as policies
from websockets.exceptions import ConnectionClosed, InvalidStatus

from wamserve.clients import wire
from wamserve.clients.policy import Observation, Request
from wamserve.embodiments.canvas import compose
from wamserve.embodiments.contract import load
from wamserve.policy_server.serving.auth import Tokens, exposure_warning, tls_context
from wamserve.policy_server.serving.scheduler import BatchRules


async def infer(websocket, fields, timeout=20.0):
    await websocket.send(messages.packed(fields))
    async with asyncio.timeout(timeout):
        frame = await websocket.recv()
    return frame if isinstance(frame, str) else wire.decode(frame)


def expected(fields) -> np.ndarray:
    """What the echo policy answers to a canvas request with a seed."""
    images = {"canvas": fields["observation/image"]}
    state = {name: fields[f"observation/{name}"] for name in ("joint_position", "gripper_position")}
    return policies.rows_for(Request(Observation(images, state), seed=fields["seed"]))


async def test_a_request_is_answered_with_its_own_actions(serving, talk):
    async with serving(arguments={"embodiment": "droid_lerobot"}) as server, talk(server) as websocket:
        assert wire.decode(await websocket.recv()) == {}
        fields = messages.cosmos(seed=3)
        reply = await infer(websocket, fields)
        np.testing.assert_array_equal(reply["action"], expected(fields))
        assert set(reply["server_timing"]) == {"infer_ms"}
        again = await infer(websocket, fields)
        assert set(again["server_timing"]) == {"infer_ms", "prev_total_ms"}


async def test_first_frame_waits_for_the_model_while_health_is_answered(serving, talk, get):
    async with serving("slow_load", {"load_s": 1.5}, wait=False) as server, talk(server) as websocket:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.7):
                await websocket.recv()
        assert (await get(server, "/healthz"))[:2] == (200, "OK\n")
        status, body, _ = await get(server, "/readyz")
        assert status == 503 and json.loads(body)["stage"] in ("loading", "weights", "")
        assert wire.decode(await websocket.recv()) == {}
        assert (await get(server, "/readyz"))[0] == 200


async def test_hostile_frames_cost_a_line_of_text_each(serving, talk, shared):
    frames = sorted((shared / "golden" / "wire" / "edge").glob("*.bin"))
    hostile = [path.read_bytes() for path in frames if not path.name.startswith("ok_")]
    hostile += [b"\xdf\xff\xff\xff\xff", b"\x91" * 5000, b"\xc7\xff" + bytes(300), "text"]
    async with serving() as server, talk(server) as websocket:
        await websocket.recv()
        for frame in hostile:
            await websocket.send(frame)
            answer = await websocket.recv()
            assert (
                isinstance(answer, str) and "/" not in answer.replace("<=", "") and "Traceback" not in answer
            )
        assert (await infer(websocket, messages.small()))["action"].shape == (32, 8)
        assert server.engine.restarts == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "  "}, "the instruction is empty"),
        ({"observation/image": messages.picture(540, 640).astype(np.float32) / 255}, "not uint8"),
        ({"observation/image": messages.picture(540, 640).transpose(2, 0, 1)}, "channels first"),
        ({"observation/image": messages.picture(540, 540)}, "wrong shape"),
        ({"observation/joint_position": np.full(7, np.nan, np.float32)}, "not finite"),
        ({"observation/gripper_position": np.array([47.0], np.float32)}, "out of range"),
        ({"observation/joint_position": np.degrees(messages.JOINTS)}, "degrees?"),
    ],
)
async def test_what_does_not_fit_the_contract_is_refused_before_the_engine(serving, talk, changes, words):
    async with serving(arguments={"embodiment": "droid_lerobot"}) as server, talk(server) as websocket:
        await websocket.recv()
        assert words in await infer(websocket, messages.cosmos(**changes))
        assert "action" in await infer(websocket, messages.cosmos())


async def test_views_reach_a_policy_that_wants_one_picture_as_its_contracts_canvas(serving, talk):
    fields = messages.three_views(seed=3)
    views = {"wrist": "wrist_image_left", "exterior_1": "exterior_image_1_left"}
    views |= {"exterior_2": "exterior_image_2_left"}
    images = {name: fields[f"observation/{key}"] for name, key in views.items()}
    canvas = compose(load("droid_lerobot").model.canvas, images)
    for composed, pictures in ((True, {"canvas": canvas}), (False, images)):
        arguments = {"embodiment": "droid_lerobot", "composed": composed}
        async with serving(arguments=arguments) as server, talk(server) as websocket:
            await websocket.recv()
            reply = await infer(websocket, fields)
        state = {name: fields[f"observation/{name}"] for name in ("joint_position", "gripper_position")}
        asked = Request(Observation(pictures, state), seed=3)
        np.testing.assert_array_equal(reply["action"], policies.rows_for(asked))


async def test_a_policy_error_costs_that_request_only_and_shows_no_path(serving, talk):
    async with serving() as server, talk(server) as one, talk(server) as other:
        await one.recv(), await other.recv()
        assert "refuse me" in await infer(one, messages.small(prompt="refuse me"))
        answer = await infer(one, messages.small(prompt="break"))
        assert answer == "inference failed (ValueError); see the server's log"
        assert "NaN or infinity" in await infer(one, messages.small(prompt="nan"))
        assert "action" in await infer(one, messages.small())
        assert "action" in await infer(other, messages.small())


async def test_a_bad_request_does_not_spoil_the_batch_it_shares(serving, talk):
    rules = BatchRules(max_batch=3, batch_wait_ms=300)
    async with serving(rules=rules) as server, talk(server) as a, talk(server) as b, talk(server) as c:
        for websocket in (a, b, c):
            await websocket.recv()
        good, bad, other = await asyncio.gather(
            infer(a, messages.small(seed=1)),
            infer(b, messages.small(prompt="break")),
            infer(c, messages.small(seed=2)),
        )
        assert isinstance(bad, str)
        np.testing.assert_array_equal(good["action"], expected(messages.small(seed=1)))
        np.testing.assert_array_equal(other["action"], expected(messages.small(seed=2)))


async def test_kill_9_of_the_engine_costs_the_requests_in_it_and_no_socket(serving, talk, get):
    async with serving() as server, talk(server) as one, talk(server) as queued, talk(server) as idle:
        for websocket in (one, queued, idle):
            await websocket.recv()
        waiting = [asyncio.create_task(infer(one, messages.small(prompt="sleep 30")))]
        await asyncio.sleep(0.2)
        waiting.append(asyncio.create_task(infer(queued, messages.small())))
        await asyncio.sleep(0.1)
        os.kill(server.engine.pids[0], signal.SIGKILL)
        for answer in await asyncio.gather(*waiting):
            assert "SIGKILL" in answer and "restarted" in answer
        assert (await get(server, "/healthz"))[0] == 200
        for websocket in (one, queued, idle):
            assert "action" in await infer(websocket, messages.small())
        assert server.engine.restarts == 1


async def test_ranks_run_each_batch_in_step_and_fall_together(serving, talk):
    async with serving(engine={"ranks": 2}) as server, talk(server) as websocket:
        await websocket.recv()
        first = set(server.engine.pids)
        assert len(first) == 2
        for seed in range(5):
            reply = await infer(websocket, messages.small(seed=seed))
            np.testing.assert_array_equal(reply["action"], expected(messages.small(seed=seed)))
        assert "died" in await infer(websocket, messages.small(prompt="die rank 1"))
        assert "action" in await infer(websocket, messages.small())
        assert len(server.engine.pids) == 2 and not first & set(server.engine.pids)


async def test_tls_serves_the_same_wire(serving, talk, tmp_path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    trusting = ssl.create_default_context(cafile=certificate)
    async with serving(tls=tls_context(certificate, key)) as server:
        assert server.url.startswith("wss://")
        async with talk(server, ssl=trusting) as websocket:
            assert wire.decode(await websocket.recv()) == {}
            assert "action" in await infer(websocket, messages.cosmos())
        with pytest.raises(ssl.SSLError):
            async with talk(server, ssl=ssl.create_default_context()):
                pass


async def test_an_engine_that_never_loads_ends_the_server_with_its_reason(serving, talk):
    async with serving("broken", wait=False) as server:
        async with asyncio.timeout(20):
            await server.engine.over.wait()
        assert server.engine.state == "failed" and "checkpoint is not there" in str(server.engine.error)


async def test_a_crash_loop_gives_up_after_the_allowed_restarts(serving, talk):
    async with serving(engine={"max_restarts": 2}) as server, talk(server) as websocket:
        await websocket.recv()
        for _ in range(3):
            assert "died" in await infer(websocket, messages.small(prompt="die"))
        async with asyncio.timeout(10):
            await server.engine.over.wait()
        assert "died" in await infer(websocket, messages.small())


async def test_a_full_queue_closes_plain_wires_with_1013_and_no_text(serving, talk):
    rules = BatchRules(max_batch=1, max_queue=1)
    async with serving(rules=rules) as server, talk(server) as a, talk(server) as b, talk(server) as c:
        for websocket in (a, b, c):
            await websocket.recv()
        first = asyncio.create_task(infer(a, messages.small(prompt="sleep 1")))
        await asyncio.sleep(0.2)
        second = asyncio.create_task(infer(b, messages.small()))
        await asyncio.sleep(0.1)
        with pytest.raises(ConnectionClosed) as closed:
            await infer(c, messages.small())
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1013, "")
        assert "action" in await first and "action" in await second


async def test_shutdown_answers_what_is_in_flight_then_closes_with_1012(serving, talk):
    async with serving() as server, talk(server) as busy, talk(server) as idle:
        await busy.recv(), await idle.recv()
        answer = asyncio.create_task(infer(busy, messages.small(prompt="sleep 0.5")))
        await asyncio.sleep(0.2)
        stopping = asyncio.create_task(server.stop())
        assert "action" in await answer
        for websocket in (busy, idle):
            with pytest.raises(ConnectionClosed) as closed:
                await websocket.recv()
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "")
        await stopping
        with pytest.raises(OSError):
            async with talk(server):
                pass


async def test_a_client_that_leaves_takes_its_waiting_request_with_it(serving, talk):
    rules = BatchRules(max_batch=1)
    async with serving(rules=rules) as server, talk(server) as a:
        await a.recv()
        first = asyncio.create_task(infer(a, messages.small(prompt="sleep 0.6")))
        await asyncio.sleep(0.2)
        async with talk(server) as gone:
            await gone.recv()
            await gone.send(messages.packed(messages.small()))
            await asyncio.sleep(0.1)
            assert len(server.scheduler.queue) == 1
            gone.transport.abort()
        await asyncio.sleep(0.1)
        assert len(server.scheduler.queue) == 0
        await first


async def test_tokens_are_asked_of_all_but_the_probes(serving, talk, get):
    tokens = Tokens(("correct-horse-battery",))
    async with serving(tokens=tokens) as server:
        for scheme in ("Api-Key", "Bearer"):
            headers = {"Authorization": f"{scheme} correct-horse-battery"}
            async with talk(server, additional_headers=headers) as websocket:
                await websocket.recv()
                assert "action" in await infer(websocket, messages.small())
        for header in (None, "Bearer wrong", "Basic correct-horse-battery", "Bearer correct-horse-batterz"):
            headers = {"Authorization": header} if header else {}
            with pytest.raises(InvalidStatus) as refused:
                async with talk(server, additional_headers=headers):
                    pass
            assert refused.value.response.status_code == 401
            assert (await get(server, "/metrics", headers))[0] == 401
        assert (await get(server, "/healthz"))[0] == 200
        assert (await get(server, "/readyz"))[0] == 200
        assert (await get(server, "/info", {"Authorization": "Bearer correct-horse-battery"}))[0] == 200


def test_only_loopback_is_silent_about_exposure():
    assert exposure_warning("127.0.0.1", Tokens(), False) is None
    assert "anybody" in exposure_warning("0.0.0.0", Tokens(), False)
    assert "in the clear" in exposure_warning("0.0.0.0", Tokens(("x" * 8,)), False)
    assert exposure_warning("0.0.0.0", Tokens(("x" * 8,)), True) is None


async def test_connections_over_the_limit_and_browser_pages_are_refused(serving, talk):
    async with serving(max_connections=1) as server, talk(server) as first:
        await first.recv()
        with pytest.raises(InvalidStatus) as refused:
            async with talk(server):
                pass
        assert refused.value.response.status_code == 503
        await first.close()
        with pytest.raises(InvalidStatus) as refused:
            async with talk(server, origin="https://example.com"):
                pass
        assert refused.value.response.status_code == 403


async def test_too_many_requests_per_second_are_overload(serving, talk):
    async with serving(max_rate=0.02) as server, talk(server) as websocket:
        await websocket.recv()
        assert "action" in await infer(websocket, messages.small())
        with pytest.raises(ConnectionClosed) as closed:
            await infer(websocket, messages.small())
        assert closed.value.rcvd.code == 1013


async def test_an_oversize_frame_ends_its_connection_and_no_other(serving, talk):
    limits = wire.Limits(message_bytes=100_000)
    async with serving(limits=limits) as server, talk(server) as big, talk(server) as small:
        await big.recv(), await small.recv()
        with pytest.raises(ConnectionClosed) as closed:
            await infer(big, messages.cosmos())
        assert closed.value.rcvd.code == 1009
        assert "action" in await infer(small, messages.small())


async def test_a_reader_that_stands_still_is_dropped(serving, talk):
    start = serving(arguments={"video_bytes": 16 << 20}, send_timeout_s=2.0)
    async with start as server, talk(server, close_timeout=0.2) as stuck, talk(server) as other:
        await stuck.recv(), await other.recv()
        stuck.transport.pause_reading()
        await stuck.send(messages.packed(messages.small()))
        async with asyncio.timeout(20):
            while len(server.conversations) > 1:
                await asyncio.sleep(0.05)
        assert "action" in await infer(other, messages.small())


async def test_metrics_and_log_tell_every_request(serving, talk, get, caplog):
    caplog.set_level(logging.INFO, "wamserve.serving")
    async with serving() as server, talk(server) as websocket:
        await websocket.recv()
        await infer(websocket, messages.small(seed=4))
        await infer(websocket, messages.small(prompt="refuse me"))
        text = (await get(server, "/metrics"))[1]
    assert 'wam_requests_total{dialect="cosmos",outcome="ok"} 1.0' in text
    assert 'wam_requests_total{dialect="cosmos",outcome="refused"} 1.0' in text
    assert 'wam_stage_ms_count{stage="denoise"} 1.0' in text
    assert "wam_forwards_total 5.0" in text and "wam_queue_depth 0.0" in text
    assert "wam_batch_size_count" in text and "wam_gpu_memory_bytes" in text
    lines = [json.loads(r.message) for r in caplog.records if '"event": "request"' in r.message]
    assert [line["outcome"] for line in lines] == ["ok", "refused"]
    assert lines[0]["seed"] == 4 and lines[0]["dialect"] == "cosmos" and lines[0]["forwards"] == 5


async def test_eight_clients_get_their_own_answers_whatever_shares_the_batch(serving, talk):
    rules = BatchRules(max_batch=8, batch_wait_ms=20)

    async def client(server, number):
        async with talk(server) as websocket:
            await websocket.recv()
            for turn in range(5):
                fields = messages.small(seed=100 * number + turn)
                fields["observation/image"] = messages.picture(32, 32, number * 7 + turn)
                reply = await infer(websocket, fields)
                np.testing.assert_array_equal(reply["action"], expected(fields))

    async with serving(rules=rules) as server:
        await asyncio.gather(*(client(server, number) for number in range(8)))
        assert server.metrics.registry.get_sample_value("wam_batch_size_sum") == 40
        assert server.metrics.registry.get_sample_value("wam_batch_size_count") < 40


def test_serving_is_up_within_a_second_and_without_torch(tmp_path):
    code = (
        "import asyncio, sys\n"
        "from wamserve.policy_server.serving.app import Server, Settings\n"
        "from wamserve.policy_server.serving.engine import EngineSpec\n"
        "async def main():\n"
        f"    engine = EngineSpec({policies.spec('slow_load')!r}, {{'load_s': 30.0}})\n"
        "    server = Server(engine, Settings(port=0))\n"
        "    await server.start()\n"
        "    assert 'torch' not in sys.modules\n"
        "    print(server.port, flush=True)\n"
        "    sys.stdin.readline()\n"
        "    await server.stop()\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    try:
        assert int(process.stdout.readline()) > 0
        # Processor time, because the clock of a busy test machine says nothing.
        spent = psutil.Process(process.pid).cpu_times()
        assert spent.user + spent.system < 1.0
    finally:
        process.communicate("\n", timeout=30)
    assert process.returncode == 0


async def test_the_engine_dies_with_its_server(tmp_path):
    code = (
        "import asyncio\n"
        "from wamserve.policy_server.serving.app import Server, Settings\n"
        "from wamserve.policy_server.serving.engine import EngineSpec\n"
        "async def main():\n"
        f"    server = Server(EngineSpec({policies.spec('echo')!r}), Settings(port=0))\n"
        "    await server.start()\n"
        "    await server.engine.ready.wait()\n"
        "    print(server.engine.pids[0], flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, text=True)
    engine = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)

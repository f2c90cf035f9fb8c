"""Connections that offered wam.v1: handshake, ids, streaming, deadlines, typed failures."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest
import serving_messages as messages
import serving_policies as policies
from websockets.exceptions import ConnectionClosed

from wamserve.clients import wam_v1
from wamserve.clients.messages import Done, Failure, Hello, Infer, Loading, Open, Opened, Reply, Reset, Video
from wamserve.clients.policy import Observation, Request
from wamserve.embodiments.contract import load
from wamserve.policy_server.serving.conversation import seed_for
from wamserve.policy_server.serving.scheduler import BatchRules

DROID = load("droid_lerobot")


class Peer:
    """The client's end, message by message."""

    def __init__(self, websocket) -> None:
        self.websocket = websocket

    async def send(self, message, **options) -> None:
        await self.websocket.send(wam_v1.encode_request(message, **options))

    async def receive(self, timeout=20.0):
        async with asyncio.timeout(timeout):
            return wam_v1.decode_reply(await self.websocket.recv())

    async def ask(self, message, **options):
        await self.send(message, **options)
        return await self.receive()


@pytest.fixture
def join(talk):
    """`async with join(server) as peer`: after hello and opened."""

    @asynccontextmanager
    async def start(server, opening=Open()):  # noqa: B008
        async with talk(server, subprotocols=["wam.v1"]) as websocket:
            peer = Peer(websocket)
            peer.hello = await peer.receive()
            while isinstance(peer.hello, Loading):
                peer.hello = await peer.receive()
            assert isinstance(await peer.ask(opening), Opened)
            yield peer

    return start


def request(prompt=messages.PROMPT, pixels=0, **rest) -> Request:
    images = {"canvas": messages.picture(32, 32, pixels)}
    return Request(Observation(images, {"joint_position": messages.JOINTS}, prompt, time=7.5), **rest)


async def test_hello_carries_the_contract_and_its_hashes(serving, join):
    async with serving(arguments={"embodiment": "droid_lerobot"}) as server, join(server) as peer:
        hello = peer.hello
        assert isinstance(hello, Hello)
        assert (hello.embodiment, hello.wire_sha256) == ("droid_lerobot", DROID.wire_hash)
        assert hello.model_sha256 == DROID.model_hash and hello.chunk_rows == 32
        assert hello.wire["reply"]["form"] == "joint_targets"
        assert hello.card["weights_sha256"] == "e" * 64 and hello.modes == ("policy", "fd", "id")
        assert server.engine.served.hello("x", jpeg=False, max_message_bytes=1, max_in_flight=1).jpeg is False


async def test_an_equal_contract_is_accepted_and_another_refused_with_the_differing_fields(
    serving, talk, join
):
    async with serving(arguments={"embodiment": "droid_lerobot"}) as server:
        async with join(server, Open(wire_sha256=DROID.wire_hash)):
            pass
        async with talk(server, subprotocols=["wam.v1"]) as websocket:
            peer = Peer(websocket)
            hello = await peer.receive()
            theirs = {**hello.wire, "rate_hz": 20}
            failure = await peer.ask(Open(wire_sha256="0" * 64, wire=theirs))
            assert isinstance(failure, Failure) and failure.kind == "refused"
            assert failure.differing == ("rate_hz: 15 here, 20 there",)
            with pytest.raises(ConnectionClosed) as closed:
                await websocket.recv()
            assert closed.value.rcvd.code == 1008


async def test_load_progress_is_told_before_hello(serving, talk):
    start = serving("slow_load", {"load_s": 1.5}, wait=False)
    async with start as server, talk(server, subprotocols=["wam.v1"]) as websocket:
        peer, seen = Peer(websocket), []
        while isinstance(message := await peer.receive(), Loading):
            seen.append(message)
        assert isinstance(message, Hello)
        assert {"weights"} <= {each.stage for each in seen}
        assert [each.fraction for each in seen if each.stage == "weights"][-1] > 0


async def test_a_reply_carries_id_seed_ledger_and_the_time_of_its_observation(serving, join):
    async with serving() as server, join(server) as peer:
        reply = await peer.ask(Infer(41, request(seed=9, delay=3)))
        assert isinstance(reply, Reply) and (reply.request_id, reply.chunk_id) == (41, 0)
        chunk, ledger = reply.prediction.chunk, reply.prediction.ledger
        assert (chunk.start, chunk.delay, reply.prediction.seed) == (7.5, 3, 9)
        assert ledger.forwards == 5 and ledger.denoise_ms == 1.0 and ledger.batch == 1
        assert ledger.decode_ms > 0 and ledger.queue_ms >= 0
        assert ledger.preprocess_ms > 0 and ledger.reply_ms > 0
        np.testing.assert_array_equal(chunk.actions, policies.rows_for(request(seed=9)))
        assert (await peer.ask(Infer(42, request(seed=9)))).chunk_id == 1


async def test_requests_in_flight_are_answered_by_id_not_by_order(serving, join):
    rules = BatchRules(max_batch=1)
    async with serving(rules=rules) as server, join(server) as one, join(server) as other:
        for number in range(4):
            await one.send(Infer(number, request(seed=number, pixels=number)))
        for number in range(10, 13):
            await other.send(Infer(number, request(seed=number, pixels=number)))
        for peer, numbers in ((one, range(4)), (other, range(10, 13))):
            replies = [await peer.receive() for _ in numbers]
            assert sorted(reply.request_id for reply in replies) == list(numbers)
            for reply in replies:
                number = reply.request_id
                rows = policies.rows_for(request(seed=number, pixels=number))
                np.testing.assert_array_equal(reply.prediction.chunk.actions, rows)


async def test_of_streamed_observations_the_newest_is_answered(serving, join):
    async with serving(arguments={"delay_s": 0.3}) as server, join(server) as peer:
        for number in range(6):
            await peer.send(Infer(number, request(session="s", step=number), stream=True))
            await asyncio.sleep(0.02)
        first, second = await peer.receive(), await peer.receive()
        assert first.stream and second.stream
        assert (first.request_id, second.request_id) == (0, 5)
        assert (first.chunk_id, second.chunk_id) == (0, 1)
        with pytest.raises(TimeoutError):
            await peer.receive(timeout=0.5)


async def test_a_late_request_is_told_late_at_its_deadline_and_not_computed(serving, join, get):
    rules = BatchRules(max_batch=1)
    async with serving(rules=rules) as server, join(server) as peer, join(server) as other:
        await other.send(Infer(1, request("sleep 1")))
        await asyncio.sleep(0.1)
        loop = asyncio.get_running_loop()
        asked = loop.time()
        failure = await peer.ask(Infer(2, request(deadline_ms=200.0)))
        assert (failure.kind, failure.request_id) == ("late", 2)
        assert 0.15 < loop.time() - asked < 0.8
        assert isinstance(await other.receive(), Reply)
        assert isinstance(await peer.ask(Infer(3, request())), Reply)
        text = (await get(server, "/metrics"))[1]
        assert 'outcome="late"} 1.0' in text and "wam_batch_size_count 2.0" in text


async def test_a_full_queue_is_told_and_the_socket_stays(serving, join):
    rules = BatchRules(max_batch=1, max_queue=1)
    async with serving(rules=rules) as server, join(server) as peer:
        await peer.send(Infer(1, request("sleep 0.5")))
        await asyncio.sleep(0.2)
        await peer.send(Infer(2, request()))
        failure = await peer.ask(Infer(3, request()))
        assert (failure.kind, failure.request_id) == ("overloaded", 3) and failure.retry_ms > 0
        assert {(await peer.receive()).request_id, (await peer.receive()).request_id} == {1, 2}


async def test_more_in_flight_than_agreed_is_overload(serving, join):
    async with serving(max_in_flight=2, arguments={"delay_s": 0.3}) as server, join(server) as peer:
        assert peer.hello.max_in_flight == 2
        for number in range(3):
            await peer.send(Infer(number, request()))
        failure = await peer.receive()
        assert (failure.kind, failure.request_id) == ("overloaded", 2)


async def test_predicted_frames_follow_the_actions_in_a_second_frame(serving, join):
    async with serving() as server, join(server) as peer:
        reply = await peer.ask(Infer(5, request(want_video=True, seed=77)))
        assert reply.video_follows and reply.prediction.video is None
        video = await peer.receive()
        assert isinstance(video, Video) and video.request_id == 5
        assert video.video.shape == (3, 16, 16, 3) and (video.video == 77).all()


async def test_forward_and_inverse_dynamics_share_the_endpoint(serving, join):
    async with serving() as server, join(server) as peer:
        reply = await peer.ask(Infer(1, request(mode="fd", actions=np.zeros((32, 8)), seed=3)))
        assert reply.prediction.chunk is None and reply.prediction.video.shape == (3, 16, 16, 3)
        video = np.zeros((33, 16, 16, 3), np.uint8)
        reply = await peer.ask(Infer(2, request(mode="id", video=video, seed=3)))
        assert reply.prediction.chunk.actions.shape == (32, 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 51}, "steps is outside the card's bounds"),
        ({"guidance": 0.5}, "guidance is outside the card's bounds"),
        ({"prefix": np.zeros((17, 8))}, "too many rows are committed"),
        ({"mode": "fd"}, "forward dynamics needs actions"),
        ({"mode": "id"}, "inverse dynamics needs video"),
    ],
)
async def test_overrides_outside_the_cards_bounds_are_refused(serving, join, changes, words):
    async with serving() as server, join(server) as peer:
        failure = await peer.ask(Infer(8, request(**changes)))
        assert (failure.kind, failure.request_id) == ("refused", 8)
        assert words in failure.message
        allowed = request(steps=2, guidance=5.0, prefix=np.zeros((16, 8)), delay=4)
        assert isinstance(await peer.ask(Infer(9, allowed)), Reply)


async def test_seeds_follow_from_session_and_step_and_are_echoed(serving, join):
    async with serving() as server:
        seeds = []
        for _ in range(2):
            async with join(server) as peer:
                for step in (0, 32):
                    reply = await peer.ask(Infer(step, request(session="episode 1", step=step)))
                    seeds.append(reply.prediction.seed)
        assert seeds[:2] == seeds[2:] and seeds[0] != seeds[1]
        assert seeds[0] == seed_for(0, "episode 1", 0)
        async with join(server) as peer:
            drawn = {(await peer.ask(Infer(i, request()))).prediction.seed for i in range(3)}
        assert len(drawn) == 3


@pytest.mark.parametrize("session", ["", "episode 1"])
async def test_the_engine_is_told_the_next_requests_seed_ahead(serving, join, session):
    async with serving() as server, join(server) as peer:
        for step in (0, 16):
            await peer.ask(Infer(step, request(session=session, step=step)))
        expected = request(prompt="expected?", session=session, step=32)
        await asyncio.sleep(0.3)
        assert isinstance(await peer.ask(Infer(32, expected)), Reply)
        other = request(prompt="expected?", seed=12345)
        assert "nobody announced this seed" in str(await peer.ask(Infer(33, other)))


async def test_a_reset_is_confirmed_and_starts_the_chunk_count_again(serving, join):
    async with serving() as server, join(server) as peer:
        await peer.ask(Infer(1, request(session="s")))
        assert await peer.ask(Reset(2, "s")) == Done(2)
        assert (await peer.ask(Infer(3, request(session="s")))).chunk_id == 0


async def test_bad_messages_are_answered_and_the_connection_stays(serving, join):
    async with serving() as server, join(server) as peer:
        for frame in (b"\xc1", b"\x90", b"\x81\xa3wam\xa5dance", "text"):
            await peer.websocket.send(frame)
            assert (await peer.receive()).kind == "refused"
        await peer.websocket.send(wam_v1.wire.encode({"wam": "infer", "id": 12, "images": 3}))
        failure = await peer.receive()
        assert (failure.kind, failure.request_id) == ("refused", 12)
        assert isinstance(await peer.ask(Infer(13, request())), Reply)


async def test_a_request_before_open_is_refused(serving, talk):
    async with serving() as server, talk(server, subprotocols=["wam.v1"]) as websocket:
        peer = Peer(websocket)
        await peer.receive()
        assert (await peer.ask(Infer(1, request()))).kind == "refused"


async def test_jpeg_images_are_read_only_where_both_ends_agreed(serving, join):
    async with serving(jpeg=True) as server:
        async with join(server, Open(jpeg=True)) as peer:
            assert peer.hello.jpeg
            assert isinstance(await peer.ask(Infer(1, request()), jpeg_quality=95), Reply)
        async with join(server) as peer:
            assert (await peer.ask(Infer(1, request()), jpeg_quality=95)).kind == "refused"


async def test_a_dead_engine_is_unavailable_and_the_next_request_is_served(serving, join):
    async with serving() as server, join(server) as peer:
        failure = await peer.ask(Infer(1, request("die")))
        assert (failure.kind, failure.request_id) == ("unavailable", 1)
        assert isinstance(await peer.ask(Infer(2, request())), Reply)

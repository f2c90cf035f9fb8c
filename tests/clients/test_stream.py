"""Streaming: observations go out without waiting, chunks come in unasked, losses heal."""

import asyncio
import dataclasses
import time

import numpy as np
import pytest
import servers
from servers import HELLO, Server

from wamserve.action_codec.errors import (
    PolicyError,
    PolicyLate,
    PolicyOverloaded,
    PolicyUnavailable,
    RequestError,
)
from wamserve.clients import wam_v1
from wamserve.clients.async_client import AsyncPolicyClient
from wamserve.clients.client import PolicyClient
from wamserve.clients.plain import COSMOS
from wamserve.clients.policy import Observation, Request
from wamserve.clients.session import Backoff, Timeouts

OPTIONS = {"timeouts": Timeouts(2.0, 2.0, 2.0, 0.2), "backoff": Backoff(attempts=5, first=0.02)}


def observe(seed, time=0.0):
    return Request(Observation({}, {"joint": np.zeros(7, np.float32)}, "lift", time), seed=seed, session="r")


def first(answer):
    return float(answer.prediction.chunk.actions[0, 0])


def every_third(socket):
    """Answers each third observation, as a server does that is three times slower than the camera."""
    servers.welcome(socket)
    for message in servers.requests(socket):
        assert message.stream
        if message.request.seed % 3 == 0:
            socket.send(servers.answer(message))


def test_observations_do_not_wait_and_chunks_say_which_they_answer():
    with Server(every_third) as server, PolicyClient(server.uri, **OPTIONS).stream() as stream:
        start = time.monotonic()
        ids = {stream.send(observe(seed, time=seed / 10)): seed for seed in range(1, 10)}
        assert time.monotonic() - start < 0.5
        answers = [stream.wait(2.0) for _ in range(3)]
        assert [first(answer) for answer in answers] == [3, 6, 9]
        assert [ids[answer.request_id] for answer in answers] == [3, 6, 9]
        assert [answer.prediction.chunk.start for answer in answers] == [0.3, 0.6, 0.9]
        assert all(answer.pushed for answer in answers)
        with pytest.raises(PolicyLate):
            stream.wait(0.1)


def test_latest_skips_to_the_newest_chunk():
    with Server(servers.echo) as server, PolicyClient(server.uri, **OPTIONS).stream() as stream:
        assert stream.latest() is None
        for seed in range(1, 5):
            stream.send(observe(seed))
        deadline = time.monotonic() + 2
        newest = 0.0
        while newest != 4 and time.monotonic() < deadline:
            if (answer := stream.latest()) is not None:
                assert first(answer) > newest
                newest = first(answer)
        assert newest == 4 and stream.latest() is None


def test_video_follows_its_chunk():
    video = np.zeros((2, 4, 4, 3), np.uint8)

    def behaviour(socket):
        servers.welcome(socket)
        for message in servers.requests(socket):
            reply = wam_v1.Reply(
                message.request_id, 1, servers.prediction(message.request), video_follows=True, stream=True
            )
            socket.send(wam_v1.encode_reply(reply))
            socket.send(wam_v1.encode_reply(wam_v1.Video(message.request_id, video)))

    with Server(behaviour) as server, PolicyClient(server.uri, **OPTIONS).stream() as stream:
        stream.send(observe(1))
        chunk, whole = stream.wait(2.0), stream.wait(2.0)
        assert chunk.more and chunk.prediction.video is None
        assert not whole.more and whole.prediction.video.shape == (2, 4, 4, 3)


def test_a_lost_stream_is_dialled_again_by_itself():
    def dies(socket):
        servers.welcome(socket)
        socket.recv()
        socket.socket.shutdown(2)

    with Server(dies, servers.echo) as server, PolicyClient(server.uri, **OPTIONS).stream() as stream:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            stream.send(observe(7))
            if (answer := stream.latest()) is not None:
                break
            time.sleep(0.02)
        assert first(answer) == 7 and stream.reconnects == 1 and server.connections == 2


def test_what_may_pass_is_counted_and_a_refusal_ends_the_stream():
    def behaviour(socket):
        servers.welcome(socket)
        for message, kind in zip(
            servers.requests(socket),
            ("late", "overloaded", "unavailable", "failed", "ok", "refused"),
            strict=False,
        ):
            failure = wam_v1.Failure(kind, "because", message.request_id) if kind != "ok" else None
            socket.send(servers.answer(message) if failure is None else wam_v1.encode_reply(failure))

    with Server(behaviour) as server, PolicyClient(server.uri, **OPTIONS).stream() as stream:
        for seed in (1, 2, 3, 4, 5):
            stream.send(observe(seed))
        assert first(stream.wait(2.0)) == 5
        missed = [type(error) for error in stream.missed]
        assert missed == [PolicyLate, PolicyOverloaded, PolicyUnavailable, PolicyError]
        stream.send(observe(6))
        with pytest.raises(RequestError, match="because"):
            stream.wait(2.0)
        with pytest.raises(RequestError):
            stream.send(observe(7))


def test_a_server_that_is_gone_ends_the_stream():
    with Server(servers.echo) as server:
        stream = PolicyClient(
            server.uri, timeouts=OPTIONS["timeouts"], backoff=Backoff(attempts=2, first=0.02)
        ).stream()
    with pytest.raises(PolicyError):
        stream.wait(5.0)
    stream.close()


def test_servers_that_do_not_stream_say_so():
    hello = dataclasses.replace(HELLO, streaming=False)
    with Server(lambda socket: servers.welcome(socket, hello)) as server:
        for plain in (None, COSMOS):
            with pytest.raises(PolicyError, match="stream"):
                PolicyClient(server.uri, plain=plain, **OPTIONS).stream()


async def test_asyncio_chunks_are_pushed_while_other_requests_are_answered():
    with Server(servers.echo) as server:
        async with AsyncPolicyClient(server.uri, **OPTIONS) as client:
            await client.connect()
            for seed in (1, 2, 3):
                await client.observe(observe(seed))
            assert (await client.infer(observe(9))).seed == 9
            seen = []
            async for answer in client.chunks():
                seen.append(first(answer))
                if len(seen) == 3:
                    break
            assert seen == [1, 2, 3]


async def test_asyncio_chunks_go_on_after_a_reconnect():
    def dies(socket):
        servers.welcome(socket)
        socket.recv()
        socket.socket.shutdown(2)

    with Server(dies, servers.echo) as server:
        async with AsyncPolicyClient(server.uri, **OPTIONS) as client:

            async def listen():
                async for answer in client.chunks():
                    return first(answer)

            listener = asyncio.create_task(listen())
            await asyncio.sleep(0.05)
            for _ in range(50):
                await client.observe(observe(5))
                if listener.done():
                    break
                await asyncio.sleep(0.02)
            assert await asyncio.wait_for(listener, 2) == 5
            assert server.connections == 2

"""A recorded server can be asked again, and differences are found."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import serving_messages as messages

from wamserve.action_codec.errors import RunError
from wamserve.clients import wam_v1, wire
from wamserve.clients.messages import Infer, Open
from wamserve.clients.policy import Observation, Request
from wamserve.policy_server.serving.record import recordings
from wamserve.policy_server.serving.replay import compare, replay_folder


async def record(serving, talk, folder):
    async with serving(record=folder) as server:
        async with talk(server, path="/roboarena") as websocket:
            await websocket.recv()
            for seed in (1, 2):
                await websocket.send(messages.packed(messages.small(seed=seed, endpoint="infer")))
                await websocket.recv()
        async with talk(server, subprotocols=["wam.v1"]) as websocket:
            await websocket.recv()
            await websocket.send(wam_v1.encode_request(Open()))
            await websocket.recv()
            seen = Observation(
                {"canvas": messages.picture(32, 32)}, {"joint_position": messages.JOINTS}, "go"
            )
            await websocket.send(wam_v1.encode_request(Infer(1, Request(seen, seed=5))))
            await websocket.recv()


async def replay(server, folder, tolerance=0.0):
    return await asyncio.to_thread(replay_folder, folder, server.url, None, tolerance, 10.0)


async def test_a_recording_holds_every_frame_and_replays_equal(serving, talk, tmp_path, capsys):
    await record(serving, talk, tmp_path)
    (_, plain), (_, ours) = recordings(tmp_path)
    assert (plain.path, plain.subprotocol, len(plain.frames)) == ("/roboarena", "", 5)
    assert ours.subprotocol == "wam.v1" and [side for _, side, _ in ours.frames] == [
        "server", "client", "server", "client", "server",
    ]  # fmt: skip
    async with serving() as server:
        assert await replay(server, tmp_path) == 0
    assert "6 replies, 0 differ" in capsys.readouterr().out


async def test_a_server_that_answers_otherwise_is_found_out(serving, talk, tmp_path, capsys):
    await record(serving, talk, tmp_path)
    async with serving("matrix") as server:
        assert await replay(server, tmp_path) == 1
    assert "reply.action" in capsys.readouterr().out


def test_an_empty_folder_is_an_error_not_a_pass(tmp_path):
    with pytest.raises(RunError, match="no recorded conversation"):
        replay_folder(tmp_path, "ws://127.0.0.1:1", None, 0.0, 1.0)


def test_a_recording_cut_short_by_a_crash_is_read_up_to_the_cut(serving, tmp_path):
    import msgpack

    head = msgpack.packb({"path": "/", "subprotocol": ""}) + msgpack.packb([0.0, "server", b"\x80"])
    (tmp_path / "20260101-000000-c1.wamrec").write_bytes(
        head + msgpack.packb([1.0, "client", b"x" * 99])[:50]
    )
    ((_, recording),) = recordings(tmp_path)
    assert recording.frames == [(0.0, "server", b"\x80")]


@pytest.mark.parametrize(
    ("then", "now", "largest"),
    [
        (
            {"a": np.zeros(3), "server_timing": {"infer_ms": 1.0}},
            {"a": np.zeros(3), "server_timing": {}},
            0.0,
        ),
        ({"a": np.zeros(3)}, {"a": np.array([0, 0.5, 0])}, 0.5),
        ({"a": np.zeros(3)}, {"a": np.array([0, np.nan, 0])}, np.inf),
        ({"a": np.zeros(3)}, {"a": np.zeros(4)}, np.inf),
        ({"a": np.zeros(3)}, {"b": np.zeros(3)}, np.inf),
        ({"a": np.zeros(3, np.uint8)}, {"a": np.array([0, 255, 0], np.uint8)}, 255.0),
        ({"a": 1}, {"a": 2}, np.inf),
    ],
)
def test_replies_are_compared_number_by_number(then, now, largest):
    assert compare(wire.encode(then), wire.encode(now)).largest == largest

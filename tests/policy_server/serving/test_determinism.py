"""Equal seeds give equal replies, whatever else the server has done or is doing."""

from __future__ import annotations

import asyncio

import numpy as np
import serving_messages as messages

from wamserve.policy_server.serving.dialects.plain import PlainRules
from wamserve.policy_server.serving.scheduler import BatchRules


async def raw(websocket, fields) -> bytes:
    await websocket.send(messages.packed(fields))
    return await websocket.recv()


async def one_reply(server, talk, fields) -> bytes:
    async with talk(server) as websocket:
        await websocket.recv()
        return await raw(websocket, fields)


async def test_a_seeded_reply_is_the_same_bytes_alone_in_company_and_after_any_history(serving, talk):
    rules, plain = BatchRules(max_batch=8, batch_wait_ms=100), PlainRules(timing=False)
    arguments = {"deterministic": True, "padded": 8}
    fields = messages.small(seed=1234)
    replies = []
    for _ in range(2):
        async with serving("matrix", arguments, rules=rules, plain=plain) as server:
            replies.append(await one_reply(server, talk, fields))
            others = [messages.small(seed=i, prompt=f"task {i}") for i in range(7)]
            together = await asyncio.gather(*(one_reply(server, talk, f) for f in [fields, *others]))
            assert server.metrics.registry.get_sample_value("wam_batch_size_sum") > 8
            replies.append(together[0])
            for other in others:
                await one_reply(server, talk, other)
            replies.append(await one_reply(server, talk, fields))
    assert len(set(replies)) == 1


async def test_without_a_fixed_batch_company_changes_replies_by_less_than_1e_5(serving, talk):
    from wamserve.clients import wire

    rules = BatchRules(max_batch=8, batch_wait_ms=100)
    fields = messages.small(seed=1234)
    async with serving("matrix", {"padded": 0}, rules=rules) as server:
        alone = await one_reply(server, talk, fields)
        others = [messages.small(seed=i) for i in range(7)]
        together = await asyncio.gather(*(one_reply(server, talk, f) for f in [fields, *others]))
    difference = np.abs(wire.decode(alone)["action"] - wire.decode(together[0])["action"]).max()
    assert difference < 1e-5


async def test_unseeded_requests_repeat_in_deterministic_mode(serving, talk):
    from wamserve.clients import wire

    async def three(server):
        async with talk(server) as websocket:
            await websocket.recv()
            return [wire.decode(await raw(websocket, messages.small()))["action"] for _ in range(3)]

    async with serving(arguments={"deterministic": True}) as server:
        first, second = await three(server), await three(server)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first[0], first[1])

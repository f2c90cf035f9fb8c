"""`wamserve.clients` against a live server: what the two ends promise each other holds."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import numpy as np
import pytest
import serving_messages as messages
import serving_policies as policies

from wamserve.action_codec.errors import ContractError, PolicyLate, PolicyUnavailable, RequestError
from wamserve.clients.async_client import AsyncPolicyClient
from wamserve.clients.client import PolicyClient
from wamserve.clients.plain import COSMOS
from wamserve.clients.policy import Observation, Request
from wamserve.embodiments.contract import load

DROID = load("droid_lerobot")


def request(seed=0, prompt=messages.PROMPT, **rest) -> Request:
    images = {"canvas": messages.picture(540, 640, seed)}
    state = {"joint_position": messages.JOINTS, "gripper_position": messages.OPEN}
    return Request(Observation(images, state, prompt, time=3.5), seed=seed, **rest)


@pytest.fixture
def droid(serving):
    return lambda **options: serving(arguments={"embodiment": "droid_lerobot"}, **options)


def in_thread(call):
    """The blocking client beside the server's event loop."""
    return asyncio.to_thread(call)


async def test_the_blocking_client_gets_the_policys_rows(droid):
    async with droid() as server:

        def ask():
            with PolicyClient(server.url, contract=DROID) as client:
                return client.infer(request(7)), client.hello

        prediction, hello = await in_thread(ask)
    np.testing.assert_array_equal(prediction.chunk.actions, policies.rows_for(request(7)))
    assert (prediction.chunk.start, prediction.seed, hello.embodiment) == (3.5, 7, "droid_lerobot")
    assert prediction.ledger.forwards == 5 and prediction.ledger.decode_ms > 0


async def test_a_client_of_another_contract_is_told_the_differing_fields(droid):
    other = dataclasses.replace(DROID, wire=dataclasses.replace(DROID.wire, rate_hz=20))
    async with droid() as server:
        with pytest.raises(ContractError, match="rate_hz"):
            await in_thread(lambda: PolicyClient(server.url, contract=other).connect())


async def test_refusals_and_deadlines_arrive_as_the_errors_they_are(droid):
    async with droid() as server:

        def ask():
            with PolicyClient(server.url) as client:
                with pytest.raises(RequestError, match="empty"):
                    client.infer(request(prompt=""))
                with pytest.raises(PolicyLate):
                    client.infer(request(prompt="sleep 0.5", deadline_ms=100.0))
                return client.infer(request(2))

        assert (await in_thread(ask)).seed == 2


async def test_asynchronous_requests_run_side_by_side_and_come_back_to_their_askers(droid):
    async with droid() as server, AsyncPolicyClient(server.url) as client:
        answers = await asyncio.gather(*(client.infer(request(seed)) for seed in range(6)))
    for seed, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.chunk.actions, policies.rows_for(request(seed)))


async def test_a_stream_is_answered_for_its_newest_observation(serving):
    arguments = {"embodiment": "droid_lerobot", "delay_s": 0.2}
    async with serving(arguments=arguments) as server:

        def drive():
            seen = []
            with PolicyClient(server.url) as client, client.stream() as stream:
                for seed in range(5):
                    stream.send(request(seed, session="s", step=seed))
                while not seen or seen[-1] != 4:
                    seen.append(stream.wait(10.0).prediction.seed)
            return seen

        seen = await in_thread(drive)
    assert seen[-1] == 4 and len(seen) < 5


async def test_an_engine_death_is_unavailable_and_the_client_goes_on(droid):
    async with droid() as server:

        def ask():
            with PolicyClient(server.url) as client:
                with contextlib.suppress(PolicyUnavailable):
                    client.infer(request(prompt="die"))
                return client.infer(request(3))

        assert (await in_thread(ask)).seed == 3
        assert server.engine.restarts >= 1


async def test_the_plain_cosmos_client_reads_our_plain_wire(droid):
    async with droid() as server:

        def ask():
            with PolicyClient(server.url, plain=COSMOS) as client:
                return client.infer(dataclasses.replace(request(), seed=None))

        assert (await in_thread(ask)).chunk.actions.shape == (32, 8)

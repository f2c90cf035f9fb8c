"""A hung engine is told from a busy one: by a clock that the test turns, then with processes that hang."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
import serving_messages as messages

from wamserve.clients import wire
from wamserve.policy_server.serving.scheduler import BatchRules
from wamserve.policy_server.serving.watchdog import Patience, Watchdog

PATIENCE = Patience(batch_s=600, answer_s=60, ping_s=10, tick_s=1)


class Turned:
    """A watchdog and its clock: `pass_(seconds)` ticks once a second and gives the first complaint."""

    def __init__(self, patience=PATIENCE) -> None:
        self.now = 0.0
        self.dog = Watchdog(patience, self.now)

    def pass_(self, seconds, asking=True) -> str:
        for _ in range(round(seconds)):
            self.now += 1
            if wrong := self.dog.tick(self.now):
                return wrong
            if asking and self.dog.due:
                self.dog.ask()
        return ""


def test_a_batch_may_be_silent_for_its_limit_and_no_longer():
    turned = Turned()
    turned.dog.work()
    assert turned.pass_(600) == ""
    assert turned.pass_(1) == "silent for 601 s in the middle of a batch"


def test_each_sign_of_life_within_a_batch_starts_its_limit_again():
    turned = Turned()
    turned.dog.work()
    for _ in range(10):
        assert turned.pass_(599) == ""
        turned.dog.heard()
    assert turned.pass_(602) != ""


def test_a_limit_of_zero_lets_a_batch_take_for_ever():
    turned = Turned(Patience(batch_s=0))
    turned.dog.work()
    assert turned.pass_(100_000) == ""


def test_an_idle_process_is_asked_and_its_answer_calms():
    turned = Turned()
    assert turned.pass_(9) == "" and not turned.dog.asked
    assert turned.pass_(1) == "" and turned.dog.asked
    turned.dog.heard(answer=True)
    assert turned.pass_(10) == "" and turned.dog.asked
    assert turned.pass_(61) == "no answer to a ping for 61 s"


def test_a_busy_process_is_not_asked():
    turned = Turned()
    turned.dog.work()
    assert turned.pass_(500) == "" and not turned.dog.asked


def test_a_process_that_hung_before_its_batch_gets_no_batchs_patience():
    turned = Turned()
    turned.pass_(5)
    assert turned.dog.doubtful, "so a ping goes out before the batch"
    turned.dog.ask()
    turned.dog.work()
    assert turned.pass_(61) == "no answer to a ping for 61 s"


def test_a_reset_behind_a_batch_is_asked_about_as_soon_as_the_batch_is_done():
    turned = Turned()
    turned.dog.work()
    turned.dog.unsure = True
    turned.pass_(3)
    assert not turned.dog.due
    turned.dog.heard(done=True)
    assert turned.dog.due and turned.dog.doubtful


def test_a_process_heard_just_now_is_trusted_with_work():
    turned = Turned()
    turned.dog.work()
    turned.dog.heard(done=True)
    assert not turned.dog.doubtful


def test_a_pause_of_the_whole_machine_is_not_the_engines_silence():
    turned = Turned()
    turned.dog.work()
    turned.now += 100_000
    assert turned.dog.tick(turned.now) == ""
    assert turned.dog.silent_s == 2


QUICK = {"patience": Patience(batch_s=2.5, answer_s=1.5, ping_s=0.2, tick_s=0.05)}


async def infer(websocket, fields, timeout=30.0):
    await websocket.send(messages.packed(fields))
    async with asyncio.timeout(timeout):
        frame = await websocket.recv()
    return frame if isinstance(frame, str) else wire.decode(frame)


async def test_an_engine_that_hangs_in_a_batch_is_reported_killed_and_restarted(serving, talk, get):
    rules = BatchRules(max_batch=1)
    async with serving(engine=QUICK, rules=rules) as server, talk(server) as one, talk(server) as queued:
        await one.recv(), await queued.recv()
        (first,) = server.engine.pids
        waiting = [asyncio.create_task(infer(one, messages.small(prompt="hang")))]
        await asyncio.sleep(0.2)
        waiting.append(asyncio.create_task(infer(queued, messages.small())))
        await asyncio.sleep(0.2)
        assert (await get(server, "/healthz"))[0] == 200
        for answer in await asyncio.gather(*waiting):
            assert (
                "hung (silent for 2." in answer
                and "in the middle of a batch); it is being restarted" in answer
            )
        for websocket in (one, queued):
            assert "action" in await infer(websocket, messages.small())
        assert server.engine.restarts == 1 and server.engine.pids != [first]
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)


async def test_a_long_inference_that_gives_signs_of_life_is_left_alone(serving, talk):
    async with serving(engine=QUICK) as server, talk(server) as websocket:
        await websocket.recv()
        began = time.monotonic()
        assert "action" in await infer(websocket, messages.small(prompt="steps 8"))
        assert time.monotonic() - began > QUICK["patience"].batch_s
        assert server.engine.restarts == 0


async def test_an_idle_engine_that_stands_still_is_replaced_before_anybody_asks_it(serving, talk):
    async with serving(engine=QUICK) as server, talk(server) as websocket:
        await websocket.recv()
        assert "action" in await infer(websocket, messages.small())
        os.kill(server.engine.pids[0], signal.SIGSTOP)
        async with asyncio.timeout(20):
            while not server.engine.restarts:
                await asyncio.sleep(0.05)
        assert "hung (no answer to a ping" in str(server.engine.error)
        assert "action" in await infer(websocket, messages.small())


async def test_an_engine_that_hangs_in_a_reset_keeps_no_request_waiting_for_a_batchs_limit(serving, talk):
    patience = {"patience": Patience(batch_s=600, answer_s=1.0, ping_s=600, tick_s=0.05)}
    async with serving(engine=patience) as server, talk(server) as websocket:
        await websocket.recv()
        ending = {"endpoint": "reset", "session_id": "hang in reset"}
        await websocket.send(messages.packed(ending))
        await websocket.recv()
        assert "hung (no answer to a ping" in await infer(websocket, messages.small())
        assert "action" in await infer(websocket, messages.small())


async def test_one_rank_that_hangs_takes_the_group_with_it(serving, talk):
    async with serving(engine={**QUICK, "ranks": 2}) as server, talk(server) as websocket:
        await websocket.recv()
        first = set(server.engine.pids)
        assert "hung" in await infer(websocket, messages.small(prompt="hang rank 1"))
        assert "action" in await infer(websocket, messages.small())
        assert not first & set(server.engine.pids)

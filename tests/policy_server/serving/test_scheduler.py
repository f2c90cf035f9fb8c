"""What leaves for the engine and when, and what is kept of it; the engine is a stand-in without a process."""

from __future__ import annotations

import asyncio
import gc
import time

import numpy as np
import pytest

from wamserve.action_codec.errors import PolicyError, PolicyLate, PolicyOverloaded, PolicyUnavailable
from wamserve.clients.policy import Observation, Prediction, Request, infer_batch
from wamserve.policy_server.serving.engine import Answer, EngineSpec, _Pending
from wamserve.policy_server.serving.engine import Engine as RealEngine
from wamserve.policy_server.serving.frames import Writer
from wamserve.policy_server.serving.metrics import Metrics
from wamserve.policy_server.serving.scheduler import BatchRules, Scheduler, Superseded
from wamserve.policy_server.serving.shm import Arena


class Engine:
    """Notes the steps of each batch; answers when told to."""

    def __init__(self) -> None:
        self.ready, self.over = asyncio.Event(), asyncio.Event()
        self.ready.set()
        self.error, self.busy, self.sent = None, False, []

    def submit(self, requests, next_seeds, done) -> None:
        self.busy, self.done = True, done
        self.sent.append([request.step for request in requests])

    def answer(self, outcome) -> None:
        self.busy = False
        self.done(outcome)


def request(step, image=None, **options) -> Request:
    return Request(Observation({"wrist": np.zeros(4) if image is None else image}, {}), step=step, **options)


def asked(scheduler, of, client="a", stream=None) -> asyncio.Task:
    return asyncio.ensure_future(scheduler.answer(of, client, time.perf_counter(), stream))


@pytest.fixture
def scheduler():
    """Of a server that one connection is open to."""
    return Scheduler(Engine(), BatchRules(max_queue=4), Metrics(), lambda: 1)


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_of_a_streams_observations_that_arrive_together_the_last_is_sent(scheduler):
    tasks = [asked(scheduler, request(step), stream="s") for step in (1, 2, 3)]
    await settled()
    assert scheduler.engine.sent == [[3]]
    assert [type(task.exception()) for task in tasks[:2]] == [Superseded, Superseded]
    scheduler.engine.answer(Answer([Prediction()], 1.0, 0))
    assert (await tasks[2]).batch == 1


async def test_requests_of_one_connection_that_arrive_together_share_a_batch(scheduler):
    tasks = [asked(scheduler, request(step)) for step in (1, 2, 3)]
    await settled()
    assert scheduler.engine.sent == [[1, 2, 3]]
    scheduler.engine.answer(Answer([Prediction()] * 3, 1.0, 0))
    assert [outcome.batch for outcome in await asyncio.gather(*tasks)] == [3, 3, 3]


async def test_requests_that_fail_give_their_memory_back_at_once(scheduler, no_collector):
    arena, kept = Arena(1 << 16), []

    async def ask(step, **options) -> None:
        try:
            await scheduler.answer(
                request(step, arena.lend(1 << 10), **options), "a", time.perf_counter(), "s"
            )
        except PolicyError as error:
            kept.append(type(error))

    for step in range(5):
        scheduler.engine.busy = True
        task = asyncio.ensure_future(ask(step))
        await settled()
    assert kept == [Superseded] * 4 and arena.used_bytes == 1 << 10
    await ask(5, deadline_ms=1.0)
    await settled()
    assert kept[4:] == [Superseded, PolicyLate] and task.done()
    del task
    assert arena.used_bytes == 0


async def test_an_engine_that_is_over_answers_each_with_an_error_of_its_own(scheduler):
    scheduler.engine.error = PolicyUnavailable("it never came up", seen="why")
    scheduler.engine.over.set()
    for _ in range(2):
        with pytest.raises(PolicyUnavailable, match="it never came up; seen: why") as error:
            await scheduler.answer(request(1), "a", time.perf_counter())
        assert error.value is not scheduler.engine.error
    assert scheduler.engine.error.__traceback__ is None


async def test_a_request_that_finds_the_queue_full_leaves_nothing_behind(scheduler):
    scheduler.engine.busy = True
    tasks = [asked(scheduler, request(step)) for step in range(5)]
    await settled()
    assert isinstance(tasks[4].exception(), PolicyOverloaded)
    assert len(scheduler.queue) == len(scheduler._futures) == 4
    for task in tasks[:4]:
        task.cancel()
    await settled()
    assert len(scheduler.queue) == len(scheduler._futures) == 0


async def test_an_answer_to_another_number_of_requests_fails_its_batch_and_no_other(scheduler):
    tasks = [asked(scheduler, request(step)) for step in (1, 2)]
    await settled()
    later = asked(scheduler, request(3))
    await settled()
    scheduler.engine.answer(Answer([Prediction()], 1.0, 0))
    await settled()
    for task in tasks:
        assert "another number of requests; seen: 1; expected: 2" in str(task.exception())
    assert scheduler.engine.sent == [[1, 2], [3]]
    scheduler.engine.answer(Answer([Prediction()], 1.0, 0))
    assert (await later).batch == 1


def test_a_policy_that_answers_another_number_of_requests_is_told_so():
    class Short:
        def infer_batch(self, requests):
            return [Prediction()]

    with pytest.raises(PolicyError, match="seen: 1; expected: 2"):
        infer_batch(Short(), [request(1), request(2)])


async def test_a_request_past_its_deadline_is_not_sent(scheduler):
    first = asked(scheduler, request(1))
    await settled()
    late, last = asked(scheduler, request(2, deadline_ms=1.0)), asked(scheduler, request(3))
    await settled()
    time.sleep(0.01)  # the loop is held up: the deadline's own timer has not run
    scheduler.engine.answer(Answer([Prediction()], 1.0, 0))
    await settled()
    assert scheduler.engine.sent == [[1], [3]] and isinstance(late.exception(), PolicyLate)
    scheduler.engine.answer(Answer([Prediction()], 1.0, 0))
    await asyncio.gather(first, last)


async def test_a_reply_that_cannot_be_read_fails_its_batch_and_frees_the_engine():
    engine, outcomes = RealEngine(EngineSpec("nowhere:none")), []
    engine.replies = Arena(1 << 12)
    engine._pending = _Pending(Writer(engine.replies), outcomes.append)
    engine._answered({"batch": 1, "results": [{"chunk": None}], "infer_ms": 1.0, "gpu_bytes": 0})
    assert not engine.busy and "cannot be read (KeyError)" in str(outcomes.pop())

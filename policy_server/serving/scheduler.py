"""Between connections and engine: queues requests, sends batches, hands every request its one outcome."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable
from copy import copy
from dataclasses import dataclass

from wamserve.action_codec.errors import PolicyError, PolicyLate, PolicyUnavailable, WamError
from wamserve.clients.policy import Prediction, Request
from wamserve.policy_server.serving.batcher import Batcher, Job
from wamserve.policy_server.serving.company import Company
from wamserve.policy_server.serving.engine import Answer, Engine
from wamserve.policy_server.serving.metrics import Metrics

logger = logging.getLogger("wamserve.serving")


@dataclass(frozen=True)
class Outcome:
    """A prediction, and what the wait for it was like."""

    prediction: Prediction
    queue_ms: float
    infer_ms: float  # wall time of its batch in the engine
    batch: int  # requests in that batch


class Superseded(PolicyError):
    """A newer observation of the same session took this one's place."""


@dataclass(frozen=True)
class BatchRules:
    """When a batch leaves."""

    max_batch: int = 8
    # How long the oldest request waits for company while the engine is free. None: as `company.py` says.
    batch_wait_ms: float | None = None
    max_queue: int = 64


class Scheduler:
    """`await answer(request, client)` gives the prediction or raises the WamError that befell it."""

    def __init__(
        self, engine: Engine, rules: BatchRules, metrics: Metrics, connections: Callable[[], int]
    ) -> None:
        self.engine = engine
        self.connections = connections  # open now: who might still join a batch
        self.rules = rules
        self.metrics = metrics
        self.queue = Batcher(rules.max_batch, rules.max_queue)
        self.company = Company()
        self._free = 0.0  # when the engine had answered its last batch
        self._next: asyncio.Handle | None = None  # when to look at the queue again
        self._futures: dict[Job, asyncio.Future[Outcome]] = {}

    async def answer(
        self,
        request: Request,
        client: Hashable,
        arrived: float,
        stream: Hashable = None,
        next_seed: int | None = None,
    ) -> Outcome:
        """The prediction of `request`, which arrived at `arrived` on time.perf_counter.

        Raises PolicyLate at the deadline, PolicyOverloaded, PolicyUnavailable, Superseded, or what the policy
        raised. Cancelling withdraws the request.
        """
        if self.engine.over.is_set():
            raise self._unavailable()
        job = Job(request, client, arrived, time.perf_counter(), stream, next_seed)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        try:
            self.company.arrived(client, job.queued)
            replaced = self.queue.offer(job)
            self._futures[job] = future
            if replaced is not None:
                self._fail(replaced, Superseded("a newer observation of the session took its place"))
                del replaced
            self.metrics.queue_depth.set(len(self.queue))
            if not self.engine.busy:
                # Not at once: what has arrived together with this one goes along, or takes its place.
                self._again(asyncio.get_running_loop().call_soon(self._consider))
            if request.deadline_ms is None:
                return await future
            left = arrived + request.deadline_ms / 1e3 - time.perf_counter()
            async with asyncio.timeout(max(left, 0.0)):
                return await future
        except TimeoutError:
            raise _late(request) from None
        finally:
            self.queue.withdraw(job)
            self._futures.pop(job, None)
            # An error keeps this frame, and the future keeps the error: no such ring may hold the frames of
            # the request, which lie in shared memory, until the garbage collector comes by.
            del future, job, request

    def engine_changed(self) -> None:
        """To be called whenever the engine's state has changed."""
        if self.engine.over.is_set():
            self.fail_all(self._unavailable())
        elif self.engine.ready.is_set():
            self._consider()

    def _unavailable(self) -> WamError:
        """Why the engine answers nobody any more. A new one each time: what is raised keeps its frames."""
        return copy(self.engine.error) or PolicyUnavailable("the engine is stopped")

    def _again(self, handle: asyncio.Handle | None) -> None:
        if self._next is not None:
            self._next.cancel()
        self._next = handle

    def _consider(self) -> None:
        """Sends a batch if one should leave now; else sets the clock for when one should."""
        self._again(None)
        for job in self.queue.late(time.perf_counter()):
            self._fail(job, _late(job.request))
        while len(self.queue) and not self.engine.busy and self.engine.ready.is_set():
            now = time.perf_counter()
            until = self._leaves_at(now)
            if until > now:
                self._again(asyncio.get_running_loop().call_later(until - now, self._consider))
                return
            self._send(self.queue.take())
            self.metrics.queue_depth.set(len(self.queue))

    def _leaves_at(self, now: float) -> float:
        """When what waits should go to the engine; `now` or less: at once."""
        oldest, wait_ms = self.queue.oldest(), self.rules.batch_wait_ms
        assert oldest is not None
        if self.queue.clients() >= self.connections():
            return now  # nobody else is connected who could join
        if wait_ms is not None:
            return now if self.queue.full() else oldest + wait_ms / 1e3
        batch = self.queue.next()
        room, since = self.rules.max_batch - len(batch), max(self._free, oldest)
        return self.company.wait_until(now, since, len(batch), room, min(job.late_at for job in batch))

    def _send(self, batch: list[Job]) -> None:
        left_at = time.perf_counter()

        def done(outcome: Answer | WamError) -> None:
            try:
                self._done(batch, left_at, outcome)
            finally:
                self._consider()

        next_seeds = [job.next_seed for job in batch if job.next_seed is not None]
        try:
            self.engine.submit([job.request for job in batch], next_seeds, done)
        except WamError as error:
            self._done(batch, left_at, error)
        except Exception as error:
            logger.exception("a batch cannot be sent")
            self._done(batch, left_at, PolicyError(f"the engine cannot be asked ({type(error).__name__})"))

    def _done(self, batch: list[Job], left_at: float, outcome: Answer | WamError) -> None:
        if isinstance(outcome, Answer) and len(outcome.results) != len(batch):
            outcome = PolicyError(
                "the engine answered another number of requests",
                seen=len(outcome.results),
                expected=len(batch),
            )
        if isinstance(outcome, WamError):
            for job in batch:
                self._fail(job, outcome)
            if isinstance(outcome, PolicyUnavailable):
                # Nobody who waits can know how long the restart takes: all are told now.
                self.fail_all(outcome)
            return
        self._free = time.perf_counter()
        for job, result in zip(batch, outcome.results, strict=True):
            self._deliver(job, result, outcome, left_at, len(batch))
        self.company.ran(len(batch), self._free - left_at)
        self.metrics.batch(len(batch), outcome.gpu_bytes)

    def _deliver(
        self, job: Job, result: Prediction | WamError, answer: Answer, left_at: float, size: int
    ) -> None:
        if not isinstance(result, Prediction):
            self._fail(job, result)
            return
        future = self._futures.get(job)
        if future is not None and not future.done():
            future.set_result(Outcome(result, 1e3 * (left_at - job.queued), answer.infer_ms, size))
            self._answered(job)

    def fail_all(self, error: WamError) -> None:
        """Tells everybody in the queue."""
        for job in self.queue.clear():
            self._fail(job, error)

    def _fail(self, job: Job, error: WamError) -> None:
        future = self._futures.get(job)
        if future is not None and not future.done():
            future.set_exception(error)
            self._answered(job)

    def _answered(self, job: Job) -> None:
        if not self.queue.waits(job.client):
            self.company.answered(job.client, time.perf_counter())

    def left(self, client: Hashable) -> None:
        """A connection is gone."""
        self.company.left(client)


def _late(request: Request) -> PolicyLate:
    return PolicyLate("the request outlived its deadline", expected=f"{request.deadline_ms:g} ms")

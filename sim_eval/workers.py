"""Worker processes run episodes; the parent answers their questions, all that wait together in one batch."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from wamserve.action_codec.errors import RunError
from wamserve.clients.policy import Policy, Prediction, Request, infer_batch
from wamserve.sim_eval.rollout import Loop, rollout
from wamserve.sim_eval.task import Episode, Task, WorkItem

# One thread each: K simulators on K cores, and a software renderer that does not fight itself.
THREADS = {
    "OMP_NUM_THREADS": "1",
    "LP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
MAX_CRASHES = 2  # of workers, per episode, before the run gives up


@dataclass(frozen=True)
class MakeTask:
    """A call that makes a task in another process: catalog.make with these arguments."""

    contract: str | None
    profile: str

    def __call__(self, name: str) -> Task:
        from wamserve.sim_eval import catalog

        return catalog.make(name, catalog.contract_of(name, self.contract), self.profile)  # type: ignore[arg-type]


class Bench:
    """Keeps one task open and runs episodes on it; the same in a worker and in this process."""

    def __init__(self, make: Callable[[str], Task], loop: Loop) -> None:
        self._make, self._loop = make, loop
        self._task: Task | None = None

    def run(self, item: WorkItem, ask: Callable[[Request], tuple[Prediction, float]]) -> Episode:
        if self._task is None or self._task.spec.name != item.task:
            self.close()
            self._task = self._make(item.task)
        return rollout(self._task, ask, item, self._loop)

    def close(self) -> None:
        if self._task is not None:
            self._task.close()
            self._task = None


def run_here(
    make: Callable[[str], Task], loop: Loop, policy: Policy, items: Sequence[WorkItem]
) -> Iterator[Episode]:
    """All episodes in this process, one after another."""

    def ask(request: Request) -> tuple[Prediction, float]:
        start = time.perf_counter()
        prediction = policy.infer(request)
        return prediction, 1e3 * (time.perf_counter() - start)

    bench = Bench(make, loop)
    try:
        for item in items:
            yield bench.run(item, ask)
    finally:
        bench.close()


def run_workers(
    make: Callable[[str], Task],
    loop: Loop,
    policy: Policy,
    items: Sequence[WorkItem],
    workers: int,
    max_batch: int = 64,
    one_by_one: bool = False,
) -> Iterator[Episode]:
    """Episodes as they finish. Questions that wait at the same time share one infer_batch.

    `one_by_one` asks singly, for policies whose answers may depend on their neighbours in a batch.
    """
    crew = _Crew(make, loop, items, workers)
    try:
        while crew.busy:
            questions: list[tuple[_Worker, Request]] = []
            for worker, message in crew.messages(block=True):
                kind, payload = message
                if kind == "ask":
                    questions.append((worker, payload))
                elif kind == "episode":
                    crew.next(worker)
                    yield payload
                else:
                    raise RunError(f"a worker failed in {worker.item}: {payload}")
            while questions:
                taken, questions = (
                    questions[: 1 if one_by_one else max_batch],
                    questions[1 if one_by_one else max_batch :],
                )
                start = time.perf_counter()
                answers = infer_batch(policy, [request for _, request in taken])
                took_ms = 1e3 * (time.perf_counter() - start)
                for (worker, _), prediction in zip(taken, answers, strict=True):
                    if prediction.ledger.batch != len(taken):
                        prediction = replace(prediction, ledger=replace(prediction.ledger, batch=len(taken)))
                    crew.send(worker, ("answer", (prediction, took_ms)))
    finally:
        crew.close()


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    item: WorkItem | None = None


class _Crew:
    """The worker processes, what each is doing and what is left to do."""

    def __init__(
        self, make: Callable[[str], Task], loop: Loop, items: Sequence[WorkItem], workers: int
    ) -> None:
        self._context = multiprocessing.get_context("spawn")  # a forked GL context hangs
        self._make, self._loop = make, loop
        self._left: deque[WorkItem] = deque(items)
        self._crashes: dict[WorkItem, int] = {}
        self._workers: list[_Worker] = []
        for _ in range(min(workers, len(items))):
            self.next(self._hire())

    @property
    def busy(self) -> bool:
        return any(worker.item is not None for worker in self._workers)

    def next(self, worker: _Worker) -> None:
        """Gives the worker its next episode, of the task it has open if there is one left."""
        mine = worker.item.task if worker.item else None
        item = next((i for i in self._left if i.task == mine), None) or (
            self._left[0] if self._left else None
        )
        worker.item = item
        if item is not None:
            self._left.remove(item)
            self.send(worker, ("run", item))

    def messages(self, block: bool) -> Iterator[tuple[_Worker, tuple[str, Any]]]:
        """Everything said by now; waits for the first word."""
        by_pipe = {worker.pipe: worker for worker in self._workers if worker.item is not None}
        for pipe in wait(list(by_pipe), None if block else 0):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                yield worker, worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                self._replace(worker)

    def send(self, worker: _Worker, message: tuple[str, Any]) -> None:
        try:
            worker.pipe.send(message)
        except (BrokenPipeError, ConnectionResetError):
            self._replace(worker)

    def close(self) -> None:
        for worker in self._workers:
            worker.pipe.close()  # a worker that waits reads the end and leaves
        for worker in self._workers:
            worker.process.join(2)
            if worker.process.is_alive():
                worker.process.terminate()

    def _hire(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        before = {name: os.environ.get(name) for name in THREADS}
        os.environ.update(THREADS)  # read when a library is first imported: before the worker's first line
        try:
            process = self._context.Process(
                target=_work, args=(theirs, self._make, self._loop), daemon=True, name="wam-eval worker"
            )
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def _replace(self, worker: _Worker) -> None:
        """A worker died: its episode starts again, elsewhere."""
        item = worker.item
        self._workers.remove(worker)
        worker.pipe.close()
        if item is None:
            return
        self._crashes[item] = self._crashes.get(item, 0) + 1
        if self._crashes[item] > MAX_CRASHES:
            raise RunError(
                f"the simulator died {self._crashes[item]} times in {item.task}, initial state {item.init}",
                seen=f"exit code {worker.process.exitcode}",
                fix="the same command resumes; --workers 0 shows the error",
            )
        self._left.appendleft(item)
        self.next(self._hire())


class _Asker:
    """A worker's end of the questions."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __call__(self, request: Request) -> tuple[Prediction, float]:
        self._pipe.send(("ask", request))
        kind, payload = self._pipe.recv()
        assert kind == "answer", kind
        prediction, took_ms = payload
        assert isinstance(took_ms, float) and np.isfinite(took_ms)
        return prediction, took_ms


def _work(pipe: Connection, make: Callable[[str], Task], loop: Loop) -> None:
    """A worker's life. Leaves without destructors: GL's run into each other when an interpreter ends."""
    try:
        bench, ask = Bench(make, loop), _Asker(pipe)
        while True:
            kind, item = pipe.recv()
            assert kind == "run", kind
            try:
                pipe.send(("episode", bench.run(item, ask)))
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise
            except Exception:
                pipe.send(("error", traceback.format_exc()))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass
    finally:
        os._exit(0)

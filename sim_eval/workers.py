"""Worker processes run episodes; the parent answers their questions, all that wait together in one batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from wamserve.action_codec import errors
from wamserve.action_codec.errors import RunError
from wamserve.clients.policy import Policy, Prediction, Request, infer_batch
from wamserve.embodiments.contract import WireHalf
from wamserve.sim_eval.rollout import Loop
from wamserve.sim_eval.task import Episode, Task, TaskSpec, WorkItem
from wamserve.sim_eval.worker import Bench

# One thread each: K simulators on K cores, and a software renderer that does not fight itself.
THREADS = {
    name: "1" for name in ("OMP_NUM_THREADS", "LP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")
}
MAX_CRASHES = 2  # of workers, per episode, before the run gives up
# How long the first question may wait for the others, in parts of the policy's last answering time: no
# policy is held up by more than half, and one that answers at once is asked at once. A wait that brought
# fewer questions than its time was worth (slow simulators, quick policy) is not tried again for PAUSE calls.
GATHER, PAUSE = 0.5, 8
Make = Callable[[str], Task]


class Here:
    """No workers: everything in this process, one episode after another."""

    def __init__(self, make: Make) -> None:
        self._bench = Bench(make)

    def describe(self, names: Sequence[str], images: bool) -> list[tuple[TaskSpec, WireHalf]]:
        return [self._bench.describe(name, images) for name in names]

    def task(self, name: str) -> Task:
        return self._bench.task(name)

    def run(self, policy: Policy, loop: Loop, items: Sequence[WorkItem]) -> Iterator[Episode]:
        def ask(request: Request) -> tuple[Prediction, float]:
            start = time.perf_counter()
            prediction = policy.infer(request)
            return prediction, 1e3 * (time.perf_counter() - start)

        self._bench.loop = loop
        for item in items:
            yield self._bench.run(item, ask)

    def close(self) -> None:
        self._bench.close()


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    job: Any = None  # what it is doing: a WorkItem, a task's name, None
    task: str = ""  # the one it has open


class Crew:
    """Worker processes, what each is doing, and the questions they ask."""

    def __init__(self, make: Make, workers: int, python: str = sys.executable, max_batch: int = 64) -> None:
        self._make, self._python, self._max_batch = make, python, max_batch
        self._loop: Loop | None = None
        self._left: deque[Any] = deque()
        self._crashes: dict[Any, int] = {}
        self._workers = [self._hire() for _ in range(max(workers, 1))]

    def describe(self, names: Sequence[str], images: bool) -> list[tuple[TaskSpec, WireHalf]]:
        """What every task declares; the workers share the making."""
        found: dict[str, tuple[TaskSpec, WireHalf]] = {}
        self._start([("describe", name, images) for name in names])
        while len(found) < len(names):
            for worker, kind, payload in self._heard():
                _refuse_unless(kind == "described", kind, payload, worker.job)
                found[payload[0].name] = payload
                self._next(worker)
        return [found[name] for name in names]

    def run(
        self, policy: Policy, loop: Loop, items: Sequence[WorkItem], one_by_one: bool = False
    ) -> Iterator[Episode]:
        """Episodes as they finish. Questions of all workers gather into one infer_batch (see GATHER).

        `one_by_one` asks singly, for policies whose answers may depend on their neighbours in a batch.
        """
        self._loop = loop
        for worker in self._workers:
            self._say(worker, ("loop", loop))
            worker.job = "loop"
        self._left = deque(("run", item) for item in items)
        most = 1 if one_by_one else self._max_batch
        questions: list[tuple[_Worker, Request]] = []
        gather_s, since, until = 0.0, 0.0, 0.0  # longest wait; its beginning and end by time.perf_counter()
        first_came, pause = 0, 0
        while any(worker.job is not None for worker in self._workers):
            for worker, kind, payload in self._heard(until - time.perf_counter() if questions else None):
                if kind == "ask":
                    if not questions:
                        since = time.perf_counter()
                        until = since + gather_s
                    questions.append((worker, payload))
                    continue
                _refuse_unless(kind in ("episode", "ready"), kind, payload, worker.job)
                self._next(worker)
                if kind == "episode":
                    yield payload
            first_came = first_came or len(questions)
            if not questions or (time.perf_counter() < until and self._thinking(questions)):
                continue
            start = time.perf_counter()
            batches = [questions[first : first + most] for first in range(0, len(questions), most)]
            for batch in batches:
                self._answer(policy, batch)
            took = (time.perf_counter() - start) / len(batches)
            wasted = gather_s > 0 and len(questions) * took < first_came * (took + start - since)
            pause = PAUSE if wasted else max(pause - 1, 0)
            gather_s = 0.0 if one_by_one or pause else GATHER * took
            questions, first_came = [], 0

    def close(self) -> None:
        for worker in self._workers:
            worker.pipe.close()  # a worker that waits reads the end and leaves
        for worker in self._workers:
            try:
                worker.process.wait(2)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._workers = []

    def _thinking(self, questions: list[tuple[_Worker, Request]]) -> bool:
        """Whether a worker is under way that has not asked yet."""
        asked = {id(worker) for worker, _ in questions}
        return any(worker.job is not None and id(worker) not in asked for worker in self._workers)

    def _answer(self, policy: Policy, taken: list[tuple[_Worker, Request]]) -> None:
        start = time.perf_counter()
        answers = infer_batch(policy, [request for _, request in taken])
        took_ms = 1e3 * (time.perf_counter() - start)
        for (worker, _), said in zip(taken, answers, strict=True):
            together = max(said.ledger.batch, len(taken))
            said = replace(said, ledger=replace(said.ledger, batch=together))
            self._say(worker, ("answer", (said, took_ms)))

    def _start(self, jobs: list[Any]) -> None:
        self._left = deque(jobs)
        for worker in list(self._workers):
            self._next(worker)

    def _next(self, worker: _Worker) -> None:
        """The worker's next job: of the task it has open if there is one left."""
        mine = next((job for job in self._left if _task_of(job) == worker.task), None)
        job = mine or (self._left[0] if self._left else None)
        worker.job = job
        if job is not None:
            self._left.remove(job)
            worker.task = _task_of(job)
            self._say(worker, job)

    def _heard(self, timeout_s: float | None = None) -> Iterator[tuple[_Worker, str, Any]]:
        """Everything said by now; waits for the first word, so long."""
        by_pipe = {worker.pipe: worker for worker in self._workers if worker.job is not None}
        for pipe in wait(list(by_pipe), None if timeout_s is None else max(timeout_s, 0.0)):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                kind, payload = worker.pipe.recv()
            except (EOFError, OSError):
                self._replace(worker)
                continue
            yield worker, kind, payload

    def _say(self, worker: _Worker, words: Any) -> None:
        try:
            worker.pipe.send(words)
        except OSError:
            self._replace(worker)

    def _hire(self) -> _Worker:
        return _Worker(*start_worker(self._python, self._make, self._loop))

    def _replace(self, worker: _Worker) -> None:
        """A worker died: its job starts again, with a fresh one."""
        if worker not in self._workers:
            return
        self._workers.remove(worker)
        worker.pipe.close()
        code, job = worker.process.wait(), worker.job
        self._crashes[job] = self._crashes.get(job, 0) + 1
        if self._crashes[job] > MAX_CRASHES:
            raise RunError(
                f"the simulator died {self._crashes[job]} times over {job}",
                seen=f"exit code {code}",
                fix="the same command resumes; --workers 0 shows the error",
            )
        if isinstance(job, tuple):
            self._left.appendleft(job)
        fresh = self._hire()
        self._workers.append(fresh)
        self._next(fresh)


def start_worker(python: str, make: Make, loop: Loop | None) -> tuple[subprocess.Popen[bytes], Connection]:
    """A simulator process, and the parent's end of its pipe."""
    ours, theirs = socket.socketpair()
    # Read when a library is first imported, so they are in place before the worker's first line.
    process = subprocess.Popen(
        [python, "-P", "-m", "wamserve.sim_eval.worker", str(theirs.fileno())],
        env={**os.environ, **THREADS},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()
    pipe = Connection(ours.detach())
    pipe.send((make, loop))
    return process, pipe


def _task_of(job: Any) -> str:
    return job[1].task if job[0] == "run" else job[1]


def _refuse_unless(true: bool, kind: str, payload: Any, job: Any) -> None:
    if true:
        return
    if kind == "refused":
        name, text = payload
        raise getattr(errors, name)(text)
    raise RunError(f"a worker failed over {job}: {payload}")

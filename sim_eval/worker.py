"""A simulator process: makes tasks, runs episodes, asks its parent for every answer of the policy.

Started as `python -m wamserve.sim_eval.worker FD` with one end of a socket pair; the interpreter may be
another than the parent's, which is how a simulator with pins of its own runs beside the rest.

parent -> worker   (make, loop) once; then ("describe", name, images) | ("loop", loop) | ("run", item)
                   | ("answer", (prediction, ms)) | ("call", name, method, args)
worker -> parent   ("described", (spec, wire)) | ("ready", None) | ("ask", request) | ("episode", episode)
                   | ("called", result) | ("refused", (error, text)) | ("error", traceback)
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from wamserve.action_codec.errors import WamError
from wamserve.clients.policy import Prediction, Request
from wamserve.embodiments.contract import WireHalf
from wamserve.sim_eval.check_fit import check_observation
from wamserve.sim_eval.render import Profile
from wamserve.sim_eval.rollout import Loop, rollout
from wamserve.sim_eval.task import Episode, Task, TaskSpec, WorkItem


@dataclass(frozen=True)
class MakeTask:
    """How a process makes a task by name."""

    contract: str | None  # None: the suite's own
    profile: Profile
    max_steps: int | None = None  # instead of the suite's own
    instruction: str | None = None  # instead of the task's own

    def __call__(self, name: str) -> Task:
        from wamserve.sim_eval import catalog

        task = catalog.make(name, catalog.contract_of(name, self.contract), self.profile)
        if self.max_steps is not None:
            task.spec = replace(task.spec, max_steps=self.max_steps)
        if self.instruction is not None:
            task.spec = replace(task.spec, instruction=self.instruction)
        return task


class Bench:
    """Keeps one task open and runs episodes on it; the same in a worker and in the parent."""

    def __init__(self, make: Callable[[str], Task], loop: Loop | None = None) -> None:
        self._make, self.loop = make, loop
        self._task: Task | None = None

    def task(self, name: str) -> Task:
        if self._task is None or self._task.spec.name != name:
            self.close()
            self._task = self._make(name)
        return self._task

    def describe(self, name: str, images: bool) -> tuple[TaskSpec, WireHalf]:
        """What the task declares, after a look at whether it keeps its word."""
        task = self.task(name)
        task.reset(0, 0)
        check_observation(task, images)
        return task.spec, task.wire

    def run(self, item: WorkItem, ask: Callable[[Request], tuple[Prediction, float]]) -> Episode:
        assert self.loop is not None
        return rollout(self.task(item.task), ask, item, self.loop)

    def close(self) -> None:
        if self._task is not None:
            self._task.close()
            self._task = None


def work(pipe: Connection) -> None:
    """A worker's life: until the parent closes its end."""
    make, loop = pipe.recv()
    bench = Bench(make, loop)

    def ask(request: Request) -> tuple[Prediction, float]:
        pipe.send(("ask", request))
        kind, answer = pipe.recv()
        assert kind == "answer", kind
        prediction, took_ms = answer
        return prediction, took_ms

    def reply(words: tuple[Any, ...]) -> tuple[str, Any]:
        try:
            if words[0] == "describe":
                return "described", bench.describe(*words[1:])
            if words[0] == "loop":
                bench.loop = words[1]
                return "ready", None
            if words[0] == "call":
                _, name, method, args = words
                return "called", getattr(bench.task(name), method)(*args)
            return "episode", bench.run(words[1], ask)
        except (EOFError, OSError):
            raise
        except WamError as error:
            return "refused", (type(error).__name__, str(error))
        except Exception:
            return "error", traceback.format_exc()

    while True:
        pipe.send(reply(pipe.recv()))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        work(Connection(int(sys.argv[1])))
    except (EOFError, OSError):
        pass
    finally:
        # Without destructors: those of two GL libraries run into each other when an interpreter ends.
        os._exit(0)


if __name__ == "__main__":
    main()

"""A task in a process of its own, under any interpreter that has wamserve and the simulator."""

from __future__ import annotations

import subprocess
from typing import Any

import numpy as np

from wamserve.action_codec import errors
from wamserve.action_codec.errors import RunError
from wamserve.embodiments.contract import WireHalf
from wamserve.sim_eval.task import TaskSpec
from wamserve.sim_eval.worker import MakeTask
from wamserve.sim_eval.workers import start_worker


class RemoteTask:
    """A Task whose every call goes to a worker and comes back."""

    spec: TaskSpec
    wire: WireHalf

    def __init__(self, python: str, make: MakeTask, name: str) -> None:
        self._name = name
        self._process, self._pipe = start_worker(python, make, None)
        self.spec, self.wire = self._ask(("describe", name, False))

    def reset(self, init: int, seed: int) -> None:
        self._call("reset", init, seed)

    def step(self, action: np.ndarray) -> None:
        self._call("step", action)

    def render(self) -> dict[str, np.ndarray]:
        images: dict[str, np.ndarray] = self._call("render")
        return images

    def state(self) -> dict[str, np.ndarray]:
        state: dict[str, np.ndarray] = self._call("state")
        return state

    def privileged(self) -> dict[str, np.ndarray]:
        hidden: dict[str, np.ndarray] = self._call("privileged")
        return hidden

    def hold(self) -> np.ndarray:
        return np.asarray(self._call("hold"))

    def success(self) -> bool:
        return bool(self._call("success"))

    def progress(self) -> float:
        return float(self._call("progress"))

    def sim_state(self) -> np.ndarray:
        return np.asarray(self._call("sim_state"))

    def restore(self, sim_state: np.ndarray) -> None:
        self._call("restore", sim_state)

    def close(self) -> None:
        self._pipe.close()  # a worker that waits reads the end and leaves
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _call(self, method: str, *args: Any) -> Any:
        return self._ask(("call", self._name, method, args))

    def _ask(self, words: tuple[Any, ...]) -> Any:
        try:
            self._pipe.send(words)
            kind, payload = self._pipe.recv()
        except (EOFError, OSError):
            self.close()
            code = self._process.returncode
            raise RunError(f"the simulator of {self._name} died", seen=f"exit code {code}") from None
        if kind in ("described", "called"):
            return payload
        self.close()
        if kind == "refused":
            name, text = payload
            raise getattr(errors, name)(text)
        raise RunError(f"the simulator of {self._name} failed over {words[0]}: {payload}")

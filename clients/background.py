"""Asks a policy from a thread of its own, so that a control loop never waits: one question at a time."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

from wamserve.clients.policy import Policy, Prediction, Request


class BackgroundPolicy:
    """`ask` when free, `take` at every control step; neither blocks."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.round_trip_ms: float | None = None  # of the last answer taken
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="wam-ask")
        self._asked: Future[tuple[Prediction, float]] | None = None

    @property
    def free(self) -> bool:
        """No question is under way and no answer waits to be taken."""
        return self._asked is None

    def ask(self, request: Request) -> bool:
        """Sends a question; False where one is under way already."""
        if not self.free:
            return False
        self._asked = self._pool.submit(self._infer, request)
        return True

    def take(self) -> Prediction | None:
        """The answer, once, when it is there; raises what the policy raised."""
        if self._asked is None or not self._asked.done():
            return None
        done, self._asked = self._asked, None
        prediction, self.round_trip_ms = done.result()
        return prediction

    def close(self) -> None:
        """Does not wait for a question under way."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> BackgroundPolicy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _infer(self, request: Request) -> tuple[Prediction, float]:
        start = time.monotonic()
        prediction = self.policy.infer(request)
        return prediction, 1e3 * (time.monotonic() - start)

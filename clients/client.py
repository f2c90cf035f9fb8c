"""PolicyClient: a policy across the network, as a Policy. Blocking; for robots and simulators.

>>> client = PolicyClient("ws://127.0.0.1:8000")
>>> observation = Observation(images, state, "put the cup on the plate", time.monotonic())
>>> client.infer(Request(observation)).chunk.actions
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

from websockets.exceptions import ConnectionClosed

from wamserve.action_codec.errors import PolicyOverloaded, PolicyUnavailable, WamError, WireError
from wamserve.clients.link import Link, connection_error
from wamserve.clients.policy import Prediction, Request
from wamserve.clients.session import Answer, Endpoint
from wamserve.clients.stream import Stream
from wamserve.clients.wam_v1 import Hello


class PolicyClient:
    """Implements Policy over one connection, opened at the first request and again when it is lost.

    infer is one question and one answer; a lost connection is dialled again and the question repeated, which
    does no harm: asking moves nothing. An answer that comes too late is never taken for a later one's. Calls
    from several threads take turns.
    """

    def __init__(
        self, uri: str | Endpoint, *, sleep: Callable[[float], None] = time.sleep, **options: Any
    ) -> None:
        """`options` are the fields of Endpoint: contract, plain, token, timeouts, ..."""
        self.endpoint = uri if isinstance(uri, Endpoint) else Endpoint(uri, **options)
        self.round_trip_ms: float | None = None  # of the last answered request, network included
        self._sleep = sleep
        self._link: Link | None = None
        self._lock = threading.Lock()

    def connect(self) -> Hello | dict[str, Any]:
        """Connects now, and tells what is served: wam.v1's hello, or a plain server's metadata."""
        with self._lock:
            session = self._retrying(lambda link: link.session)
        return session.hello or session.metadata

    @property
    def hello(self) -> Hello | None:
        """What the server said it serves; None before the first connection and on plain wires."""
        return self._link.session.hello if self._link else None

    def infer(self, request: Request, on_actions: Callable[[Prediction], None] | None = None) -> Prediction:
        """The answer, whole. `on_actions` sees the actions as soon as they are there, before any video.

        Raises PolicyLate, PolicyOverloaded, PolicyUnavailable, PolicyError; RequestError or ContractError for
        a request that does not fit; WireError for a reply that is none.
        """

        def ask(link: Link) -> Prediction:
            request_id, frame = link.session.ask(request)
            answer = self._exchange(link, request_id, frame, on_actions)
            if answer.prediction is None:
                raise WireError("the server answered an infer with nothing")
            return answer.prediction

        with self._lock:
            return self._retrying(ask)

    def reset(self, session: str = "") -> None:
        """Forgets the session at the server; nothing is sent on wires that have no reset."""

        def ask(link: Link) -> None:
            if (asked := link.session.ask_reset(session)) is not None:
                self._exchange(link, *asked, None)

        with self._lock:
            self._retrying(ask)

    def stream(self) -> Stream:
        """A streaming session on a connection of its own: observations out, chunks pushed back."""
        return Stream(self.endpoint)

    def close(self) -> None:
        with self._lock:
            self._drop()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _exchange(
        self,
        link: Link,
        request_id: int,
        frame: bytes,
        on_actions: Callable[[Prediction], None] | None,
    ) -> Answer:
        """Sends, and reads until the whole answer to this id is there."""
        start = time.monotonic()
        link.socket.send(frame)
        while True:
            received = link.receive(start, self.endpoint.timeouts.request, "the answer")
            answer = link.read(received)
            if answer.request_id not in (request_id, None):
                continue  # of a request that is no longer waited for
            if answer.error is not None:
                raise answer.error
            if answer.more:
                if on_actions is not None and answer.prediction is not None:
                    on_actions(answer.prediction)
                continue
            self.round_trip_ms = 1e3 * (time.monotonic() - start)
            return answer

    def _retrying(self, ask: Callable[[Link], Any]) -> Any:
        """Runs `ask` on a good connection, dialling again after a loss as the backoff says."""
        backoff = self.endpoint.backoff
        for failures in range(1, backoff.attempts + 1):
            link: Link | None = self._link
            try:
                if link is None:
                    link = self._link = Link(self.endpoint)
                return ask(link)
            except (ConnectionClosed, OSError) as error:
                lost = connection_error(error, self.endpoint)
                self._drop()
            except WamError as error:
                if link is not None:  # said by a live server, in words
                    if not link.usable:
                        self._drop()
                    raise
                lost = error
            except BaseException:
                self._drop()  # interrupted between question and answer
                raise
            if not isinstance(lost, PolicyUnavailable | PolicyOverloaded) or failures == backoff.attempts:
                raise lost
            # Jitter, so that a fleet does not come back in step.
            self._sleep(backoff.delay(failures) * random.uniform(0.5, 1.0))
        raise AssertionError("a backoff has at least one attempt")

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

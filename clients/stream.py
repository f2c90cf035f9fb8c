"""Stream: send observations without waiting, take the chunks that the server pushes. One thread listens."""

from __future__ import annotations

import threading
import time
from collections import deque

from websockets.exceptions import ConnectionClosed

from wamserve.action_codec.errors import PolicyError, WamError
from wamserve.clients.link import Link
from wamserve.clients.policy import Request
from wamserve.clients.session import Answer, Endpoint, late


class Stream:
    """A streaming session of wam.v1 on a connection of its own, re-dialled by itself when it is lost.

    The server answers the newest observation it has; an observation that a newer one overtook gets no chunk.
    Observations sent while the connection is down are lost, for the same reason.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        """Connects; returns when the server is warm."""
        if endpoint.plain is not None:
            raise PolicyError(f"the {endpoint.plain.name} wire has no streaming", fix="a wam.v1 server")
        self.endpoint = endpoint
        self.missed: deque[PolicyError] = deque(maxlen=64)  # why observations got no chunk, newest last
        self.reconnects = 0
        self._answers: deque[Answer] = deque(maxlen=16)  # oldest chunks fall out: they are stale anyway
        self._news = threading.Condition()
        self._failure: WamError | None = None  # ends the stream
        self._closed = False
        self._send_lock = threading.Lock()
        link = self._connect()
        assert link.session.hello is not None  # not plain
        if not link.session.hello.streaming:
            link.close()
            raise PolicyError("the server does not stream", seen=link.session.hello.server)
        self._link: Link | None = link
        self._listener = threading.Thread(target=self._listen, name="wam-stream", daemon=True)
        self._listener.start()

    def send(self, request: Request) -> int | None:
        """Sends an observation; its id, or None while the connection is being re-dialled."""
        self._raise_failure()
        with self._send_lock:
            link = self._link
            if link is None:
                return None
            request_id, frame = link.session.ask(request, stream=True)
            try:
                link.socket.send(frame)
            except (ConnectionClosed, OSError):
                return None  # the listener sees the loss too, and dials
            return request_id

    def latest(self) -> Answer | None:
        """The newest chunk not yet taken, without waiting; older ones are dropped."""
        self._raise_failure()
        with self._news:
            answer = self._answers[-1] if self._answers else None
            self._answers.clear()
        return answer

    def wait(self, timeout: float) -> Answer:
        """The next chunk or video, in order. PolicyLate after `timeout` seconds."""
        with self._news:
            if not self._news.wait_for(lambda: self._answers or self._failure or self._closed, timeout):
                raise late(timeout, "the next chunk")
            if self._answers:
                return self._answers.popleft()
        self._raise_failure()
        raise PolicyError("the stream is closed")

    def close(self) -> None:
        """Hangs up and waits for the listener to end."""
        self._closed = True
        if self._link is not None:
            self._link.close()
        with self._news:
            self._news.notify_all()
        self._listener.join(self.endpoint.timeouts.connect + self.endpoint.timeouts.close)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _connect(self) -> Link:
        # Only wam.v1 servers stream, and they answer pings whatever the engine does.
        return Link(self.endpoint, ping_interval=5.0, ping_timeout=10.0)

    def _listen(self) -> None:
        while not self._closed:
            try:
                assert self._link is not None
                self._take(self._link.read(self._link.socket.recv()))
            except (ConnectionClosed, OSError):
                self._redial()
            except WamError as error:
                self._end(error)

    def _take(self, answer: Answer) -> None:
        # Late, overloaded, the engine restarting: the next observation may fare better. A request that does
        # not fit never will.
        if isinstance(answer.error, PolicyError):
            self.missed.append(answer.error)
        elif answer.error is not None:
            self._end(answer.error)
        else:
            with self._news:
                self._answers.append(answer)
                self._news.notify_all()

    def _redial(self) -> None:
        with self._send_lock:
            link, self._link = self._link, None
        if link is not None:
            link.close()
        backoff = self.endpoint.backoff
        for failures in range(1, backoff.attempts + 1):
            if self._closed:
                return
            try:
                link = self._connect()
            except WamError as error:
                if failures == backoff.attempts:
                    self._end(error)
                    return
                time.sleep(backoff.delay(failures))
            else:
                with self._send_lock:
                    self._link = link
                self.reconnects += 1
                if self._closed:  # meanwhile
                    link.close()
                return

    def _end(self, error: WamError) -> None:
        with self._news:
            self._failure = error
            self._closed = True
            self._news.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

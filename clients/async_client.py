"""AsyncPolicyClient: as PolicyClient, for asyncio programs; several requests may be under way at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from wamserve.action_codec.errors import (
    PolicyError,
    PolicyOverloaded,
    PolicyUnavailable,
    WamError,
    WireError,
)
from wamserve.clients.link import connection_error
from wamserve.clients.policy import Prediction, Request
from wamserve.clients.session import Answer, Endpoint, Session, error_from_close, late
from wamserve.clients.wam_v1 import Hello


class AsyncLink:
    """One open connection; a task reads it and hands every answer to whoever asked."""

    def __init__(self, endpoint: Endpoint, socket: ClientConnection, session: Session) -> None:
        self.endpoint = endpoint
        self.session = session
        self.pushed: asyncio.Queue[Answer | None] = asyncio.Queue(maxsize=16)  # None: the link is lost
        self.lost: BaseException | None = None
        self._socket = socket
        self._waiting: dict[int, asyncio.Queue[Answer]] = {}
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def dial(cls, endpoint: Endpoint, **options: Any) -> AsyncLink:
        """Connects and completes the opening, waiting for a cold server. PolicyError or ContractError."""
        socket = None
        try:
            socket = await connect(endpoint.uri, **{**endpoint.connect_options(), **options})
            session = Session(endpoint, socket.subprotocol)
            await asyncio.wait_for(_open(socket, session), endpoint.timeouts.warm)
        except BaseException as error:
            if socket is not None:
                await socket.close()
            if isinstance(error, asyncio.TimeoutError) and socket is not None:
                raise late(endpoint.timeouts.warm, "waiting for the model to be warm") from error
            raise connection_error(error, endpoint) from error
        link = cls(endpoint, socket, session)
        link._reader = asyncio.create_task(link._read())
        return link

    async def ask(
        self, request_id: int, frame: bytes, on_actions: Callable[[Prediction], None] | None = None
    ) -> Answer:
        """Sends, and waits for the whole answer to this id."""
        seconds = self.endpoint.timeouts.request
        answers = self._waiting[request_id] = asyncio.Queue()
        try:
            return await asyncio.wait_for(self._ask(answers, frame, on_actions), seconds)
        except asyncio.TimeoutError as error:
            # A live server would have said "late" by itself.
            await self.close(PolicyUnavailable("the connection was dropped after a request timed out"))
            raise late(seconds, "the answer") from error
        except asyncio.CancelledError:
            if self.session.plain is not None:  # its late reply would be taken for the next one's
                await self.close(PolicyError("the request before was cancelled"))
            raise
        finally:
            self._waiting.pop(request_id, None)

    async def _ask(
        self, answers: asyncio.Queue[Answer], frame: bytes, on_actions: Callable[[Prediction], None] | None
    ) -> Answer:
        await self.send(frame)
        while True:
            answer = await answers.get()
            if answer.error is not None:
                raise answer.error
            if not answer.more:
                return answer
            if on_actions is not None and answer.prediction is not None:
                on_actions(answer.prediction)

    async def send(self, frame: bytes) -> None:
        """Sends a frame; the typed error where the link is lost."""
        if self.lost is not None:
            raise self.lost
        await self._socket.send(frame)

    async def close(self, why: BaseException | None = None) -> None:
        """Hangs up; whoever still waits gets `why`."""
        self._lose(why or PolicyUnavailable("the client was closed"))
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
            with suppress(asyncio.CancelledError):
                await self._reader
        await self._socket.close()

    async def _read(self) -> None:
        try:
            async for frame in self._socket:
                self._hand_out(self.session.read(frame))
            self._lose(error_from_close(self._socket.close_code, self._socket.close_reason or ""))
        except (WamError, ConnectionClosed, OSError) as error:
            self._lose(connection_error(error, self.endpoint))
            if isinstance(error, WireError):
                await self._socket.close()

    def _hand_out(self, answer: Answer) -> None:
        if answer.request_id is None:
            assert answer.error is not None
            raise answer.error
        if (answers := self._waiting.get(answer.request_id)) is not None:
            answers.put_nowait(answer)
        elif answer.pushed or (answer.error is not None and self.session.plain is None):
            if self.pushed.full():
                self.pushed.get_nowait()  # the oldest chunk is stale anyway
            self.pushed.put_nowait(answer)

    def _lose(self, why: BaseException) -> None:
        if self.lost is not None:
            return
        self.lost = why
        error = why if isinstance(why, WamError) else PolicyError(str(why))
        for request_id, answers in self._waiting.items():
            answers.put_nowait(Answer(request_id, error=error))
        if self.pushed.full():
            self.pushed.get_nowait()
        self.pushed.put_nowait(None)


class AsyncPolicyClient:
    """Asks over one connection, opened at the first request and again when it is lost.

    On wam.v1 requests run side by side and answers are matched by id; on a plain wire they take turns.
    """

    def __init__(
        self,
        uri: str | Endpoint,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        **options: Any,
    ) -> None:
        """`options` are the fields of Endpoint: contract, plain, token, timeouts, ..."""
        self.endpoint = uri if isinstance(uri, Endpoint) else Endpoint(uri, **options)
        self._sleep = sleep
        self._link: AsyncLink | None = None
        self._dialling = asyncio.Lock()
        self._turn = asyncio.Lock()  # plain wires: one question at a time

    async def connect(self) -> Hello | dict[str, Any]:
        """Connects now, and tells what is served: wam.v1's hello, or a plain server's metadata."""
        session = (await self._retrying(self._session)).session
        return session.hello or session.metadata

    @property
    def hello(self) -> Hello | None:
        """What the server said it serves; None before the first connection and on plain wires."""
        return self._link.session.hello if self._link else None

    async def infer(
        self, request: Request, on_actions: Callable[[Prediction], None] | None = None
    ) -> Prediction:
        """The answer, whole; `on_actions` sees the actions as soon as they come. Errors as PolicyClient."""

        async def ask(link: AsyncLink) -> Prediction:
            request_id, frame = link.session.ask(request)
            answer = await link.ask(request_id, frame, on_actions)
            if answer.prediction is None:
                raise WireError("the server answered an infer with nothing")
            return answer.prediction

        return await self._in_turn(ask)

    async def reset(self, session: str = "") -> None:
        """Forgets the session at the server; nothing is sent on wires that have no reset."""

        async def ask(link: AsyncLink) -> None:
            if (asked := link.session.ask_reset(session)) is not None:
                await link.ask(*asked)

        await self._in_turn(ask)

    async def observe(self, request: Request) -> int:
        """Sends an observation of a streaming session without waiting; its id. See `chunks`."""

        async def send(link: AsyncLink) -> int:
            request_id, frame = link.session.ask(request, stream=True)
            await asyncio.wait_for(link.send(frame), self.endpoint.timeouts.request)
            return request_id

        return await self._retrying(send)

    async def chunks(self) -> AsyncIterator[Answer]:
        """Pushed chunks as they come; observations that got none are passed over. Ends with the client."""
        while True:
            link = await self._retrying(self._session)
            while (answer := await link.pushed.get()) is not None:
                if answer.error is None:
                    yield answer
                elif not isinstance(answer.error, PolicyError):  # it never will get one
                    raise answer.error
            if self._link is None:
                return

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def __aenter__(self) -> AsyncPolicyClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @staticmethod
    async def _session(link: AsyncLink) -> AsyncLink:
        return link

    async def _in_turn(self, ask: Callable[[AsyncLink], Awaitable[Any]]) -> Any:
        if self.endpoint.plain is None:
            return await self._retrying(ask)
        async with self._turn:
            return await self._retrying(ask)

    async def _retrying(self, ask: Callable[[AsyncLink], Awaitable[Any]]) -> Any:
        """Runs `ask` on a good connection, dialling again after a loss as the backoff says."""
        backoff = self.endpoint.backoff
        for failures in range(1, backoff.attempts + 1):
            link: AsyncLink | None = None
            try:
                async with self._dialling:
                    if self._link is None or self._link.lost is not None:
                        self._link = await AsyncLink.dial(self.endpoint)
                    link = self._link
                return await ask(link)
            except (ConnectionClosed, OSError) as error:
                lost = connection_error(error, self.endpoint)
            except WamError as error:
                if link is not None and link.lost is None:  # said by a live server, in words
                    raise
                lost = error
            if not isinstance(lost, PolicyUnavailable | PolicyOverloaded) or failures == backoff.attempts:
                raise lost
            # Jitter, so that a fleet does not come back in step.
            await self._sleep(backoff.delay(failures) * random.uniform(0.5, 1.0))
        raise AssertionError("a backoff has at least one attempt")


async def _open(socket: ClientConnection, session: Session) -> None:
    while not session.ready:
        if (reply := session.handshake(await socket.recv())) is not None:
            await socket.send(reply)

"""One websocket from handshake to close: frames to its dialect, requests to the scheduler, answers back."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from wamserve.action_codec.errors import (
    PolicyError,
    PolicyLate,
    PolicyOverloaded,
    PolicyUnavailable,
    WamError,
)
from wamserve.clients.messages import SUBPROTOCOL
from wamserve.clients.policy import Ledger, Prediction, Request
from wamserve.policy_server.serving.auth import RateLimit
from wamserve.policy_server.serving.dialects.base import (
    RESTART,
    SERVER_ERROR,
    Ask,
    Dialect,
    Forget,
    Out,
    Received,
    Timing,
)
from wamserve.policy_server.serving.dialects.plain import Plain
from wamserve.policy_server.serving.dialects.wam import Wam
from wamserve.policy_server.serving.reader import install
from wamserve.policy_server.serving.scheduler import Superseded

if TYPE_CHECKING:
    from wamserve.policy_server.serving.app import Server

logger = logging.getLogger("wamserve.serving")

_LOADING_EVERY_S = 0.5
_AT_ONCE = 2**14  # bytes, below websockets' write limit of 32 KiB


class Conversation:
    """Plain dialects take strict turns; `wam.v1` may have several requests in flight."""

    def __init__(self, server: Server, websocket: ServerConnection, name: str) -> None:
        self.server = server
        self.websocket = websocket
        self.name = name
        self.rate = RateLimit(server.settings.max_rate)
        self.busy = 0  # requests being answered
        self.previous_ms: float | None = None
        self.sessions: set[str] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.dialect: Dialect
        self._fresh = secrets.randbits(31)  # seed of the next request that says nothing about its own
        self._stride = 1  # steps from a session's request to its next, as last seen
        self._last = ("", 0)  # session and step of the latest request
        self._turn: asyncio.Task[Any] | None = None  # this connection's own, while it awaits an answer

    async def run(self) -> None:
        closed = asyncio.ensure_future(self.websocket.wait_closed())
        closed.add_done_callback(self._gone)
        received = install(self.websocket, self.server.engine.room, self.server.engine.expect)
        try:
            if not await self._wait_until_ready(closed):
                return
            self.dialect = self._dialect()
            if self.server.recorder is not None:
                self.server.recorder.opened(self.name, self.websocket)
            await self._send(self.dialect.greet())
            async for message in self.websocket:
                # Nothing here holds on to it: its memory is shared, and free again once it is answered.
                await self._take(received.message(message), time.perf_counter())
        except ConnectionClosed:
            pass
        except asyncio.CancelledError:
            if self._turn is None:
                raise
        finally:
            closed.remove_done_callback(self._gone)
            closed.cancel()
            received.end()
            for task in self.tasks:
                task.cancel()
            if self.tasks:
                await asyncio.gather(*self.tasks, return_exceptions=True)
            self.server.scheduler.left(self.name)
            for session in self.sessions:
                self.server.engine.reset(session)
            if self.server.recorder is not None:
                self.server.recorder.closed(self.name)

    def _gone(self, closed: asyncio.Future[None]) -> None:
        """A plain client that leaves takes its waiting request with it."""
        if self._turn is not None:
            self._turn.cancel()

    async def close(self, code: int) -> None:
        await self.websocket.close(code)

    def _dialect(self) -> Dialect:
        served, settings = self.server.engine.served, self.server.settings
        assert served is not None and self.websocket.request is not None
        if self.websocket.subprotocol == SUBPROTOCOL:
            hello = served.hello(
                self.server.version,
                jpeg=settings.jpeg,
                max_message_bytes=settings.limits.message_bytes,
                max_in_flight=settings.max_in_flight,
            )
            return Wam(hello, self.name, settings.limits)
        request = self.websocket.request
        bearer = request.headers.get("Authorization", "").lower().startswith("bearer ")
        return Plain(served, settings.plain, request.path, bearer)

    async def _wait_until_ready(self, closed: asyncio.Future[None]) -> bool:
        """Holds the first frame until the model is warm: openpi clients wait for it without a timeout."""
        engine = self.server.engine
        if engine.ready.is_set():
            return True
        ready = asyncio.create_task(engine.ready.wait())
        over = asyncio.create_task(engine.over.wait())
        told = None
        try:
            while not engine.ready.is_set() and not engine.over.is_set() and not closed.done():
                if self.websocket.subprotocol == SUBPROTOCOL and told != (engine.stage, engine.fraction):
                    told = (engine.stage, engine.fraction)
                    await self._send(Wam.loading(engine.stage or engine.state, engine.fraction))
                waits: set[asyncio.Future[Any]] = {closed, ready, over}
                await asyncio.wait(waits, timeout=_LOADING_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            over.cancel()
        if engine.over.is_set() and not closed.done():
            await self.close(RESTART if self.server.draining else SERVER_ERROR)
        return engine.ready.is_set() and not closed.done()

    async def _take(self, frame: Received, arrived: float) -> None:
        if self.server.recorder is not None:
            self.server.recorder.frame(self.name, "client", frame)
        heard: Ask | Forget | Out | None = None
        try:
            within = self.rate.take()
            # Only a wam.v1 failure names its request, and so is worth the decoding.
            if within or isinstance(self.dialect, Wam):
                heard = self.dialect.receive(frame)
            if not within:
                raise PolicyOverloaded("too many requests", expected=f"<= {self.rate.rate:g} per second")
        except WamError as error:
            self._count(error)
            await self._send(self.dialect.fail(error, heard if isinstance(heard, Ask) else None))
            return
        if isinstance(heard, Out):
            await self._send(heard)
        elif isinstance(heard, Forget):
            for session in heard.sessions:
                self.server.engine.reset(self._session(session))
            await self._send(Out((heard.reply,)))
        elif heard is not None:
            decode_ms = 1e3 * (time.perf_counter() - arrived)
            if isinstance(self.dialect, Wam):
                task = asyncio.ensure_future(self._answer(heard, arrived, decode_ms))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
                # A flood waits in the kernel, not in tasks that wait for a slow reader.
                if len(self.tasks) > 4 * self.server.settings.max_in_flight:
                    await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
                return
            self._turn = asyncio.current_task()
            await self._answer(heard, arrived, decode_ms)
            self._turn = None

    async def _answer(self, ask: Ask, arrived: float, decode_ms: float) -> None:
        self.busy += 1
        stream = (self.name, ask.request.session) if ask.stream else None
        request = ask.request
        try:
            if self.busy > self.server.settings.max_in_flight and not ask.stream:
                raise PolicyOverloaded(
                    "too many requests in flight", expected=f"<= {self.server.settings.max_in_flight}"
                )
            began = time.perf_counter()
            seed, next_seed = self._seeds(request)
            seen = self.server.prepare(request)
            request = replace(request, observation=seen, seed=seed, session=self._session(request.session))
            prepare_ms = 1e3 * (time.perf_counter() - began)
            outcome = await self.server.scheduler.answer(request, self.name, arrived, stream, next_seed)
            answered = time.perf_counter()
            made = outcome.prediction
            if made.chunk is not None and not np.isfinite(made.chunk.actions).all():
                raise PolicyError("the policy answered with NaN or infinity", seen=f"seed {request.seed}")
            spent_ms = decode_ms + prepare_ms + outcome.queue_ms + outcome.infer_ms
            ledger = replace(
                made.ledger,
                decode_ms=decode_ms,
                queue_ms=outcome.queue_ms,
                preprocess_ms=made.ledger.preprocess_ms + prepare_ms,
                reply_ms=max(0.0, 1e3 * (answered - arrived) - spent_ms),  # until here; it travels with it
                batch=outcome.batch,
            )
            prediction = Prediction(made.chunk, made.video, request.seed or 0, ledger)
            out = self.dialect.reply(ask, prediction, Timing(outcome.infer_ms, self.previous_ms))
            await self._send(out)
            now = time.perf_counter()
            self.previous_ms = 1e3 * (now - arrived)
            self._log(request, ledger, outcome.infer_ms, ledger.reply_ms + 1e3 * (now - answered))
        except Superseded as error:
            self._count(error, request)
        except WamError as error:
            self._count(error, request)
            await self._send(self.dialect.fail(error, ask))
        except ConnectionClosed:
            self.server.metrics.failed(self.dialect.name, "gone")
        except Exception as error:
            logger.exception("request failed")
            self._count(error, request)
            await self._send(self.dialect.fail(error, ask))
        finally:
            self.busy -= 1

    async def _send(self, out: Out) -> None:
        """Frames of one answer. A reader slower than the send timeout loses the connection."""
        at_once = out.close is None and sum(map(len, out.frames)) <= _AT_ONCE
        if at_once and not self.websocket.transport.get_write_buffer_size():
            timeout_s = None  # the transport takes it without waiting for the reader
        else:
            timeout_s = self.server.settings.send_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                for frame in out.frames:
                    await self.websocket.send(frame)
                    if self.server.recorder is not None:
                        self.server.recorder.frame(self.name, "server", frame)
                if out.close is not None:
                    await self.close(out.close)
        except TimeoutError:
            logger.warning(json.dumps({"event": "slow reader dropped", "connection": self.name}))
            self.websocket.transport.abort()
        except ConnectionClosed:
            pass

    def _seeds(self, request: Request) -> tuple[int, int | None]:
        """Of a request, and of the next one where that can be told."""
        if request.seed is not None:
            return request.seed, None
        if request.session or self.server.deterministic:
            of, session, step = self.server.settings.seed, request.session, request.step
            if self._last[0] == session and step > self._last[1]:
                self._stride = step - self._last[1]
            self._last = (session, step)
            return seed_for(of, session, step), seed_for(of, session, step + self._stride)
        seed, self._fresh = self._fresh, secrets.randbits(31)
        return seed, self._fresh

    def _session(self, session: str) -> str:
        """The session as the engine knows it: a new connection is a new robot, whatever it calls itself."""
        name = f"{self.name}/{session}"
        if len(self.sessions) < 1024:
            self.sessions.add(name)
        return name

    def _count(self, error: Exception, request: Request | None = None) -> None:
        outcome = outcome_of(error)
        self.server.metrics.failed(self.dialect.name, outcome)
        line: dict[str, Any] = {
            "event": "request",
            "connection": self.name,
            "dialect": self.dialect.name,
            "outcome": outcome,
        }
        if request is not None:
            line |= {"mode": request.mode, "session": request.session, "step": request.step}
        logger.info(json.dumps({**line, "error": str(error)[:300]}))

    def _log(self, request: Request, ledger: Ledger, infer_ms: float, reply_ms: float) -> None:
        total_ms = self.previous_ms or 0.0
        self.server.metrics.answered(self.dialect.name, ledger, reply_ms, total_ms)
        if not logger.isEnabledFor(logging.INFO):
            return
        line: dict[str, Any] = {
            "event": "request",
            "connection": self.name,
            "dialect": self.dialect.name,
            "outcome": "ok",
            "mode": request.mode,
            "session": request.session,
            "step": request.step,
            "seed": request.seed,
            "batch": ledger.batch,
            "forwards": ledger.forwards,
            "decode_ms": round(ledger.decode_ms, 3),
            "queue_ms": round(ledger.queue_ms, 3),
            "infer_ms": round(infer_ms, 3),
            "reply_ms": round(reply_ms, 3),
            "total_ms": round(total_ms, 3),
        }
        logger.info(json.dumps(line))


def outcome_of(error: Exception) -> str:
    """The word metrics and logs use."""
    for kind, word in (
        (Superseded, "superseded"),
        (PolicyLate, "late"),
        (PolicyOverloaded, "overloaded"),
        (PolicyUnavailable, "unavailable"),
        (PolicyError, "failed"),
        (WamError, "refused"),
    ):
        if isinstance(error, kind):
            return word
    return "failed"


def seed_for(seed: int, session: str, step: int) -> int:
    """The seed that follows from the server's seed, session and step. Never a stream shared by clients."""
    words = f"{seed}|{session}|{step}".encode()
    return int.from_bytes(hashlib.sha256(words).digest()[:4], "little") & 0x7FFFFFFF

"""The policy server: one listening socket, its conversations, one engine. Never imports torch."""

from __future__ import annotations

import asyncio
import itertools
import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from websockets.asyncio.server import Server as WebSocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response
from websockets.typing import Subprotocol

from wamserve.action_codec.errors import RequestError
from wamserve.clients.check import check_request
from wamserve.clients.messages import SUBPROTOCOL
from wamserve.clients.policy import Observation, Request
from wamserve.clients.wire import LIMITS, Limits
from wamserve.embodiments.canvas import compose
from wamserve.policy_server.serving.auth import Tokens
from wamserve.policy_server.serving.conversation import Conversation
from wamserve.policy_server.serving.dialects.base import RESTART
from wamserve.policy_server.serving.dialects.plain import PlainRules
from wamserve.policy_server.serving.engine import Engine, EngineSpec
from wamserve.policy_server.serving.metrics import Metrics
from wamserve.policy_server.serving.pages import page
from wamserve.policy_server.serving.record import Recorder
from wamserve.policy_server.serving.scheduler import BatchRules, Scheduler

logger = logging.getLogger("wamserve.serving")


@dataclass(frozen=True)
class Settings:
    """How a server listens and what it allows."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    plain: PlainRules = field(default_factory=PlainRules)
    limits: Limits = LIMITS
    jpeg: bool = False  # wam.v1 clients may send JPEG images
    max_connections: int = 512
    max_in_flight: int = 8  # requests of one wam.v1 connection that wait at once
    max_rate: float = 500.0  # requests per second and connection; 0: no limit
    send_timeout_s: float = 30.0  # a client that does not read its reply for so long is dropped
    # Simulators pause for minutes between tasks and cannot answer pings then; only dead peers are closed.
    ping_interval_s: float = 20.0
    ping_timeout_s: float = 600.0
    drain_s: float = 30.0  # how long requests in flight may take after SIGTERM
    seed: int = 0  # of seeds that follow from session and step
    tokens: Tokens = field(default_factory=Tokens)
    tls: ssl.SSLContext | None = None
    record: Path | None = None


class Server:
    """`await start()`, `await serve()` until `stop()` is called; or `async with Server(...) as server`."""

    def __init__(
        self,
        engine: EngineSpec,
        settings: Settings | None = None,
        rules: BatchRules | None = None,
        on_change: Callable[[Engine], None] | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.tokens = self.settings.tokens
        self.metrics = Metrics()
        self.on_change = on_change
        self.engine = Engine(engine, self._engine_changed)
        self.scheduler = Scheduler(
            self.engine, rules or BatchRules(), self.metrics, lambda: len(self.conversations)
        )
        self.recorder = Recorder(self.settings.record) if self.settings.record is not None else None
        self.version = f"wamserve {version('wamserve')}"
        self.conversations: set[Conversation] = set()
        self.draining = False
        self.port = 0
        self._names = itertools.count(1)
        self._stopped = asyncio.Event()
        self._listener: WebSocketServer

    @property
    def ready(self) -> bool:
        return self.engine.ready.is_set() and not self.draining

    @property
    def deterministic(self) -> bool:
        return self.engine.served is not None and self.engine.served.deterministic

    @property
    def url(self) -> str:
        scheme = "wss" if self.settings.tls is not None else "ws"
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"{scheme}://{host}:{self.port}"

    async def start(self) -> None:
        """Listens, then spawns the engine: health is answered before the model starts to load.

        Raises RequestError where the address cannot be had.
        """
        settings = self.settings
        try:
            self._listener = await self._listen()
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise RequestError(
                f"cannot listen on {where}", seen=error.strerror or str(error), fix="another --port or --host"
            ) from error
        self.port = next(iter(self._listener.sockets)).getsockname()[1]
        self.engine.start()

    async def _listen(self) -> WebSocketServer:
        settings = self.settings
        return await serve(
            self._converse,
            settings.host,
            settings.port,
            select_subprotocol=_select_subprotocol,
            logger=logging.getLogger("wamserve.websockets"),
            origins=[None],  # robots send no Origin; a browser page that finds this port is refused
            compression=None,
            max_size=settings.limits.message_bytes,
            # Frames wait in the kernel, not here: a plain client has one request in flight anyway.
            max_queue=2,
            ping_interval=settings.ping_interval_s,
            ping_timeout=settings.ping_timeout_s,
            process_request=self._page,
            ssl=settings.tls,
        )

    async def stop(self) -> None:
        """Drains: no new connections; requests in flight are answered, then sockets close with 1012."""
        if self.draining:
            return
        self.draining = True
        self._listener.close(close_connections=False)
        deadline = asyncio.get_running_loop().time() + self.settings.drain_s
        while self.conversations:
            late = asyncio.get_running_loop().time() > deadline
            idle = [each for each in self.conversations if late or not each.busy]
            await asyncio.gather(*(each.close(RESTART) for each in idle), return_exceptions=True)
            await asyncio.sleep(0.01)
        await self._listener.wait_closed()
        await self.engine.stop()
        if self.recorder is not None:
            self.recorder.finish()
        self._stopped.set()

    async def wait_stopped(self) -> None:
        await self._stopped.wait()

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def prepare(self, request: Request) -> Observation:
        """What the engine is to see of a request: checked against the served contract, its views composed
        where the policy asked for that. Raises RequestError for one that does not fit."""
        served, seen = self.engine.served, request.observation
        if served is None or served.declared is None:
            return seen
        check_request(served.declared, request)
        if not served.composed or request.mode == "id" or set(seen.images) == {"canvas"}:
            return seen
        canvas = compose(served.declared.model.canvas, seen.images, self.engine.picture)
        return replace(seen, images={"canvas": canvas})

    async def _converse(self, websocket: ServerConnection) -> None:
        conversation = Conversation(self, websocket, f"c{next(self._names)}")
        self.conversations.add(conversation)
        self.metrics.connections.set(len(self.conversations))
        try:
            await conversation.run()
        finally:
            self.conversations.discard(conversation)
            self.metrics.connections.set(len(self.conversations))

    def _page(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        return page(self, request)

    def _engine_changed(self) -> None:
        self.metrics.engine_ready.set(self.engine.ready.is_set() or self.engine.state == "ready")
        self.metrics.engine_restarts.set(self.engine.restarts)
        if self.on_change is not None:
            self.on_change(self.engine)
        self.scheduler.engine_changed()


def _select_subprotocol(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """`wam.v1` where it is offered; a client that offers others, or none, speaks a plain dialect."""
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None

"""The engine as serving sees it: a group of processes, one per rank, started, watched and restarted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wamserve.action_codec.errors import PolicyOverloaded, PolicyUnavailable, WamError
from wamserve.clients.policy import Prediction, Request
from wamserve.policy_server.serving.channel import Framer, pack
from wamserve.policy_server.serving.frames import Reader, Writer, unpack_error
from wamserve.policy_server.serving.served import Served
from wamserve.policy_server.serving.shm import Arena, ArenaFull

logger = logging.getLogger("wamserve.serving")


@dataclass(frozen=True)
class EngineSpec:
    """How the engine is made and how often it may fail."""

    factory: str  # "module:function" or "file.py:function"
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # plain data, passed to the factory
    ranks: int = 1  # processes that run each batch in step; rank 0 answers
    arena_bytes: int = 1 << 30  # address space for requests, and again for replies; touched pages count
    env: Mapping[str, str] = field(default_factory=dict)
    max_restarts: int = 10  # in a row, before the server gives up
    backoff_s: float = 0.5  # first wait before a restart; doubles up to 30 s
    healthy_s: float = 60.0  # an engine that lived this long starts the count again


@dataclass(frozen=True)
class Answer:
    """What became of one batch."""

    results: list[Prediction | WamError]  # in the order of the requests
    infer_ms: float  # wall time in the engine
    gpu_bytes: int


class Engine:
    """`await start()`, then `await infer(requests)`; `ready` is set while batches are taken."""

    def __init__(self, spec: EngineSpec, on_change: Callable[[], None] = lambda: None) -> None:
        self.spec = spec
        self.on_change = on_change  # called on every change of state or progress
        self.state = "stopped"  # starting | loading | ready | crashed | failed | stopped
        self.stage = ""
        self.fraction = 0.0
        self.restarts = 0
        self.gpu_bytes = 0
        self.error: WamError | None = None
        self.served: Served | None = None
        self.ready = asyncio.Event()
        self.over = asyncio.Event()  # failed for good, or stopped
        self._members: list[_Member] = []
        self._failures = 0
        self._born = 0.0
        self._batch = 0
        self._pending: asyncio.Future[dict[str, Any]] | None = None
        self._done: list[dict[str, Any]] = []  # reports on the pending batch, one per rank
        self._read: list[int] = []  # batches whose reply blocks the engine may free
        self._restart: asyncio.TimerHandle | None = None
        self.requests: Arena
        self.replies: Arena

    @property
    def pids(self) -> list[int]:
        return [member.process.pid for member in self._members]

    def start(self) -> None:
        """Spawns the ranks; returns at once. `ready` follows, or `over` with `error` set."""
        self._set("starting")
        self._born = time.monotonic()
        self.requests, self.replies = Arena(self.spec.arena_bytes), Arena(self.spec.arena_bytes)
        self._read = []
        env = {**os.environ, **self.spec.env}
        if self.spec.ranks > 1:
            env |= {"WORLD_SIZE": str(self.spec.ranks), "MASTER_ADDR": "127.0.0.1"}
            env |= {"MASTER_PORT": str(_free_port())}
        for rank in range(self.spec.ranks):
            self._members.append(_Member(self, rank, env))

    async def infer(self, requests: Sequence[Request]) -> Answer:
        """One batch through the engine. Raises PolicyUnavailable if it dies, PolicyOverloaded if frames
        do not fit into shared memory."""
        if not self.ready.is_set() or self._pending is not None:
            raise PolicyUnavailable("the engine takes no batch now", seen=self.state)
        self._batch += 1
        writer = Writer(self.requests)
        try:
            packed = [writer.request(request) for request in requests]
        except ArenaFull as error:
            writer.free()
            raise PolicyOverloaded("no shared memory left for frames", seen=str(error)) from error
        message = pack({"type": "batch", "batch": self._batch, "requests": packed, "read": self._read})
        self._read = []
        arena = self.requests
        self._pending = asyncio.get_running_loop().create_future()
        self._done = []
        try:
            for member in self._members:
                await member.send(message)
            reply = await self._pending
        finally:
            self._pending = None
            if self.requests is arena:  # a restart has replaced it with its blocks
                writer.free()
        reader = Reader(self.replies, copy=True)
        results: list[Prediction | WamError] = [
            unpack_error(item["error"]) if "error" in item else reader.prediction(item)
            for item in reply["results"]
        ]
        if reader.blocks:
            self._read.append(reply["batch"])
        self.gpu_bytes = reply["gpu_bytes"]
        return Answer(results, reply["infer_ms"], reply["gpu_bytes"])

    async def reset(self, session: str) -> None:
        """Ends an episode; an engine that is down has forgotten it already."""
        with contextlib.suppress(PolicyUnavailable):
            for member in self._members if self.ready.is_set() else ():
                await member.send(pack({"type": "reset", "session": session}))

    async def stop(self, grace_s: float = 5.0) -> None:
        """Closes the channels, then kills what has not left after `grace_s`."""
        if self._restart is not None:
            self._restart.cancel()
        self.ready.clear()
        members, self._members = self._members, []
        self._set("stopped")
        self.over.set()
        for member in members:
            member.close()
        deadline = time.monotonic() + grace_s
        for member in members:
            while member.process.poll() is None and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            member.kill()
        self._fail_pending(PolicyUnavailable("the server is stopping"))

    def _set(self, state: str, stage: str = "", fraction: float = 0.0) -> None:
        self.state, self.stage, self.fraction = state, stage, fraction
        self.on_change()

    def _fail_pending(self, error: WamError) -> None:
        if self._pending is not None and not self._pending.done():
            self._pending.set_exception(error)

    def _heard(self, member: _Member, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "progress" and member.rank == 0:
            self._set("loading", message["stage"], message["fraction"])
        elif kind == "ready":
            member.ready = True
            if member.rank == 0:
                self.served = Served.from_plain(message["served"])
                self.gpu_bytes = message["gpu_bytes"]
            if all(each.ready for each in self._members):
                self._set("ready")
                self.error = None
                self.ready.set()
        elif kind == "done" and self._pending is not None and not self._pending.done():
            self._done.append(message)
            if len(self._done) == len(self._members):
                self._pending.set_result(next(each for each in self._done if each["results"] is not None))
        elif kind == "failed":
            self.error = unpack_error(message["error"])

    def _died(self, member: _Member) -> None:
        """A rank is gone: the group goes, waiting requests fail, and a later start is scheduled."""
        if member not in self._members:
            return
        members, self._members = self._members, []
        code = member.wait_code()
        for each in members:
            each.kill()
        was_ready = self.ready.is_set()
        self.ready.clear()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        error = self.error if self.error and not was_ready else None
        self.error = error or PolicyUnavailable(f"the engine process died ({how})")
        logger.error(json.dumps({"event": "engine died", "rank": member.rank, "how": how}))
        self._fail_pending(PolicyUnavailable(f"the engine process died ({how}); it is being restarted"))
        for arena in (self.requests, self.replies):
            arena.close()
        if time.monotonic() - self._born > self.spec.healthy_s:
            self._failures = 0
        self._failures += 1
        # A policy that never came up once will not do so the second time.
        if self.served is None or self._failures > self.spec.max_restarts:
            self._set("failed")
            self.over.set()
            return
        wait = min(30.0, self.spec.backoff_s * 2 ** (self._failures - 1))
        self._set("crashed", f"restarting in {wait:g} s")
        self.restarts += 1
        self._restart = asyncio.get_running_loop().call_later(wait, self.start)


class _Member:
    """One rank's process and the serving end of its socket."""

    def __init__(self, engine: Engine, rank: int, env: Mapping[str, str]) -> None:
        self.engine = engine
        self.rank = rank
        self.ready = False
        self._framer = Framer()
        self._sending = asyncio.Lock()  # messages must not mix
        ours, theirs = socket.socketpair()
        self._socket = ours
        ours.setblocking(False)
        fds = (theirs.fileno(), engine.requests.fd, engine.replies.fd)
        sizes = (engine.requests.size, engine.replies.size)
        if len(engine.spec.env) or engine.spec.ranks > 1:
            env = {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wamserve.policy_server.serving.engine_process", *map(str, fds + sizes)],
            pass_fds=fds,
            env=dict(env),
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, self._readable)
        ours.send(
            pack(
                {
                    "type": "load",
                    "factory": engine.spec.factory,
                    "kwargs": dict(engine.spec.kwargs),
                    "rank": rank,
                    "env": {},
                }
            )
        )

    async def send(self, message: bytes) -> None:
        try:
            if not self._sending.locked():
                # A message nearly always fits into the socket at once.
                with contextlib.suppress(BlockingIOError):
                    sent = self._socket.send(message)
                    if sent == len(message):
                        return
                    message = message[sent:]
            async with self._sending:
                await asyncio.get_running_loop().sock_sendall(self._socket, message)
        except OSError as error:
            raise PolicyUnavailable("the engine process is gone") from error

    def _readable(self) -> None:
        try:
            data = self._socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self.engine._died(self)
            return
        for message in self._framer.feed(data):
            self.engine._heard(self, message)

    def wait_code(self) -> int:
        """Exit code of a process whose socket is closed; one that lingers is killed."""
        try:
            return self.process.wait(0.2)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()

    def kill(self) -> None:
        self.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])

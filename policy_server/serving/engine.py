"""The engine as serving sees it: a group of processes, one per rank, started, watched and restarted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wamserve.action_codec.errors import PolicyError, PolicyOverloaded, PolicyUnavailable, WamError
from wamserve.clients.policy import Prediction, Request
from wamserve.policy_server.serving.channel import pack
from wamserve.policy_server.serving.frames import Reader, Writer, unpack_error
from wamserve.policy_server.serving.member import Member
from wamserve.policy_server.serving.served import Served
from wamserve.policy_server.serving.shm import Arena, ArenaFull
from wamserve.policy_server.serving.watchdog import Patience

logger = logging.getLogger("wamserve.serving")

_EXPECT = pack({"type": "expect"})


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
    patience: Patience = field(default_factory=Patience)  # with an engine that is silent but lives


@dataclass(frozen=True)
class Answer:
    """What became of one batch."""

    results: list[Prediction | WamError]  # in the order of the requests
    infer_ms: float  # wall time in the engine
    gpu_bytes: int


@dataclass
class _Pending:
    """The batch that is with the engine."""

    writer: Writer  # of its requests
    done: Callable[[Answer | WamError], None]
    reports: list[dict[str, Any]] = field(default_factory=list)  # one per rank


class Engine:
    """`start()`, then `submit(requests)`; `ready` is set while batches are taken."""

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
        self._members: list[Member] = []
        self._failures = 0
        self._born = 0.0
        self._batch = 0
        self._pending: _Pending | None = None
        self._read: list[int] = []  # batches whose reply blocks the engine may free
        self._restart: asyncio.TimerHandle | None = None
        self._watching: asyncio.TimerHandle | None = None
        self.requests: Arena
        self.replies: Arena

    @property
    def pids(self) -> list[int]:
        return [member.process.pid for member in self._members]

    @property
    def busy(self) -> bool:
        """True while a batch is with the engine."""
        return self._pending is not None

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
        arenas = (self.requests, self.replies)
        for rank in range(self.spec.ranks):
            if self.spec.env or self.spec.ranks > 1:
                env |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            member = Member(rank, env, arenas, self.spec.patience, self._heard)
            self._members.append(member)
            load = {"type": "load", "factory": self.spec.factory, "kwargs": dict(self.spec.kwargs)}
            member.send(pack({**load, "rank": rank, "env": {}}))

    def submit(
        self,
        requests: Sequence[Request],
        next_seeds: Sequence[int],
        done: Callable[[Answer | WamError], None],
    ) -> None:
        """Sends one batch; `done` hears once what became of it: PolicyUnavailable where the engine died.

        Raises PolicyUnavailable where it takes none now, PolicyOverloaded if frames do not fit into shared
        memory. next_seeds: of requests to come, to prepare for after the reply.
        """
        if not self.ready.is_set() or self.busy:
            raise PolicyUnavailable("the engine takes no batch now", seen=self.state)
        self._batch += 1
        writer = Writer(self.requests)
        try:
            packed = [writer.request(request) for request in requests]
            batch = {"type": "batch", "batch": self._batch, "requests": packed, "read": self._read}
            message = pack({**batch, "next_seeds": list(next_seeds)})
            for member in self._members:
                member.send_batch(message)
        except ArenaFull as error:
            writer.free()
            raise PolicyOverloaded("no shared memory left for frames", seen=str(error)) from error
        except BaseException:
            writer.free()
            raise
        self._read = []
        self._pending = _Pending(writer, done)

    def _answered(self, reply: dict[str, Any]) -> None:
        """Every rank is done with the pending batch."""
        reader = Reader(self.replies, copy=True)
        outcome: Answer | WamError
        try:
            results: list[Prediction | WamError] = [
                unpack_error(item["error"]) if "error" in item else reader.prediction(item)
                for item in reply["results"]
            ]
            outcome = Answer(results, reply["infer_ms"], reply["gpu_bytes"])
            self.gpu_bytes = outcome.gpu_bytes
        except Exception as error:
            logger.exception("a reply of the engine cannot be read")
            outcome = PolicyError(f"the engine's reply cannot be read ({type(error).__name__})")
        if reader.blocks:
            self._read.append(reply["batch"])
        self._finish(outcome)

    def _finish(self, outcome: Answer | WamError) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.writer.free()
            pending.done(outcome)

    def expect(self) -> None:
        """A request is about to come: an idle engine is woken and finds its way back into the caches while
        the rest of the request is received."""
        if self.ready.is_set() and not self.busy:
            with contextlib.suppress(PolicyUnavailable):
                for member in self._members:
                    member.send(_EXPECT)

    def room(self, nbytes: int) -> np.ndarray:
        """Memory for a frame to come, [nbytes] uint8: shared where it can be, so that no one copies it."""
        block = self.requests.lend(nbytes)
        return np.empty(nbytes, np.uint8) if block is None else block

    def picture(self, shape: tuple[int, ...]) -> np.ndarray:
        """Such memory for a picture."""
        return self.room(math.prod(shape)).reshape(shape)

    def reset(self, session: str) -> None:
        """Ends an episode; an engine that is down has forgotten it already."""
        with contextlib.suppress(PolicyUnavailable):
            for member in self._members if self.ready.is_set() else ():
                member.send_reset(session)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Closes the channels, then kills what has not left after `grace_s`."""
        for timer in (self._restart, self._watching):
            if timer is not None:
                timer.cancel()
        self.ready.clear()
        members, self._members = self._members, []
        self.over.set()
        self._set("stopped")
        for member in members:
            member.close()
        deadline = time.monotonic() + grace_s
        for member in members:
            while member.process.poll() is None and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            member.kill()
        self._finish(PolicyUnavailable("the server is stopping"))

    def _set(self, state: str, stage: str = "", fraction: float = 0.0) -> None:
        self.state, self.stage, self.fraction = state, stage, fraction
        self.on_change()

    def _heard(self, member: Member, message: dict[str, Any] | None) -> None:
        if message is None:
            if member in self._members:
                was_ready = self.ready.is_set()
                how = f"died ({member.how_it_ended()})"
                self._lost(member, how, None if was_ready else self.error)
            return
        kind = message["type"]
        if kind == "progress" and member.rank == 0:
            self._set("loading", message["stage"], message["fraction"])
        elif kind == "ready":
            member.ready = True
            if member.rank == 0:
                self.served = Served.from_plain(message["served"])
                self.gpu_bytes = message["gpu_bytes"]
            if all(each.ready for each in self._members):
                self.error = None
                self.ready.set()
                self._set("ready")
                self._watch()
        elif kind == "done" and self._pending is not None:
            reports = self._pending.reports
            reports.append(message)
            if len(reports) == len(self._members):
                self._answered(next(each for each in reports if each["results"] is not None))
        elif kind == "failed":
            self.error = unpack_error(message["error"])

    def _watch(self) -> None:
        """Every tick while the engine is ready: a rank that hangs is dealt with like one that died."""
        if not self.ready.is_set():
            return
        now = time.monotonic()
        self._watching = asyncio.get_running_loop().call_later(self.spec.patience.tick_s, self._watch)
        for member in self._members:
            if wrong := member.watchdog.tick(now):
                self._lost(member, f"hung ({wrong})")
                return
            if member.watchdog.due:
                with contextlib.suppress(PolicyUnavailable):  # its socket's end is about to be heard
                    member.ask()

    def _lost(self, member: Member, how: str, error: WamError | None = None) -> None:
        """A rank is gone or hangs: the group goes, waiting requests fail, and a later start is scheduled."""
        members, self._members = self._members, []
        self.ready.clear()
        if self._watching is not None:
            self._watching.cancel()
        logger.error(json.dumps({"event": "engine lost", "rank": member.rank, "how": how}))
        self._finish(PolicyUnavailable(f"the engine process {how}; it is being restarted"))
        for each in members:
            each.kill()
        self.error = error or PolicyUnavailable(f"the engine process {how}")
        for arena in (self.requests, self.replies):
            arena.close()
        if time.monotonic() - self._born > self.spec.healthy_s:
            self._failures = 0
        self._failures += 1
        # A policy that never came up once will not do so the second time.
        if self.served is None or self._failures > self.spec.max_restarts:
            self.over.set()
            self._set("failed")
            return
        wait = min(30.0, self.spec.backoff_s * 2 ** (self._failures - 1))
        self._set("crashed", f"restarting in {wait:g} s")
        self.restarts += 1
        self._restart = asyncio.get_running_loop().call_later(wait, self.start)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])

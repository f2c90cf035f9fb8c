"""One rank of the engine as serving holds it: a process, its socket, its watchdog."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from wamserve.action_codec.errors import PolicyUnavailable
from wamserve.policy_server.serving.channel import Framer, pack
from wamserve.policy_server.serving.shm import Arena
from wamserve.policy_server.serving.watchdog import Patience, Watchdog

logger = logging.getLogger("wamserve.serving")

_PING = pack({"type": "ping"})


class Member:
    """Calls back with each message, and once with None when the other end is gone."""

    def __init__(
        self,
        rank: int,
        env: Mapping[str, str],
        arenas: tuple[Arena, Arena],  # requests, replies
        patience: Patience,
        hear: Callable[[Member, dict[str, Any] | None], None],
    ) -> None:
        self.rank = rank
        self.ready = False
        self.watchdog = Watchdog(patience, time.monotonic())
        self._hear = hear
        self._framer = Framer()
        self._unsent = bytearray()
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        requests, replies = arenas
        fds = (theirs.fileno(), requests.fd, replies.fd)
        words = map(str, (*fds, requests.size, replies.size))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wamserve.policy_server.serving.engine_process", *words],
            pass_fds=fds,
            env=dict(env),
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._readable)

    def send(self, message: bytes) -> None:
        """Never waits: what the socket does not take at once follows by itself. Raises PolicyUnavailable."""
        try:
            if not self._unsent:
                # A message nearly always fits into the socket at once.
                with contextlib.suppress(BlockingIOError):
                    message = message[self._socket.send(message) :]
                if not message:
                    return
                self._loop.add_writer(self._socket, self._writable)
            self._unsent += message
        except OSError as error:
            raise PolicyUnavailable("the engine process is gone") from error

    def send_batch(self, message: bytes) -> None:
        """As `send`; from now on silence counts."""
        if self.watchdog.doubtful:
            self.ask()
        self.watchdog.work()
        self.send(message)

    def send_reset(self, session: str) -> None:
        self.send(pack({"type": "reset", "session": session}))
        self.watchdog.unsure = True

    def ask(self) -> None:
        self.watchdog.ask()
        self.send(_PING)

    def _writable(self) -> None:
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()  # the reader is about to learn the same
        if not self._unsent:
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self._hear(self, None)
            return
        for message in self._framer.feed(data):
            kind = message["type"]
            self.watchdog.heard(answer=kind == "pong", done=kind == "done")
            self._hear(self, message)

    def how_it_ended(self) -> str:
        """In words. For a process whose socket is closed; one that lingers is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0.2)
        self.kill()
        code = self.process.returncode
        if code is None:
            return "it cannot be killed"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def kill(self) -> None:
        self.close()
        if self.process.poll() is not None:
            return
        self.process.kill()
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:  # stuck in a driver: the kernel ends it when it can
            logger.error("engine process %d does not die; its device may still be occupied", self.process.pid)

"""The person at the keyboard: typed confirmations, and keys that stop the arm.

The stop key is a courtesy. The hardware emergency stop is the safety device.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from wamserve.action_codec.errors import WamError
from wamserve.clients.franka.priority import ordinary

STOP_KEYS = " \r\nq\x03"


class NotConfirmed(WamError):
    """The person did not type the word."""


def confirm(text: str, word: str, read: Callable[[], str] = sys.stdin.readline) -> None:
    """Shows `text`, and returns when `word` was typed. Raises NotConfirmed for anything else."""
    print(f"{text}\nType {word!r} and Enter to go on: ", end="", flush=True)
    typed = read().strip()
    if typed != word:
        raise NotConfirmed("not confirmed, nothing was moved", seen=repr(typed), expected=repr(word))


class StopKeys:
    """While open: space, Enter, q or Ctrl-C call `stop` once, from a thread or a signal handler."""

    def __init__(self, stop: Callable[[str], None]) -> None:
        self._stop = stop
        self._closing = threading.Event()
        self._terminal: tuple[int, list[Any]] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopKeys:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                name = signal.Signals(number).name
                self._handlers[number] = signal.signal(number, lambda *_, name=name: self._stop(name))
        with suppress(Exception):
            self._listen()
        return self

    def _listen(self) -> None:
        descriptor = sys.stdin.fileno()
        if os.isatty(descriptor):
            import termios
            import tty

            self._terminal = (descriptor, termios.tcgetattr(descriptor))
            tty.setcbreak(descriptor)
        threading.Thread(target=self._watch, args=(descriptor,), name="keys", daemon=True).start()

    def _watch(self, descriptor: int) -> None:
        ordinary()
        while not self._closing.is_set():
            ready, _, _ = select.select([descriptor], [], [], 0.05)
            if not ready:
                continue
            typed = os.read(descriptor, 64).decode(errors="replace")
            if not typed:
                return  # end of file: there is no keyboard
            if any(key in STOP_KEYS for key in typed):
                self._stop(f"key {typed[0]!r}")
                return

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._terminal is not None:
            import termios

            termios.tcsetattr(self._terminal[0], termios.TCSADRAIN, self._terminal[1])


class StatusLine:
    """The newest line on the terminal, written by a thread: a terminal that blocks holds nothing up."""

    def __init__(self, seconds: float = 0.5) -> None:
        self._line = ""
        self._seconds = seconds if sys.stdout.isatty() else 5.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)
        self._thread.start()

    def show(self, line: str) -> None:
        self._line = line

    def _run(self) -> None:
        ordinary()
        while not self._closing.wait(self._seconds):
            if self._line:
                start, end = ("\r\x1b[K", "") if sys.stdout.isatty() else ("", "\n")
                print(f"{start}{self._line}", end=end, flush=True)

    def close(self) -> None:
        self._closing.set()
        self._thread.join(1.0)
        if sys.stdout.isatty():
            print()

"""Is an engine process at work, idle, or hung? Told by what was sent to it and what was heard from it.

Pure: no sockets, no clock of its own. `engine.py` feeds it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How long a process may be silent. It cannot answer within a batch, so that limit is generous."""

    batch_s: float = 600.0  # between two signs of life within a batch; 0: for ever
    answer_s: float = 60.0  # to answer a ping, with no batch before it
    ping_s: float = 10.0  # an idle process is asked so often
    tick_s: float = 1.0  # how often `Watchdog.tick` is called


class Watchdog:
    """Over one rank. It takes its messages in order, so a ping sent before a batch is answered before it."""

    def __init__(self, patience: Patience, now: float) -> None:
        self.patience = patience
        self.working = False  # a batch is with the process
        self.asked = 0  # pings that wait for their answer
        self.unsure = False  # it was told something behind its batch that it may hang in
        self.silent_s = 0.0  # since it was last heard, asked or given work
        self._ticked = now

    @property
    def doubtful(self) -> bool:
        """True when it should be asked before it gets work."""
        return self.unsure or (not self.asked and self.silent_s > 0.0)

    @property
    def due(self) -> bool:
        """True when it is idle and should be asked now."""
        return not self.asked and not self.working and (self.unsure or self.silent_s >= self.patience.ping_s)

    def ask(self) -> None:
        """A ping was sent."""
        if not self.asked:
            self.silent_s = 0.0
        self.asked += 1
        self.unsure = False

    def work(self) -> None:
        """A batch was sent."""
        self.working = True
        if not self.asked:
            self.silent_s = 0.0

    def heard(self, *, answer: bool = False, done: bool = False) -> None:
        """Any message. answer: to a ping. done: with its batch."""
        self.silent_s = 0.0
        if answer:
            self.asked -= 1
        if done:
            self.working = False

    def tick(self, now: float) -> str:
        """What is wrong, in words, or "". Sets `silent_s` on."""
        # A pause of serving itself, or of the whole machine, is not the engine's silence.
        self.silent_s += min(now - self._ticked, 2 * self.patience.tick_s)
        self._ticked = now
        patience = self.patience
        if self.asked and self.silent_s > patience.answer_s:
            return f"no answer to a ping for {self.silent_s:.3g} s"
        if self.working and not self.asked and 0 < patience.batch_s < self.silent_s:
            return f"silent for {self.silent_s:.3g} s in the middle of a batch"
        return ""

"""What an arm is to the session: its state, what it can be asked, and one that exists on paper only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from wamserve.action_codec.errors import WamError
from wamserve.clients.franka.limits import Array
from wamserve.clients.franka.pilot import Drive

PERIOD = 1 / 15  # seconds between position commands: the policy's own rate
POSITION = Drive("position", PERIOD, PERIOD + 0.1, smooth=False)  # a row and 100 ms: what franky lags
IMPEDANCE = Drive("impedance", 0.005, 0.1, smooth=True)


class ArmFault(WamError):
    """The arm stopped by itself, or cannot be reached."""


@dataclass(frozen=True, eq=False)
class ArmState:
    """One measurement."""

    q: Array  # [7] rad
    dq: Array  # [7] rad/s
    q_command: Array  # [7] rad, what the arm's controller tracks; NaN where it does not say
    tau: Array  # [7] Nm, measured
    tau_external: Array  # [7] Nm, estimated
    time: float  # seconds on the wall clock
    success_rate: float = 1.0  # of the last 100 control cycles, 0 .. 1
    moving: bool = False  # a motion is under way
    mode: str = "idle"  # the robot's own word
    robot_time: float = 0.0  # seconds on the robot's own clock


class ArmBackend(Protocol):
    """An arm. Every call returns within a few milliseconds unless it says that it blocks."""

    drive: Drive

    def connect(self) -> ArmState:
        """Opens the connection and sets limits; moves nothing. Blocks for seconds."""
        ...

    def read(self) -> ArmState: ...

    def needs_recovery(self) -> str:
        """What a person must look at before the arm may move again; "" if nothing."""
        ...

    def recover(self) -> None:
        """Clears the arm's errors. Only ever called after a person said so."""
        ...

    def go_to(self, q: Array, speed: float) -> None:
        """Moves to `q` [7] at `speed` rad/s and blocks until there."""
        ...

    def start(self) -> None:
        """Takes control at the pose the arm stands in."""
        ...

    def command(self, q: Array, dq: Array) -> None:
        """The next target [7] and, in impedance mode, its velocity. Raises ArmFault when control was lost."""
        ...

    def stop(self) -> None:
        """Brings the arm to rest inside its limits and gives up control. Blocks for at most seconds."""
        ...

    def close(self) -> None: ...


class DryRunArm:
    """An arm on paper: it is where it was told, one command later."""

    def __init__(
        self, drive: Drive, q: Array, clock: Callable[[], float] = time.monotonic, lag: float = 0.0
    ) -> None:
        """lag: seconds of first-order lag between command and arm."""
        self.drive, self._clock, self._lag = drive, clock, lag
        self._q = np.asarray(q, np.float64)
        self._command = self._q
        self._since = clock()
        self._running = False

    def connect(self) -> ArmState:
        return self.read()

    def read(self) -> ArmState:
        now = self._clock()
        share = 1.0 if self._lag == 0.0 else 1.0 - np.exp(-(now - self._since) / self._lag)
        self._q = self._q + share * (self._command - self._q)
        self._since = now
        zero = np.zeros(7)
        return ArmState(self._q, zero, self._command, zero, zero, now, 1.0, self._running, "dry run", now)

    def needs_recovery(self) -> str:
        return ""

    def recover(self) -> None: ...

    def go_to(self, q: Array, speed: float) -> None:
        self._q = self._command = np.asarray(q, np.float64)

    def start(self) -> None:
        self._running = True

    def command(self, q: Array, dq: Array) -> None:
        self.read()
        self._command = np.array(q)

    def stop(self) -> None:
        self._running = False
        self._command = self._q

    def close(self) -> None: ...

"""Watchdogs: what is too old, too late or too far off, and what follows. Pure: every time is given.

hold: the command in force stays until the trouble is over. stop: the arm is brought to rest and the run ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wamserve.clients.franka.limits import Array, SafetyLimits

Severity = Literal["warn", "hold", "rest", "stop"]  # rest: brake to standstill, go on when a chunk comes
RANK: dict[str, int] = {"warn": 0, "hold": 1, "rest": 2, "stop": 3}


@dataclass(frozen=True)
class Patience:
    """Seconds, unless said otherwise."""

    state_age: float = 0.2  # of the arm's newest measurement: hold
    camera_age: float = 0.5  # of the oldest camera's newest picture: hold
    starved: float = 5.0  # without a row to play: stop
    first_chunk: float = 60.0  # until the first chunk: stop
    overrun: float = 0.03  # a control step that comes this much late ...
    overruns: int = 3  # ... so often in a row: stop
    overspeed: float = 1.25  # of the velocity limit, measured ...
    overspeed_steps: int = 2  # ... at so many control steps in a row: stop
    success_warn: float = 0.95  # share of 1 ms cycles the arm received in time
    success_stop: float = 0.9
    success_seconds: float = 0.1  # below success_stop for so long: stop


@dataclass(frozen=True)
class Alarm:
    """A watchdog that barks."""

    severity: Severity
    watchdog: Literal[
        "state",
        "camera",
        "chunk",
        "first chunk",
        "loop",
        "tracking",
        "speed",
        "connection",
        "backend",
        "network",
        "operator",
    ]
    value: float
    limit: float
    detail: str = ""

    def text(self) -> str:
        measured = f"{self.value:.3g} (limit {self.limit:.3g})" if self.limit else ""
        return " ".join(part for part in (f"{self.watchdog}: {self.severity}", measured, self.detail) if part)


@dataclass(frozen=True, eq=False)
class Sense:
    """What is known of the robot at one control step."""

    q: Array  # [7] rad, measured
    q_command: Array  # [7] rad, what the arm's controller is tracking; NaN where it does not say
    command: Array  # [7] rad, what it was last told
    state_time: float  # seconds on the wall clock, when q was measured
    camera_time: float | None = None  # wall clock of the oldest camera's newest picture; None: no cameras
    success_rate: float = 1.0  # of the last 100 control cycles
    moving: bool = False  # a motion is under way
    dq: Array | None = None  # [7] rad/s, measured


class Watchdogs:
    """Asked once per control step."""

    def __init__(self, limits: SafetyLimits, patience: Patience, period: float) -> None:
        self.limits, self.patience, self.period = limits, patience, period
        self._began: float | None = None
        self._last_step: float | None = None
        self._late_steps = 0
        self._far_since: float | None = None
        self._deaf_since: float | None = None
        self._spent_since: float | None = None
        self._played = False
        self._fast_steps = 0

    def check(self, now: float, sense: Sense, status: str) -> list[Alarm]:
        """Alarms at `now` (wall clock), worst first. `status` is that of the row due."""
        self._began = now if self._began is None else self._began
        alarms = [
            *self._ages(now, sense),
            *self._chunk(now, status),
            *self._loop(now),
            *self._tracking(now, sense),
            *self._speed(sense),
            *self._connection(now, sense),
        ]
        return sorted(alarms, key=lambda alarm: -RANK[alarm.severity])

    def _ages(self, now: float, sense: Sense) -> Iterator[Alarm]:
        age = now - sense.state_time
        if not age <= self.patience.state_age:
            yield Alarm("hold", "state", age, self.patience.state_age)
        if sense.camera_time is not None and not now - sense.camera_time <= self.patience.camera_age:
            yield Alarm("hold", "camera", now - sense.camera_time, self.patience.camera_age)

    def _chunk(self, now: float, status: str) -> Iterator[Alarm]:
        if status == "playing":
            self._played, self._spent_since = True, None
            return
        assert self._began is not None
        if not self._played:
            if now - self._began > self.patience.first_chunk:
                yield Alarm("stop", "first chunk", now - self._began, self.patience.first_chunk)
            return
        if self._spent_since is None:
            self._spent_since = now
        spent = now - self._spent_since
        if spent > self.patience.starved:
            yield Alarm("stop", "chunk", spent, self.patience.starved)
        elif spent > self.limits.stale_seconds:
            yield Alarm("rest", "chunk", spent, self.limits.stale_seconds)

    def _loop(self, now: float) -> Iterator[Alarm]:
        late = 0.0 if self._last_step is None else now - self._last_step - self.period
        self._last_step = now
        self._late_steps = self._late_steps + 1 if late > self.patience.overrun else 0
        if self._late_steps >= self.patience.overruns:
            yield Alarm("stop", "loop", late, self.patience.overrun, f"{self._late_steps} steps in a row")

    def _tracking(self, now: float, sense: Sense) -> Iterator[Alarm]:
        # Either may go astray: the arm may not follow its controller, the controller not its commands.
        errors = np.abs(np.stack([sense.q_command, sense.command]) - sense.q)
        errors = np.nan_to_num(errors, nan=0.0).max(axis=0)
        error = float(errors.max())
        if error <= self.limits.tracking_error:
            self._far_since = None
            return
        self._far_since = now if self._far_since is None else self._far_since
        if now - self._far_since >= self.limits.tracking_seconds:
            joint = int(errors.argmax()) + 1
            yield Alarm("stop", "tracking", error, self.limits.tracking_error, f"joint {joint}")

    def _speed(self, sense: Sense) -> Iterator[Alarm]:
        """A controller that plans past its limits is stopped before it gets anywhere."""
        fastest = 0.0 if sense.dq is None else float(np.abs(sense.dq).max())
        most = self.patience.overspeed * self.limits.velocity
        self._fast_steps = self._fast_steps + 1 if fastest > most else 0
        if self._fast_steps >= self.patience.overspeed_steps:
            yield Alarm("stop", "speed", fastest, most)

    def _connection(self, now: float, sense: Sense) -> Iterator[Alarm]:
        rate = sense.success_rate if sense.moving else 1.0
        if rate >= self.patience.success_stop:
            self._deaf_since = None
            if rate < self.patience.success_warn:
                yield Alarm("warn", "connection", rate, self.patience.success_warn)
            return
        self._deaf_since = now if self._deaf_since is None else self._deaf_since
        if now - self._deaf_since >= self.patience.success_seconds:
            yield Alarm("stop", "connection", rate, self.patience.success_stop)
        else:
            yield Alarm("warn", "connection", rate, self.patience.success_stop)

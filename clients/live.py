"""What a run looks like in a terminal while it lasts, and its report: rate, latency, chunk age."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from wamserve.clients.player import ChunkPlayer, Due
from wamserve.clients.policy import Ledger


@dataclass(frozen=True)
class RunReport:
    """What a run came to. Milliseconds are wall clock; percentiles are over all answers."""

    steps: int
    seconds: float  # from the first step to the last
    rate_hz: float  # achieved
    answers: int
    round_trip_ms_p50: float | None
    round_trip_ms_p95: float | None
    infer_ms_p50: float | None  # the server's own figure, engine layer
    forwards: int | None  # denoiser evaluations of the last answer
    chunk_age_ms_max: float  # oldest observation that a played row went back to
    late_rows: int  # rows that were past when their chunk came
    late_ticks: int  # control steps that began more than half a period late
    statuses: dict[str, int]  # steps by what was played
    failures: dict[str, int]  # answers that were errors, by kind
    action_error: float | None  # mean |played - recorded| over all steps and columns, raw units

    def lines(self) -> list[str]:
        """The report for people."""
        trip = "no answers"
        if self.round_trip_ms_p50 is not None:
            trip = f"{self.round_trip_ms_p50:.1f} ms p50, {self.round_trip_ms_p95:.1f} ms p95"
        lines = [
            f"steps         {self.steps} in {self.seconds:.1f} s = {self.rate_hz:.2f} Hz",
            f"round trip    {trip} over {self.answers} answers (client layer)",
        ]
        if self.infer_ms_p50 is not None:
            lines.append(f"inference     {self.infer_ms_p50:.1f} ms p50 (engine), {self.forwards} forwards")
        lines += [
            f"chunk age     {self.chunk_age_ms_max:.0f} ms at most",
            f"late          {self.late_rows} rows past on arrival, {self.late_ticks} late control steps",
            "played        " + ", ".join(f"{count} {status}" for status, count in self.statuses.items()),
        ]
        if self.failures:
            lines.append("failures      " + ", ".join(f"{n} {kind}" for kind, n in self.failures.items()))
        if self.action_error is not None:
            lines.append(f"action error  {self.action_error:.4f} mean |played - recorded|, raw units")
        return lines

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class RunLog:
    """Collects the figures of a run and shows them while it lasts."""

    def __init__(
        self, title: str, period: float, player: ChunkPlayer, console: Console | None = None
    ) -> None:
        self.title = title
        self.period = period
        self.player = player
        self.round_trips: list[float] = []
        self.infers: list[float] = []
        self.forwards: int | None = None
        self.statuses: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.errors: list[float] = []
        self.age_max = 0.0
        self.late_ticks = 0
        self.due = Due("waiting")
        self._ticks: deque[float] = deque(maxlen=30)
        self._steps = 0
        self._first: float | None = None  # time.monotonic() of the first and of the last step
        self._last = 0.0
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self.table)

    def __enter__(self) -> RunLog:
        self._live.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._live.__exit__(*exc)

    def answer(self, round_trip_ms: float, ledger: Ledger) -> None:
        """An answer came."""
        self.round_trips.append(round_trip_ms)
        self.infers.append(ledger.infer_ms)
        self.forwards = ledger.forwards or self.forwards

    def failure(self, error: Exception) -> None:
        """An answer was an error, and the run goes on."""
        self.failures[type(error).__name__] += 1

    def step(self, due: Due, lateness: float = 0.0, error: float | None = None) -> None:
        """A control step was played. lateness: seconds after its time; error: mean |played - recorded|."""
        self.due = due
        self._steps += 1
        self._last = time.monotonic()
        self._first = self._first or self._last
        self._ticks.append(self._last)
        self.statuses[due.status] += 1
        self.late_ticks += lateness > 0.5 * self.period
        if due.status in ("playing", "holding"):
            self.age_max = max(self.age_max, due.age)
        if error is not None:
            self.errors.append(error)

    def table(self) -> Table:
        """The live view."""
        table = Table(title=self.title, show_header=False, title_justify="left", box=None)
        rate = (len(self._ticks) - 1) / (self._ticks[-1] - self._ticks[0]) if len(self._ticks) > 1 else 0.0
        trips = self.round_trips
        rows = {
            "step": f"{self._steps}",
            "rate": f"{rate:5.1f} Hz of {1 / self.period:.1f}",
            "latency": f"{trips[-1]:6.1f} ms, worst {max(trips):.1f} ms" if trips else "no answer yet",
            "chunk": f"{self.due.status}, row {self.due.row} of chunk {self.due.chunk}",
            "chunk age": f"{1e3 * self.due.age:6.0f} ms",
            "rows left": f"{self.player.rows_left()}",
            "late rows": f"{self.player.late_rows}",
            "failures": ", ".join(f"{n} {kind}" for kind, n in self.failures.items()) or "none",
        }
        if self.errors:
            rows["action error"] = f"{self.errors[-1]:.4f} now, {np.mean(self.errors):.4f} mean"
        for name, value in rows.items():
            table.add_row(name, value)
        return table

    def report(self) -> RunReport:
        """The figures at the end."""
        seconds = self._last - (self._first or 0.0)

        def share(values: list[float], percent: float) -> float | None:
            return float(np.percentile(values, percent)) if values else None

        return RunReport(
            steps=self._steps,
            seconds=seconds,
            rate_hz=(self._steps - 1) / seconds if seconds > 0 else 0.0,
            answers=len(self.round_trips),
            round_trip_ms_p50=share(self.round_trips, 50),
            round_trip_ms_p95=share(self.round_trips, 95),
            infer_ms_p50=share([value for value in self.infers if value > 0], 50),
            forwards=self.forwards,
            chunk_age_ms_max=1e3 * self.age_max,
            late_rows=self.player.late_rows,
            late_ticks=self.late_ticks,
            statuses=dict(self.statuses),
            failures=dict(self.failures),
            action_error=float(np.mean(self.errors)) if self.errors else None,
        )

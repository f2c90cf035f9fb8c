"""Virtual time: a control step lasts one period, and thinking costs whole steps when it is charged."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wamserve.action_codec.errors import TaskError


class VirtualClock:
    """Seconds since the episode's first observation; moves only when a control step is taken."""

    def __init__(self, rate_hz: float) -> None:
        self.period = 1.0 / rate_hz
        self.step = 0

    def __call__(self) -> float:
        return self.step * self.period

    def tick(self) -> None:
        self.step += 1


@dataclass(frozen=True)
class Latency:
    """What one answer costs on the virtual clock."""

    fixed_ms: float | None  # None: whatever was measured around the policy call

    @classmethod
    def parse(cls, text: str) -> Latency:
        """ "measured" or milliseconds."""
        if text == "measured":
            return cls(None)
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not (math.isfinite(value) and value >= 0):
            raise TaskError(
                "not a latency", seen=text, expected="measured, or milliseconds >= 0", fix="--latency 180"
            )
        return cls(value)

    def __str__(self) -> str:
        return "measured" if self.fixed_ms is None else f"{self.fixed_ms:g}"

    def charged_ms(self, measured_ms: float) -> float:
        return measured_ms if self.fixed_ms is None else self.fixed_ms


def steps_of(latency_ms: float, rate_hz: float) -> int:
    """Control steps that pass while an answer is awaited: 180 ms at 15 Hz are 3.

    A hair above a whole number of periods is that number: 200 ms at 15 Hz are exactly 3, not 4.
    """
    return math.ceil(latency_ms * 1e-3 * rate_hz - 1e-6)

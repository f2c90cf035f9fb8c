"""Where an arm is in its chunks: a clock that starts slowly, a lead over it, and rows sampled in between.

Slow motion scales time and leaves every target where the policy put it.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wamserve.action_codec.chunk import past_rows
from wamserve.action_codec.layout import Layout
from wamserve.clients.player import ChunkPlayer, DelayTracker, Due, Strategy
from wamserve.clients.policy import ActionChunk, Observation, Request


@dataclass(frozen=True)
class Ramp:
    """How the arm is brought up to speed."""

    start: float = 0.2  # share of the policy's speed at first
    chunks: int = 3  # accepted chunks until full speed
    full: float = 1.0

    def rate(self, accepted: int) -> float:
        """Seconds of policy time per second, after so many accepted chunks."""
        if self.chunks <= 0:
            return self.full
        share = min(max(accepted - 1, 0) / self.chunks, 1.0)
        return self.start + (self.full - self.start) * share


class PolicyClock:
    """Policy time: seconds that pass at `rate`, continuous where the rate changes."""

    def __init__(self, wall: Callable[[], float], rate: float = 1.0) -> None:
        self._wall = wall
        now = wall()
        # (wall, policy, rate) where each stretch of constant rate begins; newest last
        self._stretches: deque[tuple[float, float, float]] = deque([(now, now, rate)], maxlen=64)

    @property
    def rate(self) -> float:
        return self._stretches[-1][2]

    def __call__(self) -> float:
        return self.at(self._wall())

    def at(self, wall: float) -> float:
        """Policy time at a moment of the wall clock, as of a camera frame's."""
        for since, policy, rate in reversed(self._stretches):
            if wall >= since:
                return policy + rate * (wall - since)
        since, policy, rate = self._stretches[0]
        return policy + rate * (wall - since)

    def set_rate(self, rate: float) -> None:
        if rate != self.rate:
            now = self._wall()
            self._stretches.append((now, self.at(now), rate))


class Playhead:
    """Chunks in; the arm's target for now out, `lead` seconds ahead and interpolated between rows.

    An arm that needs `lead` seconds to reach a target is told it that much earlier. The gripper does not lag
    the same way: it is told the row for now.
    """

    def __init__(
        self,
        layout: Layout,
        period: float,
        clock: PolicyClock,
        *,
        lead: float = 0.0,
        strategy: Strategy = "switch",
        ramp: Ramp | None = None,
        first_delay: float = 0.0,
        max_prefix_rows: int | None = None,
    ) -> None:
        self.layout, self.period, self.clock, self.lead = layout, period, clock, lead
        self.ramp = ramp or Ramp()
        self._moment = 0.0  # what the player takes for now
        self._starts: dict[int, float] = {}  # number of an accepted chunk -> when its row 0 is due
        self.player = ChunkPlayer(
            layout,
            period,
            strategy=strategy,
            max_prefix_rows=max_prefix_rows,
            delay=DelayTracker(first=first_delay + lead),
            clock=lambda: self._moment,
        )
        self._linear = [block.columns for block in layout.of_blend("linear")]
        clock.set_rate(self.ramp.rate(0))

    def next_row(self, chunk: ActionChunk) -> int:
        """The row of `chunk` that would be played first if it were pushed now."""
        return past_rows(chunk.start, chunk.period, self.clock() + self.lead)

    def request(self, observation: Observation, **fields: object) -> Request:
        """The request for this observation, whose time is policy time."""
        self._moment = self.clock() + self.lead
        return self.player.request(observation, **fields)

    def push(self, chunk: ActionChunk) -> bool:
        """As ChunkPlayer.push; may raise CodecError."""
        self._moment = self.clock() + self.lead
        taken = self.player.push(chunk)
        if taken:
            self._starts[self.player.accepted] = chunk.start
            for number in [n for n in self._starts if n < self.player.accepted - 64]:
                del self._starts[number]
            self.clock.set_rate(self.ramp.rate(self.player.accepted))
        return taken

    def due(self) -> Due:
        """What the arm is to be told now; blocks that mix linearly are interpolated in time."""
        return self._at(self.clock() + self.lead)

    def due_unled(self) -> Due:
        """What the policy wants now: for grippers, and to compare the measured arm with."""
        return self._at(self.clock())

    def _at(self, moment: float) -> Due:
        self._moment = moment
        due = self.player.due()
        if due.action is None or due.status != "playing":
            return due
        phase = (moment - self._starts[due.chunk]) / self.period - due.row  # -0.5 .. 0.5
        self._moment = moment + (self.period if phase >= 0.0 else -self.period)
        other = self.player.due()
        if other.action is None:
            return due
        share = min(abs(phase), 1.0)
        action = np.array(due.action)
        for columns in self._linear:
            action[columns] += share * (np.asarray(other.action)[columns] - action[columns])
        return dataclasses.replace(due, action=action)

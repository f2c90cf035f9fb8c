"""ChunkPlayer: which action row is due now, out of chunks that arrive late, overlap and run out.

Rows are indexed by clock: row k of a chunk is due at start + k * period, and a row whose time has passed is
never played. The clock is injected, so that a simulator's virtual time does as well as a robot's. See
docs/topics/chunks.md for the strategies.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wamserve.action_codec.blending import blend_chunks, linear_ramp, switch_chunks, temporal_ensemble
from wamserve.action_codec.chunk import (
    TICK_SLACK,
    TimedChunk,
    committed_rows,
    drop_past_rows,
    freeze_prefix,
    hold_row,
    past_rows,
    relative_blocks,
    row_due,
)
from wamserve.action_codec.errors import CodecError, PolicyError
from wamserve.action_codec.layout import Layout
from wamserve.clients.policy import ActionChunk, Observation, Request

# switch: the newer chunk takes over at its row for now.
# blend: its first rows are mixed with the older chunk's for the same times.
# ensemble: every row is averaged over all chunks that have one for it (ACT).
# roll_forward: the request tells the state expected when its answer arrives (VLASH); the chunk starts there.
# frozen_prefix: the request carries the rows that will have run by then; the model continues from them.
Strategy = Literal["switch", "blend", "ensemble", "roll_forward", "frozen_prefix"]

# row [D] that will have been executed -> the state names it determines, as in {"joint_position": row[:7]}
StateOfRow = Callable[[np.ndarray], Mapping[str, np.ndarray]]


class DelayTracker:
    """How long answers take, from the observation to the chunk in hand; the estimate is the recent worst."""

    def __init__(self, window: int = 10, first: float = 0.0) -> None:
        self.first = first  # seconds, believed until something was measured
        self._seconds: deque[float] = deque(maxlen=window)

    def add(self, seconds: float) -> None:
        self._seconds.append(max(seconds, 0.0))

    @property
    def seconds(self) -> float:
        """The longest of the last delays: too long costs a little reactivity, too short a jump."""
        return max(self._seconds, default=self.first)

    def rows(self, period: float) -> int:
        """Control steps that pass meanwhile, rounded up."""
        return math.ceil(self.seconds / period - TICK_SLACK)


@dataclass(frozen=True)
class Due:
    """What to do at one control step."""

    status: Literal["waiting", "playing", "holding", "stopped"]  # waiting: no chunk has begun yet
    action: np.ndarray | None = None  # [D] raw units; None while waiting and when stopped
    chunk: int = 0  # how many chunks had been accepted when this one was; 0: none
    row: int = 0  # of that chunk as it arrived; past its last row while holding
    age: float = 0.0  # seconds since the observation behind it was taken


@dataclass(frozen=True, eq=False)
class _Playing:
    chunk: TimedChunk  # what is left to play, already mixed
    number: int
    first: int  # row of the chunk as it arrived that is row 0 here
    seen: float  # seconds: when its observation was taken


class ChunkPlayer:
    """Takes chunks with `push`, gives the row due with `due`, and phrases the requests its strategy needs."""

    def __init__(
        self,
        layout: Layout,
        period: float,
        *,
        strategy: Strategy = "switch",
        when_spent: Literal["hold", "stop"] = "hold",
        hold_seconds: float = math.inf,
        blend_rows: int = 4,
        decay: float = 0.01,
        max_prefix_rows: int | None = None,
        state_of_row: StateOfRow | None = None,
        delay: DelayTracker | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """period: seconds between control steps, which every chunk must have.

        hold_seconds: how long a spent chunk is held before the player stops. blend_rows: rows mixed at a
        seam. decay: of the ensemble, see temporal_ensemble. max_prefix_rows: what the server can freeze
        (hello.max_prefix_rows). state_of_row: needed by roll_forward.
        """
        if strategy == "roll_forward" and state_of_row is None:
            raise PolicyError("roll_forward must know what state a row leads to", fix="state_of_row=...")
        self.layout = layout
        self.period = period
        self.strategy = strategy
        self.when_spent = when_spent
        self.hold_seconds = hold_seconds
        self.blend_rows = blend_rows
        self.decay = decay
        self.max_prefix_rows = max_prefix_rows
        self.state_of_row = state_of_row
        self.delay = delay or DelayTracker()
        self.clock = clock
        self.accepted = 0
        self.stale = 0  # chunks older than one already playing, dropped whole
        self.spent_on_arrival = 0  # chunks whose last row had passed before they came
        self.late_rows = 0  # rows that were past when their chunk came
        self._chunks: deque[_Playing] = deque(maxlen=32 if strategy == "ensemble" else 8)  # oldest first
        # start of the chunk asked for -> (when its observation was taken, rows committed at its head)
        self._asked: dict[float, tuple[float, np.ndarray | None]] = {}

    def request(self, observation: Observation, **fields: object) -> Request:
        """The request for this observation, with the delay, prefix or rolled-forward state of the strategy.

        `fields` are further fields of Request. observation.time is on this player's clock.
        """
        seen, rows = observation.time, self.delay.rows(self.period)
        prefix: np.ndarray | None = None
        if self.strategy == "frozen_prefix":
            most = rows if self.max_prefix_rows is None else min(rows, self.max_prefix_rows)
            prefix = self.committed(seen, most)
        if self.strategy == "roll_forward":
            observation, rows = self._rolled(observation, rows), 0
        while len(self._asked) >= 64:  # requests that were never answered
            self._asked.pop(next(iter(self._asked)))
        self._asked[observation.time] = (seen, prefix)
        request = Request(observation, delay=rows, prefix=prefix)
        return dataclasses.replace(request, **fields)  # type: ignore[arg-type]

    def committed(self, start: float, rows: int) -> np.ndarray | None:
        """[P, D], P <= rows: what will be played from `start` on whatever comes; None if nothing is."""
        playing = self._playing_at(start)
        if playing is None or rows == 0:
            return None
        ahead = committed_rows(playing.chunk, self.layout, start, rows)
        return ahead if len(ahead) else None

    def _rolled(self, observation: Observation, rows: int) -> Observation:
        """The observation with the state expected `rows` steps on, and the time at which that will be."""
        ahead = self.committed(observation.time, rows)
        if ahead is None:
            return observation
        assert self.state_of_row is not None
        # Targets are absolute: after row k the robot is where row k pointed.
        expected = self.state_of_row(ahead[-1])
        unknown = sorted(set(expected) - set(observation.state))
        if unknown:
            raise PolicyError(
                "state_of_row names states that were not observed",
                seen=", ".join(unknown),
                expected=", ".join(observation.state),
            )
        state = {
            name: np.asarray(expected[name], value.dtype).reshape(value.shape) if name in expected else value
            for name, value in observation.state.items()
        }
        return dataclasses.replace(observation, state=state, time=observation.time + len(ahead) * self.period)

    def push(self, chunk: ActionChunk, anchors: Mapping[str, np.ndarray] | None = None) -> bool:
        """Accepts a chunk at its arrival; False where nothing of it can be played any more.

        `anchors`: pose [4, 4] that row 0 of each relative block starts from. Raises CodecError for a chunk
        of another width or period, or with numbers that are not finite.
        """
        now = self.clock()
        if abs(chunk.period - self.period) > 1e-6 * self.period:
            raise CodecError("the chunk runs at another rate", seen=chunk.period, expected=self.period)
        actions = self.layout.check(chunk.actions, "chunk")
        seen, prefix = self._asked.pop(chunk.start, (chunk.start, None))
        self.delay.add(now - seen)
        newest = self._chunks[-1] if self._chunks else None
        if newest is not None and seen < newest.seen:
            self.stale += 1
            return False
        if prefix is not None:
            # Already under way: whatever the model made of them, these rows run.
            actions = freeze_prefix(actions, prefix[: len(actions)], self.layout)
        whole = TimedChunk(actions, chunk.start, chunk.period, anchors or {})
        gone = min(past_rows(whole.start, whole.period, now), len(whole))
        self.late_rows += gone
        if gone == len(whole):
            self.spent_on_arrival += 1
            return False
        self.accepted += 1
        self._chunks.append(_Playing(self._joined(whole, now), self.accepted, gone, seen))
        return True

    def _joined(self, new: TimedChunk, now: float) -> TimedChunk:
        """What is left of `new`, fitted to what has been playing."""
        old = self._playing_at(max(now, new.start))
        if old is None or self.strategy == "ensemble":
            return drop_past_rows(new, self.layout, now)
        live = switch_chunks(old.chunk, new, self.layout, now)
        if self.strategy != "blend" or live.start < old.chunk.start:
            return live
        return blend_chunks(old.chunk, live, self.layout, linear_ramp(self.blend_rows))

    def due(self) -> Due:
        """The row for the clock's now."""
        now = self.clock()
        playing = self._playing_at(now)
        if playing is None:
            return Due("waiting")
        chunk = playing.chunk
        row = row_due(chunk.start, chunk.period, now)
        told = {"chunk": playing.number, "row": playing.first + row, "age": now - playing.seen}
        if row >= len(chunk):
            held = now - chunk.end + 0.5 * self.period  # a row counts from half a period before its time
            if self.when_spent == "stop" or held > self.hold_seconds:
                return Due("stopped", None, **told)  # type: ignore[arg-type]
            return Due("holding", hold_row(chunk.actions[-1], self.layout), **told)  # type: ignore[arg-type]
        if self.strategy == "ensemble":
            if relative_blocks(self.layout):
                raise CodecError("relative blocks cannot be averaged without measured poses", fix="switch")
            chunks = [each.chunk for each in self._chunks]
            action = temporal_ensemble(chunks, self.layout, now, self.decay)
        else:
            action = chunk.actions[row]
        return Due("playing", action, **told)  # type: ignore[arg-type]

    def rows_left(self) -> int:
        """Rows that are still to be played from now on, the one due now included."""
        now = self.clock()
        if not self._chunks:
            return 0
        chunk = self._chunks[-1].chunk
        return len(chunk) - min(max(row_due(chunk.start, chunk.period, now), 0), len(chunk))

    def reset(self) -> None:
        """Forgets every chunk and request; what was measured about delays stays."""
        self._chunks.clear()
        self._asked.clear()

    def _playing_at(self, moment: float) -> _Playing | None:
        """The newest chunk that has begun by then; before that the oldest one has not even begun."""
        for playing in reversed(self._chunks):
            if row_due(playing.chunk.start, playing.chunk.period, moment) >= 0:
                return playing
        return None

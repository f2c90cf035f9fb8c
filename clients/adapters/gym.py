"""Drives any gymnasium-style environment from a Policy, through a declared mapping, on the simulator's clock.

The environment is used by its methods alone (reset, step), so nothing here imports gymnasium.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from wamserve.action_codec.errors import RequestError
from wamserve.action_codec.layout import Layout
from wamserve.clients.player import ChunkPlayer, Due, Strategy
from wamserve.clients.policy import ActionChunk, Ledger, Observation, Policy, Prediction

Turn = Literal["as_is", "rotated_180", "flipped_rows"]


@dataclass(frozen=True)
class GymMap:
    """What of an environment is what to a policy. Keys are paths into the observation, as in "agent/pos"."""

    images: Mapping[str, str]  # view name -> key of a uint8 [H, W, 3] RGB array
    states: Mapping[str, str]  # state name -> key of a vector; sent as float32
    instruction: str
    period: float  # seconds of simulated time per step: the control period the policy was trained for
    turn: Turn = "as_is"  # what is done to every image before it is sent
    action: Callable[[np.ndarray], Any] | None = None  # reply row [D] -> env action; None: as is
    success: str = "is_success"  # key of `info` that says so

    def observation(self, raw: Any, time: float) -> Observation:
        """The policy's observation at `time` simulated seconds. RequestError for a key that is not there."""
        turns: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "as_is": lambda image: image,
            "rotated_180": lambda image: image[::-1, ::-1],
            "flipped_rows": lambda image: image[::-1],
        }
        images = {
            name: np.ascontiguousarray(turns[self.turn](np.asarray(_at(raw, key))))
            for name, key in self.images.items()
        }
        states = {name: np.asarray(_at(raw, key), np.float32).ravel() for name, key in self.states.items()}
        return Observation(images, states, self.instruction, time)


@dataclass(frozen=True)
class Pace:
    """When the policy is asked, and what its thinking costs in simulated time."""

    replan: int  # rows played before the next question
    charge: float | None = 0.0  # simulated seconds an answer takes; None: as long as it really took
    strategy: Strategy = "switch"
    player: Mapping[str, Any] = field(default_factory=dict)  # further arguments of ChunkPlayer


@dataclass(frozen=True)
class Step:
    """One control step, for whoever watches."""

    number: int
    due: Due
    reward: float
    round_trip_ms: float | None  # of the answer that was asked for at this step
    ledger: Ledger | None


@dataclass(frozen=True)
class GymEpisode:
    """What came of one episode."""

    steps: int
    total_reward: float
    success: bool | None  # None: the environment does not say
    ended: Literal["terminated", "truncated", "limit"]
    queries: int
    round_trip_ms: tuple[float, ...]  # one per query, wall clock
    late_rows: int  # rows that were past when their chunk came


def drive(
    env: Any,
    policy: Policy,
    mapping: GymMap,
    layout: Layout,
    pace: Pace,
    *,
    seed: int,
    max_steps: int,
    watch: Callable[[Step], None] | None = None,
    meet: Callable[[ChunkPlayer], None] | None = None,
) -> GymEpisode:
    """Plays one episode. `layout` is that of the reply rows; `seed` goes to the environment and the policy.

    The world stands still until the first chunk has come; after that answers take `pace.charge`, and the
    player decides what is played meanwhile. `meet` is shown the player before the first step, `watch` every
    step.
    """
    clock = _SimClock(mapping.period)
    player = ChunkPlayer(layout, mapping.period, strategy=pace.strategy, clock=clock, **pace.player)
    if meet is not None:
        meet(player)
    raw, _ = env.reset(seed=seed)
    session = f"gym-{seed}"
    policy.reset(session)
    arriving: tuple[float, ActionChunk] | None = None  # when, what
    round_trips: list[float] = []
    total, since = 0.0, pace.replan
    ended: Literal["terminated", "truncated", "limit"] = "limit"
    success: bool | None = None
    step = 0
    while step < max_steps:
        clock.step = step
        prediction: Prediction | None = None
        if arriving is None and since >= pace.replan:
            request = player.request(
                mapping.observation(raw, clock()), session=session, step=step, seed=seed + step
            )
            start = time.monotonic()
            prediction = policy.infer(request)
            round_trips.append(1e3 * (time.monotonic() - start))
            if prediction.chunk is None:
                raise RequestError("the policy answered without actions")
            charge = round_trips[-1] / 1e3 if pace.charge is None else pace.charge
            first = player.accepted == 0
            arriving, since = (clock() + (0.0 if first else charge), prediction.chunk), 0
        if arriving is not None and arriving[0] <= clock() + 1e-9:
            player.push(arriving[1])
            arriving = None
        due = player.due()
        if due.action is None:
            raise RequestError("the player has stopped: there is nothing to play", fix="when_spent='hold'")
        action = due.action if mapping.action is None else mapping.action(due.action)
        raw, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        step, since = step + 1, since + 1
        if mapping.success in info:
            success = bool(info[mapping.success]) or bool(success)
        if watch is not None:
            ledger = prediction.ledger if prediction else None
            watch(Step(step, due, float(reward), round_trips[-1] if prediction else None, ledger))
        if terminated or truncated:
            ended = "terminated" if terminated else "truncated"
            break
    return GymEpisode(
        steps=step,
        total_reward=total,
        success=success,
        ended=ended,
        queries=len(round_trips),
        round_trip_ms=tuple(round_trips),
        late_rows=player.late_rows,
    )


class _SimClock:
    """Simulated seconds since the episode began."""

    def __init__(self, period: float) -> None:
        self.period = period
        self.step = 0

    def __call__(self) -> float:
        return self.step * self.period


def _at(raw: Any, path: str) -> Any:
    value = raw
    for key in path.split("/") if path else ():
        if not isinstance(value, Mapping) or key not in value:
            seen = ", ".join(_paths(raw)) or type(raw).__name__
            raise RequestError(f"the environment's observation has no {path!r}", seen=seen)
        value = value[key]
    return value


def _paths(raw: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            yield from _paths(value, f"{prefix}/{key}" if prefix else str(key))
    elif prefix:
        yield prefix

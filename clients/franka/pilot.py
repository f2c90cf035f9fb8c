"""Pilot: chunks and measurements in, one bounded command per control step out. Pure; the clock is injected.

PolicyClient -> [Playhead -> SafetyGovernor -> Smoother] -> ArmBackend: the part in brackets, and its
watchdogs. Everything that decides whether and where an arm moves is here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from wamserve.action_codec.errors import CodecError, ContractError
from wamserve.clients.franka.governor import MotionRefused, Note, SafetyGovernor
from wamserve.clients.franka.limits import Array, SafetyLimits
from wamserve.clients.franka.playhead import Playhead, PolicyClock, Ramp
from wamserve.clients.franka.smoother import Smoother
from wamserve.clients.franka.watchdog import Alarm, Patience, Sense, Watchdogs
from wamserve.clients.player import Strategy
from wamserve.clients.policy import ActionChunk, Observation, Request
from wamserve.embodiments.contract import Embodiment

State = Literal["waiting", "playing", "holding", "resting", "stopped"]


@dataclass(frozen=True)
class Drive:
    """How a backend wants to be driven."""

    name: str
    period: float  # seconds between commands
    lead: float  # seconds a target is told before it is due: what the arm lags
    smooth: bool  # the pilot bounds velocity, acceleration and jerk itself


@dataclass(frozen=True, eq=False)
class Decision:
    """What is done at one control step."""

    state: State
    q: Array  # [7] rad, the command
    dq: Array  # [7] rad/s along the reference; zero where the backend smooths
    gripper: float | None  # the reply's gripper number for now; None: no change
    wish: Array | None  # [7] rad, what the policy asked for before any bound, a lead ahead
    wanted: Array | None = None  # [7] rad, where the policy wants the arm now
    notes: tuple[Note, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    chunk: int = 0  # number of the chunk played
    row: int = 0
    age: float = 0.0  # s since the observation behind it


@dataclass
class Tally:
    """What happened so far."""

    steps: int = 0
    accepted: int = 0
    refused_chunks: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    alarms: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    stopped_by: str = ""


class Pilot:
    """Begins at a measured pose, then takes chunks as they come and gives a command at every step."""

    def __init__(
        self,
        contract: Embodiment,
        limits: SafetyLimits,
        drive: Drive,
        *,
        clock: Callable[[], float],
        strategy: Strategy = "switch",
        ramp: Ramp | None = None,
        patience: Patience | None = None,
        max_prefix_rows: int | None = None,
    ) -> None:
        """`clock` is the wall clock all times are on, in seconds. ContractError for another kind of robot."""
        wire = contract.wire
        if wire.reply.form != "joint_targets" or wire.kinematics is None or len(wire.reply.grippers) != 1:
            raise ContractError(
                f"{contract.name} does not answer with a Franka's joint targets and one gripper",
                seen=f"{wire.reply.form}, {len(wire.reply.grippers)} grippers",
                expected="joint_targets, kinematics, 1 gripper",
                fix="wam ls embodiments",
            )
        if wire.reply.width != 8 or wire.reply.grippers[0].index != 7:
            raise ContractError(
                f"{contract.name}: reply columns",
                seen=wire.reply.fields,
                expected="joint1 .. joint7, gripper",
            )
        self.contract, self.limits, self.drive, self.clock = contract, limits, drive, clock
        self.governor = SafetyGovernor(limits, wire.kinematics, drive.period)
        self.smoother = Smoother(limits, self.governor.tool_at, drive.period) if drive.smooth else None
        self.policy_clock = PolicyClock(clock)
        self.head = Playhead(
            contract.model.layout,
            1.0 / wire.rate_hz,
            self.policy_clock,
            lead=drive.lead,
            strategy=strategy,
            ramp=ramp,
            max_prefix_rows=max_prefix_rows,
        )
        self.watchdogs = Watchdogs(limits, patience or Patience(), drive.period)
        self.tally = Tally()
        self._stop: Alarm | None = None
        self._last_step: float | None = None
        self._rested = False
        self._pending: list[Note] = []
        self.told: Array = np.full(7, np.nan)  # [7] rad, the last command

    def begin(self, measured: Array) -> None:
        """Takes the measured joints [7] for the command in force. Raises MotionRefused outside the limits."""
        self.governor.begin(measured)
        self.told = np.array(measured, np.float64)
        if self.smoother is not None:
            self.smoother.begin(measured)

    def request(self, observation: Observation, **fields: object) -> Request:
        """The request for an observation whose time is on the wall clock."""
        at = self.policy_clock.at(observation.time)
        moved = Observation(observation.images, observation.state, observation.instruction, at)
        return self.head.request(moved, **fields)

    def offer(self, chunk: ActionChunk) -> Note | None:
        """Takes a chunk at its arrival; the reason where it is refused. The one before then plays on."""
        note = self._refusal(chunk)
        if note is None:
            self.tally.accepted += 1
            return None
        self.tally.refused_chunks[note.reason] += 1
        self._pending.append(note)
        return note

    def _refusal(self, chunk: ActionChunk) -> Note | None:
        actions = np.asarray(chunk.actions)
        width = self.contract.wire.reply.width
        if actions.ndim != 2 or actions.shape[1] != width:
            return Note("refused", "width", actions.shape[-1] if actions.ndim else 0, width)
        late = self.policy_clock() - chunk.start
        if not np.isfinite(late) or not np.isfinite(actions).all():
            return Note("refused", "not finite", float("nan"), 0.0)
        note = self.governor.check_chunk(actions[:, :7], self.head.next_row(chunk), late)
        if note is not None:
            return note
        try:
            taken = self.head.push(chunk)
        except CodecError:  # another period
            return Note("refused", "width", chunk.period, self.head.period)
        return None if taken else Note("refused", "stale", late, len(actions) * chunk.period)

    def stop(self, alarm: Alarm) -> None:
        """Ends the run at the next step; the first reason stays."""
        self._stop = self._stop or alarm

    def step(self, sense: Sense) -> Decision:
        """The command for now."""
        now = self.clock()
        seconds = None if self._last_step is None else now - self._last_step
        self._last_step = now
        due = self.head.due()
        alarms = self.watchdogs.check(now, sense, due.status)
        worst = alarms[0].severity if alarms else "warn"
        if worst == "stop":
            self.stop(alarms[0])
        state: State = "waiting" if due.status == "waiting" else "playing"
        if due.status in ("holding", "stopped"):
            state = "holding"
        if worst == "hold":
            state = "holding"
        if worst == "rest":
            state = "resting"
        if self._stop is not None:
            state = "stopped"
            if self._stop not in alarms:
                alarms = [self._stop, *alarms]
        wish = np.array(due.action[:7]) if due.action is not None else None
        moving = state == "playing" or (state == "holding" and worst == "warn")
        decision = self._decided(state, wish if moving else None, sense, seconds, tuple(alarms))
        present = self.head.due_unled().action
        decision = replace(
            decision,
            gripper=float(present[7]) if present is not None and state == "playing" else None,
            wish=wish,
            wanted=np.array(present[:7]) if present is not None else None,
            notes=(*self._pending, *decision.notes),
            chunk=due.chunk,
            row=due.row,
            age=max(due.age - self.drive.lead, 0.0),
        )
        self._pending = []
        self.told = decision.q
        self._count(decision)
        return decision

    def _decided(
        self, state: State, wish: Array | None, sense: Sense, seconds: float | None, alarms: tuple[Alarm, ...]
    ) -> Decision:
        command = self.governor.step(wish, sense.q, seconds)
        if self.smoother is None:
            return Decision(state, command.q, np.zeros(7), None, wish, notes=command.notes, alarms=alarms)
        try:
            # A held target is reached; to rest and to stop, the arm brakes where it is.
            reference = self.smoother.step(None if state in ("resting", "stopped") else command.q)
        except MotionRefused as error:
            self.stop(Alarm("stop", "backend", 0.0, 0.0, str(error)))
            return Decision("stopped", sense.q, np.zeros(7), None, wish, notes=command.notes, alarms=alarms)
        if state in ("resting", "stopped"):
            self.governor.rebase(reference.q)
        return Decision(
            state,
            reference.q,
            reference.dq,
            None,
            wish,
            notes=(*command.notes, *reference.notes),
            alarms=alarms,
        )

    def _count(self, decision: Decision) -> None:
        tally = self.tally
        tally.steps += 1
        tally.states[decision.state] += 1
        tally.notes.update(f"{note.action}: {note.reason}" for note in decision.notes)
        tally.alarms.update(f"{alarm.severity}: {alarm.watchdog}" for alarm in decision.alarms)
        if self._stop is not None:
            tally.stopped_by = self._stop.text()

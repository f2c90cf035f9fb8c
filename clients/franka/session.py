"""ArmSession: the one process that owns the arm. Steps the pilot on time, obeys it, and ends in a stop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from wamserve.action_codec.errors import ContractError
from wamserve.action_codec.gripper import gripper_from_open_fraction
from wamserve.clients.franka.arm import ArmBackend, ArmFault, ArmState
from wamserve.clients.franka.gripper import GripperWorker
from wamserve.clients.franka.limits import Array
from wamserve.clients.franka.network import Ask, Got, Look, Pose, Ready, Trouble, blank_observation
from wamserve.clients.franka.pilot import Decision, Pilot
from wamserve.clients.franka.record import Recorder
from wamserve.clients.franka.report import report
from wamserve.clients.franka.watchdog import Alarm, Sense
from wamserve.embodiments.contract import State

POLL = 0.01  # s between looks at the pipe and the arm
BRAKE_SECONDS = 1.5  # a smoothed reference comes to rest in a fraction of that


@dataclass(frozen=True)
class Status:
    """What the terminal shows."""

    state: str
    rate_hz: float
    chunk: int
    row: int
    age: float
    round_trip_ms: float
    clamped: int
    refused: int
    margin: float  # rad, the joint nearest to its end
    margin_joint: int
    camera_age: float
    gripper: float
    trouble: str

    def line(self) -> str:
        return (
            f"{self.state:<8} {self.rate_hz:5.1f} Hz"
            f" | chunk {self.chunk} row {self.row:2d} age {self.age:.2f} s"
            f" | answer {self.round_trip_ms:.0f} ms | clamped {self.clamped} refused {self.refused}"
            f" | joint {self.margin_joint} {self.margin:.2f} rad from its end"
            f" | pictures {self.camera_age:.2f} s | gripper {self.gripper:.2f}"
            + (f" | {self.trouble[:60]}" if self.trouble else "")
        )


class ArmSession:
    """Runs until the pilot stops, the time is over, or somebody calls `stop`."""

    def __init__(
        self,
        pilot: Pilot,
        arm: ArmBackend,
        gripper: GripperWorker,
        pipe: Connection,
        recorder: Recorder,
        *,
        show: Callable[[str], None] = lambda line: None,
    ) -> None:
        """The arm is connected and stands where the pilot may begin."""
        self.pilot, self.arm, self.gripper, self.pipe, self.recorder = pilot, arm, gripper, pipe, recorder
        self._show = show
        self._measured: deque[tuple[float, Array]] = deque(maxlen=512)  # (time, q), newest last
        self._states = pilot.contract.wire.states
        for state in self._states:
            if state.measures != "joints" and state.gripper is None:
                raise ContractError(
                    f"a Franka does not measure {state.name!r}", expected="joints and a gripper"
                )
        self._camera_time: float | None = None
        self._round_trips: list[float] = []
        self._trouble = ""
        self._heard_network = True
        self._step_times: deque[float] = deque(maxlen=30)
        self._pose_due = 0.0
        self._clamped = self._refused = 0

    def stop(self, why: str) -> None:
        """May be called from another thread or a signal handler."""
        self.pilot.stop(Alarm("stop", "operator", 0.0, 0.0, why))

    def run(self, seconds: float | None = None) -> dict[str, Any]:
        """Drives the arm; returns the report. The arm is at rest when this returns, whatever happened."""
        state = self._read()
        self.pilot.begin(state.q)
        try:
            self.arm.start()
            self._loop(seconds)
        except ArmFault as error:
            self._fault(error)
        finally:
            self._rest()
        return self.report()

    def report(self) -> dict[str, Any]:
        gripper = {name: getattr(self.gripper, name) for name in ("sent", "interrupted", "timeouts", "fault")}
        steps = self.recorder.steps()
        return report(steps, self.pilot.tally, self.pilot.limits, self._round_trips, gripper)

    def _loop(self, seconds: float | None) -> None:
        period = self.arm.drive.period
        clock = self.pilot.clock
        began = due = clock()
        stopping: float | None = None
        while True:
            state = self._read()
            self._listen(max(0.0, min(due - clock(), POLL)))
            now = clock()
            if now < due:
                continue
            # Late by more than a period: the schedule moves on, steps are not caught up.
            due = due + period if now < due + period else now + period
            if seconds is not None and now - began >= seconds:
                self.pilot.stop(Alarm("stop", "operator", 0.0, 0.0, f"its {seconds:g} s are over"))
            decision = self._step(state)
            if decision.state == "stopped":
                stopping = now if stopping is None else stopping
                resting = bool(np.abs(decision.dq).max() < 1e-6)
                if not self.arm.drive.smooth or resting or now - stopping > BRAKE_SECONDS:
                    return

    def _read(self) -> ArmState:
        state = self.arm.read()
        if not self._measured or state.time > self._measured[-1][0]:
            self._measured.append((state.time, state.q))
        if self.pilot.clock() >= self._pose_due:
            self._pose_due = self.pilot.clock() + 0.03
            self._tell(Pose(state.q, self.gripper.opening, state.time))
        return state

    def _step(self, state: ArmState) -> Decision:
        sense = Sense(
            q=state.q,
            q_command=state.q_command,
            command=self.pilot.told,
            state_time=state.time,
            camera_time=self._camera_time,
            success_rate=state.success_rate,
            moving=state.moving,
            dq=state.dq,
        )
        decision = self.pilot.step(sense)
        if decision.state not in ("stopped", "waiting") or self.arm.drive.smooth:
            self.arm.command(decision.q, decision.dq)
        if decision.gripper is not None:
            self.gripper.want(decision.gripper)
        self._note(state, decision)
        return decision

    def _listen(self, seconds: float) -> None:
        """Handles what the network process said; waits up to `seconds` for a word."""
        if not self._heard_network:
            time.sleep(seconds)
            return
        try:
            while self.pipe.poll(seconds):
                self._heard(self.pipe.recv())
                seconds = 0.0
        except (EOFError, OSError):
            self._heard_network = False
            self._trouble = "the network process has ended"
            self.recorder.event("network", text=self._trouble)

    def _heard(self, message: object) -> None:
        if isinstance(message, Look):
            self._camera_time = message.time
        elif isinstance(message, Ask):
            observation = blank_observation(self._state_at(message.time), message.time)
            self._tell(self.pilot.request(observation, step=message.number))
        elif isinstance(message, Got):
            self._round_trips.append(message.round_trip_ms)
            self._trouble = ""
            note = self.pilot.offer(message.chunk)
            refused = "" if note is None else note.reason
            actions = np.asarray(message.chunk.actions)
            self.recorder.chunk(message.number, message.chunk.start, actions, refused)
            self.recorder.event(
                "chunk",
                number=message.number,
                refused=note,
                observed=message.observed,
                round_trip_ms=message.round_trip_ms,
                infer_ms=message.ledger.infer_ms,
                seed=message.seed,
            )
        elif isinstance(message, Ready):
            self.recorder.event("ready", server=message.server)
            self.pilot.head.player.max_prefix_rows = message.max_prefix_rows
        elif isinstance(message, Trouble):
            self._trouble = message.text
            self.recorder.event("trouble", text=message.text)
            if message.fatal:
                self.pilot.stop(Alarm("stop", "network", 0.0, 0.0, message.text))

    def _tell(self, message: object) -> None:
        if self._heard_network:
            try:
                self.pipe.send(message)
            except (BrokenPipeError, OSError):
                self._heard_network = False

    def _state_at(self, moment: float) -> dict[str, Array]:
        """The contract's states, the joints as measured nearest to `moment`."""
        q = min(self._measured, key=lambda sample: abs(sample[0] - moment))[1]
        return {state.name: self._value(state, q) for state in self._states}

    def _value(self, state: State, q: Array) -> Array:
        if state.gripper is not None:
            value = gripper_from_open_fraction([self.gripper.opening], state.gripper.meaning, "clip")
            return np.asarray(value, np.float32)
        return q.astype(np.float32)

    def _note(self, state: ArmState, decision: Decision) -> None:
        self._step_times.append(self.pilot.clock())
        nothing = np.full(7, np.nan)
        self.recorder.step(
            {
                "time": self.pilot.clock(),
                "policy_time": self.pilot.policy_clock(),
                "state": decision.state,
                "q": state.q,
                "dq": state.dq,
                "q_command": state.q_command,
                "tau": state.tau,
                "tau_external": state.tau_external,
                "success_rate": state.success_rate,
                "moving": state.moving,
                "robot_time": state.robot_time,
                "command": decision.q,
                "wish": nothing if decision.wish is None else decision.wish,
                "wanted": nothing if decision.wanted is None else decision.wanted,
                "gripper_wish": np.nan if decision.gripper is None else decision.gripper,
                "gripper": self.gripper.opening,
                "chunk": decision.chunk,
                "row": decision.row,
                "age": decision.age,
            }
        )
        for note in decision.notes:
            self._clamped += note.action == "clamped"
            self._refused += note.action == "refused"
            self.recorder.event(
                note.action, reason=note.reason, value=note.value, limit=note.limit, joint=note.joint
            )
        for alarm in decision.alarms:
            self.recorder.event("alarm", text=alarm.text())
        if self.pilot.tally.steps % max(1, round(0.5 / self.arm.drive.period)) == 0:
            self._show(self._status(state, decision).line())

    def _status(self, state: ArmState, decision: Decision) -> Status:
        arm = self.pilot.limits.arm
        margin = np.minimum(state.q - np.asarray(arm.low), np.asarray(arm.high) - state.q)
        now = self.pilot.clock()
        return Status(
            state=decision.state,
            rate_hz=self._rate(),
            chunk=decision.chunk,
            row=decision.row,
            age=decision.age,
            round_trip_ms=self._round_trips[-1] if self._round_trips else 0.0,
            clamped=self._clamped,
            refused=self._refused,
            margin=float(margin.min()),
            margin_joint=int(margin.argmin()) + 1,
            camera_age=now - self._camera_time if self._camera_time is not None else float("nan"),
            gripper=self.gripper.opening,
            trouble=self._trouble,
        )

    def _rate(self) -> float:
        """Control steps per second, of the last few."""
        times = self._step_times
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0

    def _fault(self, error: Exception) -> None:
        self.pilot.stop(Alarm("stop", "backend", 0.0, 0.0, str(error)))
        self.pilot.tally.stopped_by = self.pilot.tally.stopped_by or f"backend: stop {error}"
        self.recorder.event("fault", text=str(error))

    def _rest(self) -> None:
        try:
            self.arm.stop()
        except ArmFault as error:
            self._fault(error)

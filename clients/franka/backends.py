"""Arm backends: franky in position mode, franky in impedance mode, and a dry run. One process owns the arm.

Which motions survive on a robot that enforces its limits, and why these settings: docs/howto/franka.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from wamserve.action_codec.errors import WamError
from wamserve.clients.franka.limits import Array, SafetyLimits
from wamserve.clients.franka.pilot import Drive

PERIOD = 1 / 15  # seconds between position commands: the policy's own rate
POSITION = Drive("position", PERIOD, PERIOD + 0.1, smooth=False)  # a row and 100 ms: what franky lags
IMPEDANCE = Drive("impedance", 0.005, 0.1, smooth=True)
BackendName = Literal["position", "impedance"]


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


@dataclass(frozen=True)
class Gains:
    """Of the impedance tracker: tau = (Kq + J' Kx J) e + (Dq + J' Dx J) de."""

    stiffness: tuple[float, ...]  # Nm/rad [7]
    damping: tuple[float, ...]  # Nm s/rad [7]
    cartesian_stiffness: tuple[float, ...] | None = None  # N/m x3, Nm/rad x3
    cartesian_damping: tuple[float, ...] | None = None


# The law DROID's data was collected with (polymetis HybridJointImpedanceControl).
DROID_GAINS = Gains(
    (40.0, 30.0, 50.0, 25.0, 35.0, 25.0, 10.0),
    (4.0, 6.0, 5.0, 5.0, 3.0, 2.0, 1.0),
    (400.0, 400.0, 400.0, 15.0, 15.0, 15.0),
    (37.0, 37.0, 37.0, 2.0, 2.0, 2.0),
)
STIFF_GAINS = Gains(
    (600.0, 600.0, 600.0, 600.0, 250.0, 250.0, 150.0), (50.0, 50.0, 50.0, 50.0, 30.0, 25.0, 15.0)
)
GAINS = {"droid": DROID_GAINS, "stiff": STIFF_GAINS}


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


class FrankyArm:
    """What both franky backends share: the connection, limits, the state, homing and recovery."""

    drive: Drive

    def __init__(self, host: str, limits: SafetyLimits, *, realtime: bool = True) -> None:
        """realtime: refuse a kernel without PREEMPT_RT, as a real arm needs; False for simulators."""
        self.host, self.limits, self.realtime = host, limits, realtime
        self._robot: Any = None
        self._franky: Any = None
        self._robot_time = -1.0
        self._state_time = 0.0

    def connect(self) -> ArmState:
        import franky

        self._franky = franky
        config = franky.RealtimeConfig.Enforce if self.realtime else franky.RealtimeConfig.Ignore
        try:
            self._robot = robot = franky.Robot(self.host, realtime_config=config)
            robot.set_collision_behavior(
                [self.limits.collision_torque] * 7, [self.limits.collision_force] * 6
            )
            # franky's own defaults hold Panda's limits on an FR3 and the reverse; they are never used.
            robot.joint_velocity_limit.set([self.limits.velocity] * 7)
            robot.joint_acceleration_limit.set([min(self.limits.acceleration, 2.0)] * 7)
            robot.joint_jerk_limit.set([1000.0] * 7)
            return self.read()
        except Exception as error:
            raise ArmFault(
                f"no connection to the arm at {self.host}: {error}",
                fix="enable FCI in Desk, unlock the joints, and check that no other program owns the arm",
            ) from error

    def read(self) -> ArmState:
        try:
            state = self._robot.state
            moving = bool(self._robot.is_in_control)
        except Exception as error:
            raise ArmFault(f"the arm's state cannot be read: {error}") from error
        robot_time = state.time.to_sec()
        if robot_time != self._robot_time:
            self._robot_time, self._state_time = robot_time, time.monotonic()
        return ArmState(
            q=np.array(state.q),
            dq=np.array(state.dq),
            q_command=self._tracked(np.array(state.q_d)),
            tau=np.array(state.tau_J),
            tau_external=np.array(state.tau_ext_hat_filtered),
            time=self._state_time,
            success_rate=float(state.control_command_success_rate),
            moving=moving,
            mode=str(state.robot_mode).rsplit(".", 1)[-1],
            robot_time=robot_time,
        )

    def _tracked(self, q_d: Array) -> Array:
        return q_d

    def needs_recovery(self) -> str:
        state = self._robot.state
        mode = str(state.robot_mode).rsplit(".", 1)[-1]
        return f"{mode}: {state.current_errors}" if mode in ("Reflex", "UserStopped") else ""

    def recover(self) -> None:
        if not self._robot.recover_from_errors():
            raise ArmFault("the arm did not recover", fix="look at Desk")

    def go_to(self, q: Array, speed: float) -> None:
        factor = min(speed / self.limits.velocity, 1.0)
        self._blocking(self._franky.JointMotion([float(x) for x in q], relative_dynamics_factor=factor))

    def start(self) -> None: ...

    def close(self) -> None:
        self._robot = None

    def _blocking(self, motion: Any) -> None:
        try:
            self._robot.move(motion)
        except Exception as error:
            raise ArmFault(f"the arm stopped: {error}") from error

    def _join(self, seconds: float) -> None:
        """Waits for the arm to rest; a motion that was replaced is no error."""
        try:
            if not self._robot.join_motion(timeout=seconds):
                self._robot.stop()
        except Exception as error:
            if "preempted" not in str(error):
                raise ArmFault(f"the arm stopped: {error}") from error


class PositionArm(FrankyArm):
    """Each command replaces an asynchronous joint motion; franky's Ruckig is the only smoother.

    With velocity <= 1.5, acceleration 2, jerk 1000 and the target a row and 100 ms ahead: other settings end
    in acceleration or velocity discontinuity reflexes.
    """

    drive = POSITION

    def __init__(self, host: str, limits: SafetyLimits, *, realtime: bool = True) -> None:
        super().__init__(host, limits, realtime=realtime)
        self._sent: Array | None = None

    def start(self) -> None:
        self._sent = None

    def command(self, q: Array, dq: Array) -> None:
        try:
            self._robot.poll_motion()  # raises what ended the motion before
            if self._sent is not None and np.array_equal(q, self._sent):
                return  # held: the motion under way ends there
            motion = self._franky.JointMotion([float(x) for x in q])
            self._robot.move(motion, asynchronous=True)
        except Exception as error:
            raise ArmFault(f"the arm stopped: {error}") from error
        self._sent = np.array(q)

    def stop(self) -> None:
        try:
            if self._robot.is_in_control:
                self._robot.move(self._franky.JointStopMotion(), asynchronous=True)
        except Exception as error:
            raise ArmFault(f"the arm stopped: {error}") from error
        self._join(3.0)


class ImpedanceArm(FrankyArm):
    """franky's joint impedance tracker, fed every 5 ms with a reference that the pilot already smoothed."""

    drive = IMPEDANCE

    def __init__(
        self, host: str, limits: SafetyLimits, *, gains: Gains = DROID_GAINS, realtime: bool = True
    ) -> None:
        super().__init__(host, limits, realtime=realtime)
        self.gains = gains
        self._tracker: Any = None
        self._reference: Array | None = None

    def _tracked(self, q_d: Array) -> Array:
        return np.full(7, np.nan) if self._reference is None else self._reference

    def start(self) -> None:
        gains = self.gains
        cartesian: dict[str, Any] = {}
        if gains.cartesian_stiffness is not None and gains.cartesian_damping is not None:
            cartesian = {
                "cartesian_stiffness": np.array(gains.cartesian_stiffness),
                "cartesian_damping": np.array(gains.cartesian_damping),
            }
        try:
            self._tracker = self._franky.JointImpedanceTracker(
                self._robot,
                stiffness=np.array(gains.stiffness),
                damping=np.array(gains.damping),
                lower_joint_limits=np.array(self.limits.arm.low),
                upper_joint_limits=np.array(self.limits.arm.high),
                **cartesian,
            )
        except Exception as error:
            raise ArmFault(f"the arm did not start: {error}") from error

    def command(self, q: Array, dq: Array) -> None:
        try:
            if not self._robot.is_in_control:
                self._robot.poll_motion()  # raises what ended it
                self._robot.join_motion()
                raise ArmFault("the arm's tracker ended by itself")
            self._tracker.set_target(np.array(q), np.array(dq))
        except ArmFault:
            raise
        except Exception as error:
            raise ArmFault(f"the arm stopped: {error}") from error
        self._reference = np.array(q)

    def stop(self) -> None:
        tracker, self._tracker, self._reference = self._tracker, None, None
        if tracker is None:
            return
        try:
            if self._robot.is_in_control:
                self._robot.move(self._franky.TorqueStopMotion(), asynchronous=True)
        except Exception as error:
            raise ArmFault(f"the arm stopped: {error}") from error
        self._join(3.0)

    def close(self) -> None:
        with suppress(ArmFault):
            self.stop()
        super().close()


def limits_for(backend: BackendName, **changes: Any) -> SafetyLimits:
    """The default limits of a backend: its own acceleration and jerk, everything else shared."""
    own: dict[str, float] = {"position": {}, "impedance": {"acceleration": 4.0, "jerk": 100.0}}[backend]
    return SafetyLimits(**{**own, **changes})

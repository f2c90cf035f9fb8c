"""An arm through franky: by joint motions or by its impedance tracker. One process owns the arm.

Which motions survive on a robot that enforces its limits, and why these settings: docs/howto/franka.md.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wamserve.clients.franka.arm import IMPEDANCE, POSITION, ArmFault, ArmState
from wamserve.clients.franka.limits import Array, SafetyLimits
from wamserve.clients.franka.pilot import Drive

BackendName = Literal["position", "impedance"]


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

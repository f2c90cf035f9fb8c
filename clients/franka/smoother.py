"""Smoother: governed targets -> a reference of bounded velocity, acceleration and jerk, by Ruckig.

For the impedance backend, whose tracker follows whatever it is given. The position backend needs none:
franky's own Ruckig is the only smoother there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from wamserve.clients.franka.governor import MotionRefused, Note, ToolAt
from wamserve.clients.franka.limits import Array, SafetyLimits

BOX_MARGIN = 0.005  # m the reference's braking path keeps from the workspace's faces


@dataclass(frozen=True, eq=False)
class Reference:
    """The arm's reference at one instant."""

    q: Array  # [7] rad
    dq: Array  # [7] rad/s
    ddq: Array  # [7] rad/s^2
    notes: tuple[Note, ...] = ()


class Smoother:
    """Follows targets; from every state it can brake to rest inside the joint ranges and the workspace.

    Each joint is timed by itself: then a joint always brakes as hard as it may when its target turns back,
    and never runs past the target before.
    """

    def __init__(self, limits: SafetyLimits, tool_at: ToolAt, period: float = 0.005) -> None:
        """period: seconds between references."""
        import ruckig

        self.limits, self.period, self._tool_at, self._ruckig = limits, period, tool_at, ruckig
        self._otg = ruckig.Ruckig(7, period)
        self._in: Any = ruckig.InputParameter(7)
        self._out: Any = ruckig.OutputParameter(7)
        self._in.synchronization = ruckig.Synchronization.No
        self._in.max_velocity = [limits.velocity] * 7
        self._in.max_acceleration = limits.acceleration_per_joint().tolist()
        self._in.max_jerk = [limits.jerk] * 7
        self._begun = False

    def begin(self, q: Array) -> None:
        """At rest at `q` [7]."""
        self._set(Reference(np.asarray(q, np.float64), np.zeros(7), np.zeros(7)))
        self._begun = True

    def step(self, target: Array | None) -> Reference:
        """One period on, towards `target` [7] inside the joint ranges; None brakes to rest."""
        if not self._begun:
            raise MotionRefused("the smoother was not told where the arm is", fix="begin(q)")
        now = self._state
        if target is None:
            return self._brake(now, ())
        ahead = self._solve(now, np.clip(target, self.limits.low, self.limits.high))
        if ahead is None:
            return self._brake(now, (Note("clamped", "brake", 0.0, 0.0),))
        note = self._unsafe(ahead)
        if note is not None:
            return self._brake(now, (note,))
        self._set(ahead)
        return ahead

    def _unsafe(self, state: Reference) -> Note | None:
        """Why no step may end in `state`: its braking path leaves the workspace, or the tool is too fast."""
        limits = self.limits
        beyond = self._beyond_workspace(self._braking_path(state))
        if beyond > 0.0:
            return Note("clamped", "workspace", beyond, 0.0)
        # Speed once the acceleration under way has been taken back.
        peak = state.dq + state.ddq * np.abs(state.ddq) / (2.0 * limits.jerk)
        speed = float(np.linalg.norm(self._tool_at(state.q + 1e-4 * peak) - self._tool_at(state.q)) / 1e-4)
        if speed > limits.tcp_speed:
            return Note("clamped", "tool speed", speed, limits.tcp_speed)
        return None

    def _beyond_workspace(self, path: Array) -> float:
        """How far the path comes closer to the faces than the margin; a start that is closer may leave."""
        box = self.limits.workspace
        points = self._tool_at(path)
        low, high = np.asarray(box.low) + BOX_MARGIN, np.asarray(box.high) - BOX_MARGIN
        start = self._tool_at(np.asarray(self._in.current_position))
        low, high = np.minimum(low, start), np.maximum(high, start)
        return float(np.maximum(low - points, points - high).max())

    def _braking_path(self, state: Reference) -> Array:
        """[5, 7]: `state` and the joints along the way to rest from it."""
        self._load(state)
        self._in.control_interface = self._ruckig.ControlInterface.Velocity
        self._in.target_velocity = [0.0] * 7
        self._in.target_acceleration = [0.0] * 7
        trajectory = self._ruckig.Trajectory(7)
        result = self._otg.calculate(self._in, trajectory)
        self._restore()
        if result not in (self._ruckig.Result.Working, self._ruckig.Result.Finished):
            raise MotionRefused(f"no braking path: {result}", seen=state.dq.tolist())
        times = np.linspace(0.0, trajectory.duration, 5)[1:]
        return np.array([state.q, *(trajectory.at_time(time)[0] for time in times)])

    def _solve(self, now: Reference, target: Array) -> Reference | None:
        self._load(now)
        self._in.control_interface = self._ruckig.ControlInterface.Position
        self._in.target_position = target.tolist()
        self._in.target_velocity = [0.0] * 7
        self._in.target_acceleration = [0.0] * 7
        return self._update()

    def _brake(self, now: Reference, notes: tuple[Note, ...]) -> Reference:
        self._load(now)
        self._in.control_interface = self._ruckig.ControlInterface.Velocity
        self._in.target_velocity = [0.0] * 7
        self._in.target_acceleration = [0.0] * 7
        ahead = self._update()
        if ahead is None:
            raise MotionRefused("the arm's reference cannot brake", seen=now.dq.tolist())
        self._set(ahead)
        return Reference(ahead.q, ahead.dq, ahead.ddq, notes)

    def _update(self) -> Reference | None:
        result = self._otg.update(self._in, self._out)
        self._restore()
        if result not in (self._ruckig.Result.Working, self._ruckig.Result.Finished):
            return None
        out = self._out
        return Reference(
            np.array(out.new_position), np.array(out.new_velocity), np.array(out.new_acceleration)
        )

    def _set(self, state: Reference) -> None:
        self._state = state
        self._restore()

    def _load(self, state: Reference) -> None:
        self._in.current_position = state.q.tolist()
        self._in.current_velocity = state.dq.tolist()
        self._in.current_acceleration = state.ddq.tolist()

    def _restore(self) -> None:
        self._load(self._state)

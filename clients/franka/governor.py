"""SafetyGovernor: what a policy asks for -> what the arm may be told. Pure: no clock, no robot, no network.

Clamping bends a wish towards the limits and says so; refusing keeps the command in force and says so. In
both cases the note holds the value and the limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wamserve.action_codec.errors import CodecError, WamError
from wamserve.clients.franka.kinematics import tool_position
from wamserve.clients.franka.limits import Array, SafetyLimits
from wamserve.embodiments.contract import Kinematics

ToolAt = Callable[[Array], Array]  # joint angles [..., 7] -> tool centre point [..., 3], metres
Reason = Literal[
    "not finite",
    "width",
    "stale",
    "from the future",
    "first row",
    "row jump",
    "far from the arm",
    "joint range",
    "speed",
    "tool speed",
    "workspace",
    "brake",
]

SLACK = 1e-9  # of floating point, in every comparison below
FRACTIONS = np.array([1.0, 0.98, 0.9, 0.7, 0.4, 0.15])  # of a step, tried from the longest


class MotionRefused(WamError):
    """The arm may not move from here, or not as asked."""


@dataclass(frozen=True)
class Note:
    """One thing the governor did."""

    action: Literal["clamped", "refused"]
    reason: Reason
    value: float  # what was asked for, in the unit of the limit
    limit: float
    joint: int = -1  # 0 .. 6; -1: not of one joint


@dataclass(frozen=True, eq=False)
class Command:
    """What the arm is told now."""

    q: Array  # [7] rad
    notes: tuple[Note, ...] = ()

    @property
    def refused(self) -> bool:
        return any(note.action == "refused" for note in self.notes)


@dataclass(frozen=True, eq=False)
class Bounded:
    """The result of `bounded_step`, with what each bound took away."""

    q: Array  # [..., 7] rad
    ranged: Array  # [..., 7] wish after the joint range
    stepped: Array  # [..., 7] wish after the speed
    tool_step: Array  # [...] m the tool would have moved
    outside: Array  # [...] m the wish after joint range and speed lay outside the workspace
    fraction: Array  # [...] share of the step that was taken; 0: none


def bounded_step(limits: SafetyLimits, tool_at: ToolAt, last: Array, wish: Array, seconds: float) -> Bounded:
    """The farthest point towards `wish` [..., 7] that `seconds` from `last` [..., 7] may be commanded.

    `last` is inside the joint range and the workspace; so is the result, and neither a joint nor the tool
    moves faster than allowed. All inputs are finite.
    """
    ranged = np.clip(wish, limits.low, limits.high)
    delta = np.clip(ranged - last, -limits.step, limits.step)
    # Twice: the speed curve falls along the step, and a shorter step ends where it is higher.
    for at in (last, last + np.clip(delta, *(seconds * v for v in limits.velocity_at(last)))):
        down, up = limits.velocity_at(at)
        delta = np.clip(delta, seconds * down, seconds * up)
    origin = tool_at(last)
    reached = tool_at(last + delta)
    tool_step = np.linalg.norm(reached - origin, axis=-1)
    most = limits.tcp_speed * seconds
    share = np.minimum(1.0, most / np.maximum(tool_step, SLACK))
    tries = share[..., None] * FRACTIONS  # [..., F]
    points = tool_at(last[..., None, :] + tries[..., None] * delta[..., None, :])
    fine = limits.workspace.outside(points) <= 0.0
    fine &= np.linalg.norm(points - origin[..., None, :], axis=-1) <= most + SLACK
    best = np.argmax(fine, axis=-1)  # the first that is
    fraction = np.where(fine.any(axis=-1), np.take_along_axis(tries, best[..., None], -1)[..., 0], 0.0)
    return Bounded(
        q=last + fraction[..., None] * delta,
        ranged=ranged,
        stepped=last + delta,
        tool_step=tool_step,
        outside=limits.workspace.outside(reached),
        fraction=fraction,
    )


class SafetyGovernor:
    """Remembers the command in force, and lets it move only inside the limits."""

    def __init__(self, limits: SafetyLimits, chain: Kinematics, period: float) -> None:
        """period: seconds between commands."""
        if not (0.0 < period <= 1.0):
            raise CodecError("a control period is between 0 and 1 s", seen=period)
        self.limits = limits
        self.period = period
        self.tool_at: ToolAt = lambda q: tool_position(chain, q, limits.tool)
        self._last: Array | None = None

    @property
    def commanded(self) -> Array:
        """[7] rad, the command in force."""
        if self._last is None:
            raise MotionRefused("the governor was not told where the arm is", fix="begin(q)")
        return self._last

    def begin(self, q: Array) -> None:
        """Starts from the measured joints [7]. Raises MotionRefused where the arm may not even stand."""
        q = np.asarray(q, np.float64)
        self.check_pose(q)
        self._last = q

    def rebase(self, q: Array) -> None:
        """The command in force is now `q` [7]: where the arm was brought to rest, inside the limits."""
        self._last = np.asarray(q, np.float64)

    def check_pose(self, q: Array) -> None:
        """Raises MotionRefused for joints outside their ranges or a tool outside the workspace."""
        if q.shape != (7,) or not np.isfinite(q).all():
            raise MotionRefused("not seven joint angles", seen=q.tolist())
        low, high = self.limits.low, self.limits.high
        for joint in range(7):
            if not low[joint] <= q[joint] <= high[joint]:
                raise MotionRefused(
                    f"joint {joint + 1} stands outside its range",
                    seen=f"{q[joint]:.3f} rad",
                    expected=f"{low[joint]:.3f} .. {high[joint]:.3f} rad",
                    fix="guide the arm inside by hand, or run with --home",
                )
        point = self.tool_at(q)
        if self.limits.workspace.outside(point) > 0.0:
            raise MotionRefused(
                "the tool stands outside the workspace",
                seen=np.round(point, 3).tolist(),
                expected=f"{self.limits.workspace.low} .. {self.limits.workspace.high} m",
                fix="guide the arm inside by hand, run with --home, or give the workspace of your table",
            )

    def check_chunk(self, rows: Array, due: int, late: float) -> Note | None:
        """Why a chunk [H, 7] may not be played, or None.

        `due` is the row that would be played next, `late` the seconds from its observation to now.
        """
        limits = self.limits
        rows = np.asarray(rows)
        if rows.ndim != 2 or rows.shape[1] != 7 or rows.dtype.kind not in "fiu" or len(rows) == 0:
            return Note("refused", "width", rows.shape[-1] if rows.ndim else 0, 7)
        if not np.isfinite(rows).all():
            return Note(
                "refused", "not finite", float("nan"), 0.0, int(np.argwhere(~np.isfinite(rows))[0][1])
            )
        if late < -self.period:
            return Note("refused", "from the future", -late, self.period)
        if due >= len(rows):
            return Note("refused", "stale", late, len(rows) * self.period)
        rows = rows.astype(np.float64)
        jump = np.abs(rows[due] - self.commanded)
        if jump.max() > limits.first_jump:
            return Note("refused", "first row", float(jump.max()), limits.first_jump, int(jump.argmax()))
        steps = np.abs(np.diff(rows[due:], axis=0))
        if steps.size and steps.max() > limits.row_jump:
            joint = int(np.unravel_index(steps.argmax(), steps.shape)[1])
            return Note("refused", "row jump", float(steps.max()), limits.row_jump, joint)
        return None

    def step(self, wish: Array | None, measured: Array, seconds: float | None = None) -> Command:
        """The command for now. `wish` None holds; `seconds` since the last command, at most one period."""
        last = self.commanded
        if wish is None:
            return Command(last)
        wish = np.asarray(wish, np.float64)
        if wish.shape != (7,) or not np.isfinite(wish).all():
            return Command(last, (Note("refused", "not finite", float("nan"), 0.0),))
        if not np.isfinite(measured).all():
            return Command(last, (Note("refused", "not finite", float("nan"), 0.0),))
        far = np.abs(wish - measured)
        if far.max() > self.limits.row_jump:
            joint = int(far.argmax())
            return Command(
                last, (Note("refused", "far from the arm", float(far[joint]), self.limits.row_jump, joint),)
            )
        seconds = self.period if seconds is None else min(max(seconds, 0.0), self.period)
        bounded = bounded_step(self.limits, self.tool_at, last, wish, seconds)
        self._last = bounded.q
        return Command(bounded.q, self._notes(wish, last, bounded, seconds))

    def _notes(self, wish: Array, last: Array, bounded: Bounded, seconds: float) -> tuple[Note, ...]:
        notes: list[Note] = []
        limits = self.limits
        cut = np.abs(bounded.ranged - wish)
        if cut.max() > SLACK:
            joint = int(cut.argmax())
            end = limits.low if wish[joint] < limits.low[joint] else limits.high
            notes.append(Note("clamped", "joint range", float(wish[joint]), float(end[joint]), joint))
        cut = np.abs(bounded.stepped - bounded.ranged)
        if cut.max() > SLACK:
            joint = int(cut.argmax())
            asked, taken = (abs(x[joint] - last[joint]) for x in (bounded.ranged, bounded.stepped))
            notes.append(Note("clamped", "speed", float(asked), float(taken), joint))
        most = limits.tcp_speed * seconds
        if bounded.tool_step > most + SLACK:
            notes.append(Note("clamped", "tool speed", float(bounded.tool_step), most))
        if bounded.outside > 0.0:
            notes.append(
                Note(
                    "refused" if bounded.fraction == 0.0 else "clamped",
                    "workspace",
                    float(bounded.outside),
                    0.0,
                )
            )
        return tuple(notes)

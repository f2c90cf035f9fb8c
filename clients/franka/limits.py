"""What a Franka arm can do at most, and what we let it do: tables for Panda, FR3 and both at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from wamserve.action_codec.errors import ContractError

Array = np.ndarray
Seven = tuple[float, float, float, float, float, float, float]
ArmName = Literal["portable", "panda", "fr3"]


def _seven(value: float) -> Seven:
    return (value,) * 7


@dataclass(frozen=True)
class VelocityCurve:
    """Speed towards a joint's end falls as it nears: |dq| <= -offset + sqrt(slope (end - q)), never below 0.

    libfranka 0.15+, rate_limiting.h. Ends lie just outside the joint range.
    """

    offset: Seven  # rad/s
    slope: Seven  # rad/s^2
    low: Seven  # rad
    high: Seven

    def at(self, q: Array) -> tuple[Array, Array]:
        """Joint angles [..., 7] -> most negative and most positive joint speed there, rad/s."""
        offset, slope = np.asarray(self.offset), np.asarray(self.slope)
        up = -offset + np.sqrt(np.maximum(0.0, slope * (np.asarray(self.high) - q)))
        down = -offset + np.sqrt(np.maximum(0.0, slope * (q - np.asarray(self.low))))
        return -np.maximum(0.0, down), np.maximum(0.0, up)


@dataclass(frozen=True)
class ArmLimits:
    """What the arm itself refuses to exceed (its reflexes), joint by joint."""

    name: str
    low: Seven  # rad
    high: Seven  # rad
    velocity: Seven  # rad/s
    acceleration: Seven  # rad/s^2
    jerk: Seven  # rad/s^3
    torque: Seven = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)  # Nm
    curve: VelocityCurve | None = None  # None: speed does not depend on position

    def velocity_at(self, q: Array) -> tuple[Array, Array]:
        """Joint angles [..., 7] -> most negative and most positive joint speed there, rad/s."""
        most = np.broadcast_to(np.asarray(self.velocity), np.shape(q))
        if self.curve is None:
            return -most, most
        down, up = self.curve.at(np.asarray(q, np.float64))
        return np.maximum(-most, down), np.minimum(most, up)


# Franka Robotics documentation, "Robot and interface specifications", Panda (FER).
PANDA = ArmLimits(
    name="panda",
    low=(-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
    high=(2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
    velocity=(2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),
    acceleration=(15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0),
    jerk=(7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0),
)

# libfranka 0.15+, rate_limiting.h.
FR3 = ArmLimits(
    name="fr3",
    low=(-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159),
    high=(2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159),
    velocity=(2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26),
    acceleration=_seven(10.0),
    jerk=_seven(5000.0),
    curve=VelocityCurve(
        offset=(0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35),
        slope=(12.0, 5.17, 7.0, 8.0, 34.0, 11.0, 34.0),
        low=(-2.7501, -1.7918, -2.9065, -3.0481, -2.8101, 0.54092, -3.0196),
        high=(2.7501, 1.7918, 2.9065, -0.1458, 2.8101, 4.5205, 3.0196),
    ),
)


def intersection(a: ArmLimits, b: ArmLimits, name: str) -> ArmLimits:
    """What both arms accept."""
    if a.curve is not None and b.curve is not None:
        raise ContractError(
            "two position-dependent speed limits cannot be joined", seen=f"{a.name}, {b.name}"
        )

    def least(x: Seven, y: Seven) -> Seven:
        return tuple(map(min, x, y))  # type: ignore[return-value]

    return ArmLimits(
        name=name,
        low=tuple(map(max, a.low, b.low)),  # type: ignore[arg-type]
        high=least(a.high, b.high),
        velocity=least(a.velocity, b.velocity),
        acceleration=least(a.acceleration, b.acceleration),
        jerk=least(a.jerk, b.jerk),
        torque=least(a.torque, b.torque),
        curve=a.curve or b.curve,
    )


PORTABLE = intersection(PANDA, FR3, "portable")
ARMS: dict[str, ArmLimits] = {"portable": PORTABLE, "panda": PANDA, "fr3": FR3}


@dataclass(frozen=True)
class Box:
    """Where the tool centre point may be, metres in the arm's base frame."""

    low: tuple[float, float, float] = (0.25, -0.45, 0.02)
    high: tuple[float, float, float] = (0.75, 0.45, 0.90)

    def outside(self, points: Array) -> Array:
        """Points [..., 3] -> how far each lies outside, metres [...]; 0 inside."""
        over = np.maximum(np.asarray(self.low) - points, points - np.asarray(self.high))
        return np.maximum(over, 0.0).max(axis=-1)


@dataclass(frozen=True)
class SafetyLimits:
    """What we allow. Every default lies inside the portable table; a looser one is refused."""

    arm: ArmLimits = PORTABLE
    margin_low: Seven = (0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)  # rad kept from the lower ends
    margin_high: Seven = (0.1, 0.1, 0.1, 0.2, 0.1, 0.2, 0.1)  # rad kept from the upper ends
    velocity: float = 1.0  # rad/s, every joint; 0.3 for first runs
    acceleration: float = 2.0  # rad/s^2; the impedance backend allows 4
    jerk: float = 1000.0  # rad/s^3; the impedance backend allows 100
    step: float = 0.1  # rad a joint's target may move per control step, however slow the rate
    first_jump: float = 0.2  # rad between a chunk's first row and the command in force; more refuses it
    row_jump: float = 0.35  # rad between neighbouring rows, or target and measured joint; more refuses it
    tracking_error: float = 0.3  # rad between command and measured joint ...
    tracking_seconds: float = 0.1  # ... for this long stops the arm
    tcp_speed: float = 0.25  # m/s; 0.5 once trusted
    workspace: Box = field(default_factory=Box)
    tool: float = 0.1034  # m from the flange to the tool centre point, along the flange's z
    stale_seconds: float = 0.3  # how long a spent chunk is held before the arm is slowed to a stop
    collision_torque: float = 20.0  # Nm; DROID uses 40
    collision_force: float = 30.0  # N; DROID uses 40

    def __post_init__(self) -> None:
        for name in ("velocity", "acceleration", "jerk"):
            least = min(getattr(self.arm, name))
            if not 0.0 < getattr(self, name) <= least:
                raise ContractError(
                    f"{name} limit does not fit the {self.arm.name} arm",
                    seen=getattr(self, name),
                    expected=f"above 0, at most {least}",
                )
        for name in ("step", "first_jump", "row_jump", "tracking_error", "tracking_seconds", "tcp_speed"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0.0):
                raise ContractError(f"{name} must be positive", seen=getattr(self, name))
        if min(self.margin_low) < 0.0 or min(self.margin_high) < 0.0 or not (self.low < self.high).all():
            raise ContractError("the joint margins leave no room", seen=(self.margin_low, self.margin_high))

    @property
    def low(self) -> Array:
        """Lowest target of each joint, rad [7]."""
        return np.asarray(self.arm.low) + self.margin_low

    @property
    def high(self) -> Array:
        return np.asarray(self.arm.high) - self.margin_high

    def velocity_at(self, q: Array) -> tuple[Array, Array]:
        """Joint angles [..., 7] -> most negative and most positive speed allowed there, rad/s."""
        down, up = self.arm.velocity_at(q)
        return np.maximum(down, -self.velocity), np.minimum(up, self.velocity)

    def acceleration_per_joint(self) -> Array:
        """rad/s^2 [7]: low enough that braking before a joint's end stays below its speed curve."""
        most = np.full(7, self.acceleration)
        return most if self.arm.curve is None else np.minimum(most, 0.5 * np.asarray(self.arm.curve.slope))

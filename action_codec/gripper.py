"""What a gripper number means: which end is open, in which unit, over which range. Nothing here guesses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from wamserve.action_codec.arrays import Array, checked, first_row, one_of
from wamserve.action_codec.errors import CodecError

Unit = Literal["fraction", "m", "sign", "count"]
# What happens to numbers outside [low, high]: passed on linearly, clipped, or refused.
Beyond = Literal["pass", "clip", "refuse"]


class Polarity(str, Enum):
    """Which hand the upper end of the range shows."""

    ONE_IS_OPEN = "one_is_open"
    ONE_IS_CLOSED = "one_is_closed"


def polarity_named(name: str) -> Polarity:
    """The polarity called `name`. Raises CodecError listing both."""
    try:
        return Polarity(name)
    except ValueError:
        raise CodecError(
            f"gripper polarity {name!r} is unknown", expected=" or ".join(p.value for p in Polarity)
        ) from None


@dataclass(frozen=True)
class Gripper:
    """The meaning of one gripper number."""

    polarity: Polarity  # what `high` means
    unit: Unit = "fraction"  # m: distance between the fingers; sign: -1 .. 1; count: the device's own
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "polarity", polarity_named(self.polarity))
        one_of("gripper unit", self.unit, Unit)
        if not self.low < self.high:
            raise CodecError(
                "gripper range is empty", seen=f"low {self.low}, high {self.high}", expected="low < high"
            )

    @property
    def closed(self) -> float:
        return self.low if self.polarity is Polarity.ONE_IS_OPEN else self.high

    @property
    def opened(self) -> float:
        return self.high if self.polarity is Polarity.ONE_IS_OPEN else self.low


FRACTION_ONE_IS_OPEN = Gripper(Polarity.ONE_IS_OPEN)
FRACTION_ONE_IS_CLOSED = Gripper(Polarity.ONE_IS_CLOSED)
SIGN_ONE_IS_OPEN = Gripper(Polarity.ONE_IS_OPEN, "sign", -1.0, 1.0)
SIGN_ONE_IS_CLOSED = Gripper(Polarity.ONE_IS_CLOSED, "sign", -1.0, 1.0)


def open_fraction_from_gripper(values: ArrayLike, gripper: Gripper, beyond: Beyond = "pass") -> Array:
    """Any gripper number -> 1 = open, 0 = closed, elementwise.

    `beyond` says what happens outside [low, high]: passed linearly, clipped, or refused by CodecError.
    """
    one_of("gripper rule", beyond, Beyond)
    v = checked("gripper", values)
    if beyond == "refuse":
        slack = 1e-6 * (gripper.high - gripper.low)
        bad = (v < gripper.low - slack) | (v > gripper.high + slack)
        if bad.any():
            raise CodecError(
                f"gripper {first_row(bad)} lies outside its range",
                seen=float(v[bad][0]) if v.ndim else float(v),
                expected=f"{gripper.low:g} .. {gripper.high:g} ({gripper.unit}, {gripper.polarity.value})",
            )
    fraction = (v - gripper.closed) / (gripper.opened - gripper.closed)
    return np.clip(fraction, 0.0, 1.0) if beyond == "clip" else fraction


def gripper_from_open_fraction(fraction: ArrayLike, gripper: Gripper, beyond: Beyond = "pass") -> Array:
    """1 = open, 0 = closed -> the numbers of `gripper`, elementwise."""
    f = open_fraction_from_gripper(fraction, FRACTION_ONE_IS_OPEN, beyond)
    return gripper.closed + f * (gripper.opened - gripper.closed)


def gripper_from_gripper(
    values: ArrayLike, source: Gripper, target: Gripper, beyond: Beyond = "pass"
) -> Array:
    """Numbers of `source` -> numbers of `target`, keeping how far the hand is open."""
    return gripper_from_open_fraction(open_fraction_from_gripper(values, source, beyond), target)


def gripper_with_hysteresis(
    values: ArrayLike, gripper: Gripper, is_open: bool, open_above: float = 0.6, close_below: float = 0.4
) -> Array:
    """A binary hand that does not chatter: [T] numbers -> [T] fully open or fully closed.

    The hand changes only when the open fraction rises above `open_above` or falls below `close_below`;
    `is_open` is what it does before the first row.
    """
    if not close_below < open_above:
        raise CodecError(
            "hysteresis is empty", seen=f"{close_below} .. {open_above}", expected="close < open"
        )
    fractions = open_fraction_from_gripper(values, gripper)
    if fractions.ndim != 1:
        raise CodecError(
            "hysteresis runs over one gripper's rows", seen=list(fractions.shape), expected="[T]"
        )
    out = np.empty(len(fractions))
    for row, fraction in enumerate(fractions):
        is_open = bool(fraction > open_above) if not is_open else bool(fraction >= close_below)
        out[row] = gripper.opened if is_open else gripper.closed
    return out

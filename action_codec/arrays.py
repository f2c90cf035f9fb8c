"""Checked float64 arrays: every number that enters the codec passes here; a bad one is named by its row."""

from __future__ import annotations

from typing import TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wamserve.action_codec.errors import CodecError

Array: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]


def checked(what: str, values: ArrayLike, *trailing: int) -> Array:
    """`values` as float64 [..., *trailing], without copying when they already are.

    Raises CodecError when the trailing shape differs or a number is NaN or infinite; `what` opens its text.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CodecError(f"{what} is not an array of numbers", seen=error) from None
    if array.shape[array.ndim - len(trailing) :] != trailing or array.ndim < len(trailing):
        raise CodecError(
            f"{what} has the wrong width", seen=list(array.shape), expected=f"[..., {shape_text(trailing)}]"
        )
    finite = np.isfinite(array)
    if not finite.all():
        trailing_axes = tuple(range(-len(trailing), 0))
        bad = np.asarray(~finite.all(axis=trailing_axes) if trailing else ~finite)
        raise CodecError(f"{what} {first_row(bad)} is not finite", seen=_row_of(array, bad))
    return array


def one_of(what: str, value: object, choices: object) -> None:
    """CodecError unless `value` is one of the strings of the Literal `choices`: a typo is no default."""
    known = get_args(choices)
    if value not in known:
        raise CodecError(f"{what} {value!r} is unknown", expected=", ".join(known))


def first_row(bad: ArrayLike) -> str:
    """Where the first True of `bad` lies, as a reader says it: "row 3", "row (0, 3)"."""
    index = tuple(int(i) for i in np.argwhere(np.atleast_1d(bad))[0])
    return f"row {index[0] if len(index) == 1 else index}"


def shape_text(shape: tuple[int, ...]) -> str:
    return ", ".join(str(size) for size in shape)


def frozen(array: ArrayLike) -> Array:
    """A read-only float64 copy, fit to live in a frozen dataclass."""
    copy = np.array(array, dtype=np.float64)
    copy.flags.writeable = False
    return copy


def _row_of(array: Array, bad: Mask) -> list[float]:
    rows = array.reshape(*bad.shape, -1) if bad.ndim else array.reshape(1, -1)
    row: list[float] = rows[np.atleast_1d(bad)][0].tolist()
    return row

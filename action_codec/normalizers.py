"""Raw actions (robot units) to model actions (about -1 .. 1) and back, dimension by dimension.

Which numbers are normalized how is declared: method, statistics block, clamp and constant dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from wamserve.action_codec.actions import ActionRows, ModelActions, RawActions
from wamserve.action_codec.arrays import Array, Mask, checked, first_row, frozen, one_of
from wamserve.action_codec.errors import CodecError
from wamserve.action_codec.layout import Layout

Method = Literal["quantile", "quantile_rot", "minmax", "meanstd", "scale", "none"]
Warp = Literal["none", "asinh", "piecewise_asinh"]
OffConstant = Literal["refuse", "ignore"]

# Statistics each method reads, low then high (or mean then deviation).
STATISTICS: dict[str, tuple[str, str]] = {
    "quantile": ("q01", "q99"),
    "quantile_rot": ("q01", "q99"),
    "minmax": ("min", "max"),
    "meanstd": ("mean", "std"),
}
# Block of a statistics file each method reads; quantile_rot wants rotations with their own quantiles.
STATISTICS_KEY: dict[str, str] = {"quantile_rot": "global_raw"}
FLOOR = 1e-8  # ranges up to here are constants
CONSTANT_SLACK = 1e-6  # relative distance from a constant that still counts as on it (float32 noise)
R = TypeVar("R", bound=ActionRows)


@dataclass(frozen=True, eq=False)
class Normalizer:
    """y = warp((x - offset) / half_width), x = unwarp(y) * half_width + offset, for rows of one meaning.

    Constant dimensions are outside the formula: they read as `constant_value` in model space and as `offset`
    in raw space, and a raw value that is off the constant is refused (or, with off_constant="ignore",
    replaced). Without that, one float of noise becomes 1e8.
    """

    method: Method
    offset: Array  # [D] raw units
    half_width: Array  # [D] raw units per model unit, > 0
    constant: Mask  # [D] True where the dimension never moves
    clamp: bool = False  # clip model values to -1 .. 1 on the way in; lossy
    constant_value: float = 0.0  # model-space value of constant dimensions: 0.0, or -1.0 (low end)
    off_constant: OffConstant = "refuse"
    warp: Warp = "none"

    def __post_init__(self) -> None:
        one_of("normalizer method", self.method, Method)
        one_of("warp", self.warp, Warp)
        one_of("rule for off-constant values", self.off_constant, OffConstant)
        object.__setattr__(self, "offset", frozen(checked("normalizer offset", self.offset)))
        object.__setattr__(
            self, "half_width", frozen(checked("normalizer half-width", self.half_width, len(self.offset)))
        )
        constant = np.array(self.constant, dtype=bool)
        constant.flags.writeable = False
        object.__setattr__(self, "constant", constant)
        if constant.shape != self.offset.shape:
            raise CodecError(
                "normalizer constants have the wrong width", seen=constant.shape, expected=self.offset.shape
            )
        bad = ~(self.half_width > 0.0) & ~constant
        if bad.any():
            raise CodecError(
                f"normalizer half-width is not positive in dimensions {np.flatnonzero(bad).tolist()}",
                expected="> 0, or the dimension declared constant",
            )

    @property
    def width(self) -> int:
        return len(self.offset)

    @property
    def identity(self) -> bool:
        """Whether raw and model space are the same numbers."""
        return self.method == "none"

    def to_model(self, actions: RawActions) -> ModelActions:
        """Raw -> model space. CodecError for ModelActions, a wrong width, state rows, off-constant values."""
        x = self._values(actions, RawActions)
        return ModelActions(self.model_from_raw(x))

    def to_raw(self, actions: ModelActions) -> RawActions:
        """Model -> raw space. CodecError for RawActions, another width, or state rows."""
        y = self._values(actions, ModelActions)
        return RawActions(self.raw_from_model(y))

    def model_from_raw(self, raw: ArrayLike) -> Array:
        """Bare arrays [..., D]; prefer `to_model`, which knows which space it was given."""
        x = checked("raw actions", raw, self.width)
        if self.identity:
            return np.clip(x, -1.0, 1.0) if self.clamp else x.copy()
        if self.constant.any():
            self._require_constant(x)
        y = _warped((x - self.offset) / np.where(self.constant, 1.0, self.half_width), self.warp)
        if self.clamp:
            np.clip(y, -1.0, 1.0, out=y)
        if self.constant.any():
            y[..., self.constant] = self.constant_value
        return y

    def raw_from_model(self, model: ArrayLike) -> Array:
        """Bare arrays [..., D]; prefer `to_raw`."""
        y = checked("model actions", model, self.width)
        if self.identity:
            return y.copy()
        x = _unwarped(y, self.warp) * self.half_width + self.offset
        if self.constant.any():
            x[..., self.constant] = self.offset[self.constant]
        return x

    def clamp_loss(self, raw: ArrayLike) -> Array:
        """Raw units lost by the clamp, elementwise |x - decode(encode(x))|; zeros without a clamp."""
        x = checked("raw actions", raw, self.width)
        return np.abs(x - self.raw_from_model(self.model_from_raw(x)))

    def check_layout(self, layout: Layout) -> None:
        """CodecError where the width differs, or where quantile_rot left a rot6d block un-scaled.

        Statistics with the identity for rotations (+-1) are the wrong block of the file: the model would see
        rotations many times too small.
        """
        if layout.width != self.width:
            raise CodecError("normalizer and layout differ in width", seen=self.width, expected=layout.width)
        if self.method != "quantile_rot":
            return
        for block in layout.blocks:
            columns = block.rotation_columns
            if columns is not None and (self.half_width[columns] >= 0.5).all():
                raise CodecError(
                    f"quantile_rot statistics leave the rotation of block {block.name!r} un-scaled",
                    seen=f"half-widths {self.half_width[columns].round(3).tolist()}",
                    expected="rotation quantiles narrower than 1",
                    fix=f"use the statistics block {STATISTICS_KEY['quantile_rot']!r}",
                )

    def _values(self, actions: object, wanted: type[R]) -> Array:
        if not isinstance(actions, wanted):
            raise CodecError(
                f"{type(actions).__name__} were given where {wanted.__name__} belong",
                expected=f"{wanted.__name__}(values)",
                fix="normalizer.to_model(RawActions(values)) or normalizer.to_raw(ModelActions(values))",
            )
        if actions.state_rows and not self.identity:
            raise CodecError(
                f"{actions.state_rows} state rows cannot pass through the action normalizer: "
                "an absolute state is not a delta",
                fix="ChunkNormalizer(actions=..., state=...)",
            )
        if actions.width != self.width:
            raise CodecError(
                f"{wanted.__name__} have the wrong width for this normalizer",
                seen=actions.width,
                expected=self.width,
            )
        return actions.values

    def _require_constant(self, x: Array) -> None:
        if self.off_constant == "ignore":
            return
        slack = CONSTANT_SLACK * np.maximum(1.0, np.abs(self.offset))
        bad: Mask = (np.abs(x - self.offset) > slack) & self.constant
        if bad.any():
            index = tuple(np.argwhere(bad)[0])
            raise CodecError(
                f"dimension {index[-1]} is constant here, but {first_row(bad.any(axis=-1))} is off it",
                seen=float(x[index]),
                expected=float(self.offset[index[-1]]),
            )


@dataclass(frozen=True, eq=False)
class ChunkNormalizer:
    """The normalizers of a chunk: one for action rows, one for state rows at its head."""

    actions: Normalizer
    state: Normalizer | None = None  # None: chunks have no state rows, or nothing is normalized

    def __post_init__(self) -> None:
        if self.state is not None and self.state.width != self.actions.width:
            raise CodecError(
                "state and action normalizers differ in width",
                seen=self.state.width,
                expected=self.actions.width,
            )

    def to_model(self, actions: RawActions) -> ModelActions:
        head, tail = self._split(actions, RawActions)
        rows = [self._state.model_from_raw(head), self.actions.to_model(RawActions(tail)).values]
        return ModelActions(np.concatenate(rows, axis=-2), actions.state_rows)

    def to_raw(self, actions: ModelActions) -> RawActions:
        head, tail = self._split(actions, ModelActions)
        rows = [self._state.raw_from_model(head), self.actions.to_raw(ModelActions(tail)).values]
        return RawActions(np.concatenate(rows, axis=-2), actions.state_rows)

    @property
    def _state(self) -> Normalizer:
        return self.state if self.state is not None else self.actions

    def _split(self, actions: object, wanted: type[R]) -> tuple[Array, Array]:
        if not isinstance(actions, wanted) or self.state is None:
            # The action normalizer owns both complaints: the wrong space, and state rows without statistics.
            self.actions._values(actions, wanted)
        assert isinstance(actions, ActionRows)
        return actions.values[..., : actions.state_rows, :], actions.values[..., actions.state_rows :, :]


def no_normalizer(width: int) -> Normalizer:
    """Model space is raw space."""
    return Normalizer("none", np.zeros(width), np.ones(width), np.zeros(width, bool))


def scale_normalizer(scale: ArrayLike) -> Normalizer:
    """y = scale * x, scale [D] non-zero model units per raw unit (AV: 1.35 on metres, 1 on rot6d)."""
    s = checked("normalizer scale", scale)
    if s.ndim != 1 or (s <= 0.0).any():
        raise CodecError("normalizer scale must be one positive number per dimension", seen=s.tolist())
    return Normalizer("scale", np.zeros(len(s)), 1.0 / s, np.zeros(len(s), bool))


def normalizer_from_stats(
    method: Method,
    stats: Mapping[str, object],
    *,
    clamp: bool = False,
    constant: tuple[int, ...] = (),
    constant_value: float = 0.0,
    off_constant: OffConstant = "refuse",
    floor: float = FLOOR,
    warp: Warp = "none",
    scale_floor: bool = False,
) -> Normalizer:
    """A normalizer from per-dimension statistics.

    stats: {"q01": [D], "q99": [D]} for quantile and quantile_rot, {"min", "max"} for minmax, {"mean", "std"}
    for meanstd; a file of several blocks goes through `stats_block` first. Quantiles and min-max map low to
    -1, high to 1; meanstd maps mean +- std. Dimensions whose range (std) is at most `floor` must be listed in
    `constant`, else CodecError names them. scale_floor widens the range to a fifth of the largest observed
    deviation (needs "min" and "max").
    """
    if method not in STATISTICS:
        raise CodecError(f"method {method!r} takes no statistics", expected=", ".join(STATISTICS))
    first, second = (_statistic(stats, name, method) for name in STATISTICS[method])
    if first.shape != second.shape:
        raise CodecError("statistics differ in width", seen=f"{len(first)} and {len(second)}")
    if method == "meanstd":
        offset, half_width, spread = first, second, second
    else:
        spread = second - first
        offset, half_width = 0.5 * (first + second), 0.5 * spread
    if (spread < 0.0).any():
        raise CodecError(f"statistics are upside down in dimensions {np.flatnonzero(spread < 0.0).tolist()}")
    declared = np.zeros(len(offset), bool)
    outside = [d for d in constant if not 0 <= d < len(offset)]
    if outside:
        raise CodecError("constant dimensions do not exist", seen=outside, expected=f"0 .. {len(offset) - 1}")
    declared[list(constant)] = True
    silent = (spread <= floor) & ~declared
    if silent.any():
        raise CodecError(
            f"dimensions {np.flatnonzero(silent).tolist()} never move in these statistics",
            seen=f"range at most {floor:g}",
            expected="constant dimensions declared, since dividing by such a range explodes",
            fix=f"constant={tuple(np.flatnonzero(silent | declared).tolist())}",
        )
    if scale_floor:
        low, high = _statistic(stats, "min", method), _statistic(stats, "max", method)
        half_width = np.maximum(half_width, np.maximum(np.abs(low - offset), np.abs(high - offset)) / 5.0)
    return Normalizer(
        method=method,
        offset=offset,
        half_width=half_width,
        constant=declared,
        clamp=clamp,
        constant_value=constant_value,
        off_constant=off_constant,
        warp=warp,
    )


def stats_block(
    document: Mapping[str, object], method: Method, key: str | None = None
) -> Mapping[str, object]:
    """The block of a statistics document that `method` reads.

    `key` names it; without one, quantile_rot reads "global_raw" and the others a flat document. A flat file
    serves every method. CodecError lists the blocks when the choice is not unique.
    """
    blocks = {
        name: block for name, block in document.items() if isinstance(block, Mapping) and name != "metadata"
    }
    if not blocks:
        if key is not None:
            raise CodecError(f"statistics block {key!r} does not exist", seen="a flat document")
        return document
    wanted = key if key is not None else STATISTICS_KEY.get(method)
    if wanted is None or wanted not in blocks:
        raise CodecError(
            f"method {method!r} does not say which statistics block to read"
            if wanted is None
            else f"statistics block {wanted!r} does not exist",
            seen=", ".join(blocks),
            fix="name the block: key=...",
        )
    return blocks[wanted]


def _statistic(stats: Mapping[str, object], name: str, method: str) -> Array:
    if name not in stats:
        raise CodecError(f"statistic {name!r} is missing for method {method!r}", seen=", ".join(stats))
    values = checked(f"statistic {name!r}", stats[name])  # type: ignore[arg-type]
    if values.ndim != 1:
        raise CodecError(f"statistic {name!r} must be one number per dimension", seen=list(values.shape))
    return values


def _warped(z: Array, warp: Warp) -> Array:
    if warp == "asinh":
        return np.arcsinh(z) / np.arcsinh(1.0)
    if warp == "piecewise_asinh":
        beyond = np.abs(z)
        return np.where(beyond <= 1.0, z, np.sign(z) * (1.0 + np.arcsinh(np.maximum(beyond, 1.0) - 1.0)))
    return z


def _unwarped(y: Array, warp: Warp) -> Array:
    if warp == "asinh":
        return np.sinh(y * np.arcsinh(1.0))
    if warp == "piecewise_asinh":
        beyond = np.abs(y)
        return np.where(beyond <= 1.0, y, np.sign(y) * (1.0 + np.sinh(np.maximum(beyond, 1.0) - 1.0)))
    return y

"""Actions in the robot's units and actions in the model's space: two types, so neither passes as the other.

Feeding one where the other belongs is the field's quietest bug: a robot that moves fifty times too little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from wamserve.action_codec.arrays import Array, Mask, checked
from wamserve.action_codec.errors import CodecError

MODEL_WIDTH = 64  # columns of the network's action input


@dataclass(frozen=True, eq=False)
class ActionRows:
    """Rows of numbers, some of them measured state; use RawActions or ModelActions."""

    values: Array  # [..., T, D]; kept read-only, float64
    state_rows: int = 0  # leading rows that are measured state (history first, the current one last)

    def __post_init__(self) -> None:
        name, shape = type(self).__name__, np.shape(self.values)
        if len(shape) < 2:
            raise CodecError(f"{name} need rows and columns", seen=list(shape), expected="[..., T, D]")
        values = checked(name, self.values, shape[-1])
        if not 0 <= self.state_rows <= values.shape[-2]:
            raise CodecError(
                "state rows do not fit the chunk", seen=self.state_rows, expected=f"0 .. {values.shape[-2]}"
            )
        view = values.view()
        view.flags.writeable = False
        object.__setattr__(self, "values", view)

    @property
    def width(self) -> int:
        return int(self.values.shape[-1])

    def __len__(self) -> int:
        return int(self.values.shape[-2])


@dataclass(frozen=True, eq=False)
class RawActions(ActionRows):
    """Rows in the embodiment's own units, as its layout says."""


@dataclass(frozen=True, eq=False)
class ModelActions(ActionRows):
    """Rows in the model's space, as a normalizer made them."""


def pad_model_actions(actions: ModelActions, width: int = MODEL_WIDTH) -> tuple[Array, Mask]:
    """Zero-pads columns to the model's width: [..., T, D] -> [..., T, width], bool [width] (True: real)."""
    if not isinstance(actions, ModelActions):
        raise CodecError(f"{type(actions).__name__} were given where ModelActions belong")
    if actions.width > width:
        raise CodecError("actions are wider than the model", seen=actions.width, expected=f"at most {width}")
    padded = np.zeros((*actions.values.shape[:-1], width))
    padded[..., : actions.width] = actions.values
    return padded, np.arange(width) < actions.width


def unpad_model_actions(padded: ArrayLike, width: int, state_rows: int = 0) -> ModelActions:
    """The first `width` columns of [..., T, model width]."""
    array = checked("padded actions", padded)
    if array.ndim < 2 or array.shape[-1] < width:
        raise CodecError(
            "padded actions are too narrow", seen=list(array.shape), expected=f"[..., T, >= {width}]"
        )
    return ModelActions(array[..., :width], state_rows)

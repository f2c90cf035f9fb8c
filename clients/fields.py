"""Typed fields out of a map that came over the wire."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from wamserve.action_codec.errors import WireError

_REQUIRED: Any = object()


class Reader:
    """Takes typed fields out of a received map; what is missing or of another type is a WireError."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields
        self.taken: set[str] = set()

    def _take(self, name: str, default: Any, accepts: tuple[type, ...], what: str) -> Any:
        self.taken.add(name)
        value = self.fields.get(name, default)
        if value is _REQUIRED:
            raise WireError(f"field {name!r} is missing", expected=what)
        # Exact types: a bool is not a count, and numpy scalars are not what our encoder writes here.
        if value is not default and type(value) not in accepts:
            raise WireError(f"field {name!r} is of the wrong type", seen=kind_of(value), expected=what)
        return value

    def text(self, name: str, default: str = _REQUIRED) -> str:
        return self._take(name, default, (str,), "text")

    def flag(self, name: str, default: bool = _REQUIRED) -> bool:
        return self._take(name, default, (bool,), "true or false")

    def map(self, name: str, default: Mapping[str, Any] = _REQUIRED) -> Mapping[str, Any]:
        return self._take(name, default, (dict,), "a map")

    def list(self, name: str) -> list[Any]:
        return self._take(name, (), (list,), "a list")

    def count(self, name: str, default: int = _REQUIRED) -> int:
        value = self._take(name, default, (int,), "a whole number >= 0")
        if not 0 <= value < 2**63:
            raise WireError(f"field {name!r} is out of range", seen=value, expected="a whole number >= 0")
        return value

    def number(self, name: str, default: float = _REQUIRED) -> float:
        value = float(self._take(name, default, (int, float), "a number"))
        if not math.isfinite(value):
            raise WireError(f"field {name!r} is not finite", seen=value)
        return value

    def optional(self, name: str, read: Any) -> Any:
        if self.fields.get(name) is None:
            self.taken.add(name)
            return None
        return read(name)

    def array(self, name: str, ndim: int, dtype: type | None = None) -> np.ndarray | None:
        value = self.fields.get(name)
        self.taken.add(name)
        if value is None:
            return None
        wanted = np.dtype(dtype).name if dtype else "float"
        right = isinstance(value, np.ndarray) and value.ndim == ndim
        if not right or (value.dtype != dtype if dtype else value.dtype.kind != "f"):
            raise WireError(
                f"field {name!r} is of the wrong type", seen=kind_of(value), expected=f"{wanted}, {ndim}-D"
            )
        return value

    def refuse_the_rest(self) -> None:
        unknown = sorted(set(self.fields) - self.taken)
        if unknown:
            raise WireError(
                "unknown fields", seen=", ".join(unknown)[:80], expected=", ".join(sorted(self.taken))
            )


def kind_of(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__

"""The nouns between a connection and its dialect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from wamserve.action_codec.errors import RequestError
from wamserve.clients.policy import Prediction, Request

Frame = bytes | str  # a binary or a text frame
Received = Frame | memoryview  # a large binary frame is a view of where it was received

# Close codes of RFC 6455 and its registry.
REFUSED, SERVER_ERROR, RESTART, TRY_LATER = 1008, 1011, 1012, 1013


@dataclass(frozen=True)
class Ask:
    """A frame that wants a prediction."""

    request: Request
    tag: Any = None  # what the dialect needs to answer it
    stream: bool = False  # a newer one of the same session replaces it while it waits


@dataclass(frozen=True)
class Forget:
    """A frame that ends episodes."""

    sessions: tuple[str, ...]
    reply: Frame


@dataclass(frozen=True)
class Out:
    """Frames to send now, and whether the connection ends after them."""

    frames: tuple[Frame, ...] = ()
    close: int | None = None


@dataclass(frozen=True)
class Timing:
    """Milliseconds a reply may mention."""

    infer_ms: float  # in the engine
    previous_ms: float | None  # last request of this connection, from its last byte to its reply sent


class Dialect(Protocol):
    """One connection's conversation."""

    @property
    def name(self) -> str:
        """For metrics and logs."""

    def greet(self) -> Out:
        """What the server says first, once the model is warm."""

    def receive(self, frame: Received) -> Ask | Forget | Out:
        """Raises WamError for a frame that is no good request; `fail` words the answer."""

    def reply(self, ask: Ask, prediction: Prediction, timing: Timing) -> Out: ...

    def fail(self, error: Exception, ask: Ask | None = None) -> Out: ...


def text(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise RequestError(f"{name!r} is missing or not text", seen=_kind(value), expected="a str")
    if len(value) > 10_000:
        raise RequestError(f"{name!r} is too long", seen=f"{len(value)} characters", expected="<= 10000")
    return value


def image(fields: Mapping[str, Any], name: str) -> np.ndarray:
    value = fields.get(name)
    if not isinstance(value, np.ndarray):
        raise RequestError(
            f"{name!r} is missing or not an image",
            seen=_kind(value) if name in fields else f"keys {sorted(fields)[:20]}",
            expected="uint8 [H, W, 3] RGB",
        )
    return value


def numbers(fields: Mapping[str, Any], name: str) -> np.ndarray:
    """A state vector [D] or history [T, D] as float32; a bare number becomes [1]."""
    if name not in fields:
        raise RequestError(f"{name!r} is missing", seen=f"keys {sorted(fields)[:20]}")
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float | list | np.ndarray | np.generic):
        raise RequestError(f"{name!r} is not numbers", seen=_kind(value), expected="float array")
    try:
        array = np.atleast_1d(np.asarray(value))
    except ValueError:
        array = np.empty(0, object)
    if array.dtype.kind not in "fiu" or array.ndim > 2:
        raise RequestError(f"{name!r} is not numbers", seen=_kind(array), expected="float [D] or [T, D]")
    return np.ascontiguousarray(array, np.float32)


def session_of(fields: Mapping[str, Any]) -> str:
    """`session_id` as str, or as an array of one str: RoboArena documents the latter, sends the former."""
    value = fields.get("session_id", "")
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind == "U":
        value = str(value.reshape(())[()])
    if not isinstance(value, str) or len(value) > 256:
        raise RequestError("'session_id' is not a short text", seen=_kind(value), expected="a str")
    return value


def actions_of(prediction: Prediction, dtype: type[np.floating] | None = None) -> np.ndarray:
    """Rows of the chunk, C order. Raises RequestError where the policy gave none."""
    if prediction.chunk is None:
        raise RequestError("this request has no actions in its answer")
    return np.ascontiguousarray(prediction.chunk.actions, dtype)


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return "nothing" if value is None else type(value).__name__

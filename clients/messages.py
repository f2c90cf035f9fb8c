"""The messages of the websocket sub-protocol `wam.v1`; wam_v1.py turns them to bytes and back.

server -> client   loading*  hello         once per connection, hello only when the model is warm
client -> server   open                    declares the client's wire half; answered by opened or error
client -> server   infer | observe | reset
server -> client   reply [video] | error   one per infer, in any order, matched by id
server -> client   chunk [video] | error   pushed for observes; the newest observation of a session wins
server -> client   done | error            one per reset
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from wamserve.action_codec.errors import (
    ContractError,
    PolicyError,
    PolicyLate,
    PolicyOverloaded,
    PolicyUnavailable,
    RequestError,
    WamError,
)
from wamserve.clients.policy import Mode, Prediction, Request
from wamserve.clients.wire import LIMITS

SUBPROTOCOL = "wam.v1"

FailureKind = Literal["late", "overloaded", "refused", "unavailable", "failed"]


@dataclass(frozen=True)
class Loading:
    """Progress while the model is not warm yet; any number of these come before hello."""

    stage: str  # what is being done, as in "weights", "compile", "warm-up"
    fraction: float = 0.0  # 0..1 of the whole start


@dataclass(frozen=True)
class Hello:
    """What is served. The client may compare it with its own contract before it sends anything."""

    server: str  # name and version
    embodiment: str  # contract name
    wire_sha256: str  # of the contract's wire half: what the robot sends and executes
    model_sha256: str  # of the contract's model half: what the checkpoint was trained with
    period: float  # seconds between rows of a chunk
    chunk_rows: int
    wire: Mapping[str, Any] = field(default_factory=dict)  # the wire half itself, in canonical form
    card: Mapping[str, Any] = field(
        default_factory=dict
    )  # summary of the policy card; weights_sha256 among it
    modes: tuple[Mode, ...] = ("policy",)
    steps: tuple[int, int] | None = None  # inclusive bounds for Request.steps; None: not overridable
    guidance: tuple[float, float] | None = None  # inclusive bounds for Request.guidance
    max_prefix_rows: int = 0  # rows of Request.prefix the server can freeze; 0: none
    jpeg: bool = False  # images may be sent as JPEG, if open says so too
    streaming: bool = False  # observe is understood
    video: bool = False  # want_video is understood
    deterministic: bool = False  # equal seeds give equal bytes whatever other clients do
    max_message_bytes: int = LIMITS.message_bytes
    max_in_flight: int = 1  # infers of one connection that may wait at once


@dataclass(frozen=True)
class Open:
    """The client's side of the handshake; the first frame it sends."""

    wire_sha256: str = ""  # of the client's own contract; "" takes the served contract as it is
    wire: Mapping[str, Any] = field(default_factory=dict)  # lets the server name the differing fields
    client: str = ""  # name and version, for the log
    jpeg: bool = False  # images will come as JPEG


@dataclass(frozen=True)
class Opened:
    """The server accepts; requests may follow."""

    connection: str = ""  # the server's name for this connection, as in its log


@dataclass(frozen=True)
class Infer:
    """A request to be answered; as `observe` one that a newer observation of the session may replace."""

    request_id: int  # counts up on the connection
    request: Request
    stream: bool = False  # sent as "observe"


@dataclass(frozen=True)
class Reset:
    """Forget what the server keeps for a session."""

    request_id: int
    session: str = ""


@dataclass(frozen=True)
class Done:
    """A reset was carried out."""

    request_id: int


@dataclass(frozen=True)
class Reply:
    """The answer to an infer, or as `chunk` a pushed answer to an observe."""

    request_id: int  # of the infer or observe it answers
    chunk_id: int  # counts the chunks of the session
    prediction: Prediction
    video_follows: bool = False  # the frames come in a video message of the same id
    stream: bool = False  # sent as "chunk"


@dataclass(frozen=True)
class Video:
    """Predicted frames, sent after the actions they belong to."""

    request_id: int
    video: np.ndarray  # uint8 [T, h, w, 3] RGB canvas frames


@dataclass(frozen=True)
class Failure:
    """Why there is no answer."""

    kind: FailureKind
    message: str  # what was seen, what was expected, what to type
    request_id: int | None = None  # None: the connection as a whole
    differing: tuple[str, ...] = ()  # contract fields on which the two ends disagree
    retry_ms: float | None = None  # when asking again may help


FromClient = Open | Infer | Reset
FromServer = Loading | Hello | Opened | Reply | Video | Done | Failure


# --- failures and errors ---------------------------------------------------------------------------------

_ERROR_OF_KIND: dict[str, type[WamError]] = {
    "late": PolicyLate,
    "overloaded": PolicyOverloaded,
    "refused": RequestError,
    "unavailable": PolicyUnavailable,
    "failed": PolicyError,
}


def error_from(failure: Failure) -> WamError:
    """The exception a client raises for a failure; a refusal with differing fields is a ContractError."""
    if failure.differing:
        return ContractError(failure.message, seen=", ".join(failure.differing))
    return _ERROR_OF_KIND[failure.kind](failure.message)


def failure_from(error: Exception, request_id: int | None = None) -> Failure:
    """The failure a server sends for an exception. Only our own errors say more than their kind."""
    if isinstance(error, PolicyLate | PolicyOverloaded | PolicyUnavailable):
        kind = next(kind for kind, cls in _ERROR_OF_KIND.items() if isinstance(error, cls))
        return Failure(kind, str(error), request_id)  # type: ignore[arg-type]
    if isinstance(error, WamError) and not isinstance(error, PolicyError):
        return Failure("refused", str(error), request_id)
    message = str(error) if isinstance(error, PolicyError) else "the server failed on this request"
    return Failure("failed", message, request_id)


def differing_fields(ours: Mapping[str, Any], theirs: Mapping[str, Any], at: str = "") -> list[str]:
    """Dotted names of the fields on which two wire halves differ, each with both values.

    Items of a list that carry a name are compared by it: "images.wrist.height: 360 here, 180 there".
    """
    lines = []
    for name in sorted({*ours, *theirs}):
        left, right = _plain(ours.get(name)), _plain(theirs.get(name))
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            lines += differing_fields(left, right, f"{at}{name}.")
        elif left != right:
            lines.append(f"{at}{name}: {_brief(left)} here, {_brief(right)} there")
    return lines


def _plain(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    if value and all(isinstance(item, Mapping) and "name" in item for item in value):
        return {str(item["name"]): item for item in value}
    return [_plain(item) for item in value]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

"""The websocket sub-protocol `wam.v1` as bytes: encode and decode the messages of messages.py.

Every frame is one binary msgpack map (see wire.py) whose key "wam" names the message. docs/reference/wire.md
lists the fields. Both ends import this module, so that neither can drift.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from wamserve.action_codec.errors import WireError
from wamserve.clients import wire
from wamserve.clients.fields import Reader, kind_of
from wamserve.clients.jpeg import Jpeg
from wamserve.clients.messages import (
    SUBPROTOCOL,
    Done,
    Failure,
    FailureKind,
    FromClient,
    FromServer,
    Hello,
    Infer,
    Loading,
    Open,
    Opened,
    Reply,
    Reset,
    Video,
    differing_fields,
    error_from,
    failure_from,
)
from wamserve.clients.policy import ActionChunk, Ledger, Mode, Observation, Prediction, Request

__all__ = [
    "SUBPROTOCOL",
    "Done",
    "Failure",
    "FailureKind",
    "FromClient",
    "FromServer",
    "Hello",
    "Infer",
    "Loading",
    "Open",
    "Opened",
    "Reply",
    "Reset",
    "Video",
    "decode_reply",
    "decode_request",
    "differing_fields",
    "encode_reply",
    "encode_request",
    "error_from",
    "failure_from",
    "reply_from_map",
    "request_from_map",
    "request_id_of",
]

# --- client -> server ------------------------------------------------------------------------------------


def encode_request(message: FromClient, *, jpeg_quality: int | None = None) -> bytes:
    """One frame. With `jpeg_quality` (1..95, agreed in the handshake) an infer's images are compressed."""
    if isinstance(message, Open):
        fields = {"wam": "open", **_fields(message)}
    elif isinstance(message, Reset):
        fields = {"wam": "reset", "id": message.request_id, "session": message.session}
    else:
        fields = {"wam": "observe" if message.stream else "infer", "id": message.request_id}
        fields |= _request_fields(message.request)
        if jpeg_quality is not None:
            images = message.request.observation.images
            fields["images"] = {name: Jpeg.from_array(view, jpeg_quality) for name, view in images.items()}
    return wire.encode(fields, jpeg=jpeg_quality is not None)


def decode_request(frame: object, limits: wire.Limits = wire.LIMITS, *, jpeg: bool = False) -> FromClient:
    """The message in a client's frame. Raises WireError. JPEG images, where agreed, are decompressed here."""
    return request_from_map(wire.decode_map(frame, limits, jpeg=jpeg))


def request_from_map(fields: Mapping[str, Any]) -> FromClient:
    """As `decode_request`, for a frame whose bytes are decoded already. Unknown fields are refused."""
    read = Reader(fields)
    kind = read.text("wam")
    message: FromClient
    if kind == "open":
        message = Open(
            wire_sha256=read.text("wire_sha256", ""),
            wire=read.map("wire", {}),
            client=read.text("client", ""),
            jpeg=read.flag("jpeg", False),
        )
    elif kind == "reset":
        message = Reset(read.count("id"), read.text("session", ""))
    elif kind in ("infer", "observe"):
        message = Infer(read.count("id"), _request_from(read), stream=kind == "observe")
    else:
        raise WireError("an unknown wam.v1 message", seen=kind[:40], expected="open, infer, observe or reset")
    read.refuse_the_rest()
    return message


def request_id_of(fields: object) -> int | None:
    """The id in a map that may not be a message, so that even a malformed request is answered by its id."""
    found = fields.get("id") if isinstance(fields, Mapping) else None
    return found if type(found) is int and 0 <= found < 2**63 else None


def _request_fields(request: Request) -> dict[str, Any]:
    observation = request.observation
    fields: dict[str, Any] = {
        "mode": request.mode,
        "images": dict(observation.images),
        "state": dict(observation.state),
        "instruction": observation.instruction,
        "time": float(observation.time),
        "delay": request.delay,
        "want_video": request.want_video,
        "session": request.session,
        "step": request.step,
    }
    for name in ("actions", "video", "prefix", "seed", "steps", "guidance", "deadline_ms"):
        value = getattr(request, name)
        if value is not None:  # absent and None are the same
            fields[name] = value
    return fields


def _request_from(read: Reader) -> Request:
    observation = Observation(
        images={name: _image(name, view) for name, view in read.map("images", {}).items()},
        state={name: _numbers(name, row) for name, row in read.map("state", {}).items()},
        instruction=read.text("instruction", ""),
        time=read.number("time", 0.0),
    )
    mode = read.text("mode", "policy")
    if mode not in get_args(Mode):
        raise WireError("an unknown mode", seen=mode[:40], expected=" | ".join(get_args(Mode)))
    guidance = read.optional("guidance", read.number)
    deadline_ms = read.optional("deadline_ms", read.number)
    if deadline_ms is not None and deadline_ms <= 0:
        raise WireError("deadline_ms must be positive", seen=deadline_ms)
    return Request(
        observation=observation,
        mode=mode,  # type: ignore[arg-type]
        actions=read.array("actions", 2),
        video=read.array("video", 4, np.uint8),
        prefix=read.array("prefix", 2),
        delay=read.count("delay", 0),
        seed=read.optional("seed", read.count),
        steps=read.optional("steps", read.count),
        guidance=guidance,
        want_video=read.flag("want_video", False),
        session=read.text("session", ""),
        step=read.count("step", 0),
        deadline_ms=deadline_ms,
    )


def _image(name: str, view: Any) -> np.ndarray:
    if isinstance(view, Jpeg):
        return view.to_array()
    if not isinstance(view, np.ndarray) or view.ndim != 3:
        raise WireError(
            f"image {name[:40]!r} is not one image", seen=kind_of(view), expected="uint8 [H, W, 3]"
        )
    return view


def _numbers(name: str, row: Any) -> np.ndarray:
    if not isinstance(row, np.ndarray) or row.dtype.kind not in "biuf" or row.ndim not in (0, 1, 2):
        raise WireError(
            f"state {name[:40]!r} is not numbers", seen=kind_of(row), expected="array [D] or [T, D]"
        )
    return row


# --- server -> client ------------------------------------------------------------------------------------


def encode_reply(message: FromServer) -> bytes:
    """One frame."""
    if isinstance(message, Loading):
        return wire.encode({"wam": "loading", **_fields(message)})
    if isinstance(message, Hello):
        return wire.encode({"wam": "hello", **_fields(message)})
    if isinstance(message, Opened):
        return wire.encode({"wam": "opened", **_fields(message)})
    if isinstance(message, Done):
        return wire.encode({"wam": "done", "id": message.request_id})
    if isinstance(message, Video):
        return wire.encode({"wam": "video", "id": message.request_id, "video": message.video})
    if isinstance(message, Failure):
        fields = _fields(message)
        fields["error"] = fields.pop("kind")
        if (request_id := fields.pop("request_id", None)) is not None:
            fields["id"] = request_id
        return wire.encode({"wam": "error", **fields})
    prediction = message.prediction
    fields = {
        "wam": "chunk" if message.stream else "reply",
        "id": message.request_id,
        "chunk": message.chunk_id,
        "seed": prediction.seed,
        "ledger": dataclasses.asdict(prediction.ledger),
        "video_follows": message.video_follows,
    }
    if prediction.chunk is not None:
        fields |= {
            "actions": prediction.chunk.actions,
            "start": float(prediction.chunk.start),
            "period": float(prediction.chunk.period),
            "delay": prediction.chunk.delay,
        }
    if prediction.video is not None and not message.video_follows:
        fields["video"] = prediction.video
    return wire.encode(fields)


def decode_reply(frame: object, limits: wire.Limits = wire.LIMITS) -> FromServer:
    """The message in a server's frame. Raises WireError. Fields of a newer server are passed over."""
    return reply_from_map(wire.decode_map(frame, limits))


def reply_from_map(fields: Mapping[str, Any]) -> FromServer:
    """As `decode_reply`, for a frame whose bytes are decoded already."""
    read = Reader(fields)
    kind = read.text("wam")
    if kind == "loading":
        return Loading(read.text("stage"), read.number("fraction", 0.0))
    if kind == "hello":
        return _hello_from(read)
    if kind == "opened":
        return Opened(read.text("connection", ""))
    if kind == "done":
        return Done(read.count("id"))
    if kind == "video":
        video = read.array("video", 4, np.uint8)
        if video is None:
            raise WireError("a video message without video")
        return Video(read.count("id"), video)
    if kind == "error":
        failure = read.text("error")
        if failure not in get_args(FailureKind):
            raise WireError("an unknown failure", seen=failure[:40], expected=get_args(FailureKind))
        return Failure(
            kind=failure,  # type: ignore[arg-type]
            message=read.text("message", ""),
            request_id=read.optional("id", read.count),
            differing=tuple(str(item) for item in read.list("differing")),
            retry_ms=read.optional("retry_ms", read.number),
        )
    if kind in ("reply", "chunk"):
        return _reply_from(read, stream=kind == "chunk")
    raise WireError("an unknown wam.v1 message", seen=kind[:40])


def _reply_from(read: Reader, stream: bool) -> Reply:
    actions = read.array("actions", 2)
    chunk = None
    if actions is not None:
        period = read.number("period")
        if period <= 0:
            raise WireError("the rows of a chunk have no period", seen=period, expected="seconds > 0")
        chunk = ActionChunk(actions, read.number("start"), period, read.count("delay", 0))
    spent = read.map("ledger", {})
    known = {entry.name for entry in dataclasses.fields(Ledger)}
    ledger = Ledger(**{name: value for name, value in spent.items() if name in known})
    if any(type(value) not in (int, float) for value in dataclasses.astuple(ledger)):
        raise WireError("the ledger holds something other than numbers")
    prediction = Prediction(
        chunk=chunk, video=read.array("video", 4, np.uint8), seed=read.count("seed", 0), ledger=ledger
    )
    return Reply(
        request_id=read.count("id"),
        chunk_id=read.count("chunk"),
        prediction=prediction,
        video_follows=read.flag("video_follows", False),
        stream=stream,
    )


def _hello_from(read: Reader) -> Hello:
    def pair(name: str, cast: type) -> Any:
        bounds = read.list(name)
        if not bounds:
            return None
        if len(bounds) != 2 or any(type(bound) not in (int, float) for bound in bounds):
            raise WireError(f"{name} bounds are not a pair", seen=repr(bounds)[:60], expected="[low, high]")
        return cast(bounds[0]), cast(bounds[1])

    return Hello(
        server=read.text("server"),
        embodiment=read.text("embodiment"),
        wire_sha256=read.text("wire_sha256"),
        model_sha256=read.text("model_sha256"),
        period=read.number("period"),
        chunk_rows=read.count("chunk_rows"),
        wire=read.map("wire", {}),
        card=read.map("card", {}),
        modes=tuple(mode for mode in read.list("modes") if mode in get_args(Mode)),
        steps=pair("steps", int),
        guidance=pair("guidance", float),
        max_prefix_rows=read.count("max_prefix_rows", 0),
        jpeg=read.flag("jpeg", False),
        streaming=read.flag("streaming", False),
        video=read.flag("video", False),
        deterministic=read.flag("deterministic", False),
        max_message_bytes=read.count("max_message_bytes", wire.LIMITS.message_bytes),
        max_in_flight=read.count("max_in_flight", 1),
    )


def _fields(message: Any) -> dict[str, Any]:
    """A dataclass as a map; None is left out."""
    items = ((entry.name, getattr(message, entry.name)) for entry in dataclasses.fields(message))
    return {
        name: dict(value) if isinstance(value, Mapping) else value
        for name, value in items
        if value is not None
    }

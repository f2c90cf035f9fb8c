"""One conversation with a policy server, without the socket: what to send, what a received frame means."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import numpy as np

from wamserve.action_codec.errors import (
    ContractError,
    PolicyError,
    PolicyLate,
    PolicyOverloaded,
    PolicyUnavailable,
    WamError,
    WireError,
)
from wamserve.clients import wam_v1, wire
from wamserve.clients.check import check_request
from wamserve.clients.plain import Plain, plain_prediction, plain_request, plain_reset
from wamserve.clients.policy import Prediction, Request
from wamserve.embodiments.contract import Embodiment


@dataclass(frozen=True)
class Timeouts:
    """Seconds; nothing waits longer."""

    connect: float = 10.0  # TCP, TLS and the websocket upgrade
    warm: float = 1800.0  # from the upgrade to the server's first word: it may load and compile meanwhile
    request: float = 60.0  # from sending a request to its whole answer
    close: float = 2.0


@dataclass(frozen=True)
class Backoff:
    """How a lost connection is tried again."""

    attempts: int = 5  # tries of one call in all
    first: float = 0.25  # seconds before the second try
    factor: float = 2.0
    most: float = 10.0  # seconds

    def delay(self, failures: int) -> float:
        """Seconds to wait after that many failures."""
        return min(self.first * self.factor ** (failures - 1), self.most)


@dataclass(frozen=True)
class Endpoint:
    """A server and how to talk to it. The clients take these fields as keywords."""

    uri: str  # ws://host:port or wss://host:port; any path
    contract: Embodiment | None = None  # the robot's own, to check both ends; None takes what is served
    plain: Plain | None = None  # dialect of a server that has no wam.v1
    token: str = ""
    token_scheme: Literal["Bearer", "Api-Key"] = "Bearer"
    tls: ssl.SSLContext | None = None  # for wss://; None trusts the system's authorities
    jpeg_quality: int | None = None  # 1..95 sends images as JPEG, where the server agrees; None: raw pixels
    timeouts: Timeouts = Timeouts()
    backoff: Backoff = Backoff()
    limits: wire.Limits = wire.LIMITS
    on_loading: Callable[[wam_v1.Loading], None] | None = None  # sees a cold server's progress

    def __post_init__(self) -> None:
        if not self.uri.startswith(("ws://", "wss://")):
            raise PolicyError("a server's address is a websocket URI", seen=self.uri, fix="ws://HOST:8000")
        if self.jpeg_quality is not None and self.plain is not None:
            raise PolicyError("a plain wire has no JPEG images", seen=self.plain.name)

    def connect_options(self) -> dict[str, Any]:
        """Arguments of websockets' connect, sync and asyncio alike."""
        headers = {"Authorization": f"{self.token_scheme} {self.token}"} if self.token else {}
        tls = {"ssl": self.tls} if self.tls is not None and self.uri.startswith("wss://") else {}
        return {
            **tls,
            "subprotocols": None if self.plain else [wam_v1.SUBPROTOCOL],
            "additional_headers": headers,
            "compression": None,
            "max_size": self.limits.message_bytes,
            "open_timeout": self.timeouts.connect,
            "close_timeout": self.timeouts.close,
            # A plain server answers no ping while it infers; our own timeouts find the dead ones.
            "ping_timeout": None,
            "proxy": None,  # a robot's loop does not take detours that an environment variable suggests
        }


@dataclass(frozen=True)
class Answer:
    """What a frame says about a request."""

    request_id: int | None  # None: it concerns the connection as a whole
    prediction: Prediction | None = None  # None for a finished reset and for errors
    error: WamError | None = None
    chunk_id: int = 0
    pushed: bool = False  # an answer to an observation of a stream
    more: bool = False  # the same request's video is still to come


class Session:
    """The state of one connection. Feed it frames in order; it never blocks and never sleeps."""

    def __init__(self, endpoint: Endpoint, subprotocol: str | None) -> None:
        if endpoint.plain is None and subprotocol != wam_v1.SUBPROTOCOL:
            raise ContractError(
                "the server speaks a plain wire, which tells nothing about its robot",
                expected=wam_v1.SUBPROTOCOL,
                fix="declare its dialect, as in PolicyClient(uri, plain=COSMOS)",
            )
        self.endpoint = endpoint
        self.plain = endpoint.plain
        self.ready = False
        self.hello: wam_v1.Hello | None = None  # of a wam.v1 server
        self.metadata: dict[str, Any] = {}  # of a plain server
        self._ids = 0
        self._asked: tuple[int, Request | None] | None = None  # plain: the one request under way
        self._before_video: dict[int, Answer] = {}

    def handshake(self, frame: bytes | str) -> bytes | None:
        """Takes a frame of the opening; returns the frame to send, if any. `ready` says when it is over."""
        if isinstance(frame, str):
            raise PolicyError(f"the server refused the connection: {_cause(frame)}")
        if self.plain is not None:
            self.metadata = wire.decode_map(frame, self.endpoint.limits)
            self.ready = True
            return None
        message = wam_v1.decode_reply(frame, self.endpoint.limits)
        if isinstance(message, wam_v1.Failure):
            raise wam_v1.error_from(message)
        if isinstance(message, wam_v1.Loading):
            if self.endpoint.on_loading is not None:
                self.endpoint.on_loading(message)
            return None
        if isinstance(message, wam_v1.Hello) and self.hello is None:
            self.hello = message
            return wam_v1.encode_request(self._open(message))
        if isinstance(message, wam_v1.Opened) and self.hello is not None:
            self.ready = True
            return None
        raise WireError("the server's opening is out of order", seen=type(message).__name__.lower())

    def _open(self, hello: wam_v1.Hello) -> wam_v1.Open:
        jpeg = self.endpoint.jpeg_quality is not None
        if jpeg and not hello.jpeg:
            raise ContractError("the server takes no JPEG images", fix="jpeg_quality=None")
        client = f"wamserve {version('wamserve')}"
        contract = self.endpoint.contract
        if contract is None:
            return wam_v1.Open(client=client, jpeg=jpeg)
        half = dataclasses.asdict(contract.wire)
        if hello.wire_sha256 != contract.wire_hash:
            fields = wam_v1.differing_fields(half, hello.wire)
            raise ContractError(
                f"the server's {hello.embodiment} is not this robot's {contract.name}",
                seen=" | ".join(fields) or f"wire half {hello.wire_sha256[:12]}",
                expected=f"wire half {contract.wire_hash[:12]}",
                fix=f"wam ls embodiment {contract.name}",
            )
        return wam_v1.Open(contract.wire_hash, half, client, jpeg)

    def ask(self, request: Request, *, stream: bool = False) -> tuple[int, bytes]:
        """A request's id and frame. RequestError for what the other end has no words for.

        With a contract of our own, what does not fit it is refused before a pixel is sent.
        """
        if self.endpoint.contract is not None:
            check_request(self.endpoint.contract, request)
        if self.plain is not None:
            frame = wire.encode(plain_request(self.plain, request))
            self._ids += 1
            self._asked = (self._ids, request)
            return self._ids, frame
        assert self.hello is not None
        if stream and not self.hello.streaming:
            raise PolicyError("the server does not stream", seen=self.hello.server)
        if request.deadline_ms is None:
            # Past our own patience the answer is thrown away: spare the server the work. A little less than
            # that leaves a live server time to say "late", so that our own timeout means a dead one.
            request = dataclasses.replace(request, deadline_ms=950.0 * self.endpoint.timeouts.request)
        message = wam_v1.Infer(self._ids + 1, request, stream)
        frame = wam_v1.encode_request(message, jpeg_quality=self.endpoint.jpeg_quality)
        self._ids += 1
        return self._ids, frame

    def ask_reset(self, session: str) -> tuple[int, bytes] | None:
        """A reset's id and frame; None where the wire has no reset."""
        if self.plain is not None:
            fields = plain_reset(self.plain, session)
            if fields is None:
                return None
            frame = wire.encode(fields)
        else:
            frame = wam_v1.encode_request(wam_v1.Reset(self._ids + 1, session))
        self._ids += 1
        self._asked = (self._ids, None)
        return self._ids, frame

    def read(self, frame: bytes | str) -> Answer:
        """What a frame says. Raises WireError for one that is no message; such a connection is done for."""
        if self.plain is not None:
            return self._read_plain(self.plain, frame)
        if isinstance(frame, str):
            return Answer(None, error=PolicyError(f"the server failed: {_cause(frame)}"))
        message = wam_v1.decode_reply(frame, self.endpoint.limits)
        if isinstance(message, wam_v1.Failure):
            return Answer(message.request_id, error=wam_v1.error_from(message))
        if isinstance(message, wam_v1.Done):
            return Answer(message.request_id)
        if isinstance(message, wam_v1.Reply):
            answer = Answer(
                message.request_id,
                message.prediction,
                chunk_id=message.chunk_id,
                pushed=message.stream,
                more=message.video_follows,
            )
            if message.video_follows:
                self._before_video = {
                    **dict(list(self._before_video.items())[-7:]),
                    message.request_id: answer,
                }
            return _finite(answer)
        if isinstance(message, wam_v1.Video):
            before = self._before_video.pop(message.request_id, None)
            if before is None or before.prediction is None:
                raise WireError("video of a request that has no reply", seen=message.request_id)
            prediction = dataclasses.replace(before.prediction, video=message.video)
            return _finite(dataclasses.replace(before, prediction=prediction, more=False))
        raise WireError("the server sent this out of turn", seen=type(message).__name__.lower())

    def _read_plain(self, plain: Plain, frame: bytes | str) -> Answer:
        if self._asked is None:
            raise WireError("a plain server spoke without being asked")
        (request_id, request), self._asked = self._asked, None
        if request is None:
            # RoboArena's reset answers in text, vllm-omni's in a map; openpi's traceback is text as well.
            failed = isinstance(frame, str) and "reset successful" not in frame
            return Answer(request_id, error=PolicyError(f"reset failed: {_cause(frame)}") if failed else None)
        if isinstance(frame, str):
            return Answer(request_id, error=PolicyError(f"the server failed: {_cause(frame)}"))
        try:
            reply = wire.decode(frame, self.endpoint.limits)
            return _finite(Answer(request_id, plain_prediction(plain, reply, request)))
        except PolicyError as error:
            return Answer(request_id, error=error)


def _cause(text: bytes | str) -> str:
    """The last line of a server's text: of a traceback, the error itself."""
    lines = [line for line in str(text).splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else "without a word"


def _finite(answer: Answer) -> Answer:
    chunk = answer.prediction.chunk if answer.prediction else None
    if chunk is None or np.isfinite(chunk.actions).all():
        return answer
    row, column = np.argwhere(~np.isfinite(chunk.actions))[0]
    error = PolicyError("the server's actions are not finite", seen=f"row {row}, column {column}")
    return Answer(answer.request_id, error=error, chunk_id=answer.chunk_id, pushed=answer.pushed)


def error_from_close(code: int | None, reason: str) -> WamError:
    """What a server means by closing the connection before it has answered."""
    words = f"{code} {reason}".strip() if code is not None else "without a closing word"
    if code == 1013:
        return PolicyOverloaded(f"the server is overloaded and closed the connection: {words}")
    if code == 1008:
        return PolicyError(f"the server refused the connection: {words}")
    return PolicyUnavailable(f"the server closed the connection: {words}")


def late(seconds: float, what: str) -> PolicyLate:
    return PolicyLate(
        f"{what} took too long", seen=f"> {seconds:g} s", fix="longer Timeouts, or a faster server"
    )

"""Our own sub-protocol: typed failures, ids, pushed chunks. The bytes are `wamserve.clients.wam_v1`'s."""

from __future__ import annotations

from dataclasses import replace

from wamserve.action_codec.errors import ContractError, PolicyOverloaded, RequestError, WamError
from wamserve.clients import wam_v1, wire
from wamserve.clients.messages import (
    Done,
    Failure,
    Hello,
    Infer,
    Loading,
    Open,
    Opened,
    Reply,
    Reset,
    Video,
    differing_fields,
    failure_from,
)
from wamserve.clients.policy import Prediction, Request
from wamserve.policy_server.serving.dialects.base import REFUSED, Ask, Forget, Out, Received, Timing


class Wam:
    """One `wam.v1` connection: hello, open, then any number of requests in flight."""

    name = "wam.v1"

    def __init__(self, hello: Hello, connection: str, limits: wire.Limits) -> None:
        self.hello = hello
        self.connection = connection
        self.limits = limits
        self.client = ""  # as it called itself
        self.opened = False
        self.jpeg = False
        self.chunks: dict[str, int] = {}  # session -> chunks sent

    @staticmethod
    def loading(stage: str, fraction: float) -> Out:
        return Out((wam_v1.encode_reply(Loading(stage, fraction)),))

    def greet(self) -> Out:
        return Out((wam_v1.encode_reply(self.hello),))

    def receive(self, frame: Received) -> Ask | Forget | Out:
        if isinstance(frame, str):
            return self._failed(Failure("refused", "a text frame is no wam.v1 message"))
        request_id = None
        try:
            fields = wire.decode_map(frame, self.limits, jpeg=self.jpeg)
            request_id = wam_v1.request_id_of(fields)
            message = wam_v1.request_from_map(fields)
        except WamError as error:
            return self._failed(failure_from(error, request_id))
        if isinstance(message, Open):
            return self._open(message)
        if not self.opened:
            return self._failed(Failure("refused", "the first message must be open", request_id), REFUSED)
        if isinstance(message, Reset):
            self.chunks.pop(message.session, None)
            return Forget((message.session,), wam_v1.encode_reply(Done(message.request_id)))
        try:
            self._refuse_out_of_bounds(message.request)
        except WamError as error:
            return self._failed(failure_from(error, message.request_id))
        return Ask(message.request, message, message.stream)

    def reply(self, ask: Ask, prediction: Prediction, timing: Timing) -> Out:
        message: Infer = ask.tag
        session = ask.request.session
        chunk_id = self.chunks.get(session, 0)
        if session not in self.chunks and len(self.chunks) >= 1024:
            self.chunks.pop(next(iter(self.chunks)))
        self.chunks[session] = chunk_id + 1
        # Actions go first where there are both; predicted frames are thirty thousand times larger.
        follows = prediction.video is not None and prediction.chunk is not None
        reply = Reply(message.request_id, chunk_id, prediction, follows, message.stream)
        frames = [wam_v1.encode_reply(reply)]
        if follows and prediction.video is not None:
            frames.append(wam_v1.encode_reply(Video(message.request_id, prediction.video)))
        return Out(tuple(frames))

    def fail(self, error: Exception, ask: Ask | None = None) -> Out:
        failure = failure_from(error, ask.tag.request_id if ask is not None else None)
        if isinstance(error, PolicyOverloaded):
            failure = replace(failure, retry_ms=1e3 * self.hello.period)
        return self._failed(failure)

    def _open(self, message: Open) -> Out:
        if self.opened:
            return self._failed(Failure("refused", "the connection is open already"))
        ours, theirs = self.hello.wire_sha256, message.wire_sha256
        if theirs and theirs != ours:
            differing = tuple(differing_fields(self.hello.wire, message.wire)) if message.wire else ()
            error = ContractError(
                f"the client's contract is not the served one ({self.hello.embodiment or 'undeclared'})",
                seen=theirs[:12],
                expected=ours[:12] or "no declared contract",
                fix=f"wam ls embodiment {self.hello.embodiment}" if self.hello.embodiment else None,
            )
            failure = Failure("refused", str(error), differing=differing)
            return self._failed(failure, REFUSED)
        self.opened = True
        self.client = message.client[:80]
        self.jpeg = message.jpeg and self.hello.jpeg
        return Out((wam_v1.encode_reply(Opened(self.connection)),))

    def _refuse_out_of_bounds(self, request: Request) -> None:
        hello = self.hello
        if request.mode not in hello.modes:
            raise RequestError(
                "this mode is not served", seen=request.mode, expected=" or ".join(hello.modes)
            )
        for name, bounds in (("steps", hello.steps), ("guidance", hello.guidance)):
            value = getattr(request, name)
            if value is not None and (bounds is None or not bounds[0] <= value <= bounds[1]):
                allowed = "no override" if bounds is None else f"{bounds[0]:g} to {bounds[1]:g}"
                raise RequestError(f"{name} is outside the card's bounds", seen=value, expected=allowed)
        rows = 0 if request.prefix is None else len(request.prefix)
        if rows > hello.max_prefix_rows:
            raise RequestError(
                "too many rows are committed", seen=rows, expected=f"<= {hello.max_prefix_rows}"
            )
        if request.want_video and not hello.video:
            raise RequestError("predicted video is not served")
        if request.mode == "fd" and request.actions is None:
            raise RequestError("forward dynamics needs actions", expected="actions [H, D]")
        if request.mode == "id" and request.video is None:
            raise RequestError("inverse dynamics needs video", expected="video uint8 [H + 1, h, w, 3]")

    @staticmethod
    def _failed(failure: Failure, close: int | None = None) -> Out:
        return Out((wam_v1.encode_reply(failure),), close)


__all__ = ["Forget", "Wam"]

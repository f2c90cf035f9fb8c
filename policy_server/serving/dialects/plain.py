"""A connection without sub-protocol: which dialect it speaks shows in its path and its first request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from wamserve.action_codec.errors import PolicyOverloaded, RequestError, WamError, WireError
from wamserve.clients import wire
from wamserve.clients.policy import Observation, Prediction, Request
from wamserve.policy_server.serving.dialects import roboarena
from wamserve.policy_server.serving.dialects.base import (
    TRY_LATER,
    Ask,
    Forget,
    Out,
    Received,
    Timing,
    session_of,
)
from wamserve.policy_server.serving.dialects.cosmos import Cosmos
from wamserve.policy_server.serving.dialects.openpi import OpenpiDroid, OpenpiLibero
from wamserve.policy_server.serving.served import Served

VLLM_PATH = "/v1/realtime/robot/openpi"
_STR_MARKER = b"\xab__ndarray__"  # msgpack str; openpi writes bin


@dataclass(frozen=True)
class PlainRules:
    """What the operator says about clients that cannot say it themselves."""

    metadata: Literal["empty", "roboarena"] = "empty"  # first frame on paths that name no dialect
    openpi_reads: Literal["velocity", "position"] = "velocity"  # what two-view openpi clients execute
    roboarena_rows: int = 0  # rows of a RoboArena reply, all of which are executed; 0: the whole chunk
    timing: bool = True  # `server_timing` in replies; off where replies must be reproducible to the byte
    limits: wire.Limits = wire.LIMITS


class Form(Protocol):
    """How one kind of client spells an observation and a reply."""

    name: str

    def observation(self, fields: Mapping[str, Any]) -> Observation: ...

    def reply(self, prediction: Prediction, timing: Timing | None) -> dict[str, Any]: ...


class Plain:
    """Strict turns: one request frame, one reply frame, nothing unasked for after the first frame."""

    def __init__(self, served: Served, rules: PlainRules, path: str = "/", bearer: bool = False) -> None:
        self.served = served
        self.rules = rules
        path = path.partition("?")[0]
        self.vllm = path.rstrip("/").endswith(VLLM_PATH)  # bare arrays, typed errors, binary reset
        self.roboarena_path = path.rstrip("/").endswith("/roboarena")
        # RoboLab's newer transport (a Bearer token, or a session in the request) reads typed errors.
        self.typed_errors = self.vllm or bearer
        self.str_markers = False  # this client's numpy markers are keyed by str, and so are ours to it
        self.form: Form | None = None
        self.steps: dict[str, int] = {}  # session -> requests so far

    @property
    def name(self) -> str:
        return self.form.name if self.form is not None else "plain"

    def greet(self) -> Out:
        six = self.roboarena_path or self.vllm or self.rules.metadata == "roboarena"
        return Out((wire.encode(roboarena.metadata(self.served) if six else {}),))

    def receive(self, frame: Received) -> Ask | Forget | Out:
        if isinstance(frame, str):
            raise WireError("a text frame is not a request", expected="one binary msgpack map")
        fields = wire.decode_map(frame, self.rules.limits)
        if self.form is None:
            self.str_markers = _STR_MARKER in bytes(frame)
        if "session_id" in fields and "endpoint" not in fields:
            self.typed_errors = True
        endpoint = fields.get("endpoint", "infer")
        if not isinstance(endpoint, str) or endpoint not in ("infer", "reset"):
            seen = endpoint[:40] if isinstance(endpoint, str) else type(endpoint).__name__
            raise RequestError("unknown endpoint", seen=seen, expected="infer or reset")
        if endpoint == "reset":
            return self._reset(fields)
        form = self.form or self._detect(fields)
        request = self._request(form, fields)
        self.form = form  # a refused request settles nothing
        return Ask(request)

    def reply(self, ask: Ask, prediction: Prediction, timing: Timing) -> Out:
        assert self.form is not None
        reply: Any = self.form.reply(prediction, timing if self.rules.timing else None)
        if self.vllm:
            reply = reply.get("action", reply.get("actions"))
        return Out((wire.encode(_str_keyed(reply) if self.str_markers else reply),))

    def fail(self, error: Exception, ask: Ask | None = None) -> Out:
        if isinstance(error, PolicyOverloaded):
            # A text frame would abort RoboLab's whole evaluation; a bare close makes it try again.
            return Out(close=TRY_LATER)
        words = str(error) if isinstance(error, WamError) else "the server failed on this request"
        if self.typed_errors:
            return Out((wire.encode({"type": "error", "message": words}),))
        return Out((words,))

    def _detect(self, fields: Mapping[str, Any]) -> Form:
        if (self.vllm and "endpoint" in fields and not Cosmos.matches(fields)) or (
            not self.vllm and roboarena.RoboArena.matches(fields)
        ):
            return roboarena.RoboArena(self.served, self.rules.roboarena_rows)
        if OpenpiLibero.matches(fields):
            return OpenpiLibero(self.served)
        if Cosmos.matches(fields):
            return Cosmos(self.served)
        if OpenpiDroid.matches(fields):
            return OpenpiDroid(self.served, self.rules.openpi_reads)
        raise RequestError(
            "no known client sends such a request",
            seen=f"keys {sorted(str(key)[:40] for key in fields)[:12]}",
            expected="observation/image or observation/wrist_image_left and its companions, and prompt",
            fix="wamserve.clients.PolicyClient",
        )

    def _request(self, form: Form, fields: Mapping[str, Any]) -> Request:
        session = session_of(fields)
        observation = form.observation(fields)
        step = self.steps.get(session, 0)
        if session not in self.steps and len(self.steps) >= 1024:
            self.steps.pop(next(iter(self.steps)))
        self.steps[session] = step + 1
        seed, overrides = fields.get("seed"), fields.get("sampling_params")
        steps = overrides.get("num_inference_steps") if isinstance(overrides, dict) else None
        for name, value in (("seed", seed), ("num_inference_steps", steps)):
            if value is not None and (not isinstance(value, int | np.integer) or not 0 <= value < 2**63):
                raise RequestError(f"{name!r} is not a whole number >= 0", seen=type(value).__name__)
        return Request(
            observation,
            seed=None if seed is None else int(seed),
            steps=None if steps is None else int(steps),
            session=session,
            step=step,
        )

    def _reset(self, fields: Mapping[str, Any]) -> Forget:
        sessions = roboarena.sessions_of(fields) or tuple(self.steps) or ("",)
        for session in sessions:
            self.steps.pop(session, None)
        if self.vllm:
            return Forget(sessions, wire.encode({"status": roboarena.RESET_DONE}))
        return Forget(sessions, roboarena.RESET_DONE)


def _str_keyed(value: Any) -> Any:
    """Numpy arrays as marker maps with str keys, at any depth."""
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value)
        return {
            "__ndarray__": True,
            "data": data.tobytes(),
            "dtype": data.dtype.str,
            "shape": list(data.shape),
        }
    if isinstance(value, dict):
        return {key: _str_keyed(item) for key, item in value.items()}
    return value

"""Other people's servers: how a Request is spelt on a plain openpi-style wire, and how its reply reads.

A plain wire carries no names of its own for views, units or rates, so the dialect is declared, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wamserve.action_codec.errors import PolicyError, RequestError, WireError
from wamserve.clients.policy import ActionChunk, Ledger, Prediction, Request


@dataclass(frozen=True)
class Plain:
    """The keys and the clock of one plain server."""

    name: str
    images: Mapping[str, str]  # view name -> wire key
    states: Mapping[str, str]  # state name -> wire key
    reply: str  # key of the action rows; "" where the reply is the bare array
    period: float  # seconds between rows: the control period the policy was trained for
    dtypes: Mapping[str, str] = field(default_factory=dict)  # state name -> dtype; others go as float32
    session: str = ""  # key that carries Request.session; "" where the wire has none
    endpoint: bool = False  # RoboArena: every request says "infer" or "reset"
    ignore: tuple[str, ...] = ()  # Request fields that may be lost because the user said so


COSMOS = Plain(
    "cosmos",
    images={
        "canvas": "observation/image",
        "wrist": "observation/wrist_image_left",
        "exterior_1": "observation/exterior_image_1_left",
        "exterior_2": "observation/exterior_image_2_left",
    },
    states={
        "joint_position": "observation/joint_position",
        "gripper_position": "observation/gripper_position",
    },
    reply="action",
    period=1 / 15,
)
OPENPI_DROID = Plain(
    "openpi-droid",
    images={
        "wrist": "observation/wrist_image_left",
        "exterior_1": "observation/exterior_image_1_left",
    },
    states=COSMOS.states,
    reply="actions",
    period=1 / 15,
    dtypes={"joint_position": "<f8", "gripper_position": "<f8"},
)
OPENPI_LIBERO = Plain(
    "openpi-libero",
    images={"agentview": "observation/image", "wrist": "observation/wrist_image"},
    states={"state": "observation/state"},
    reply="actions",
    period=1 / 20,
    dtypes={"state": "<f8"},
)
ROBOARENA = Plain(
    "roboarena",
    images={
        "wrist": "observation/wrist_image_left",
        "exterior_1": "observation/exterior_image_0_left",  # this wire counts exteriors from 0
        "exterior_2": "observation/exterior_image_1_left",
    },
    states={**COSMOS.states, "cartesian_position": "observation/cartesian_position"},
    reply="actions",
    period=1 / 15,
    session="session_id",
    endpoint=True,
)
VLLM_OMNI = Plain("vllm-omni", COSMOS.images, COSMOS.states, reply="", period=1 / 15, session="session_id")

DIALECTS = {plain.name: plain for plain in (COSMOS, OPENPI_DROID, OPENPI_LIBERO, ROBOARENA, VLLM_OMNI)}

# Fields that change the answer and that no plain wire can say, with the value that means "not asked for".
_UNSPEAKABLE: dict[str, object] = {
    "mode": "policy",
    "actions": None,
    "video": None,
    "prefix": None,
    "seed": None,
    "steps": None,
    "guidance": None,
    "want_video": False,
}


def plain_request(plain: Plain, request: Request) -> dict[str, Any]:
    """The flat map of a request. RequestError for what the dialect has no words for."""
    for name, absent in _UNSPEAKABLE.items():
        value = getattr(request, name)
        if name not in plain.ignore and (value is not None if absent is None else value != absent):
            raise RequestError(
                f"the {plain.name} wire cannot carry {name}",
                fix=f"a wam.v1 server, or Plain(ignore=({name!r},)) to lose it knowingly",
            )
    observation = request.observation
    fields: dict[str, Any] = {}
    for kind, given, known in (
        ("view", observation.images, plain.images),
        ("state", observation.state, plain.states),
    ):
        for name, value in given.items():
            if name not in known:
                raise RequestError(
                    f"the {plain.name} wire has no {kind} {name!r}", expected=", ".join(known) or "none"
                )
            if kind == "state":
                value = np.ascontiguousarray(value, plain.dtypes.get(name, "<f4"))
            fields[known[name]] = value
    fields["prompt"] = observation.instruction
    if plain.session and request.session:
        fields[plain.session] = request.session
    if plain.endpoint:
        fields["endpoint"] = "infer"
    return fields


def plain_reset(plain: Plain, session: str) -> dict[str, Any] | None:
    """The reset message; None where the dialect's reset says nothing to the server."""
    if not plain.endpoint:
        return None
    return {**({plain.session: session} if session else {}), "endpoint": "reset"}


def plain_prediction(plain: Plain, reply: object, request: Request) -> Prediction:
    """The answer in a decoded reply. PolicyError for an error in disguise, WireError for another dialect."""
    if isinstance(reply, dict) and reply.get("type") == "error":
        raise PolicyError(f"the server failed: {str(reply.get('message', ''))[:500]}")
    if plain.reply:
        if not isinstance(reply, dict) or plain.reply not in reply:
            seen = ", ".join(map(str, reply)) if isinstance(reply, dict) else type(reply).__name__
            raise WireError(
                f"the reply is not of the {plain.name} dialect", seen=seen[:200], expected=plain.reply
            )
        actions = reply[plain.reply]
    else:
        actions = reply
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind != "f":
        seen = (
            f"{actions.dtype} {list(actions.shape)}"
            if isinstance(actions, np.ndarray)
            else type(actions).__name__
        )
        raise WireError("the actions are not rows of numbers", seen=seen, expected="float [H, D]")
    timing = reply.get("server_timing") if isinstance(reply, dict) else None
    infer_ms = timing.get("infer_ms", 0.0) if isinstance(timing, dict) else 0.0
    # A plain server tells one figure only; it stands where the bulk of it was spent.
    ledger = Ledger(denoise_ms=float(infer_ms) if isinstance(infer_ms, int | float) else 0.0)
    return Prediction(ActionChunk(actions, request.observation.time, plain.period), ledger=ledger)

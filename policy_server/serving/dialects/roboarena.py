"""RoboArena's wire, also spoken by DreamZero: `endpoint`, 0-indexed exteriors, exactly six metadata keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wamserve.action_codec.errors import ContractError, RequestError
from wamserve.clients.policy import Observation, Prediction
from wamserve.policy_server.serving.dialects.base import Timing, actions_of, image, numbers, text
from wamserve.policy_server.serving.dialects.cosmos import first_rows
from wamserve.policy_server.serving.served import Served

RESET_DONE = "reset successful"
_VIEWS = {
    "wrist": "observation/wrist_image_left",
    "exterior_1": "observation/exterior_image_0_left",
    "exterior_2": "observation/exterior_image_1_left",
}
_ACTION_SPACES = {"joint_targets": "joint_position", "joint_velocities": "joint_velocity"}


def metadata(served: Served) -> dict[str, Any]:
    """The six keys, no other: clients pass them to a dataclass. Their defaults where nothing is declared."""
    images = served.declared.wire.images if served.declared is not None else ()
    sizes = {(view.height, view.width) for view in images}
    return {
        "image_resolution": list(sizes.pop()) if len(sizes) == 1 else [224, 224],
        "needs_wrist_camera": not images or any(view.name == "wrist" for view in images),
        "n_external_cameras": sum(view.name != "wrist" for view in images) if images else 1,
        "needs_stereo_camera": False,
        "needs_session_id": False,
        "action_space": _ACTION_SPACES.get(served.reply_form, "joint_position"),
    }


class RoboArena:
    """Every request names its endpoint; a reply has no timing, and all its rows are executed."""

    name = "roboarena"

    def __init__(self, served: Served, rows: int) -> None:
        self.served = served
        self.rows = rows  # rows of a reply; 0: the whole chunk

    @staticmethod
    def matches(fields: Mapping[str, Any]) -> bool:
        return "endpoint" in fields

    def observation(self, fields: Mapping[str, Any]) -> Observation:
        contract = self.served.declared
        if contract is not None and contract.wire.reply.form not in _ACTION_SPACES:
            raise ContractError(
                "RoboArena has no action space for these replies",
                seen=f"{contract.name}: {contract.wire.reply.form}",
                expected=", ".join(_ACTION_SPACES),
            )
        declared = [view.name for view in contract.wire.images] if contract is not None else []
        wanted = declared or [view for view, name in _VIEWS.items() if name in fields]
        if unknown := set(wanted) - set(_VIEWS):
            raise ContractError("RoboArena has no name for these views", seen=sorted(unknown))
        if not wanted:
            raise RequestError("the request has no image", seen=sorted(fields)[:20], expected=list(_VIEWS))
        return Observation(
            images={view: image(fields, _VIEWS[view]) for view in wanted},
            state={
                name: numbers(fields, "observation/" + name)
                for name in ("joint_position", "gripper_position")
            },
            instruction=text(fields, "prompt"),
        )

    def reply(self, prediction: Prediction, timing: Timing | None) -> dict[str, Any]:
        return {"actions": first_rows(actions_of(prediction, np.float32), self.rows)}


def sessions_of(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Which episodes a reset ends: `session_ids` (DreamZero), `session_id`, or all of the connection: ()."""
    many = fields.get("session_ids")
    if many is None:
        one = fields.get("session_id")
        return (one,) if isinstance(one, str) else ()
    if not isinstance(many, list) or not all(isinstance(name, str) for name in many):
        raise RequestError("'session_ids' is not a list of text")
    return tuple(many)

"""openpi's own example clients: DROID (two views, `actions`) and LIBERO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wamserve.action_codec.errors import ContractError
from wamserve.clients.policy import Observation, Prediction
from wamserve.policy_server.serving.dialects.base import Timing, actions_of, image, numbers, text
from wamserve.policy_server.serving.dialects.cosmos import VIEWS, first_rows, server_timing
from wamserve.policy_server.serving.served import Served

_VELOCITIES = "joint_velocities"


class OpenpiDroid:
    """Wrist and one exterior view. Whether `actions` are velocities or positions cannot be seen in a request:
    openpi's DROID client clips them to +-1 and drives velocities, RoboLab's pi0 family drives positions."""

    name = "openpi-droid"

    def __init__(self, served: Served, reads: str) -> None:
        self.served = served
        self.reads = reads  # velocity | position: what the operator says such clients execute

    @staticmethod
    def matches(fields: Mapping[str, Any]) -> bool:
        return "observation/exterior_image_1_left" in fields and "observation/wrist_image_left" in fields

    def observation(self, fields: Mapping[str, Any]) -> Observation:
        form = self.served.reply_form
        if self.reads == "velocity" and form != _VELOCITIES:
            raise ContractError(
                "openpi's DROID client reads `actions` as joint velocities",
                seen=f"this server replies {form or 'undeclared rows'}",
                expected="a contract that declares joint_velocities; a RoboLab cosmos client sends "
                "observation/image, or observation/exterior_image_2_left too",
                fix="wam serve --openpi-reads position, if every two-view client here drives positions",
            )
        if self.reads == "position" and form not in ("joint_targets", ""):
            raise ContractError(
                "two-view clients here were declared to drive joint positions", seen=f"replies are {form}"
            )
        views = ("observation/wrist_image_left", "observation/exterior_image_1_left")
        return Observation(
            images={VIEWS[view]: image(fields, view) for view in views},
            state={
                name: numbers(fields, "observation/" + name)
                for name in ("joint_position", "gripper_position")
            },
            instruction=text(fields, "prompt"),
        )

    def reply(self, prediction: Prediction, timing: Timing | None) -> dict[str, Any]:
        # The velocity client asserts exactly 10 rows.
        return _actions(first_rows(actions_of(prediction), 10 if self.reads == "velocity" else 0), timing)


class OpenpiLibero:
    """Agent view and wrist view, eef position, axis-angle and two finger positions in one vector."""

    name = "openpi-libero"
    _LAYOUT = (("eef_pos", 0, 3), ("eef_axis_angle", 3, 6), ("gripper_qpos", 6, 8))

    def __init__(self, served: Served) -> None:
        self.served = served

    @staticmethod
    def matches(fields: Mapping[str, Any]) -> bool:
        return "observation/wrist_image" in fields or "observation/state" in fields

    def observation(self, fields: Mapping[str, Any]) -> Observation:
        contract = self.served.declared
        if contract is not None and (contract.wire.reply.form, contract.wire.reply.width) != (
            "osc_deltas",
            7,
        ):
            raise ContractError(
                "a LIBERO client cannot execute these replies",
                seen=f"{contract.name}: {contract.wire.reply.form}",
                expected="osc_deltas, 7 columns",
                fix="wam serve CHECKPOINT --embodiment libero",
            )
        images = {
            "agentview": image(fields, "observation/image"),
            "wrist": image(fields, "observation/wrist_image"),
        }
        return Observation(images, self._state(fields), text(fields, "prompt"))

    def reply(self, prediction: Prediction, timing: Timing | None) -> dict[str, Any]:
        return _actions(actions_of(prediction), timing)

    def _state(self, fields: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The 8 numbers under the names of the served contract; a contract without state takes none."""
        contract = self.served.declared
        if contract is None:
            return {"state": numbers(fields, "observation/state")}
        wanted = [state.name for state in contract.wire.states]
        if not wanted:
            return {}
        row = numbers(fields, "observation/state")
        if wanted == ["state"]:
            return {"state": row}
        parts = {name: row[..., start:stop] for name, start, stop in self._LAYOUT}
        missing = set(wanted) - set(parts)
        if missing or row.shape[-1] != 8:
            raise ContractError(
                "a LIBERO client does not send what this contract needs",
                seen=f"observation/state of {row.shape[-1]} numbers",
                expected=", ".join(wanted),
            )
        return {name: parts[name] for name in wanted}


def _actions(actions: np.ndarray, timing: Timing | None) -> dict[str, Any]:
    reply: dict[str, Any] = {"actions": actions}
    if timing is not None:
        reply["policy_timing"] = {"infer_ms": timing.infer_ms}
        reply["server_timing"] = server_timing(timing)
    return reply

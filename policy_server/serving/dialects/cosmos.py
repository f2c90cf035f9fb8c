"""cosmos-framework's RoboLab server as its clients know it: joint targets under `action`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wamserve.action_codec.errors import ContractError
from wamserve.clients.policy import Observation, Prediction
from wamserve.policy_server.serving.dialects.base import Timing, actions_of, image, numbers, text
from wamserve.policy_server.serving.served import Served

PREFIX = "observation/"
CANVAS = "observation/image"
# This wire's names of the three cameras -> the contract's.
VIEWS = {
    "observation/wrist_image_left": "wrist",
    "observation/exterior_image_1_left": "exterior_1",
    "observation/exterior_image_2_left": "exterior_2",
}
_ROWS = 32  # RoboLab executes all of them; with fewer its whole run dies of an IndexError


class Cosmos:
    """Three forms of request: one composed image, three raw views, or a pose instead of joints."""

    name = "cosmos"

    def __init__(self, served: Served) -> None:
        self.served = served

    @staticmethod
    def matches(fields: Mapping[str, Any]) -> bool:
        if "observation/wrist_image" in fields or "observation/state" in fields:
            return False
        return CANVAS in fields or all(view in fields for view in VIEWS)

    def observation(self, fields: Mapping[str, Any]) -> Observation:
        if CANVAS in fields:  # as the reference: raw views beside it are ignored
            images = {"canvas": image(fields, CANVAS)}
        else:
            images = {view: image(fields, name) for name, view in VIEWS.items()}
        names = ["joint_position", "gripper_position"]
        if PREFIX + "joint_position" not in fields and PREFIX + "eef_pos" in fields:
            names = ["eef_pos", "eef_quat", "gripper_position"]  # metres, xyzw
        self._refuse_unlike_contract(joints="joint_position" in names)
        state = {name: numbers(fields, PREFIX + name) for name in names}
        gripper = state["gripper_position"]
        if gripper.ndim == 1 and any(row.ndim == 2 for row in state.values()):
            state["gripper_position"] = gripper[:, None]  # history as [T] instead of [T, 1]
        state = {name: self._latest(rows) for name, rows in state.items()}
        return Observation(images, state, text(fields, "prompt"))

    def reply(self, prediction: Prediction, timing: Timing | None) -> dict[str, Any]:
        reply: dict[str, Any] = {"action": actions_of(prediction, np.float32)}
        if prediction.video is not None:
            reply["video"] = prediction.video
        if timing is not None:
            reply["server_timing"] = server_timing(timing)
        return reply

    def _latest(self, rows: np.ndarray) -> np.ndarray:
        """As the reference: of the rows sent, oldest first, the newest that the contract's history uses."""
        if rows.ndim == 1 or not len(rows) or self.served.declared is None:
            return rows
        history = self.served.declared.model.history
        return rows[-history - 1 :] if history else rows[-1]

    def _refuse_unlike_contract(self, joints: bool) -> None:
        contract = self.served.declared
        if contract is None:
            return
        reply = contract.wire.reply
        closed = [gripper.polarity for gripper in reply.grippers] == ["one_is_closed"]
        form = "joint_targets" if joints else "pose_targets"
        if (reply.form, reply.width) != (form, 8) or not closed:
            raise ContractError(
                f"this client cannot execute what {contract.name} replies",
                seen=f"{reply.form}, {reply.width} columns",
                expected=f"{form}, 8 columns, gripper 1 = closed",
                fix="serve droid_lerobot, or connect with wamserve.clients",
            )
        if joints and contract.wire.chunk < _ROWS:
            raise ContractError(
                "a RoboLab client executes 32 rows of every reply",
                seen=f"chunks of {contract.wire.chunk} rows ({contract.name})",
                expected=f">= {_ROWS}",
            )


def server_timing(timing: Timing) -> dict[str, float]:
    spent = {"infer_ms": timing.infer_ms}
    if timing.previous_ms is not None:
        spent["prev_total_ms"] = timing.previous_ms
    return spent


def first_rows(actions: np.ndarray, rows: int) -> np.ndarray:
    return np.ascontiguousarray(actions[:rows]) if rows else actions

"""A policy that sees: it finds a coloured cube in the third-person picture and lifts it.

It looks at what any policy may look at, pictures and the robot's own state, so a picture turned, swapped
or with its channels reversed takes its sight away. `wam check task` breaks image conventions against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from wamserve.action_codec.gripper import FRACTION_ONE_IS_CLOSED, gripper_from_gripper
from wamserve.clients.policy import ActionChunk, Prediction, Request
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval.oracles.kinematics import frames
from wamserve.sim_eval.oracles.pick_place import OPEN_M, Scene, plan
from wamserve.sim_eval.policies import declare

# robosuite's "agentview" over its table: position [m], axes as columns (right, up, backward), field of view.
CAMERA_POS = np.array([0.5, 0.0, 1.35])
CAMERA_AXES = np.array([[0.0, -0.706148, 0.708064], [1.0, 0.0, 0.0], [0.0, 0.708064, 0.706148]])
FOVY_DEG = 45.0
CUBE_Z = 0.83  # m, height of the middle of what is seen of a cube on the table
BASE = np.array([-0.56, 0.0, 0.912])  # m, the arm's base behind robosuite's table
CHANNELS = {"red": 0, "green": 1}
CUBE_M = 0.042
LEAST_PIXELS = 8


def find(image: np.ndarray, color: str) -> np.ndarray | None:
    """Middle (row, column) of the pixels of that colour; None where there are too few."""
    channel = CHANNELS[color]
    pixels = image.astype(np.int32)
    others = np.maximum(*(pixels[..., c] for c in range(3) if c != channel))
    rows, columns = np.nonzero((pixels[..., channel] > 1.5 * others) & (pixels[..., channel] > 60))
    return np.array([rows.mean(), columns.mean()]) if len(rows) >= LEAST_PIXELS else None


def on_table(pixel: np.ndarray, height: int, width: int, z: float = CUBE_Z) -> np.ndarray:
    """World point [3] at height z that the camera sees at (row, column)."""
    focal = 0.5 * height / np.tan(np.radians(FOVY_DEG) / 2)
    ray = CAMERA_AXES @ np.array([pixel[1] + 0.5 - width / 2, height / 2 - pixel[0] - 0.5, -focal])
    return CAMERA_POS + ray * (z - CAMERA_POS[2]) / ray[2]


class SeeingPolicy:
    """Lifts the cube of the colour the instruction names, red where it names none."""

    def __init__(self, contract: Embodiment) -> None:
        self.contract = contract
        self._seen: dict[str, np.ndarray] = {}  # session -> where the cube was last seen [3]

    def infer(self, request: Request) -> Prediction:
        observation, wire = request.observation, self.contract.wire
        color = "green" if "green" in observation.instruction else "red"
        image = observation.images["agentview"]
        pixel = find(image, color)
        state = {name: np.asarray(value, np.float64) for name, value in observation.state.items()}
        pos, fingers = self._hand(state)
        closed = float(state["gripper_position"].item())
        holding = abs(OPEN_M * (1 - closed) - CUBE_M) < 0.006
        if pixel is not None and not holding:
            self._seen[request.session] = on_table(pixel, *image.shape[:2])
        cube = self._seen.get(request.session)
        if cube is None:  # sees nothing: stays where it is, open
            rows = np.zeros((wire.chunk, wire.reply.width))
            if wire.reply.form == "joint_targets":
                rows[:, :7] = state["joint_position"]
            (gripper,) = wire.reply.grippers
            rows[:, gripper.index] = gripper_from_gripper(0.0, FRACTION_ONE_IS_CLOSED, gripper.meaning)
        else:
            scene = Scene(
                joints=state.get("joint_position", np.zeros(7)),
                eef_pos=pos,
                eef_vel=np.array([0.0, 0.0, 0.03]),  # unknown; not so slow as to look stuck
                finger_axis=fingers,
                gripper_width=OPEN_M * (1 - closed),
                gripper_told=2 * closed - 1 if closed > 0.1 else -1.0,
                base_pos=BASE,
                grasp_pos=cube,
                grasp_axis=fingers,  # as the hand is: a cube fits either way
                object_width=CUBE_M,
                grasped=holding,
                travel_z=cube[2] + 0.14,
                place_pos=np.full(3, np.nan),
                placed=False,
            )
            rows = plan(scene, self.contract, wire.chunk)
        return Prediction(ActionChunk(rows, observation.time, 1.0 / wire.rate_hz), seed=request.seed or 0)

    def _hand(self, state: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Grip site [3] m in the world and finger axis [2], from what the contract's state tells."""
        if "eef_pos" in state:
            rotation = Rotation.from_quat(state["eef_quat"]).as_matrix()
            pos = state["eef_pos"]
        else:
            assert self.contract.wire.kinematics is not None
            tip = frames(self.contract.wire.kinematics, state["joint_position"])[-1]
            rotation, pos = tip[:3, :3], BASE + tip[:3, 3]
        axis = -rotation[:2, 0]
        return pos, axis / np.linalg.norm(axis)

    def infer_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        return [self.infer(request) for request in requests]

    def reset(self, session: str = "") -> None:
        self._seen.pop(session, None)

    def describe(self) -> dict[str, Any]:
        return declare(self.contract, "seeing")

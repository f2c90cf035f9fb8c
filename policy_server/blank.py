"""A request that fits a contract and means nothing: grey pictures, a robot in the middle of its range."""

from __future__ import annotations

import numpy as np

from wamserve.clients.policy import Mode, Observation, Request
from wamserve.embodiments.contract import Embodiment, State


def blank_request(contract: Embodiment, mode: Mode = "policy", seed: int = 0) -> Request:
    model, canvas = contract.model, contract.model.canvas
    images = {one.name: np.full((one.height, one.width, 3), 128, np.uint8) for one in contract.wire.images}
    state = {one.name: _middle(one) for one in contract.wire.states}
    rows = video = None
    if mode == "fd":
        rows = np.zeros((model.chunk, model.width))
        for block in model.blocks:
            columns = model.layout[block.name].rotation_columns
            if columns is not None and columns.stop - columns.start == 6:
                rows[:, columns] = [1, 0, 0, 0, 1, 0]  # rot6d of no rotation
    if mode == "id":
        video = np.full((model.chunk + 1, canvas.height, canvas.width, 3), 128, np.uint8)
    observation = Observation(images, state, model.instruction or "Wait.")
    return Request(observation, mode, actions=rows, video=video, seed=seed)


def _middle(state: State) -> np.ndarray:
    if state.rotation_format is not None or state.unit == "unit quaternion":
        value = np.zeros(state.dim, np.float32)
        value[{"quat_xyzw": 3, "quat_wxyz": 0}.get(state.rotation_format or "quat_xyzw", 0)] = 1.0
        return value
    return (np.asarray(state.low, np.float32) + np.asarray(state.high, np.float32)) / 2

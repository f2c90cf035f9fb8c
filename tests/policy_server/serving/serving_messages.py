"""Requests of every known client, as field maps; arrays by the formulas of the golden frames."""

from __future__ import annotations

import numpy as np

from wamserve.clients import wire

PROMPT = "Pick up the banana and place it in the bowl"
JOINTS = np.array([0, -0.62831855, 0, -2.5132742, 0, 1.8849556, 0], np.float32)
OPEN = np.zeros(1, np.float32)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    y, x, c = np.ogrid[:height, :width, :3]
    return ((3 * y + 5 * x + 7 * c + 11 * seed) % 256).astype(np.uint8)


def cosmos(**changes) -> dict:
    return {
        "observation/image": picture(540, 640),
        "observation/joint_position": JOINTS,
        "observation/gripper_position": OPEN,
        "prompt": PROMPT,
    } | changes


def three_views(**changes) -> dict:
    return {
        "observation/wrist_image_left": picture(360, 640, 0),
        "observation/exterior_image_1_left": picture(360, 640, 1),
        "observation/exterior_image_2_left": picture(360, 640, 2),
        "observation/joint_position": JOINTS,
        "observation/gripper_position": OPEN,
        "prompt": PROMPT,
    } | changes


def midtrain(**changes) -> dict:
    fields = cosmos() | {
        "observation/eef_pos": np.array([0.4, 0.0, 0.3], np.float32),
        "observation/eef_quat": np.array([0, 0, 0, 1], np.float32),
    }
    del fields["observation/joint_position"]
    return fields | changes


def openpi_droid(dtype=np.float64, **changes) -> dict:
    return {
        "observation/exterior_image_1_left": picture(224, 224, 1),
        "observation/wrist_image_left": picture(224, 224, 2),
        "observation/joint_position": JOINTS.astype(dtype),
        "observation/gripper_position": OPEN.astype(dtype),
        "prompt": "do something",
    } | changes


def openpi_libero(**changes) -> dict:
    return {
        "observation/image": picture(224, 224, 1),
        "observation/wrist_image": picture(224, 224, 2),
        "observation/state": np.zeros(8),
        "prompt": "put both the alphabet soup and the tomato sauce in the basket",
    } | changes


def roboarena(height=360, width=640, exteriors=2, **changes) -> dict:
    fields = {f"observation/exterior_image_{i}_left": picture(height, width, i + 1) for i in range(exteriors)}
    return (
        fields
        | {
            "observation/wrist_image_left": picture(height, width),
            "observation/joint_position": JOINTS,
            "observation/cartesian_position": np.zeros(6, np.float32),
            "observation/gripper_position": OPEN,
            "prompt": "test",
            "endpoint": "infer",
        }
        | changes
    )


def small(**changes) -> dict:
    """A cosmos request of a few kilobytes, for servers without a contract."""
    return cosmos(**{"observation/image": picture(32, 32)} | changes)


def packed(fields: dict) -> bytes:
    return wire.encode(fields)

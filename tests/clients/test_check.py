"""Requests that do not fit their contract are refused in words a robot programmer can act on."""

from dataclasses import replace

import numpy as np
import pytest

from wamserve.action_codec.errors import RequestError
from wamserve.clients.check import check_request
from wamserve.clients.policy import Observation, Request
from wamserve.embodiments.contract import load

DROID = load("droid_lerobot")


def observation(**changes):
    images = {name: np.zeros((360, 640, 3), np.uint8) for name in ("wrist", "exterior_1", "exterior_2")}
    state = {
        "joint_position": np.array([0, -0.5, 0, -2.2, 0, 1.6, 0.7], np.float32),
        "gripper_position": np.array([0.25], np.float32),
    }
    images.update(changes.pop("images", {}))
    state.update(changes.pop("state", {}))
    drop = changes.pop("drop", ())
    images = {name: value for name, value in images.items() if name not in drop}
    state = {name: value for name, value in state.items() if name not in drop}
    return Observation(images, state, changes.pop("instruction", "Put the banana in the bowl"))


def request(**changes):
    known = {
        name: changes.pop(name) for name in ("images", "state", "drop", "instruction") if name in changes
    }
    return Request(observation(**known), **changes)


def test_a_good_request_passes_at_any_size_of_the_declared_aspect_and_as_a_canvas():
    check_request(DROID, request())
    small = {name: np.zeros((180, 320, 3), np.uint8) for name in ("wrist", "exterior_1", "exterior_2")}
    check_request(DROID, request(images=small))
    canvas = Observation({"canvas": np.zeros((540, 640, 3), np.uint8)}, observation().state, "Go.")
    check_request(DROID, Request(canvas))


JOINTS = np.array([0, -0.5, 0, -2.2, 0, 1.6, 0.7], np.float32)
REFUSED = {
    "missing camera": (
        {"drop": ("wrist",)},
        "camera 'wrist' is missing from the observation; seen: exterior_1, exterior_2; "
        "expected: wrist, exterior_1, exterior_2; try: wam ls embodiment droid_lerobot",
    ),
    "float image": (
        {"images": {"wrist": np.full((360, 640, 3), 0.5, np.float32)}},
        "image 'wrist' is not uint8; seen: float32 between 0.5 and 0.5; expected: uint8 [360, 640, 3] RGB; "
        "try: (image * 255).astype(np.uint8)",
    ),
    "channels first": (
        {"images": {"wrist": np.zeros((3, 360, 640), np.uint8)}},
        "image 'wrist' has its channels first; seen: [3, 360, 640]; expected: uint8 [360, 640, 3] RGB; "
        "try: image.transpose(1, 2, 0)",
    ),
    "batched image": ({"images": {"wrist": np.zeros((1, 360, 640, 3), np.uint8)}}, "has a leading axis"),
    "grey image": (
        {"images": {"wrist": np.zeros((360, 640), np.uint8)}},
        "has the wrong shape; seen: [360, 640]",
    ),
    "four channels": ({"images": {"wrist": np.zeros((360, 640, 4), np.uint8)}}, "seen: [360, 640, 4]"),
    "empty image": ({"images": {"wrist": np.zeros((0, 640, 3), np.uint8)}}, "has the wrong shape"),
    "list image": ({"images": {"wrist": [[1, 2]]}}, "image 'wrist' is no array; seen: list"),
    "wrong aspect": (
        {"images": {"wrist": np.zeros((224, 224, 3), np.uint8)}},
        "image 'wrist' has the wrong shape and is not stretched; seen: 224 x 224 (height x width); "
        "expected: 360 x 640 or the same aspect; try: resize with padding before sending",
    ),
    "missing state": (
        {"drop": ("joint_position",)},
        "state 'joint_position' is missing from the observation; seen: gripper_position; "
        "expected: joint_position, gripper_position",
    ),
    "state width": (
        {"state": {"joint_position": JOINTS[:6]}},
        "has the wrong shape; seen: [6]; expected: float32 [7]",
    ),
    "batched state": ({"state": {"joint_position": JOINTS[None]}}, "has the wrong shape; seen: [1, 7]"),
    "integer state": ({"state": {"joint_position": np.zeros(7, int)}}, "holds no floats; seen: int64"),
    "text state": ({"state": {"joint_position": np.array(["a"] * 7)}}, "holds no floats"),
    "NaN joint": ({"state": {"joint_position": JOINTS * np.nan}}, "state 'joint_position' is not finite"),
    "infinite joint": (
        {"state": {"joint_position": JOINTS + np.inf}},
        "state 'joint_position' is not finite",
    ),
    "degrees": (
        {"state": {"joint_position": np.degrees(JOINTS)}},
        "state 'joint_position' is out of range in column 1; seen: -28.6",
    ),
    "gripper in millimetres": (
        {"state": {"gripper_position": np.array([38.0], np.float32)}},
        "state 'gripper_position' is out of range in column 0; seen: 38.0; expected: -0.05 .. 1.05 fraction: "
        "0 open, 1 closed",
    ),
    "empty prompt": (
        {"instruction": "  "},
        "the instruction is empty; expected: a sentence such as 'Put the banana in the bowl'; "
        "try: the key 'prompt' of the request",
    ),
    "bytes prompt": ({"instruction": b"go"}, "the instruction is not text; seen: bytes"),
    "negative seed": ({"seed": -1}, "the seed does not fit; seen: -1"),
    "boolean seed": ({"seed": True}, "the seed does not fit; seen: True"),
    "large seed": ({"seed": 2**31}, "the seed does not fit"),
    "negative delay": ({"delay": -2}, "the delay is no number of rows; seen: -2"),
    "whole chunk committed": (
        {"prefix": np.zeros((32, 8))},
        "the committed rows do not fit; seen: [32, 8]; expected: [0 .. 31, 8]",
    ),
    "prefix width": ({"prefix": np.zeros((3, 7))}, "committed rows do not fit; seen: float64 [3, 7]"),
    "prefix NaN": ({"prefix": np.full((3, 8), np.nan)}, "committed rows are not finite in row 0"),
    "fd without actions": ({"mode": "fd"}, "fd actions are missing; expected: float [32, 8]"),
    "fd short": (
        {"mode": "fd", "actions": np.zeros((31, 8))},
        "fd actions do not fit; seen: float64 [31, 8]",
    ),
    "id without video": ({"mode": "id"}, "an id request needs its video; expected: uint8 [33, H, W, 3]"),
    "id short": (
        {"mode": "id", "video": np.zeros((32, 540, 640, 3), np.uint8)},
        "the video does not fit; seen: [32, 540, 640, 3]; expected: [33, H, W, 3]",
    ),
    "id float": (
        {"mode": "id", "video": np.zeros((33, 54, 64, 3), np.float32)},
        "image 'video' is not uint8",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_plain_words(case):
    changes, text = REFUSED[case]
    with pytest.raises(RequestError) as caught:
        check_request(DROID, request(**changes))
    assert text in str(caught.value)


def test_degrees_are_recognised():
    with pytest.raises(RequestError, match=r"\(degrees\?\).*try: np.radians\(state\)"):
        check_request(DROID, request(state={"joint_position": np.degrees(JOINTS)}))


def test_history_rows_are_taken_only_where_the_contract_has_them():
    two = {
        "joint_position": np.stack([JOINTS, JOINTS]),
        "gripper_position": np.full((2, 1), 0.5, np.float32),
    }
    with pytest.raises(RequestError, match="has the wrong shape"):
        check_request(DROID, request(state=two))
    remembers = replace(DROID, model=replace(DROID.model, history=1))
    check_request(remembers, request(state=two))


def test_a_mode_the_contract_cannot_express_is_refused():
    with pytest.raises(RequestError, match="hand_pose has no mode 'id'; expected: fd"):
        check_request(load("hand_pose"), Request(Observation({}, {}, "x"), "id"))

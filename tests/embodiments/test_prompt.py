"""Prompts are the published bytes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from wamserve.action_codec.errors import RequestError
from wamserve.action_codec.rotations import matrix_from_axis_angle, rot6d_from_matrix
from wamserve.embodiments.contract import load
from wamserve.embodiments.idle import idle_rows
from wamserve.embodiments.prompt import aspect_ratio, json_prompt, plain_prompt, render, sentence

MODES = {"wam": "policy", "forward_dynamics": "fd", "inverse_dynamics": "id"}
BANANA = "pick up the banana and put it in the bowl"


def test_stored_prompts_are_reproduced_byte_for_byte(shared):
    stored = json.loads((shared / "golden" / "actions" / "prompts.json").read_text())
    assert len(stored) == 7
    for name, case in stored.items():
        told = case["inputs"]
        hidden = told["idle"] is None or told["mode"] == "inverse_dynamics"
        text = json_prompt(
            told["c"],
            told["vp"],
            told["av"] or "",
            frames=told["T"],
            fps=told["fps"],
            height=told["hw"][0],
            width=told["hw"][1],
            idle=None if hidden else (told["idle"], told["N"]),
        )
        assert text == case["json"], name


RENDERED = {  # stored prompt -> how a contract asks for it
    "droid_policy": ("droid_lerobot", BANANA, {"idle": 0}),
    "droid_policy_server": ("droid_lerobot", BANANA, {}),
    "droid_fd": ("droid_lerobot_midtrain", "pick up the cup", {"mode": "fd", "idle": 3}),
    "libero_train": ("libero", "put the bowl on the plate", {"idle": 0}),
    "av_id": ("av", "", {"mode": "id"}),
    "bridge_id": (
        "bridge_orig_lerobot",
        "Put the pot to the left of the purple item.",
        {"mode": "id", "idle": 2},
    ),
}


@pytest.mark.parametrize("name", RENDERED)
def test_contracts_render_the_stored_prompts(shared, name):
    stored = json.loads((shared / "golden" / "actions" / "prompts.json").read_text())
    contract, task, options = RENDERED[name]
    # Frames of a policy with a state row: 33 video frames, 33 rows; without: one row fewer than frames.
    assert render(load(contract).model, task, **options) == stored[name]["json"]


def test_plain_prompt_is_the_published_servers_text():
    text = render(
        load("droid_lerobot").model, "Pick up the banana and place it in the bowl", prompt_format="plain"
    )
    assert text == (
        "Pick up the banana and place it in the bowl. This video contains concatenated views from multiple "
        "camera perspectives. The top row is from the wrist-mounted camera. The bottom row contains two "
        "horizontally concatenated third-person perspective views of the scene from opposite sides, with the "
        "robot visible. The video is 2.0 seconds long and is of 15 FPS. This video is of 544x736 resolution."
    )


def test_a_question_still_gets_a_full_stop_in_the_plain_form():
    text = plain_prompt("Is it done?", "wrist_view", "", frames=17, fps=20, height=640, width=640)
    assert text.startswith(
        "Is it done?. This video is captured from a wrist-mounted camera. The video is 0.0 "
    )


def test_sentences_end_once():
    assert [sentence(text) for text in (" go ", "Go!", "Go?", "Go.")] == ["go.", "Go!", "Go?", "Go."]


def test_empty_task_is_the_unconditional_prompt():
    model = load("droid_lerobot").model
    assert render(model, "") == "" and render(model, "", prompt_format="plain") == ""


def test_contract_form_and_text_decide():
    model = load("droid_lerobot").model
    plain = dataclasses.replace(model, prompt_format="plain")
    assert render(plain, "Go") == render(model, "Go", prompt_format="plain") != render(model, "Go")
    bare = dataclasses.replace(model, view_text="")
    assert "wrist-mounted" not in render(bare, "Go")


def test_times_round_and_durations_truncate():
    text = json_prompt("x", "ego_view", "", frames=17, fps=10, height=480, width=832)
    assert '"time": "0:00-0:02"' in text and '"duration": "1s"' in text
    half = json_prompt("x", "ego_view", "", frames=25, fps=10, height=480, width=832)
    assert '"time": "0:00-0:02"' in half  # 2.5 s rounds to even
    long = json_prompt("x", "ego_view", "", frames=61, fps=1, height=480, width=832)
    assert '"time": "0:00-1:01"' in long


def test_non_ascii_tasks_are_escaped_as_json_does():
    assert '"description": "Mets le caf\\u00e9."' in render(load("umi").model, "Mets le café")


def test_aspect_ratio_is_the_tables_name_or_the_reduced_fraction():
    assert [aspect_ratio(*s) for s in ((544, 736), (480, 832), (640, 640), (768, 512))] == [
        "4,3",
        "16,9",
        "1,1",
        "2,3",
    ]
    assert aspect_ratio(100, 250) == "5,2"


def test_unknown_viewpoint_and_non_text_are_refused():
    with pytest.raises(RequestError, match="no viewpoint 'side'; expected: ego_view"):
        json_prompt("x", "side", "", frames=2, fps=1, height=16, width=16)
    with pytest.raises(RequestError, match="the instruction is not text; seen: bytes"):
        render(load("umi").model, b"go")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "wam"}, "no mode 'wam'; expected: policy, fd, id"),
        ({"prompt_format": "xml"}, "no prompt format 'xml'; expected: json, plain"),
        ({"rows": 0}, "at least one action row; seen: 0"),
        ({"idle": 34}, r"more rows are idle than there are; seen: 34; expected: 0 \.\. 33"),
        ({"idle": -1}, r"seen: -1; expected: 0 \.\. 33"),
    ],
)
def test_a_prompt_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(RequestError, match=message):
        render(load("droid_lerobot").model, "go", **wrong)


def test_idle_rows_of_the_stored_unit_case(shared):
    data = np.load(shared / "golden" / "actions" / "codec_unit.npz")
    layout = load("bridge_orig_lerobot").model.layout
    counts = [idle_rows(layout, data["idle_x"], int(rate)) for rate in data["idle_fps"]]
    assert counts == data["idle_counts"].tolist()


def test_rests_shorter_than_three_rows_do_not_count():
    layout = load("droid_lerobot").model.layout
    rows = np.zeros((9, 8))
    rows[:, 0] = [0.0, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0.3, 0.3]
    # still: row 0 (nothing before it), 2, 4, 5, 6, 8
    assert idle_rows(layout, rows, 15) == 3


def test_a_moving_gripper_is_not_idle():
    layout = load("droid_lerobot").model.layout
    rows = np.zeros((6, 8))
    rows[:, 7] = [1.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert idle_rows(layout, rows, 15) == 3


def test_two_arms_share_one_norm_of_motion():
    layout = load("robomind-franka-dual").model.layout
    rows = np.zeros((4, 20))
    rows[:, [3, 7, 13, 17]] = 1.0
    rows[:, 0] = 0.0004  # m, below 0.005 / 10 Hz
    assert idle_rows(layout, rows, 10) == 4
    rows[:, 10] = 0.0004  # together 0.00057
    assert idle_rows(layout, rows, 10) == 0


def test_an_arm_that_turns_is_not_idle():
    layout = load("robomind-franka-dual").model.layout
    rows = np.zeros((4, 20))
    rows[:, [3, 7]] = 1.0
    for degrees, idle in ((0.14, 4), (0.16, 0)):  # 1.5 degrees / 10 Hz
        rows[:, 13:19] = rot6d_from_matrix(matrix_from_axis_angle([0.0, np.radians(degrees), 0.0]))
        assert idle_rows(layout, rows, 10) == idle

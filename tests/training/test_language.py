"""Claims about how a small model reads its prompt."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wamserve.embodiments.canvas import canvas_fit
from wamserve.embodiments.contract import load
from wamserve.embodiments.prompt import render
from wamserve.policy_server.world_model.text import load_tokenizer
from wamserve.training.language import PARAPHRASES
from wamserve.training.small import frame_of, train_tokenizer


def prompts_of(contract, tasks):
    model = load(contract).model
    fit = canvas_fit(model.canvas)
    ways = [way for task in tasks for way in PARAPHRASES[task]]
    return [render(model, way, fit=fit) for way in ways], frame_of(model, fit)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    arm, arm_frame = prompts_of("panda_joint", ["lift the red cube", "lift the green cube"])
    finger, finger_frame = prompts_of("pusht", ["push the T-shaped block onto the T-shaped target"])
    train_tokenizer([*arm, *finger], folder, 640, [*arm_frame, *finger_frame])
    return load_tokenizer(folder, 640)


def test_what_all_prompts_share_is_one_token_on_either_side(tokenizer):
    (prompt, *_), (before, after) = prompts_of("panda_joint", ["lift the red cube"])
    words = tokenizer.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert tokenizer.tokenizer.decode([words[0]]) == before
    assert tokenizer.tokenizer.decode([words[-1]]) == after
    assert len(words) <= 8  # of them the instruction: "Lift the red cube"


def test_red_and_green_differ_in_one_token_of_few(tokenizer):
    prompts, _ = prompts_of("panda_joint", ["lift the red cube", "lift the green cube"])
    red, green = (
        tokenizer.ids(next(p for p in prompts if f"ift the {c} cube" in p)) for c in ("red", "green")
    )
    assert len(red) == len(green) < 24
    assert sum(a != b for a, b in zip(red, green, strict=True)) == 1


def test_any_text_is_still_written_out_and_read_back(tokenizer):
    model = load("panda_joint").model
    prompt = render(model, "ramasse le cube bleu, s'il te plaît", fit=canvas_fit(model.canvas))
    ids = tokenizer.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert tokenizer.tokenizer.decode(ids) == prompt


def test_a_contract_with_its_own_instruction_has_one_prompt_and_that_is_its_frame():
    model = replace(load("panda_joint").model, instruction="lift the cube")
    fit = canvas_fit(model.canvas)
    assert frame_of(model, fit) == (render(model, "anything else", fit=fit),)

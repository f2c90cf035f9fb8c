"""Prompt token ids against the reference's, and tokenizers that do not belong to the checkpoint."""

import json
import shutil

import numpy as np
import pytest

from wamserve.action_codec.errors import CheckpointError
from wamserve.policy_server.world_model.random_weights import write_random_checkpoint
from wamserve.policy_server.world_model.text import load_tokenizer


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return (
        write_random_checkpoint(tmp_path_factory.mktemp("text") / "weights", "tiny-edge") / "text_tokenizer"
    )


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "text_tokenizer")


@pytest.mark.parametrize("case", ["nano_policy", "edge_policy", "nano_policy_state"])
def test_ids_of_prompt_and_empty_prompt_equal_the_reference(shared, case):
    golden = np.load(shared / "golden/model" / f"{case}.npz")
    tokenizer = load_tokenizer(shared / f"golden/model/tiny-{case.split('_')[0]}/text_tokenizer", 507)
    assert tokenizer.ids(str(golden["cond_prompt_json"])) == golden["cond/input_ids"].tolist()
    assert tokenizer.ids("") == golden["uncond/input_ids"].tolist()


def test_a_prompt_is_one_user_turn_then_eos_and_vision_start(folder):
    tokenizer = load_tokenizer(folder, 507)
    text = tokenizer.tokenizer.decode(tokenizer.ids("Fold the towel."))
    assert text == (
        "<|im_start|>user\nFold the towel.<|im_end|>\n<|im_start|>assistant\n<|im_end|><|vision_start|>"
    )


def test_chat_markers_inside_a_prompt_are_still_one_prompt(folder):
    tokenizer = load_tokenizer(folder, 507)
    assert (
        tokenizer.ids("a")[-2:]
        == tokenizer.ids("日本語 <|im_end|>")[-2:]
        == [tokenizer.eos, tokenizer.vision_start]
    )


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(folder):
    with pytest.raises(CheckpointError, match="belongs to another checkpoint; seen: token ids up to 495"):
        load_tokenizer(folder, 400)


def test_a_tokenizer_with_other_special_ids_than_the_vocabulary_was_trained_with_is_refused(folder):
    with pytest.raises(
        CheckpointError, match=r"<\|im_start\|> is id 492; expected: 151644 for a vocabulary of 151936"
    ):
        load_tokenizer(folder, 151936)


def test_a_tokenizer_without_template_or_specials_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="no chat template"):
        load_tokenizer(folder, 507)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['role'] }}")
    with pytest.raises(CheckpointError, match="drops the prompt"):
        load_tokenizer(folder, 507)
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] != "<|vision_start|>"]
    raw["model"]["vocab"].pop("<|vision_start|>")
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["extra_special_tokens"] = []
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"is not Cosmos 3's; seen: no <\|vision_start\|>"):
        load_tokenizer(folder, 507)


def test_a_damaged_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="no tokenizer can be read"):
        load_tokenizer(folder, 507)

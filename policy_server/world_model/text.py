"""Prompt text to token ids, with the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wamserve.action_codec.errors import CheckpointError

# Ids that the trained embeddings of a known vocabulary stand for.
KNOWN_SPECIALS = {
    151936: {
        "<|im_start|>": 151644,
        "<|im_end|>": 151645,
        "<|vision_start|>": 151652,
    },  # Qwen3-VL: Nano, Super
    131072: {"<|im_end|>": 11, "<|vision_start|>": 20},  # Nemotron: Edge
}


@dataclass(frozen=True)
class PromptTokenizer:
    """Turns one prompt into the ids of the understanding tower."""

    tokenizer: Any  # transformers tokenizer with a chat template
    eos: int  # <|im_end|>
    vision_start: int  # the last id of every prompt: generation tokens follow it

    def ids(self, prompt: str) -> list[int]:
        """Ids of `prompt` as the only user turn, no system prompt; `""` is the unconditional branch.

        `<|im_start|>user\\n{prompt}<|im_end|>\\n<|im_start|>assistant\\n`, then eos and vision_start.
        """
        turns = [{"role": "user", "content": prompt}]
        encoded = self.tokenizer.apply_chat_template(
            turns, tokenize=True, add_generation_prompt=True, add_vision_id=False, return_dict=True
        )
        return [*encoded["input_ids"], self.eos, self.vision_start]


def load_tokenizer(folder: Path, vocab_size: int) -> PromptTokenizer:
    """The tokenizer in `folder` (a checkpoint's text_tokenizer/), checked against the network's vocabulary.

    Raises CheckpointError when it cannot be read, lacks a template or a special token, or numbers its
    tokens beyond or differently from the vocabulary of `vocab_size` embeddings.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises whatever its parsers meet
        raise CheckpointError(
            f"no tokenizer can be read from {folder}",
            seen=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'}",
            fix="copy text_tokenizer/ from the checkpoint again",
        ) from error
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"the tokenizer in {folder} has no chat template",
            expected="chat_template.jinja beside tokenizer.json",
        )
    vocabulary = tokenizer.get_vocab()
    specials = {"<|vision_start|>": vocabulary.get("<|vision_start|>"), "eos": tokenizer.eos_token_id}
    absent = [name for name, number in specials.items() if number is None]
    if absent:
        raise CheckpointError(
            f"the tokenizer in {folder} is not Cosmos 3's", seen=f"no {' and no '.join(absent)}"
        )
    largest = max(vocabulary.values())
    if largest >= vocab_size:
        raise CheckpointError(
            f"the tokenizer in {folder} belongs to another checkpoint",
            seen=f"token ids up to {largest}",
            expected=f"ids below the {vocab_size} embeddings of the network",
        )
    for token, number in KNOWN_SPECIALS.get(vocab_size, {}).items():
        if vocabulary.get(token) != number:
            raise CheckpointError(
                f"the tokenizer in {folder} belongs to another checkpoint",
                seen=f"{token} is id {vocabulary.get(token)}",
                expected=f"{number} for a vocabulary of {vocab_size}",
            )
    prompt = PromptTokenizer(tokenizer, int(tokenizer.eos_token_id), int(vocabulary["<|vision_start|>"]))
    if prompt.ids("")[:-2] == prompt.ids("a red cube")[:-2]:
        raise CheckpointError(
            f"the chat template in {folder} drops the prompt",
            expected="a template that writes the user's turn",
        )
    return prompt

"""Starts a small world-action model: a diffusers-format folder with a trained VAE, a tokenizer that knows
the tasks' language, and a transformer at a good point to learn from."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from wamserve.embodiments.canvas import Fit
from wamserve.embodiments.contract import ModelHalf
from wamserve.embodiments.prompt import render
from wamserve.policy_server.world_model.config import WorldModelConfig
from wamserve.policy_server.world_model.random_weights import CHAT_TEMPLATE, write_random_checkpoint

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
ROLES = ("user", "assistant")  # words of the chat template
WEIGHTS = "diffusion_pytorch_model.safetensors"


def frame_of(model: ModelHalf, fit: Fit) -> tuple[str, ...]:
    """What all prompts of a contract have in common: the text before the instruction and after it."""
    before, _, after = render(model, "QZX", fit=fit).partition("QZX")  # all of it where the contract speaks
    return tuple(text for text in (before, after) if text)


def train_tokenizer(
    prompts: Iterable[str], folder: Path, vocab_size: int, frames: Iterable[str] = ()
) -> None:
    """Byte-level BPE over `prompts` in ChatML, saved as transformers reads it. Any text remains writable.

    Each of `frames` becomes one token. A JSON prompt is about a hundred words of which one may tell two tasks
    apart; a small tower hears it among ten tokens and not among a hundred.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    frames = sorted(set(frames))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(frames),
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    said = [functools.reduce(lambda text, frame: text.replace(frame, " "), frames, text) for text in prompts]
    tokenizer.train_from_iterator([*said, *ROLES * len(said)], trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in frames])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|vision_start|>", "<|vision_end|>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    if folder.exists():
        shutil.rmtree(folder)
    fast.save_pretrained(folder)


def start_small(
    folder: Path,
    config: WorldModelConfig,
    vae: Path,
    prompts: Iterable[str],
    frames: Iterable[str] = (),
    seed: int = 0,
) -> Path:
    """Writes the folder `wam train` starts from and returns it.

    Linear maps start at 0.02, residual outputs smaller with depth, both output heads at zero: the first
    prediction is v = 0 whatever comes in. Word embeddings start at 1: at 0.02 the layers' own outputs drown
    which word stands where, and a network that hears no difference never learns to listen.
    """
    write_random_checkpoint(folder, config, seed=seed)
    shutil.rmtree(folder / "vae")
    (folder / "vae").mkdir()
    for name in ("config.json", WEIGHTS):
        shutil.copy(vae / name, folder / "vae" / name)
    train_tokenizer(prompts, folder / "text_tokenizer", config.vocab_size, frames)
    file = folder / "transformer" / WEIGHTS
    generator = torch.Generator().manual_seed(seed)
    weights = {name: _initial(name, value, config, generator) for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    index = folder / "model_index.json"
    table = json.loads(index.read_text())
    table["use_native_flow_schedule"] = True
    index.write_text(json.dumps(table, indent=2))
    return folder


def _initial(
    name: str, value: torch.Tensor, config: WorldModelConfig, generator: torch.Generator
) -> torch.Tensor:
    if "norm" in name:
        return torch.ones_like(value)
    if name.startswith(("proj_out.", "action_proj_out.")) or name.endswith("bias") or ".bias." in name:
        return torch.zeros_like(value)
    if name.startswith("embed_tokens."):
        return torch.randn(value.shape, generator=generator)
    std = 0.02
    if "down_proj" in name or "to_out" in name or "to_add_out" in name:
        std /= (2 * config.num_hidden_layers) ** 0.5
    if name.startswith(("proj_in.", "action_proj_in.")):
        std = 1 / (config.patch_latent_dim if name.startswith("proj_in") else 8) ** 0.5
    return torch.randn(value.shape, generator=generator) * std

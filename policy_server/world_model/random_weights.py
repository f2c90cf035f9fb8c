"""Write a whole checkpoint of random weights: the real layout without the real numbers.

Serving, tests and benchmarks run on it where no trained weights are at hand. Its actions mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from wamserve.policy_server.world_model.config import ARCHITECTURE, WorldModelConfig, preset
from wamserve.policy_server.world_model.text import KNOWN_SPECIALS

# Latent statistics of the Wan 2.2 TI2V-5B VAE, part of its published config.
WAN22_MEAN = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
]  # fmt: skip
WAN22_STD = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
]  # fmt: skip
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + '\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- endif %}"
)


def parameter_shapes(config: WorldModelConfig) -> dict[str, tuple[int, ...]]:
    """Every transformer parameter of a published checkpoint by diffusers name, used ones and dead ones."""
    hidden, inter = config.hidden_size, config.intermediate_size
    query, key = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    domains, actions = config.num_embodiment_domains, config.action_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (config.vocab_size, hidden),
        "lm_head.weight": (config.vocab_size, hidden),
        "norm.weight": (hidden,),
        "norm_moe_gen.weight": (hidden,),
        "proj_in.weight": (hidden, config.patch_latent_dim),
        "proj_in.bias": (hidden,),
        "proj_out.weight": (config.patch_latent_dim, hidden),
        "proj_out.bias": (config.patch_latent_dim,),
        "time_embedder.linear_1.weight": (hidden, 256),
        "time_embedder.linear_1.bias": (hidden,),
        "time_embedder.linear_2.weight": (hidden, hidden),
        "time_embedder.linear_2.bias": (hidden,),
        "action_proj_in.fc.weight": (domains, actions * hidden),
        "action_proj_in.bias.weight": (domains, hidden),
        "action_proj_out.fc.weight": (domains, hidden * actions),
        "action_proj_out.bias.weight": (domains, actions),
        "action_modality_embed": (hidden,),
    }
    for layer in range(config.num_hidden_layers):
        shapes.update(
            {f"layers.{layer}.{name}": shape for name, shape in _layer(config, hidden, inter, query, key)}
        )
    return shapes


def _layer(
    config: WorldModelConfig, hidden: int, inter: int, query: int, key: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for tower in ("", "_moe_gen"):
        yield f"input_layernorm{tower}.weight", (hidden,)
        yield f"post_attention_layernorm{tower}.weight", (hidden,)
        if config.hidden_act == "silu":
            yield f"mlp{tower}.gate_proj.weight", (inter, hidden)
        yield f"mlp{tower}.up_proj.weight", (inter, hidden)
        yield f"mlp{tower}.down_proj.weight", (hidden, inter)
    heads = (("to_q", "to_k", "to_v", "to_out"), ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"))
    for names in heads:
        for name, shape in zip(
            names, ((query, hidden), (key, hidden), (key, hidden), (hidden, query)), strict=True
        ):
            yield f"self_attn.{name}.weight", shape
    norms = ["norm_added_q", "norm_added_k"]
    norms += ["norm_q", "norm_k"] if config.qk_norm_for_text else []
    norms += ["k_norm_und_for_gen"] if config.has_und_k_norm_for_gen else []
    for name in norms:
        yield f"self_attn.{name}.weight", (config.head_dim,)


def write_random_checkpoint(
    folder: Path, like: str | WorldModelConfig = "tiny-nano", *, seed: int = 0, shards: int = 1
) -> Path:
    """A folder in diffusers layout with random weights, a byte tokenizer and a small Wan 2.2 style VAE.

    `like`: a preset name or a config. Equal seeds give equal bytes. The weights keep activations near unit
    size: linear layers 1/sqrt(fan in), norms about 1, small biases.
    """
    config = preset(like) if isinstance(like, str) else like
    folder.mkdir(parents=True, exist_ok=True)
    _write_transformer(folder / "transformer", config, seed, shards)
    _write_vae(folder / "vae", seed)
    _write_tokenizer(folder / "text_tokenizer", config.vocab_size)
    scheduler = {"_class_name": "UniPCMultistepScheduler", "flow_shift": 5.0, "num_train_timesteps": 1000}
    scheduler |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "solver_order": 2}
    scheduler |= {"solver_type": "bh2", "final_sigmas_type": "zero", "use_karras_sigmas": False}
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write_json(
        folder / "model_index.json",
        {
            "_class_name": "Cosmos3OmniPipeline",
            "_diffusers_version": "0.42.1",
            "default_use_system_prompt": False,
            "enable_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "UniPCMultistepScheduler"],
            "sound_tokenizer": [None, None],
            "text_tokenizer": ["transformers", "PreTrainedTokenizerFast"],
            "transformer": ["diffusers", ARCHITECTURE],
            "use_native_flow_schedule": config.hidden_act == "relu2",
            "vae": ["diffusers", "AutoencoderKLWan"],
        },
    )
    return folder


def _write_transformer(folder: Path, config: WorldModelConfig, seed: int, shards: int) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, shape in parameter_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if "norm" in name:
            values[name] = 1 + 0.1 * noise
        elif len(shape) == 1 or ".bias." in name or name == "embed_tokens.weight":
            values[name] = noise * (1.0 if name == "embed_tokens.weight" else 0.02)
        else:
            fan_in = {"action_proj_in": config.action_dim, "action_proj_out": config.hidden_size}.get(
                name.split(".")[0], shape[-1]
            )
            values[name] = noise / fan_in**0.5
    fields: dict[str, Any] = {"_class_name": ARCHITECTURE, "_diffusers_version": "0.42.1"}
    fields |= {k: list(v) if isinstance(v, tuple) else v for k, v in vars(config).items()}
    _write_json(folder / "config.json", fields)
    names = list(values)
    stem = "diffusion_pytorch_model"
    if shards == 1:
        save_file(values, folder / f"{stem}.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number in range(shards):
        part = f"{stem}-{number + 1:05d}-of-{shards:05d}.safetensors"
        held = names[number::shards]
        save_file({name: values[name] for name in held}, folder / part, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(held, part)
    total = sum(4 * prod(value.shape) for value in values.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / f"{stem}.safetensors.index.json", index)


def _write_vae(folder: Path, seed: int) -> None:
    import torch
    from diffusers import AutoencoderKLWan

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(
            base_dim=8, decoder_base_dim=8, z_dim=48, dim_mult=[1, 2, 4, 4], num_res_blocks=1, attn_scales=[],
            temperal_downsample=[False, True, True], latents_mean=WAN22_MEAN, latents_std=WAN22_STD,
            is_residual=True, in_channels=12, out_channels=12, patch_size=2,
            scale_factor_temporal=4, scale_factor_spatial=16,
        )  # fmt: skip
    vae.save_pretrained(folder)  # type: ignore[attr-defined]


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """One token per byte, and the chat specials at the ids a known vocabulary gives them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    known = KNOWN_SPECIALS.get(vocab_size, {})
    free = (n for n in range(vocab_size - 16, vocab_size) if n not in known.values())
    if any(
        number < len(vocabulary) for number in known.values()
    ):  # Edge numbers its specials from the bottom
        vocabulary = {letter: number + 1000 for letter, number in vocabulary.items()}
    vocabulary |= {token: known[token] if token in known else next(free) for token in specials}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|vision_start|>", "<|vision_end|>"],
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def _write_json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=2))

"""From the name of a checkpoint to a policy that answers: every check before the first forward."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wamserve.action_codec.errors import CheckpointError
from wamserve.clients.policy import Mode
from wamserve.embodiments.contract import Embodiment, load, load_file
from wamserve.policy_server.card import PolicyCard, find_card
from wamserve.policy_server.engine.engine import Engine
from wamserve.policy_server.engine.options import EngineOptions
from wamserve.policy_server.policy import WorldActionPolicy
from wamserve.policy_server.progress import Stages
from wamserve.policy_server.runner import Runner
from wamserve.policy_server.world_model.checkpoint import (
    Checkpoint,
    load_weights,
    open_checkpoint,
    untrained_domain,
    weights_hash,
)
from wamserve.policy_server.world_model.network import WorldModel
from wamserve.policy_server.world_model.text import load_tokenizer
from wamserve.policy_server.world_model.vae import VideoVAE

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_policy(
    checkpoint: str | Path,
    embodiment: str | None = None,
    *,
    mode: Mode | None = None,
    device: str = "auto",
    dtype: str = "auto",
    card: str | None = None,
    deterministic: bool = False,
    seed: int = 0,
    hash_weights: bool = True,
    prompt_cache_bytes: int = 1 << 30,
    engine: Mapping[str, Any] | None = None,
    warm_prompts: str | Path | Sequence[str] | None = None,
    progress: Stages | None = None,
) -> WorldActionPolicy:
    """A policy from a folder or a Hub id `org/name[@revision]`.

    embodiment: a contract's name or TOML file; the card's only one by default. card: a card file or the name
    of a shipped card, by default the one beside the weights. mode: one the card does not have is refused
    before the weights are read. device: "auto" is CUDA where there is one. dtype: fp32, bf16, fp16; "auto" is
    bf16 on CUDA and fp32 on a CPU. engine: fields of `EngineOptions`, {} for its defaults; None runs the
    plain path. warm_prompts: instructions to read ahead, or a file of them, one per line.

    Raises CheckpointError or ContractError before any forward pass.
    """
    say = progress or (lambda stage, fraction: None)
    opened = open_checkpoint(checkpoint, lambda done, total: say("download", done / max(total, 1)))
    found = find_card(opened.folder, opened.source, card)
    name = embodiment or found.default_embodiment()
    contract = load_file(name) if name.endswith(".toml") else load(name)
    if mode is not None:
        found.check_use(contract, mode)
    check_card(opened, found, contract)
    tokenizer = load_tokenizer(opened.tokenizer_folder, opened.config.vocab_size)
    place, kind = pick_device(device), pick_dtype(dtype, device)
    vae = load_vae(opened, place, kind)
    network = load_network(opened, place, kind, say)
    sha = ""
    if hash_weights or found.weights_sha256:
        sha = weights_hash(opened, progress=lambda done, total: say("hash", done / max(total, 1)))
    if found.weights_sha256 not in ("", sha):
        raise CheckpointError(
            f"the weights are not those of the card {found.name}", seen=sha, expected=found.weights_sha256
        )
    if place.index is not None and place.type == "cuda":
        torch.cuda.set_device(place)
    runner: Runner | None = None
    if engine is not None:
        runner = Engine(network, vae, EngineOptions(**engine))
    policy = WorldActionPolicy(
        network,
        vae,
        tokenizer,
        contract,
        found,
        weights_sha256=sha,
        deterministic=deterministic,
        seed=seed,
        prompt_cache_bytes=prompt_cache_bytes,
        runner=runner,
        draw_ahead=isinstance(runner, Engine) and runner.options.draw_ahead,
    )
    if isinstance(runner, Engine):
        policy.prompts.network = runner.text  # in host memory where it was asked to be
        if runner.options.quantize != "none":
            from wamserve.policy_server.engine.gate import admit

            admit(policy, runner)
    if warm_prompts is not None:
        from wamserve.policy_server.engine.read_ahead import read_ahead, read_instructions

        if isinstance(warm_prompts, str | Path):
            warm_prompts = read_instructions(Path(warm_prompts))
        read_ahead(policy, warm_prompts)
    return policy


def random_policy(
    preset: str = "tiny-nano", embodiment: str = "droid_lerobot", *, weights_seed: int = 0, **options: object
) -> WorldActionPolicy:
    """A policy of random weights in the real layout, its actions noise; `options` as for `load_policy`."""
    from wamserve.policy_server.world_model.random_weights import write_random_checkpoint

    with tempfile.TemporaryDirectory(prefix="wamserve-random-") as folder:
        write_random_checkpoint(Path(folder), preset, seed=weights_seed)
        return load_policy(folder, embodiment, **{"card": "random-weights", **options})  # type: ignore[arg-type]


def check_card(opened: Checkpoint, card: PolicyCard, contract: Embodiment) -> None:
    """Raises CheckpointError when the card, the contract and the weights do not agree on any mode."""
    modes = card.modes(contract)
    for mode in modes or contract.model.modes[:1]:
        card.check_use(contract, mode)
    if contract.model.width > opened.config.action_dim:
        raise CheckpointError(
            f"{contract.name} has wider actions than this network",
            seen=contract.model.width,
            expected=f"at most {opened.config.action_dim}",
        )
    if untrained_domain(opened, contract.model.domain_id):
        raise CheckpointError(
            f"{opened.source} was never trained for {contract.name}: the action head of domain "
            f"{contract.model.domain_id} is as it was initialised, and its actions would be noise",
            expected="a checkpoint post-trained for this embodiment",
        )


def load_network(opened: Checkpoint, device: torch.device, dtype: torch.dtype, say: Stages) -> WorldModel:
    """The transformer with its weights, ready for inference."""
    with torch.device("meta"):
        network = WorldModel(opened.config)
    network.requires_grad_(False)
    load_weights(network, opened, device, dtype, lambda done, total: say("weights", done / max(total, 1)))
    return network.eval()


def load_vae(opened: Checkpoint, device: torch.device, dtype: torch.dtype) -> VideoVAE:
    """The video VAE of the checkpoint. Raises CheckpointError."""
    from diffusers import AutoencoderKLWan

    folder = opened.vae_folder
    try:
        vae, report = AutoencoderKLWan.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        if report["missing_keys"]:
            raise ValueError(
                f"{len(report['missing_keys'])} weights missing, e.g. {min(report['missing_keys'])}"
            )
    except Exception as error:  # diffusers and safetensors raise whatever they meet
        raise CheckpointError(
            f"no VAE can be read from {folder}",
            seen=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'}",
            fix="copy vae/ from the checkpoint again",
        ) from error
    return VideoVAE(vae.to(device).requires_grad_(False).eval()).eval()


def pick_device(name: str) -> torch.device:
    """Raises CheckpointError for CUDA where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # one GPU per rank
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise CheckpointError("no CUDA device here", seen=name, expected="cpu", fix="--device cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda") or (device.index or 0) >= max(torch.cuda.device_count(), 1):
        raise CheckpointError(f"no device {name!r} here", expected="auto, cpu, cuda or cuda:N")
    return device


def pick_dtype(name: str, device: str) -> torch.dtype:
    if name == "auto":
        name = "bf16" if pick_device(device).type == "cuda" else "fp32"
    if name not in DTYPES:
        raise CheckpointError(f"no dtype {name!r}", expected=", ".join(["auto", *DTYPES]))
    return DTYPES[name]

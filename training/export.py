"""Writes trained weights as the checkpoint folder they were read from, with everything else unchanged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from wamserve.clients.policy import Mode
from wamserve.embodiments.contract import Embodiment
from wamserve.policy_server.card import CARD_FILE, Bounds, PolicyCard, Sampling, Trained, write_card
from wamserve.policy_server.world_model.checkpoint import (
    Checkpoint,
    open_checkpoint,
    weights_hash,
)
from wamserve.policy_server.world_model.names import KEEP_FP32, diffusers_name_from_framework
from wamserve.policy_server.world_model.network import WorldModel
from wamserve.training.config import TrainConfig
from wamserve.training.ranks import Ranks, whole

STEM = "diffusion_pytorch_model"
SHARD_BYTES = 4 << 30


def export_checkpoint(
    network: WorldModel,
    source: Checkpoint,
    folder: Path,
    ranks: Ranks,
    dtype: torch.dtype | None = None,
    vae: Path | None = None,
) -> Path:
    """A diffusers-format folder: the network's weights, and the source's for all that serving never reads.

    `dtype` None keeps each tensor's stored dtype; `vae` goes in place of the source's. Every rank must call;
    rank 0 writes. One shard of weights is in memory at a time.
    """
    weights = dict(network.named_parameters())
    if ranks.first:
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("vae", "text_tokenizer", "scheduler"):
            if (source.folder / part).is_dir():
                shutil.copytree(source.folder / part, folder / part, dirs_exist_ok=True)
        if vae is not None:
            shutil.rmtree(folder / "vae")
            (folder / "vae").mkdir()
            for file in (vae / "config.json", *vae.glob("*.safetensors*")):
                shutil.copy(file, folder / "vae")
        shutil.copy(source.folder / "model_index.json", folder)
        (folder / "transformer").mkdir(exist_ok=True)
        shutil.copy(source.folder / "transformer" / "config.json", folder / "transformer")
    held: dict[str, torch.Tensor] = {}
    names: dict[str, str] = {}
    files: list[Path] = []
    size = total = 0

    def flush() -> None:
        nonlocal held, size
        if held and ranks.first:
            file = folder / "transformer" / f"{STEM}.part{len(files)}"
            save_file(held, file, metadata={"format": "pt"})
            names.update(dict.fromkeys(held, file.name))
            files.append(file)
        held, size = {}, 0

    for stored in sorted((source.folder / "transformer").glob("*.safetensors")):
        with safe_open(stored, framework="pt", device="cpu") as shard_file:
            for key in shard_file.keys():  # noqa: SIM118 - safe_open is no mapping
                name = diffusers_name_from_framework(key) if source.layout == "framework" else key
                value = whole(weights[name]) if name in weights else shard_file.get_tensor(key)
                target = dtype or shard_file.get_tensor(key).dtype
                value = value.to(torch.float32 if name.startswith(KEEP_FP32) else target).contiguous()
                held[name] = value
                size += value.nbytes
                total += value.nbytes
                if size > SHARD_BYTES:
                    flush()
    flush()
    if ranks.first:
        _name_shards(folder / "transformer", files, names, total)
    ranks.wait()
    return folder


def export_card(
    config: TrainConfig, embodiments: Sequence[Embodiment], render_profile: str, folder: Path
) -> None:
    """The policy card beside the weights: the modes and contracts that were trained, and nothing else."""
    start = Path(config.start)
    start = start.relative_to(start.parents[1]) if len(start.parts) > 2 else start
    drawn = [config.modes(which) for which in range(len(config.data))]
    modes = tuple(mode for mode in get_args(Mode) if any(weights.get(mode, 0.0) > 0 for weights in drawn))
    shift = config.objective.sigma_shift

    def sampling(steps: int, guidance: float) -> Sampling:
        return Sampling(steps, guidance, shift, schedule="framework", noise="torch")

    dynamics = sampling(config.card.dynamics_steps, 1.0)
    card = PolicyCard(
        name=config.card.name,
        source=f"wam train, {config.steps} steps on {told(config)}, seed {config.seed}, from {start}",
        prompt_format=embodiments[0].model.prompt_format,
        trained=tuple(
            Trained(name, modes, model_hash)
            for name, model_hash in dict.fromkeys((e.name, e.model_hash) for e in embodiments)
        ),
        policy=sampling(4, config.card.guidance),
        fd=dynamics,
        id=dynamics,
        bounds=Bounds((1, 100), (1.0, 10.0)),
        weights_sha256=weights_hash(open_checkpoint(folder)),
        render_profile=render_profile,
        untrained="Only what is listed was in its training data.",
    )
    write_card(card, folder / CARD_FILE)


def told(config: TrainConfig) -> str:
    """The data sets of a run, how often each was drawn from and how many samples a step had."""
    whole = sum(data.weight for data in config.data)
    return ", ".join(
        f"{data.label} ({data.weight / whole:.0%}, {config.samples(which)} samples)"
        for which, data in enumerate(config.data)
    )


def _name_shards(folder: Path, files: list[Path], names: dict[str, str], total: int) -> None:
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    if len(files) == 1:
        files[0].rename(folder / f"{STEM}.safetensors")
        return
    final = {file.name: f"{STEM}-{i + 1:05d}-of-{len(files):05d}.safetensors" for i, file in enumerate(files)}
    for file in files:
        file.rename(folder / final[file.name])
    index = {"metadata": {"total_size": total}, "weight_map": {k: final[v] for k, v in names.items()}}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2))

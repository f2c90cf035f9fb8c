"""Trains a small video VAE of the Wan layout, so that a shipped folder is a normal pipeline."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from wamserve.action_codec.errors import WamError
from wamserve.policy_server.world_model.channel_norm import replace_norms
from wamserve.policy_server.world_model.first_frame import WanVAE


@dataclass(frozen=True)
class VaeRecipe:
    """Size and schedule of the VAE. The 16x spatial, 4x temporal, 48-channel layout is Wan 2.2's."""

    base_dim: int = 16
    num_res_blocks: int = 1
    steps: int = 3000
    batch: int = 8
    clip_frames: tuple[int, ...] = (1, 5, 9)  # each 4k + 1; a step draws one of them
    crop: int = 64  # pixels, a multiple of 16: the network is convolutional, so it learns from small squares
    full: float = 0.1  # share of steps on whole frames
    rare: float = 0.75  # share of squares laid over a rare colour
    learning_rate: float = 1e-3
    kl_weight: float = 1e-6
    square_weight: float = 2.0  # of the squared error, against 1 for L1; PSNR is what a large one asks for
    rarest: float = 20.0  # weight of a rare colour's pixel over the commonest's: objects are small
    start: str = ""  # folder of a VAE to go on from
    decoder_only: bool = False  # the encoder of `start` is kept, and with it every latent made before
    seed: int = 0
    save_every: int = 250

    def __post_init__(self) -> None:
        if self.crop < 32 or self.crop % 16:
            raise WamError("a square has whole latents", seen=self.crop, expected="32, 48, 64 ...")
        for name in ("base_dim", "num_res_blocks", "steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise WamError(f"{name} must be 1 or more", seen=getattr(self, name))
        for name in ("full", "rare"):
            if not 0 <= getattr(self, name) <= 1:
                raise WamError(f"{name} is a share", seen=getattr(self, name), expected="0 .. 1")
        if self.decoder_only and not self.start:
            raise WamError("decoder_only keeps an encoder", expected="start, the folder of a trained VAE")
        if not self.clip_frames or any(frames < 1 or frames % 4 != 1 for frames in self.clip_frames):
            raise WamError("a clip has whole latents", seen=self.clip_frames, expected="of 1, 5, 9 ...")


def new_vae(recipe: VaeRecipe) -> WanVAE:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=recipe.base_dim,
        decoder_base_dim=recipe.base_dim,
        z_dim=48,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=recipe.num_res_blocks,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        scale_factor_temporal=4,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
    )


def open_vae(folder: Path) -> WanVAE:
    """A finished VAE in fp32. WamError where the folder holds none; nothing is fetched."""
    from diffusers import AutoencoderKLWan

    if not (folder / "config.json").is_file():
        raise WamError(f"no VAE in {folder}", expected="config.json and weights", fix="wam train vae --help")
    return AutoencoderKLWan.from_pretrained(folder, local_files_only=True).float()


@dataclass(frozen=True)
class Clips:
    """Episodes of canvas frames of one size."""

    frames: np.ndarray  # uint8 [N, H, W, 3]; may be a memory map
    starts: np.ndarray  # int [E] first frame of each episode
    lengths: np.ndarray  # int [E]

    @cached_property
    def frequency(self) -> np.ndarray:
        """float [512]: how often each colour of 8 x 8 x 8 occurs."""
        some = _colour(self.frames[:: max(1, len(self.frames) // 512)])
        return np.bincount(some.reshape(-1), minlength=512) / some.size

    def weight(self, pixels: np.ndarray, rarest: float) -> np.ndarray:
        """float32 [...] of uint8 [..., 3]: 1 for the commonest colour, else by 1/sqrt(frequency)."""
        table = np.sqrt(self.frequency.max() / np.maximum(self.frequency, 1e-9))
        return np.minimum(table, rarest).astype(np.float32)[_colour(pixels)]

    def draw(self, rng: np.random.Generator, frames: int) -> np.ndarray:
        """uint8 [T, H, W, 3]; an episode shorter than T holds its last frame."""
        episode = int(rng.integers(len(self.starts)))
        first = int(rng.integers(max(1, self.lengths[episode] - frames + 1)))
        rows = self.starts[episode] + np.minimum(first + np.arange(frames), self.lengths[episode] - 1)
        return self.frames[rows]

    def draw_batch(
        self, rng: np.random.Generator, batch: int, frames: int, recipe: VaeRecipe
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels [B, 3, T, h, w] in [-1, 1] and their weights [B, 1, T, h, w]."""
        whole = rng.random() < recipe.full
        clips = [self.draw(rng, frames) for _ in range(max(1, batch // 4) if whole else batch)]
        if not whole:
            clips = [self._square(rng, clip, recipe) for clip in clips]
        stacked = np.stack(clips)
        weights = torch.from_numpy(self.weight(stacked, recipe.rarest))[:, None]
        return torch.from_numpy(stacked).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0, weights

    def _square(self, rng: np.random.Generator, clip: np.ndarray, recipe: VaeRecipe) -> np.ndarray:
        """The clip in a square of `recipe.crop` pixels, often near something of a rare colour."""
        height, width = clip.shape[1:3]
        y, x = int(rng.integers(height)), int(rng.integers(width))
        if rng.random() < recipe.rare:
            likely = self.weight(clip[-1], recipe.rarest).reshape(-1) - 1.0
            if likely.sum() > 0:
                spot = np.searchsorted(likely.cumsum(), rng.random() * likely.sum())
                away = recipe.crop // 3
                y, x = (int(c) for c in divmod(min(int(spot), likely.size - 1), width))
                y, x = y + int(rng.integers(-away, away)), x + int(rng.integers(-away, away))
        tall, wide = min(recipe.crop, height), min(recipe.crop, width)
        top, left = (
            int(np.clip(y - tall // 2, 0, height - tall)),
            int(np.clip(x - wide // 2, 0, width - wide)),
        )
        return clip[:, top : top + tall, left : left + wide]


def _colour(pixels: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] -> int [...] in 0..511."""
    coarse = (pixels >> 5).astype(np.int64)
    return coarse[..., 0] * 64 + coarse[..., 1] * 8 + coarse[..., 2]


def reconstruction_loss(
    pixels: torch.Tensor, out: torch.Tensor, weight: torch.Tensor, square_weight: float
) -> torch.Tensor:
    """Weighted L1 plus squared error: L1 keeps edges, the square punishes a missing object."""
    error = out - pixels
    return (weight * (error.abs() + square_weight * error.square())).sum() / weight.sum()


def train_vae(
    recipe: VaeRecipe, datasets: list[Clips], folder: Path, log: Callable[[str], None] = print
) -> WanVAE:
    """Trains or resumes in `folder`; writes config, weights and `training.jsonl`; returns the model."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    vae = open_vae(Path(recipe.start)) if recipe.start else new_vae(recipe)
    replace_norms(vae)
    if recipe.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=0.0)
    first = 0
    state_path = folder / "state.pt"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        if state["recipe"] != json.dumps(asdict(recipe)):
            raise WamError(
                f"{state_path} was made by another recipe",
                seen=state["recipe"],
                expected=json.dumps(asdict(recipe)),
                fix="another --out",
            )
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    share = np.sqrt([len(clips.frames) for clips in datasets])
    share /= share.sum()
    vae.train()
    began = time.monotonic()
    for step in range(first, recipe.steps):
        rng = np.random.default_rng((recipe.seed, step))  # per step, so that a resumed run is the same run
        which = int(rng.choice(len(datasets), p=share))
        frames = int(rng.choice(recipe.clip_frames))
        count = max(1, recipe.batch // max(1, frames // 2))
        pixels, weight = datasets[which].draw_batch(rng, count, frames, recipe)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * warmup_cosine(step, recipe.steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, dtype=np.float32))
            latents = posterior.mean + 0.05 * noise.to(posterior.mean.dtype)
            out = vae.decode(latents).sample.float()
        kl = posterior.kl().mean()
        loss = reconstruction_loss(pixels, out, weight, recipe.square_weight) + recipe.kl_weight * kl.float()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0 or step + 1 == recipe.steps:
            psnr = 10 * np.log10(4.0 / float((out.detach().clamp(-1, 1) - pixels).square().mean()))
            row = {
                "step": step + 1,
                "loss": float(loss.detach()),
                "psnr_db": psnr,
                "s": time.monotonic() - began,
            }
            with (folder / "training.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            log(f"vae step {step + 1}/{recipe.steps} loss {row['loss']:.4f} psnr {psnr:.2f} dB")
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save({**state, "recipe": json.dumps(asdict(recipe))}, state_path.with_suffix(".tmp"))
            state_path.with_suffix(".tmp").replace(state_path)
    vae.eval()
    if not recipe.decoder_only:
        mean, std = latent_statistics(vae, datasets, recipe.seed)
        vae.register_to_config(latents_mean=mean, latents_std=std)
    vae.half().save_pretrained(folder)  # what is stored, rounded, is what every latent is made with
    return vae.float()


def warmup_cosine(step: int, steps: int, warmup: int = 100, floor: float = 0.02) -> float:
    """Learning-rate factor at `step`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + float(np.cos(np.pi * progress)))


@torch.no_grad()
def latent_statistics(
    vae: WanVAE, datasets: list[Clips], seed: int, clips: int = 64
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over 9-frame clips of every dataset."""
    rng = np.random.default_rng(seed)
    values: list[torch.Tensor] = []
    for clip in iter_clips(datasets, rng, clips):
        values.append(vae.encode(clip).latent_dist.mode()[0].flatten(1))
    flat = torch.cat(values, 1)
    return flat.mean(1).tolist(), flat.std(1).clamp_min(1e-3).tolist()


def iter_clips(datasets: list[Clips], rng: np.random.Generator, count: int) -> Iterator[torch.Tensor]:
    for index in range(count):
        clip = torch.from_numpy(datasets[index % len(datasets)].draw(rng, 9))
        yield clip.permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0

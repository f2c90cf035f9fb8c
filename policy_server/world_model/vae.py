"""Pixels to latents and back: diffusers' Wan 2.2 VAE, normalised as the network was trained.

A policy call encodes one frame; `FirstFrameEncoder` does that in two dimensions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from wamserve.action_codec.errors import CheckpointError, RequestError
from wamserve.policy_server.world_model.channel_norm import replace_norms
from wamserve.policy_server.world_model.config import SPATIAL_FACTOR, TEMPORAL_FACTOR
from wamserve.policy_server.world_model.first_frame import FirstFrameEncoder, WanVAE


class VideoVAE(nn.Module):
    """Normalised latents of a clip or of its first frame; moves and casts as one module."""

    mean: Tensor  # [C] in the VAE's dtype: the reference rounds both constants to it
    inv_std: Tensor

    def __init__(self, vae: WanVAE) -> None:
        super().__init__()
        factors = (vae.config.scale_factor_spatial, vae.config.scale_factor_temporal)
        if factors != (SPATIAL_FACTOR, TEMPORAL_FACTOR):
            raise CheckpointError(
                "this VAE is not the one the network was trained with",
                seen=f"{factors[0]}x in space, {factors[1]}x in time",
                expected="16x in space, 4x in time (Wan 2.2)",
            )
        replace_norms(vae)
        self.vae = vae
        self.first_frame = FirstFrameEncoder(vae)
        place = {"dtype": vae.dtype, "device": vae.device}
        self.register_buffer("mean", torch.tensor(vae.config.latents_mean, **place), persistent=False)
        self.register_buffer("inv_std", 1.0 / torch.tensor(vae.config.latents_std, **place), persistent=False)

    @property
    def channels(self) -> int:
        return self.mean.numel()

    def normalise(self, mode: Tensor) -> Tensor:
        """Posterior mode [B, C, T, h, w] -> fp32 latents of unit scale."""
        return ((mode - self.mean.view(1, -1, 1, 1, 1)) * self.inv_std.view(1, -1, 1, 1, 1)).float()

    @torch.no_grad()
    def encode_video(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, F, H, W] in [-1, 1] -> fp32 latents [B, C, 1 + (F - 1) // 4, H / 16, W / 16].

        As in the reference, frames past the last whole group of four do not reach a latent.
        """
        check_pixels(pixels)
        return self.normalise(self.vae.encode(pixels.to(self.mean.dtype)).latent_dist.mode())

    @torch.no_grad()
    def encode_first_frame(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] in [-1, 1] -> fp32 latents [B, C, 1, H / 16, W / 16], frame 0 of any clip."""
        check_pixels(pixels[:, :, None])
        return self.normalise(self.first_frame(pixels.to(self.mean.dtype))[:, :, None])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """fp32 latents [B, C, T, h, w] -> fp32 pixels [B, 3, 4 T - 3, 16 h, 16 w] in [-1, 1]."""
        raw = latents.to(self.mean.dtype) / self.inv_std.view(1, -1, 1, 1, 1) + self.mean.view(1, -1, 1, 1, 1)
        return self.vae.decode(raw).sample.float()


def check_pixels(pixels: Tensor) -> None:
    """Raises RequestError unless `pixels` is [B, 3, F, H, W] in [-1, 1] on a grid the VAE can tile."""
    if pixels.ndim != 5 or pixels.shape[1] != 3 or not pixels.is_floating_point():
        raise RequestError(
            "pixels have the wrong form",
            seen=f"{tuple(pixels.shape)} {pixels.dtype}",
            expected="float [B, 3, F, H, W] in [-1, 1]",
        )
    if pixels.shape[-1] % SPATIAL_FACTOR or pixels.shape[-2] % SPATIAL_FACTOR:
        raise RequestError(
            "odd canvas",
            seen=tuple(pixels.shape[-2:]),
            expected=f"sides that are multiples of {SPATIAL_FACTOR}",
        )


def crop_content(latents: Tensor, content: tuple[int, int]) -> Tensor:
    """Drops the canvas padding: latents [..., h, w] to whole latent rows and columns of `content` pixels."""
    return latents[..., : content[0] // SPATIAL_FACTOR, : content[1] // SPATIAL_FACTOR]


def pixels_from_uint8(frames: np.ndarray | Tensor) -> Tensor:
    """uint8 RGB [F, H, W, 3] -> float32 [1, 3, F, H, W] in [-1, 1]."""
    frames = torch.as_tensor(frames)
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise RequestError(
            "frames have the wrong form",
            seen=f"{tuple(frames.shape)} {frames.dtype}",
            expected="uint8 [F, H, W, 3]",
        )
    return frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0


def uint8_from_pixels(pixels: Tensor) -> np.ndarray:
    """Float [B, 3, F, H, W] in [-1, 1] -> uint8 RGB [B, F, H, W, 3]."""
    scaled = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 4, 1).cpu().numpy()

"""RMS norm over the channels of the Wan VAE's pictures, in the few passes that a CPU can afford."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """x / |x| * sqrt(C) * gamma over dim 1 of [B, C, ...]; |x| is taken in fp32.

    diffusers' form divides by a norm over strided channels, a third of the time a clip takes to encode.
    """

    def __init__(self, gamma: Tensor, dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(gamma.detach().reshape(-1, *[1] * dims).clone(), gamma.requires_grad)
        self.scale = float(gamma.numel()) ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        square = x.square() if x.dtype == torch.float32 else x.float().square()
        inverse = square.sum(1, keepdim=True).clamp_min(1e-24).rsqrt()
        return x * (inverse * self.scale).to(x.dtype) * self.gamma.to(x.dtype)


def replace_norms(vae: Any) -> None:
    """Puts ChannelNorm in the place of a diffusers AutoencoderKLWan's norms; weights keep their names."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm

    for module in list(vae.modules()):
        for name, child in module.named_children():
            if isinstance(child, WanRMS_norm) and child.channel_first and not torch.is_tensor(child.bias):
                setattr(module, name, ChannelNorm(child.gamma, child.gamma.ndim - 1))

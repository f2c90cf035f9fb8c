"""The encoder of the Wan 2.2 VAE for a single frame, with every causal 3-D convolution folded to 2-D.

Before frame 0 a causal convolution sees zeros, so only the last temporal tap of its kernel acts; temporal
downsampling passes a first chunk through. One frame then costs a seventieth of a padded 33-frame clip.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wamserve.action_codec.errors import CheckpointError
from wamserve.policy_server.world_model.channel_norm import ChannelNorm

WanVAE = Any  # a diffusers.AutoencoderKLWan; diffusers carries no types
WanBlock = Any  # one of its blocks


def last_tap(conv: nn.Conv3d, rows: slice = slice(None)) -> nn.Conv2d:
    """The 2-D convolution that a causal 3-D one is at the first frame; `rows` picks output channels."""
    weight = conv.weight[rows, :, -1]
    folded = nn.Conv2d(
        weight.shape[1], weight.shape[0], conv.kernel_size[1], stride=conv.stride[1],
        padding=weight.shape[-1] // 2, device=weight.device, dtype=weight.dtype,
    )  # fmt: skip
    assert conv.bias is not None and folded.bias is not None
    with torch.no_grad():
        folded.weight.copy_(weight)
        folded.bias.copy_(conv.bias[rows])
    return folded.requires_grad_(False)


def _flat(norm: WanBlock) -> ChannelNorm:
    """A norm of the VAE for [B, C, H, W]."""
    return ChannelNorm(norm.gamma, dims=2).requires_grad_(False)


class ResBlock(nn.Module):
    def __init__(self, block: WanBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = _flat(block.norm1), _flat(block.norm2)
        self.conv1, self.conv2 = last_tap(block.conv1), last_tap(block.conv2)
        shortcut = block.conv_shortcut
        self.shortcut = last_tap(shortcut) if isinstance(shortcut, nn.Conv3d) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(inner)))


class Attention(nn.Module):
    """Single-head attention over the pixels of the frame."""

    def __init__(self, block: WanBlock) -> None:
        super().__init__()
        self.norm = _flat(block.norm)
        self.to_qkv, self.proj = block.to_qkv, block.proj

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None]  # [B, 1, H * W, 3 C]
        query, key, value = (part.contiguous() for part in qkv.chunk(3, dim=-1))
        out = (
            F.scaled_dot_product_attention(query, key, value)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])
        )
        return x + self.proj(out)


class DownBlock(nn.Module):
    def __init__(self, block: WanBlock) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[ResBlock(one) for one in block.resnets])
        self.down = nn.Identity() if block.downsampler is None else block.downsampler.resample
        pool = block.avg_shortcut
        self.factor_time: int = pool.factor_t
        self.factor_space: int = pool.factor_s
        self.out_channels: int = pool.out_channels

    def shortcut(self, x: Tensor) -> Tensor:
        """Mean over groups of neighbouring values, the missing frame before the first one counted as zero."""
        tiles = F.pixel_unshuffle(x, self.factor_space).unflatten(1, (x.shape[1], 1, -1))
        if self.factor_time == 2:
            tiles = torch.cat([torch.zeros_like(tiles), tiles], dim=2)
        return tiles.flatten(1, 3).unflatten(1, (self.out_channels, -1)).mean(dim=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.blocks(x)) + self.shortcut(x)


class FirstFrameEncoder(nn.Module):
    """Pixels [B, 3, H, W] in [-1, 1] -> posterior mode [B, C, H / 16, W / 16], not yet normalised."""

    def __init__(self, vae: WanVAE) -> None:
        super().__init__()
        if not vae.config.is_residual or vae.config.attn_scales:
            raise CheckpointError(
                "this VAE's encoder is not that of Wan 2.2",
                seen=f"is_residual {vae.config.is_residual}, attn_scales {vae.config.attn_scales}",
                expected="is_residual True, no attn_scales",
            )
        encoder = vae.encoder
        self.patch = vae.config.patch_size or 1
        self.conv_in = last_tap(encoder.conv_in)
        self.down = nn.Sequential(*[DownBlock(block) for block in encoder.down_blocks])
        middle: list[nn.Module] = [ResBlock(encoder.mid_block.resnets[0])]
        for attention, block in zip(encoder.mid_block.attentions, encoder.mid_block.resnets[1:], strict=True):
            middle += [Attention(attention), ResBlock(block)]
        self.middle = nn.Sequential(*middle)
        self.norm_out = _flat(encoder.norm_out)
        self.conv_out = last_tap(encoder.conv_out)
        self.mode = last_tap(vae.quant_conv, slice(vae.config.z_dim))  # the variances are never used

    def forward(self, pixels: Tensor) -> Tensor:
        batch, channels, height, width = pixels.shape
        p = self.patch
        tiles = pixels.reshape(batch, channels, height // p, p, width // p, p)
        x = tiles.permute(0, 1, 5, 3, 2, 4).reshape(batch, channels * p * p, height // p, width // p)
        x = self.middle(self.down(self.conv_in(x)))
        return self.mode(self.conv_out(F.silu(self.norm_out(x))))

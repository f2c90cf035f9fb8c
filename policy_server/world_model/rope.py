"""Rotary positions of text, video and action tokens, in fp32 and in the reference's order of operations.

At position 15010 one fp32 ulp is a thousandth of a radian for the fastest channel, so the order of the
operations below is part of the model, and none of them may run in TF32 or bf16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wamserve.policy_server.world_model.config import TEMPORAL_FACTOR, WorldModelConfig


def text_positions(length: int) -> Tensor:
    """[3, length] fp32: token i sits at (i, i, i)."""
    return torch.arange(length, dtype=torch.float32).expand(3, -1)


def video_positions(
    config: WorldModelConfig, grid: tuple[int, int, int], rate_hz: float, offset: int
) -> Tensor:
    """[3, T * rows * columns] fp32 of (time, y, x), token order (t, y, x).

    `grid`: latent frames, patch rows, patch columns. Time is absolute: a latent frame advances by
    base_fps / rate_hz; `offset` is prompt length + margin.
    """
    frames, rows, columns = grid
    base = config.base_fps / TEMPORAL_FACTOR
    time = torch.arange(frames, dtype=torch.float32) / (rate_hz / TEMPORAL_FACTOR) * base + offset
    y = torch.arange(rows, dtype=torch.float32)
    x = torch.arange(columns, dtype=torch.float32)
    return torch.stack([axis.flatten() for axis in torch.meshgrid(time, y, x, indexing="ij")])


def action_positions(config: WorldModelConfig, rows: int, start: int, rate_hz: float, offset: int) -> Tensor:
    """[3, rows] fp32: row k sits at the time of pixel frame k + start, at (0, 0) in space.

    `start`: 1 when row 0 is the first action (it ends at frame 1), 0 when row 0 is the robot state at
    frame 0, less one per history row before it. diffusers uses integer positions for a single-row chunk; the
    training code does not, and neither does this.
    """
    base = config.base_fps / TEMPORAL_FACTOR
    time = (torch.arange(rows, dtype=torch.float32) + start) / rate_hz * base + offset
    return torch.stack([time, torch.zeros(rows), torch.zeros(rows)])


def rotary_tables(config: WorldModelConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos, sin [..., N, head_dim] in `dtype`, computed in fp32 on the positions' device.

    `positions` [..., 3, N]. Frequencies are interleaved over the axes: T H W T H W ... T T T T.
    """
    half = config.head_dim // 2
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequency = (1.0 / (config.rope_theta**exponent)).to(positions.device)
    axis = torch.zeros(half, dtype=torch.long, device=positions.device)
    for which in (1, 2):
        axis[which : config.rope_axes_dim[which] * 3 : 3] = which
    angle = positions.movedim(-2, -1)[..., axis] * frequency  # [..., N, half]
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    return torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the head vectors `x` [B, heads, N, D] by tables [B, 1, N, D]."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin

"""Initial noise from a seed, in the stream order of the implementation to be matched.

The same seed gives different actions under different orders, so a checkpoint's card names its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from wamserve.action_codec.errors import RequestError
from wamserve.policy_server.world_model.tokens import LatentShape

# framework: numpy RandomState, restarted with the same seed for each modality (NVIDIA's server).
# diffusers: one CPU torch.Generator, video first, then actions.
# torch: the same order from a generator on the device; equal to diffusers' only where that uses such a one.
NoiseKind = Literal["framework", "diffusers", "torch"]


def draw_noise(
    kind: NoiseKind,
    seeds: Sequence[int],
    shape: LatentShape,
    channels: int = 48,
    action_dim: int = 64,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """fp32 standard normals: video [B, C, T, h, w] and action [B, Ta, action_dim], row b from seeds[b] alone.

    Every value is drawn, given or not, as the reference does: a clean row still moves the stream.
    """
    if kind not in get_args(NoiseKind):
        raise RequestError("unknown noise", seen=kind, expected=", ".join(get_args(NoiseKind)))
    limit = 2**32 if kind == "framework" else 2**63
    if not seeds or not all(0 <= seed < limit for seed in seeds):
        raise RequestError("seed out of range", seen=list(seeds), expected=f"one or more, 0..{limit - 1}")
    video_shape = (channels, shape.frames, shape.height, shape.width)
    action_shape = (shape.actions, action_dim)
    videos, actions = [], []
    for seed in seeds:
        if kind == "framework":
            # Actions are a fresh stream with the same seed: the head of the video's own numbers.
            drawn = [
                torch.from_numpy(np.random.RandomState(seed).standard_normal(size).astype(np.float32))
                for size in (video_shape, action_shape)
            ]
        else:
            generator = torch.Generator("cpu" if kind == "diffusers" else device).manual_seed(seed)
            drawn = [
                torch.randn(size, generator=generator, device=generator.device)
                for size in (video_shape, action_shape)
            ]
        videos.append(drawn[0].to(device))
        actions.append(drawn[1].to(device))
    return torch.stack(videos), torch.stack(actions)

"""Everything about a batch that does not change from step to step: positions, masks, domains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wamserve.action_codec.errors import RequestError
from wamserve.policy_server.world_model.config import WorldModelConfig
from wamserve.policy_server.world_model.rope import action_positions, rotary_tables, video_positions
from wamserve.policy_server.world_model.tokens import LatentShape, RequestPlan, check_plans, clean_mask


@dataclass(frozen=True)
class TokenLayout:
    """Tables of one batch of generation tokens, `[video | action]` per row, made once per request.

    Positions begin at prompt length + margin, so a layout belongs to its prompts: the unconditional
    branch has a layout of its own (`concat` puts both into one batch).
    """

    shape: LatentShape
    prompt_lengths: tuple[int, ...]  # B
    cos: Tensor  # [B, 1, N, head_dim] model dtype
    sin: Tensor
    noisy: Tensor  # [B, N, 1] model dtype: 1 where the token is denoised, 0 where it is given
    video_noisy: Tensor  # [B, 1, T, 1, 1] model dtype
    action_noisy: Tensor  # [B, Ta, action_dim] model dtype: also 0 in the channels past the raw action
    domain: Tensor  # [B] int64
    video_moves: bool  # some frame is noisy: the video head is needed
    action_moves: bool  # some action row is noisy: the action head is needed

    @property
    def batch(self) -> int:
        return len(self.prompt_lengths)

    @property
    def actions_from(self) -> int:
        """Index of the first action token."""
        return self.noisy.shape[1] - self.shape.actions

    @classmethod
    def build(
        cls,
        config: WorldModelConfig,
        shape: LatentShape,
        plans: Sequence[RequestPlan],
        prompt_lengths: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> TokenLayout:
        """One row per plan. Raises RequestError when plans, shape and prompts do not fit together."""
        check_plans(config, shape, plans)
        if len(prompt_lengths) != len(plans):
            raise RequestError(
                "every request needs one prompt", seen=f"{len(prompt_lengths)} prompts", expected=len(plans)
            )
        grid = shape.grid(config.latent_patch_size)
        positions = []
        for plan, length in zip(plans, prompt_lengths, strict=True):
            offset = length + config.unified_3d_mrope_temporal_modality_margin
            video = video_positions(config, grid, plan.rate_hz, offset)
            action = action_positions(config, shape.actions, plan.action_start, plan.rate_hz, offset)
            positions.append(torch.cat([video, action], dim=1))
        cos, sin = rotary_tables(config, torch.stack(positions).to(device), dtype)
        clean = clean_mask(plans, grid[1] * grid[2])
        video_clean = torch.tensor([plan.video_clean for plan in plans])
        action_clean = torch.tensor([plan.action_clean for plan in plans])
        channels = torch.arange(config.action_dim) < torch.tensor(
            [[p.raw_action_dim] for p in plans]
        )  # [B, D]
        action_noisy = ~action_clean[:, :, None] & channels[:, None]
        return cls(
            shape=shape,
            prompt_lengths=tuple(prompt_lengths),
            cos=cos[:, None],
            sin=sin[:, None],
            noisy=(~clean)[..., None].to(device, dtype),
            video_noisy=(~video_clean)[:, None, :, None, None].to(device, dtype),
            action_noisy=action_noisy.to(device, dtype),
            domain=torch.tensor([plan.domain for plan in plans], device=device),
            video_moves=not bool(video_clean.all()),
            action_moves=not bool(action_clean.all()),
        )

    @staticmethod
    def concat(parts: Sequence[TokenLayout]) -> TokenLayout:
        """One batch of several of equal shape, e.g. conditional then unconditional rows."""
        first = parts[0]
        if any(part.shape != first.shape for part in parts):
            raise RequestError(
                "layouts of one batch must have one shape",
                seen=[part.shape for part in parts],
                expected="equal shapes",
            )

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        return TokenLayout(
            shape=first.shape,
            prompt_lengths=tuple(n for part in parts for n in part.prompt_lengths),
            cos=joined("cos"),
            sin=joined("sin"),
            noisy=joined("noisy"),
            video_noisy=joined("video_noisy"),
            action_noisy=joined("action_noisy"),
            domain=joined("domain"),
            video_moves=any(part.video_moves for part in parts),
            action_moves=any(part.action_moves for part in parts),
        )

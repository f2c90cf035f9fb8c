"""The rectified-flow objective over video latents and actions, one noise level shared by both.

x_sigma = sigma * noise + (1 - sigma) * x0 and the network predicts v = noise - x0, as at inference.
Which tokens are given and which are denoised is drawn per sample, so that one network learns policy,
forward dynamics, inverse dynamics and policy behind an already committed prefix of actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import numpy as np
from torch import Tensor

from wamserve.action_codec.errors import WamError
from wamserve.clients.policy import Mode
from wamserve.policy_server.world_model.layout import TokenLayout
from wamserve.policy_server.world_model.network import WorldModel
from wamserve.policy_server.world_model.prompt_kv import PromptKV
from wamserve.policy_server.world_model.tokens import RequestPlan, plan_request

TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class Objective:
    """What is learned, and how each part weighs."""

    modes: Mapping[Mode, float] = field(default_factory=lambda: {"policy": 0.6, "fd": 0.2, "id": 0.2})
    prefix: float = 0.3  # share of policy samples with a clean action prefix of random length
    max_prefix: int = 16  # rows
    action_weight: float = 10.0
    video_weight: float = 1.0
    text_dropout: float = 0.1  # share of prompts replaced by the empty one, for guidance
    sigma_shift: float = 5.0  # shift of the noise levels; inference uses the same
    logit_mean: float = 0.0
    logit_std: float = 1.0

    def __post_init__(self) -> None:
        check_modes(self.modes)

    def draw_plan(self, rng: np.random.Generator, mode: Mode, **embodiment: Any) -> RequestPlan:
        """The plan of one sample; `embodiment` is its contract's part of `plan_request`."""
        frozen = 0
        if mode == "policy" and rng.random() < self.prefix:
            frozen = int(rng.integers(1, min(self.max_prefix, embodiment["chunk"] - 1) + 1))
        return plan_request(mode, frozen=frozen, **embodiment)

    def draw_sigma(self, rng: np.random.Generator, batch: int) -> np.ndarray:
        """[B] in (0, 1): logit-normal, then shifted towards noise."""
        return shifted(
            1 / (1 + np.exp(-rng.normal(self.logit_mean, self.logit_std, batch))), self.sigma_shift
        )


def check_modes(modes: Mapping[Mode, float]) -> None:
    """WamError for weights of modes that cannot be drawn from."""
    unknown = sorted(set(modes) - set(get_args(Mode)))
    if unknown:
        raise WamError("unknown modes", seen=", ".join(unknown), expected=", ".join(get_args(Mode)))
    weights = list(modes.values())
    if any(not 0 <= weight < np.inf for weight in weights) or not sum(weights):
        raise WamError("modes need finite weights >= 0 with a positive sum", seen=dict(modes))


def draw_modes(modes: Mapping[Mode, float], rng: np.random.Generator, batch: int) -> list[Mode]:
    """One mode per sample, by the weights."""
    names = list(modes)
    weights = np.array([modes[name] for name in names], dtype=float)
    return [names[i] for i in rng.choice(len(names), size=batch, p=weights / weights.sum())]


def shifted(sigma: np.ndarray, shift: float) -> np.ndarray:
    """Noise levels moved towards 1 by `shift` (1 leaves them)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


class Losses(NamedTuple):
    total: Tensor  # scalar, what is minimised
    video: Tensor  # scalar mean squared velocity error over noisy video values
    action: Tensor  # scalar, over noisy action values in use


def flow_losses(
    network: WorldModel,
    objective: Objective,
    latents: Tensor,
    actions: Tensor,
    sigma: Tensor,
    plans: Sequence[RequestPlan],
    prompt: PromptKV,
    noise: tuple[Tensor, Tensor],
) -> Losses:
    """Velocity errors of one batch.

    latents [B, C, T, h, w] normalised, actions [B, Ta, action_dim] model space with zero padding,
    sigma [B], noise like (latents, actions). Given values stay at x0 and carry no loss.
    """
    shape = plans[0].shape(*latents.shape[-2:])
    layout = TokenLayout.build(
        network.config, shape, plans, prompt.lengths, device=latents.device, dtype=network.dtype
    )
    video_noisy, action_noisy = layout.video_noisy.float(), layout.action_noisy.float()
    video_noise, action_noise = noise
    level = sigma.float()
    video_sigma = level[:, None, None, None, None] * video_noisy
    action_sigma = level[:, None, None] * action_noisy
    noisy_latents = latents + video_sigma * (video_noise - latents)
    noisy_actions = actions + action_sigma * (action_noise - actions)
    velocity = network.denoise(noisy_latents, noisy_actions, level * TRAIN_TIMESTEPS, layout, prompt)
    action = masked_mean_square(velocity.action.float() - (action_noise - actions), action_noisy)
    if velocity.video is None:
        raise AssertionError("training always asks for the video head")
    video = masked_mean_square(
        velocity.video.float() - (video_noise - latents), video_noisy.expand_as(latents)
    )
    return Losses(objective.video_weight * video + objective.action_weight * action, video, action)


def masked_mean_square(error: Tensor, mask: Tensor) -> Tensor:
    """Mean of error² where mask is 1; 0 for an empty mask."""
    return (error.square() * mask).sum() / mask.sum().clamp_min(1.0)

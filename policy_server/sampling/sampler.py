"""The denoising loop: prompts, plans, given values and noise in; video latents and actions out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wamserve.action_codec.errors import RequestError
from wamserve.policy_server.sampling.guidance import Guidance, combine
from wamserve.policy_server.sampling.schedule import Schedule
from wamserve.policy_server.sampling.start import Start, check_start
from wamserve.policy_server.sampling.unipc import unipc_rows
from wamserve.policy_server.world_model.layout import TokenLayout
from wamserve.policy_server.world_model.network import Velocity, WorldModel
from wamserve.policy_server.world_model.prompt_kv import PromptKV
from wamserve.policy_server.world_model.tokens import RequestPlan


@dataclass(frozen=True)
class Sample:
    """What the loop ends with."""

    latents: Tensor | None  # [B, C, T, h, w] fp32, None where no video was wanted
    actions: Tensor  # [B, Ta, action_dim] fp32, given rows untouched, zero past the raw width
    forwards: int  # network evaluations, both guidance branches counted


class FlatState:
    """Latents and actions of a batch side by side in one [B, M] tensor: the solver is element-wise."""

    def __init__(self, latents: Tensor, actions: Tensor) -> None:
        self.flat = torch.cat([latents.flatten(1), actions.flatten(1)], dim=1)
        self.latent_shape, self.action_shape = latents.shape, actions.shape

    def split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Views of `flat` in the shapes of latents and actions."""
        cut = self.latent_shape[1:].numel()
        return flat[:, :cut].view(self.latent_shape), flat[:, cut:].view(self.action_shape)


@torch.no_grad()
def sample(
    network: WorldModel,
    plans: Sequence[RequestPlan],
    start: Start,
    schedule: Schedule,
    guidance: Guidance,
    prompt: PromptKV,
    unconditional: PromptKV | None = None,
    want_video: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Sample:
    """Denoises a batch of requests of one shape, row b under prompt b.

    `unconditional` holds the empty prompt, one row or one per request; needed where guidance is active.
    `progress(done, steps)` is called after each step. Raises RequestError before the first forward when
    shapes, prompts or values do not fit.
    """
    layout, both, pair = prepare(network, plans, start, schedule, guidance, prompt, unconditional)
    clean_video, clean_action = 1 - layout.video_noisy.float(), 1 - layout.action_noisy.float()
    state = FlatState(
        torch.lerp(start.video_noise, start.latents, clean_video),
        torch.lerp(start.action_noise, start.actions, clean_action),
    )
    rows = torch.from_numpy(unipc_rows(schedule.sigmas)).to(state.flat)
    velocities = state.flat.new_zeros(schedule.steps, state.flat.numel())
    x, forwards = state.flat, 0
    for step, timestep in enumerate(schedule.timesteps):
        latents, actions = state.split(x)
        video_needed = want_video or step < schedule.steps - 1
        t = torch.full((1,), timestep, device=x.device)
        if both is not None and pair is not None and guidance.active(timestep):
            doubled = (torch.cat([latents, latents]), torch.cat([actions, actions]))
            velocity = guided(network.denoise(*doubled, t, both, pair, video_needed), guidance)
            forwards += 2
        else:
            velocity = network.denoise(latents, actions, t, layout, prompt, video_needed)
            forwards += 1
        v_latents, v_actions = state.split(velocities[step].view_as(x))
        if velocity.video is not None:
            v_latents.copy_(velocity.video)
        v_actions.copy_(velocity.action)
        seen = velocities[: step + 1]
        x = torch.addmv(state.flat.flatten(), seen.T, rows[step, : step + 1]).view_as(x)
        if progress is not None:
            progress(step + 1, schedule.steps)
    latents, actions = state.split(x)
    return Sample(latents if want_video else None, actions, forwards)


def guided(velocity: Velocity, guidance: Guidance) -> Velocity:
    """Guided velocity of a doubled batch, conditional rows first."""

    def one(both: Tensor, scale: float) -> Tensor:
        cond, uncond = both.chunk(2)
        return combine(cond, uncond, scale)

    video_scale, action_scale = guidance.scales
    video = None if velocity.video is None else one(velocity.video, video_scale)
    return Velocity(video, one(velocity.action, action_scale))


def prepare(
    network: WorldModel,
    plans: Sequence[RequestPlan],
    start: Start,
    schedule: Schedule,
    guidance: Guidance,
    prompt: PromptKV,
    unconditional: PromptKV | None,
) -> tuple[TokenLayout, TokenLayout | None, PromptKV | None]:
    """Checks a batch; lays out its conditional rows, and both branches where guidance needs them."""
    check_start(network, plans, start)
    shape = plans[0].shape(*start.latents.shape[-2:])
    place = (network.device, network.dtype)
    layout = TokenLayout.build(network.config, shape, plans, prompt.lengths, *place)
    if not any(guidance.active(t) for t in schedule.timesteps):
        return layout, None, None
    if unconditional is None or unconditional.batch not in (1, len(plans)):
        raise RequestError(
            "guidance needs the empty prompt",
            seen="none" if unconditional is None else f"{unconditional.batch} rows",
            expected=f"1 or {len(plans)} rows",
        )
    if unconditional.batch == 1:
        unconditional = unconditional.rows([0] * len(plans))
    other = TokenLayout.build(network.config, shape, plans, unconditional.lengths, *place)
    return layout, TokenLayout.concat([layout, other]), PromptKV.concat([prompt, unconditional])

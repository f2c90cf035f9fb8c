"""What the loop begins with: the given values of a batch and the noise for the rest, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wamserve.action_codec.errors import RequestError
from wamserve.policy_server.world_model.network import WorldModel
from wamserve.policy_server.world_model.tokens import RequestPlan


@dataclass(frozen=True)
class Start:
    """The given values of a batch and the noise for the rest."""

    latents: Tensor  # [B, C, T, h, w] fp32, normalised; read where a frame is clean
    actions: Tensor  # [B, Ta, action_dim] fp32, zero past the raw width; read where a row is clean
    video_noise: Tensor  # like latents
    action_noise: Tensor  # like actions


def check_shapes(network: WorldModel, plans: Sequence[RequestPlan], start: Start) -> None:
    """Raises RequestError unless every tensor has the batch's shape, in fp32 where the network is."""
    if not plans:
        raise RequestError("no request in the batch", seen=0, expected="one plan or more")
    config, plan = network.config, plans[0]
    latents = (len(plans), config.latent_channel, len(plan.video_clean), *start.latents.shape[-2:])
    actions = (len(plans), len(plan.action_clean), config.action_dim)
    for name, expected in (
        ("latents", latents),
        ("video_noise", latents),
        ("actions", actions),
        ("action_noise", actions),
    ):
        tensor = getattr(start, name)
        if tuple(tensor.shape) != expected:
            raise RequestError(f"{name} have the wrong shape", seen=tuple(tensor.shape), expected=expected)
        if tensor.dtype != torch.float32 or tensor.device != network.device:
            raise RequestError(
                f"{name} are not fp32 where the network is",
                seen=f"{tensor.dtype} on {tensor.device}",
                expected=f"torch.float32 on {network.device}",
            )


def check_start(network: WorldModel, plans: Sequence[RequestPlan], start: Start) -> None:
    """`check_shapes`, and that every number is finite and padding is zero. Waits for the device."""
    check_shapes(network, plans, start)
    tensors = (start.latents, start.actions, start.video_noise, start.action_noise)
    padding = [start.actions[row, :, one.raw_action_dim :].any() for row, one in enumerate(plans)]
    # All questions about values in one device-to-host copy: the loop's only synchronisation before its end.
    *finite, padded = torch.stack(
        [torch.isfinite(tensor).all() for tensor in tensors] + [torch.stack(padding).any()]
    ).tolist()
    for name, is_finite in zip(("latents", "actions", "video_noise", "action_noise"), finite, strict=True):
        if not is_finite:
            raise RequestError(f"{name} hold NaN or infinity", seen="not finite", expected="finite numbers")
    if padded:
        raise RequestError(
            "padded action channels must be zero",
            seen="values past an action's raw width",
            expected=f"zeros from channel {min(one.raw_action_dim for one in plans)} on, per its plan",
        )

"""Classifier-free guidance: how far, on which steps, and for which modality the prompt is overstated."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from wamserve.action_codec.errors import RequestError


@dataclass(frozen=True)
class Guidance:
    """v = v_uncond + scale * (v_cond - v_uncond), in fp32; scale 1 needs no unconditional branch."""

    scale: float = 1.0  # of the actions, and of the video where `video_scale` is not given
    # Steps whose integer timestep lies strictly inside are guided, the others are conditional only. NVIDIA's
    # server documents these bounds as inclusive and compares strictly; so does this. None: every step.
    interval: tuple[float, float] | None = None
    video_scale: float | None = None

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.scales)):
            raise RequestError("guidance is not finite", seen=self.scales, expected="finite numbers")
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            raise RequestError(
                "empty guidance interval", seen=self.interval, expected="(low, high), low < high"
            )

    @property
    def scales(self) -> tuple[float, float]:
        """Scale of the video and of the actions."""
        return self.scale if self.video_scale is None else self.video_scale, self.scale

    def active(self, timestep: int) -> bool:
        """Whether the step at this integer timestep needs the unconditional branch."""
        inside = self.interval is None or self.interval[0] < timestep < self.interval[1]
        return inside and self.scales != (1.0, 1.0)


def combine(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Guided velocity of one modality, fp32."""
    cond, uncond = cond.float(), uncond.float()
    return cond if scale == 1.0 else uncond + scale * (cond - uncond)

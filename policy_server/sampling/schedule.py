"""The noise levels of a denoising call, by the name of the implementation they come from.

Three published schedules give three different answers; a checkpoint's card says which one is its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from wamserve.action_codec.errors import RequestError
from wamserve.clients.policy import Mode

# framework: NVIDIA's policy server, and diffusers with use_native_flow_schedule.
# diffusers: UniPCMultistepScheduler.from_config(..., flow_shift, use_karras_sigmas=False), as notebooks do.
# karras: the scheduler of the Nano checkpoint as its converter writes it; takes no shift.
Variant = Literal["framework", "diffusers", "karras"]

TRAIN_TIMESTEPS = 1000
KARRAS_LEVELS = (0.147, 200.0)  # sigma_min, sigma_max of that scheduler


@dataclass(frozen=True)
class Schedule:
    """Noise levels from noise to data. x = (1 - sigma) * data + sigma * noise."""

    variant: Variant
    shift: float
    sigmas: tuple[float, ...]  # steps + 1 values, falling, the last 0; float32 values as the reference has
    timesteps: tuple[int, ...]  # steps values: sigma * 1000 truncated, the only time the network sees

    @property
    def steps(self) -> int:
        return len(self.timesteps)


@dataclass(frozen=True)
class Defaults:
    """Sampling of one mode as the Cosmos 3 paper evaluates it (Table 21)."""

    steps: int
    guidance: float
    shift: float


DEFAULTS: dict[Mode, Defaults] = {
    "policy": Defaults(steps=4, guidance=3.0, shift=5.0),
    "fd": Defaults(steps=50, guidance=1.0, shift=5.0),
    "id": Defaults(steps=50, guidance=1.0, shift=5.0),
}


def flow_schedule(variant: Variant = "framework", steps: int = 4, shift: float = 5.0) -> Schedule:
    """The schedule of `steps` network evaluations. Raises RequestError on an unknown name or number."""
    if variant not in get_args(Variant):
        raise RequestError("unknown schedule", seen=variant, expected=", ".join(get_args(Variant)))
    if not 1 <= steps <= TRAIN_TIMESTEPS or not shift > 0:
        raise RequestError(
            "schedule cannot be made",
            seen=f"{steps} steps, shift {shift}",
            expected=f"1..{TRAIN_TIMESTEPS} steps, shift > 0",
        )
    if variant == "karras":
        sigma = _karras(steps)
    else:
        ends = (1 - 1 / TRAIN_TIMESTEPS, 0.0) if variant == "framework" else (1.0, 1 / TRAIN_TIMESTEPS)
        sigma = np.linspace(*ends, steps + 1)[:-1]
        sigma = shift * sigma / (1 + (shift - 1) * sigma)
    if abs(sigma[0] - 1) < 1e-6:  # log(1 - sigma) must stay finite
        sigma[0] -= 1e-6
    return Schedule(
        variant=variant,
        shift=shift,
        sigmas=tuple(float(s) for s in np.append(sigma, 0).astype(np.float32)),
        timesteps=tuple(int(t) for t in sigma * TRAIN_TIMESTEPS),
    )


def _karras(steps: int) -> np.ndarray:
    """Karras et al. 2022, rho 7: variance-exploding levels, brought to the flow's sigma / (sigma + 1)."""
    low, high = (level ** (1 / 7) for level in KARRAS_LEVELS)
    exploding = (high + np.linspace(0, 1, steps) * (low - high)) ** 7
    return exploding / (exploding + 1)

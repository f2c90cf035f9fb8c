"""What runs the network inside a request: the plain path here, or an engine with buffers and graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from wamserve.embodiments.canvas import Fit
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.sampler import Sample, sample
from wamserve.policy_server.sampling.schedule import Schedule
from wamserve.policy_server.sampling.start import Start
from wamserve.policy_server.world_model.network import WorldModel
from wamserve.policy_server.world_model.prompt_kv import PromptKV
from wamserve.policy_server.world_model.tokens import RequestPlan, latent_size
from wamserve.policy_server.world_model.vae import VideoVAE, crop_content


class Runner(Protocol):
    """First-frame latents, then the denoising loop over them. `engine.Engine` is one, `Plain` another."""

    def encode(self, frames: np.ndarray, fit: Fit, latent_frames: int) -> Tensor:
        """uint8 [B, H, W, 3] padded canvases -> fp32 latents [B, C, T, h, w], all frames but 0 zero."""
        ...

    def sample(
        self,
        network: WorldModel,
        plans: Sequence[RequestPlan],
        start: Start,
        schedule: Schedule,
        guidance: Guidance,
        prompt: PromptKV,
        unconditional: PromptKV | None = None,
        want_video: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> Sample: ...


class Plain:
    """The readable path: nothing outlives a call."""

    sample = staticmethod(sample)

    def __init__(self, vae: VideoVAE, device: torch.device) -> None:
        self.vae, self.device = vae, device

    def encode(self, frames: np.ndarray, fit: Fit, latent_frames: int) -> Tensor:
        content = (fit.content_height, fit.content_width)
        size = latent_size((fit.height, fit.width), content)
        latents = torch.zeros(len(frames), self.vae.channels, latent_frames, *size, device=self.device)
        # One byte a pixel crosses to the device; floats are made there.
        pixels = torch.from_numpy(np.require(frames, requirements=["C", "W"])).to(self.device)
        scaled = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        latents[:, :, :1] = crop_content(self.vae.encode_first_frame(scaled), content)
        return latents

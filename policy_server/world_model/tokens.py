"""Which tokens a request has and which are clean: policy, forward and inverse dynamics alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wamserve.action_codec.errors import RequestError
from wamserve.clients.policy import Mode
from wamserve.policy_server.world_model.config import SPATIAL_FACTOR, TEMPORAL_FACTOR, WorldModelConfig


@dataclass(frozen=True)
class LatentShape:
    """Size of one request's noise; requests of equal shape may share a batch."""

    frames: int  # latent frames T: 1 + pixel transitions // 4
    height: int  # latent rows of the picture content, without the canvas padding
    width: int
    actions: int  # action rows Ta: history + state + chunk

    def grid(self, patch: int) -> tuple[int, int, int]:
        """Latent frames, patch rows, patch columns; an odd last row or column counts as a whole patch."""
        return self.frames, math.ceil(self.height / patch), math.ceil(self.width / patch)

    def video_tokens(self, patch: int) -> int:
        return math.prod(self.grid(patch))


@dataclass(frozen=True)
class RequestPlan:
    """What of one request is given (clean) and what is denoised (noisy), and where its rows sit in time."""

    mode: Mode
    video_clean: tuple[bool, ...]  # T latent frames
    action_clean: tuple[bool, ...]  # Ta rows: history, state, then the chunk
    action_start: int  # pixel frame at which row 0 ends: 1 without a state row, 0 with it, less the history
    rate_hz: float  # frames (and actions) per second
    domain: int  # embodiment domain id: which rows of the action heads
    raw_action_dim: int  # action channels in use; the rest stay zero

    @property
    def chunk(self) -> int:
        return len(self.action_clean) - self.lead

    @property
    def lead(self) -> int:
        """History and state rows before the first action of the chunk."""
        return 1 - self.action_start

    def shape(self, height: int, width: int) -> LatentShape:
        """`height`, `width`: latent rows and columns of the picture content."""
        return LatentShape(len(self.video_clean), height, width, len(self.action_clean))


def plan_request(
    mode: Mode,
    *,
    chunk: int,
    domain: int,
    raw_action_dim: int,
    rate_hz: float,
    state_row: bool = False,
    history: int = 0,
    frozen: int = 0,
    frames: int | None = None,
) -> RequestPlan:
    """The plan of a request over `chunk` actions and `chunk + 1` frames, or `frames` latent ones.

    policy: frame 0, the state row and history rows are clean, and the first `frozen` actions, if some are
    already committed. fd: frame 0 and every action row are clean. id: every frame is clean, no action is.
    """
    if mode not in ("policy", "fd", "id"):
        raise RequestError("unknown mode", seen=mode, expected="policy, fd or id")
    if chunk < 1 or history < 0 or not 0 <= frozen <= chunk or rate_hz <= 0:
        raise RequestError(
            "chunk, history, prefix and rate do not fit",
            seen=f"chunk {chunk}, history {history}, frozen {frozen}, rate {rate_hz} Hz",
            expected="chunk >= 1, history >= 0, 0 <= frozen <= chunk, rate > 0",
        )
    lead = history + int(state_row)
    if frames is None:
        frames = 1 + chunk // TEMPORAL_FACTOR
    clean_rows = lead + chunk if mode == "fd" else lead + frozen
    return RequestPlan(
        mode=mode,
        video_clean=tuple(mode == "id" or frame == 0 for frame in range(frames)),
        action_clean=tuple(row < clean_rows for row in range(lead + chunk)),
        action_start=1 - lead,
        rate_hz=float(rate_hz),
        domain=domain,
        raw_action_dim=raw_action_dim,
    )


def latent_size(canvas: tuple[int, int], content: tuple[int, int]) -> tuple[int, int]:
    """Latent rows and columns of the content of a padded canvas; both given as (height, width) pixels.

    Raises RequestError for a canvas that the VAE cannot tile.
    """
    if any(side % SPATIAL_FACTOR for side in canvas):
        raise RequestError(
            "odd canvas", seen=canvas, expected=f"sides that are multiples of {SPATIAL_FACTOR}"
        )
    if not all(SPATIAL_FACTOR <= inner <= outer for inner, outer in zip(content, canvas, strict=True)):
        raise RequestError(
            "picture content does not fit its canvas",
            seen=content,
            expected=f"at least {SPATIAL_FACTOR} pixels and at most {canvas}",
        )
    return content[0] // SPATIAL_FACTOR, content[1] // SPATIAL_FACTOR


def patchify(latents: Tensor, patch: int) -> Tensor:
    """[B, C, T, h, w] -> [B, tokens, patch * patch * C]; tokens run (t, y, x), features (p_y, p_x, C).

    An odd last row or column is completed with zeros of the latent space.
    """
    batch, channels, frames, height, width = latents.shape
    latents = F.pad(latents, (0, -width % patch, 0, -height % patch))
    rows, columns = latents.shape[-2] // patch, latents.shape[-1] // patch
    tiles = latents.reshape(batch, channels, frames, rows, patch, columns, patch)
    return tiles.permute(0, 2, 3, 5, 4, 6, 1).reshape(batch, frames * rows * columns, -1)


def unpatchify(tokens: Tensor, shape: LatentShape, patch: int) -> Tensor:
    """Inverse of `patchify`: [B, tokens, patch * patch * C] -> [B, C, T, h, w]."""
    frames, rows, columns = shape.grid(patch)
    tiles = tokens.reshape(tokens.shape[0], frames, rows, columns, patch, patch, -1)
    latents = tiles.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
    return latents[..., : shape.height, : shape.width]


def check_plans(config: WorldModelConfig, shape: LatentShape, plans: Sequence[RequestPlan]) -> None:
    """Raises RequestError when the plans do not fit the network or do not share `shape`."""
    if not plans:
        raise RequestError("no request in the batch", seen=0, expected="one plan or more")
    for plan in plans:
        if (len(plan.video_clean), len(plan.action_clean)) != (shape.frames, shape.actions):
            raise RequestError(
                "requests of one batch must have one shape",
                seen=f"{len(plan.video_clean)} latent frames, {len(plan.action_clean)} action rows",
                expected=f"{shape.frames} and {shape.actions}",
            )
        if not 0 <= plan.domain < config.num_embodiment_domains:
            raise RequestError(
                "unknown embodiment domain",
                seen=plan.domain,
                expected=f"0..{config.num_embodiment_domains - 1}",
            )
        if not 1 <= plan.raw_action_dim <= config.action_dim:
            raise RequestError(
                "action is wider than the head", seen=plan.raw_action_dim, expected=f"1..{config.action_dim}"
            )


def clean_mask(plans: Sequence[RequestPlan], patch_tokens: int) -> Tensor:
    """[B, N] bool over the generation tokens (video then actions): True where the value is given."""
    rows = []
    for plan in plans:
        video = torch.tensor(plan.video_clean).repeat_interleave(patch_tokens)
        rows.append(torch.cat([video, torch.tensor(plan.action_clean)]))
    return torch.stack(rows)

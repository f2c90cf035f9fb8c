"""A call recorded from the reference implementation: what went into its loop and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from wamserve.action_codec.errors import CheckpointError
from wamserve.clients.policy import Mode
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.schedule import Schedule
from wamserve.policy_server.world_model.config import TEMPORAL_FACTOR, WorldModelConfig
from wamserve.policy_server.world_model.tokens import RequestPlan, plan_request

Arrays = Mapping[str, np.ndarray]
DROID_DOMAIN = 8  # of records that name no domain: NVIDIA's server, which knows no other robot


@dataclass(frozen=True, eq=False)
class RecordedCall:
    """One call of any mode, as both the diffusers pipeline and NVIDIA's server can be recorded."""

    plan: RequestPlan
    prompts: tuple[np.ndarray, ...]  # token ids, conditional and, where it was guided, unconditional
    latents: Tensor  # [1, C, T, h, w] fp32 at the first step: given values and noise in one
    actions: Tensor  # [1, Ta, action_dim] likewise
    schedule: Schedule
    guidance: Guidance
    final_latents: np.ndarray | None  # [1, C, T, h, w], None where no frame was denoised
    final_actions: np.ndarray | None  # [rows, width] model space, None where no row was denoised


def read_call(file: Path, config: WorldModelConfig) -> RecordedCall:
    """Everything is read from the arrays, nothing from the file's name.

    step0/vision_in and step0/action_in, cond/input_ids (and uncond/), timesteps, sigmas and fps; guidance or
    guidance_scale and guidance_interval; the noisy indexes of cond/ (without them: a policy call) and its
    position_ids; final_latents, and final_action_model or final_action. Raises CheckpointError.
    """
    try:
        arrays = np.load(file, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("one array, no archive of named ones")
        with arrays:
            call = _call({name: arrays[name] for name in arrays.files}, config)
        largest = max(int(ids.max()) for ids in call.prompts)
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, BadZipFile) as error:
        absent = isinstance(error, KeyError)
        raise CheckpointError(
            f"{file} is no recorded call",
            seen=f"no array {error}" if absent else f"{type(error).__name__}: {error}",
            expected="an .npz of the reference's inputs at step 0 and its answer (docs/howto/checkpoints.md)",
            fix="--against diffusers",
        ) from error
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"{file} was recorded with another checkpoint",
            seen=f"token id {largest}",
            expected=f"ids below {config.vocab_size}",
        )
    return call


def _call(want: Arrays, config: WorldModelConfig) -> RecordedCall:
    latents, actions = want["step0/vision_in"], want["step0/action_in"]
    mode = _mode(want)
    final_actions = None
    if mode != "fd":
        final_actions = want["final_action_model" if "final_action_model" in want else "final_action"]
    lead = lead_rows(want, config, len(actions), latents.shape[2])
    plan = plan_request(
        mode,
        chunk=len(actions) - lead,
        domain=int(want["cond/action_domain_id"][0]) if "cond/action_domain_id" in want else DROID_DOMAIN,
        raw_action_dim=_width(want),
        rate_hz=float(want["fps"]),
        history=lead,  # a state row is a history row at frame 0
    )
    bounds = want.get("guidance_interval", np.array([np.nan, np.nan]))  # NaN: every step is guided
    return RecordedCall(
        plan=plan,
        prompts=tuple(
            want[f"{b}/input_ids"] for b in ("cond", "uncond") if b == "cond" or f"{b}/input_ids" in want
        ),
        latents=torch.from_numpy(latents),
        actions=torch.from_numpy(actions)[None],
        schedule=Schedule(
            "diffusers", 0.0, tuple(want["sigmas"].tolist()), tuple(want["timesteps"].tolist())
        ),
        guidance=Guidance(
            float(want.get("guidance_scale", want.get("guidance", np.array(1.0)))),
            None if np.isnan(bounds).any() else (float(bounds[0]), float(bounds[1])),
        ),
        final_latents=None if mode == "id" else want["final_latents"],
        final_actions=None if final_actions is None else final_actions[:, : plan.raw_action_dim],
    )


def _mode(want: Arrays) -> Mode:
    if "cond/action_noisy_frame_indexes" in want:
        if not want["cond/action_noisy_frame_indexes"].size:
            return "fd"
        if not want["cond/vision_noisy_frame_indexes"].size:
            return "id"
    return "policy"


def _width(want: Arrays) -> int:
    """Action channels in use."""
    if "raw_action_dim" in want:
        return int(want["raw_action_dim"])
    return int(want["final_action" if "final_action" in want else "raw_actions"].shape[-1])


def lead_rows(want: Arrays, config: WorldModelConfig, rows: int, frames: int) -> int:
    """History and state rows before the chunk, read off the time at which the first action row sits.

    Without positions the chunk's length says it, or else the number of frames.
    """
    if "cond/position_ids" in want:
        offset = len(want["cond/input_ids"]) + config.unified_3d_mrope_temporal_modality_margin
        seconds = (float(want["cond/position_ids"][0, -rows]) - offset) / (config.base_fps / TEMPORAL_FACTOR)
        lead = 1 - round(seconds * float(want["fps"]))
    else:
        lead = rows - int(want.get("chunk_size", np.array(TEMPORAL_FACTOR * (frames - 1))))
    if not 0 <= lead < rows:
        raise ValueError(f"{rows} action rows of which {lead} stand before the chunk")
    return lead

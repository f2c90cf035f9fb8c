"""Does a checkpoint give the same numbers here as in the reference implementation?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wamserve.action_codec.errors import CheckpointError, RequestError
from wamserve.clients.policy import Mode
from wamserve.embodiments.prompt import json_prompt
from wamserve.policy_server.recorded_call import RecordedCall
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.noise import draw_noise
from wamserve.policy_server.sampling.sampler import Sample, Start, sample
from wamserve.policy_server.sampling.schedule import Schedule, flow_schedule
from wamserve.policy_server.world_model.checkpoint import Checkpoint
from wamserve.policy_server.world_model.network import WorldModel
from wamserve.policy_server.world_model.text import PromptTokenizer
from wamserve.policy_server.world_model.tokens import plan_request
from wamserve.policy_server.world_model.vae import VideoVAE, pixels_from_uint8

TOLERANCE = 2e-5  # absolute, fp32 on both sides


@dataclass(frozen=True)
class Difference:
    """Largest difference of one output, dimension by dimension."""

    what: str  # such as "policy actions"
    worst: np.ndarray  # [D] max |ours - reference| per action column, or per latent channel
    scale: float  # largest |reference|, to judge it by

    @property
    def max(self) -> float:
        return float(self.worst.max())


def against_golden(network: WorldModel, call: RecordedCall) -> list[Difference]:
    """Reruns a recorded call from its own tokens, noise, noise levels and guidance."""
    device, mode, width = network.device, call.plan.mode, call.plan.raw_action_dim
    mixed = (call.latents.to(device), call.actions.to(device))  # given values and noise in one
    with torch.no_grad():
        prompts = [network.prefill(torch.from_numpy(ids)[None].to(device)) for ids in call.prompts]
    cond, uncond = prompts[0], prompts[1] if len(prompts) > 1 else None
    got = sample(network, [call.plan], Start(*mixed, *mixed), call.schedule, call.guidance, cond, uncond)
    found = []
    if call.final_latents is not None:
        found.append(_latents(f"{mode} latents", got, call.final_latents))
    if call.final_actions is not None:
        found.append(_actions(f"{mode} actions", got, call.final_actions, width))
    return found


def against_diffusers(
    checkpoint: Checkpoint, network: WorldModel, vae: VideoVAE, tokenizer: PromptTokenizer, seed: int = 0
) -> list[Difference]:
    """Runs policy, forward and inverse dynamics here and in diffusers' own pipeline on one random clip.

    Both get the same pixels at a size that neither resizes, the same words, and diffusers' noise. A domain
    every registry knows is used, so the numbers mean nothing to a robot.
    """
    pipeline, condition = diffusers_pipeline(checkpoint, network)
    steps, chunk, rate, height, width, task = 4, 8, 15, 256, 320, "Put the red block into the bowl."
    domain, columns = 8, 10  # droid_lerobot as diffusers has it
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (chunk + 1, 16, 20, 3), dtype=np.uint8)
    clip = coarse.repeat(16, axis=1).repeat(16, axis=2)
    raw = rng.normal(size=(chunk, columns)).astype(np.float32)
    words = json_prompt(task, "concat_view", "", frames=chunk + 1, fps=rate, height=height, width=width)
    device = network.device
    with torch.no_grad():
        prompt = network.prefill(torch.tensor([tokenizer.ids(words)], device=device))
        empty = network.prefill(torch.tensor([tokenizer.ids("")], device=device))
    found: list[Difference] = []
    modes: tuple[tuple[Mode, float], ...] = (("policy", 3.0), ("fd", 1.0), ("id", 1.0))
    for mode, guidance in modes:
        want = pipeline(
            prompt=task,
            action=condition(mode, chunk, clip, raw),
            fps=float(rate),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            use_system_prompt=False,
            enable_safety_check=False,
        )
        plan = plan_request(mode, chunk=chunk, domain=domain, raw_action_dim=columns, rate_hz=rate)
        pixels = pixels_from_uint8(clip).to(device)
        encoded = vae.encode_video(pixels) if mode == "id" else vae.encode_first_frame(pixels[:, :, 0])
        latents = torch.zeros(
            1, vae.channels, len(plan.video_clean), height // 16, width // 16, device=device
        )
        latents[:, :, : encoded.shape[2]] = encoded
        actions = torch.zeros(1, chunk, network.config.action_dim, device=device)
        if mode == "fd":
            actions[0, :, :columns] = torch.from_numpy(raw)
        noise = draw_noise("diffusers", [seed], plan.shape(*latents.shape[-2:]), vae.channels, device=device)
        start = Start(latents, actions, *noise)
        got = sample(
            network, [plan], start, published_schedule(checkpoint, steps), Guidance(guidance), prompt, empty
        )
        if mode != "id":
            found.append(_latents(f"{mode} latents", got, want.video.float().cpu().numpy()))
        if mode != "fd":
            found.append(_actions(f"{mode} actions", got, want.action[0].float().cpu().numpy(), columns))
    return found


def published_schedule(checkpoint: Checkpoint, steps: int) -> Schedule:
    """The noise levels the checkpoint's own scheduler files ask for."""
    shift = float(checkpoint.scheduler.get("flow_shift", 1.0))
    if checkpoint.native_flow:
        return flow_schedule("framework", steps, shift)
    if checkpoint.scheduler.get("use_karras_sigmas"):
        return flow_schedule("karras", steps)
    return flow_schedule("diffusers", steps, shift)


def diffusers_pipeline(checkpoint: Checkpoint, network: WorldModel) -> tuple[Any, Any]:
    """diffusers' pipeline of the same folder and dtype, and a maker of its action conditions."""
    if checkpoint.layout != "diffusers":
        raise CheckpointError(
            "diffusers cannot read this checkpoint",
            seen=f"{checkpoint.layout} key names",
            expected="diffusers",
        )
    try:
        import diffusers
        from diffusers.pipelines.cosmos import CosmosActionCondition
        from PIL import Image
    except ImportError as error:
        raise RequestError(
            "parity with diffusers needs diffusers 0.42.1 and Pillow", fix="pip install 'wamserve[server]'"
        ) from error
    pipeline = diffusers.Cosmos3OmniPipeline.from_pretrained(checkpoint.folder, dtype=network.dtype)
    pipeline.to(network.device)
    pipeline.set_progress_bar_config(disable=True)
    names = {"policy": "policy", "fd": "forward_dynamics", "id": "inverse_dynamics"}

    def condition(mode: Mode, chunk: int, clip: np.ndarray, raw: np.ndarray) -> Any:
        pictures = [Image.fromarray(frame) for frame in clip]
        given: dict[str, Any] = {"video": pictures} if mode == "id" else {"image": pictures[0]}
        if mode == "fd":
            given["raw_actions"] = torch.from_numpy(raw)
        return CosmosActionCondition(
            mode=names[mode],
            chunk_size=chunk,
            domain_name="droid_lerobot",
            resolution_tier=256,
            view_point="concat_view",
            **given,
        )

    return pipeline, condition


def _latents(what: str, got: Sample, want: np.ndarray) -> Difference:
    assert got.latents is not None
    ours = got.latents.float().cpu().numpy()
    return _difference(what, np.moveaxis(ours, 1, -1), np.moveaxis(want, 1, -1))


def _actions(what: str, got: Sample, want: np.ndarray, columns: int) -> Difference:
    return _difference(what, got.actions[0, :, :columns].float().cpu().numpy(), want)


def _difference(what: str, ours: np.ndarray, want: np.ndarray) -> Difference:
    if ours.shape != want.shape:
        raise CheckpointError(
            f"{what} have another shape than the reference", seen=ours.shape, expected=want.shape
        )
    gap = np.abs(ours - want)
    gap[~np.isfinite(gap)] = np.inf
    return Difference(what, gap.reshape(-1, gap.shape[-1]).max(axis=0), float(np.abs(want).max()))

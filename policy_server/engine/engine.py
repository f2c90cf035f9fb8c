"""The engine: `sample` as `sampling.sampler.sample` answers, over buffers and graphs that outlive a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wamserve.action_codec.errors import RequestError
from wamserve.embodiments.canvas import Fit
from wamserve.policy_server.engine.attention import attend_blocked
from wamserve.policy_server.engine.call import Call
from wamserve.policy_server.engine.calls import Calls, Capture, capture_cuda_graph
from wamserve.policy_server.engine.key import CallKey, Picture
from wamserve.policy_server.engine.lanes import Lanes
from wamserve.policy_server.engine.options import EngineOptions
from wamserve.policy_server.engine.quantize import quantize_fp8, quantize_int8
from wamserve.policy_server.engine.ranks import Ranks
from wamserve.policy_server.engine.text_tower import OffloadedTextTower
from wamserve.policy_server.engine.tower import Tower
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.sampler import Sample
from wamserve.policy_server.sampling.schedule import Schedule
from wamserve.policy_server.sampling.start import Start, check_shapes, check_start
from wamserve.policy_server.world_model.network import WorldModel
from wamserve.policy_server.world_model.prompt_kv import PromptKV
from wamserve.policy_server.world_model.tokens import RequestPlan, latent_size
from wamserve.policy_server.world_model.vae import VideoVAE, crop_content


class Engine:
    """Runs calls of one network. Fuses its projections in place; the network itself goes on working.

    On CUDA `encode` only stages the pictures: the graph that `sample` replays encodes them. The one wait of a
    request is the caller's copy of the resulting actions to the host.
    """

    def __init__(
        self,
        network: WorldModel,
        vae: VideoVAE,
        options: EngineOptions | None = None,
        capture: Capture | None = None,
    ) -> None:
        """`capture`: records a program, by default as a CUDA graph where there is one to record on."""
        self.options = options = options or EngineOptions()
        self.network, self.vae = network, vae
        cuda = network.device.type == "cuda"
        if options.threads and not cuda:
            torch.set_num_threads(options.threads)
        if capture is None and cuda and options.graphs:
            capture = capture_cuda_graph
        self.stages = capture is not None  # pictures are encoded inside the call
        if options.channels_last:
            vae.first_frame.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.text = OffloadedTextTower(network) if options.offload_text_tower else network
        self.tower = Tower(network, onednn=not options.compile)  # the compiler has kernels of its own
        if options.quantize != "none":
            {"int8": quantize_int8, "fp8": quantize_fp8}[options.quantize](self.tower)
        if options.compile:
            for layer in self.tower.layers:
                layer.compile(dynamic=False)
        self.batched = options.branches == "batched" or (options.branches == "auto" and cuda)
        self.merged = options.attention == "merged" or (options.attention == "auto" and self.stages)
        fits = (
            not (cuda or options.compile)
            and network.dtype == torch.float32
            and torch.backends.mkldnn.is_available()
        )
        if options.attention == "blocked" and not fits:
            raise RequestError(
                "blocked attention is for fp32 on a CPU", seen=f"{network.dtype} on {network.device}",
                expected="sliced",
            )  # fmt: skip
        # A head is one thread's.
        pays = fits and torch.get_num_threads() <= network.config.num_attention_heads
        self.blocked = options.attention == "blocked" or (options.attention == "auto" and pays)
        if self.blocked:
            attend = partial(attend_blocked, lanes=Lanes())
            for layer in self.tower.layers:
                layer.attend = attend  # type: ignore[assignment]
        if self.stages and not self.merged:
            raise RequestError(
                "a graph cannot slice at the prompt's length", seen="attention=sliced with graphs",
                expected="merged", fix="--attention merged, or --no-graphs",
            )  # fmt: skip
        self.ranks = Ranks(network.device) if options.cfg_parallel else None
        self.calls = Calls(self._make, capture, options.max_calls)
        self._staged: tuple[Tensor, Tensor, Picture] | None = None  # (what encode returned, frames, size)

    def _make(self, key: CallKey) -> Call:
        return Call(key, self.tower, self.vae, self.batched, self.merged, self.ranks)

    @torch.no_grad()
    def encode(self, frames: np.ndarray, fit: Fit, latent_frames: int) -> Tensor:
        """uint8 [B, H, W, 3] canvas pictures -> latents [B, C, T, h, w] with frame 0 given, the others zero.

        Where calls are captured the result is a place-holder: `sample` recognises it and encodes the staged
        pictures inside the call.
        """
        content = (fit.content_height, fit.content_width)
        height, width = latent_size((fit.height, fit.width), content)
        shape = (len(frames), self.vae.channels, latent_frames, height, width)
        device, pixels = self.network.device, torch.from_numpy(np.ascontiguousarray(frames))
        if self.stages:
            pixels = pixels.pin_memory() if device.type == "cuda" else pixels
            latents = torch.zeros(1, device=device).expand(shape)
            self._staged = (latents, pixels, Picture(fit.height, fit.width, *content))
            return latents
        latents = torch.zeros(shape, device=device)
        scaled = pixels.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        latents[:, :, :1] = crop_content(self.vae.encode_first_frame(scaled), content)
        return latents

    @torch.no_grad()
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
    ) -> Sample:
        """As `sampling.sampler.sample`, of this engine's network. Raises RequestError before any forward."""
        if network is not self.network:
            raise RequestError("this engine was made for another network")
        key, frames, prompts = self._plan(plans, start, schedule, guidance, prompt, unconditional, want_video)
        call = self.calls.at(key)
        call.load(plans, start, schedule, guidance, prompts, frames)
        self.calls.run(call, progress)
        forwards = len(key.guided) if self.ranks is not None else key.forwards
        return Sample(call.latents() if want_video else None, call.actions(), forwards)

    def _plan(
        self,
        plans: Sequence[RequestPlan],
        start: Start,
        schedule: Schedule,
        guidance: Guidance,
        prompt: PromptKV,
        unconditional: PromptKV | None,
        want_video: bool,
    ) -> tuple[CallKey, Tensor | None, list[PromptKV]]:
        """Checks a call and says which buffers it needs. Asks the device nothing where that would wait."""
        staged, self._staged = self._staged, None
        frames, picture = None, None
        if staged is not None and staged[0] is start.latents:
            frames, picture = staged[1:]
        if self.network.device.type == "cpu":
            check_start(self.network, plans, start)
        else:  # values passed the contract's checks; a NaN would reach the actions and be refused there
            check_shapes(self.network, plans, start)
        prompts = [prompt]
        if any(guidance.active(t) for t in schedule.timesteps):
            if unconditional is None or unconditional.batch not in (1, len(plans)):
                raise RequestError(
                    "guidance needs the empty prompt",
                    seen="none" if unconditional is None else f"{unconditional.batch} rows",
                    expected=f"1 or {len(plans)} rows",
                )
            repeat = unconditional.batch != len(plans)
            prompts.append(unconditional.rows([0] * len(plans)) if repeat else unconditional)
        shape = plans[0].shape(*start.latents.shape[-2:])
        lengths = [n for one in prompts for n in one.lengths]
        key = CallKey.of(shape, plans, lengths, schedule, guidance, want_video, picture)
        return key, frames, prompts

    def report(self) -> dict[str, Any]:
        """What a person asks about a running engine, as plain data."""
        return {
            "branches": "parallel" if self.ranks else "batched" if self.batched else "split",
            "attention": "merged" if self.merged else "blocked" if self.blocked else "sliced",
            "graphs": self.stages,
            "compiled": self.options.compile,
            "quantized": self.options.quantize,
            "text_tower_host_bytes": self.text.nbytes if isinstance(self.text, OffloadedTextTower) else 0,
            **self.calls.report(),
        }

"""A served world-action model: the story of a request, from an observation to a chunk of actions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wamserve.action_codec.errors import RequestError
from wamserve.clients.check import check_request
from wamserve.clients.policy import ActionChunk, Ledger, Prediction, Request
from wamserve.embodiments import tables
from wamserve.embodiments.canvas import Frame, compose, fit_frame, frame
from wamserve.embodiments.contract import Embodiment
from wamserve.embodiments.prompt import render
from wamserve.policy_server.card import PolicyCard, Sampling
from wamserve.policy_server.progress import Progress, silent
from wamserve.policy_server.prompt_cache import PromptCache
from wamserve.policy_server.rows import RowCodec
from wamserve.policy_server.runner import Plain, Runner
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.noise_ahead import NoiseAhead
from wamserve.policy_server.sampling.sampler import Sample
from wamserve.policy_server.sampling.schedule import flow_schedule
from wamserve.policy_server.sampling.start import Start
from wamserve.policy_server.stopwatch import Stopwatch
from wamserve.policy_server.world_model.network import WorldModel
from wamserve.policy_server.world_model.text import PromptTokenizer
from wamserve.policy_server.world_model.tokens import RequestPlan, plan_request
from wamserve.policy_server.world_model.vae import (
    VideoVAE,
    crop_content,
    pixels_from_uint8,
    uint8_from_pixels,
)


@dataclass(frozen=True)
class Job:
    """A checked request with everything the network needs to know about it."""

    request: Request
    plan: RequestPlan
    sampling: Sampling
    seed: int
    frame: Frame  # pixels [F, H, W, 3]: frame 0, or every frame in id mode
    prompt: str
    rows: np.ndarray  # [Ta, width] model space; zeros where they are to be denoised
    want_video: bool

    @property
    def key(self) -> tuple[Any, ...]:
        """Jobs of equal key may share a batch."""
        return self.request.mode, len(self.plan.action_clean), self.frame.fit, self.sampling, self.want_video


class WorldActionPolicy:
    """Answers requests of one embodiment with one checkpoint. Implements `clients.policy.BatchPolicy`.

    deterministic: requests run one by one, in batches of one fixed shape, so that no neighbour can change a
    bit of an answer. Otherwise requests of one key run together, equal to 1e-5.
    """

    def __init__(
        self,
        network: WorldModel,
        vae: VideoVAE,
        tokenizer: PromptTokenizer,
        contract: Embodiment,
        card: PolicyCard,
        *,
        weights_sha256: str = "",
        deterministic: bool = False,
        seed: int = 0,
        prompt_cache_bytes: int = 1 << 30,
        runner: Runner | None = None,
        draw_ahead: bool = True,
    ) -> None:
        self.network, self.vae, self.contract, self.card = network, vae, contract, card
        self.codec = RowCodec(contract)
        self.prompts = PromptCache(network, tokenizer, prompt_cache_bytes)
        self.weights_sha256 = weights_sha256
        self.deterministic = deterministic
        self.seed = seed
        self.runner = runner or Plain(vae, network.device)
        self.on_step: Progress = silent  # called after every denoising step with (done, steps)
        self.noise = NoiseAhead(16 if draw_ahead else 0)
        self._seeds = np.random.default_rng(seed)

    def infer(self, request: Request) -> Prediction:
        return self.infer_batch([request])[0]

    def infer_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        """Answers in order. Raises RequestError or CheckpointError before the first forward."""
        watch = Stopwatch(self.network.device)
        jobs = [self.prepare(request) for request in requests]
        watch.lap("preprocess")
        groups: dict[Any, list[int]] = {}
        for index, job in enumerate(jobs):
            groups.setdefault(index if self.deterministic else job.key, []).append(index)
        answers: dict[int, Prediction] = {}
        preprocess_ms = watch.ms()["preprocess"] / len(jobs) if jobs else 0.0
        for indices in groups.values():
            batch = self.answer([jobs[i] for i in indices], preprocess_ms * len(indices))
            answers.update(zip(indices, batch, strict=True))
        return [answers[i] for i in range(len(jobs))]

    def reset(self, session: str = "") -> None:
        """Nothing is kept between requests; the prompt cache belongs to all sessions."""

    def draw_ahead(self, seed: int) -> None:
        """The noise of a request to come, drawn while nobody waits: the numbers are those of its seed."""
        if self.noise.keep:
            self.noise.draw(seed)

    def prepare(self, request: Request) -> Job:
        """Contract check, canvas, prompt, given rows: all that needs no network."""
        model = self.contract.model
        self.card.check_use(self.contract, request.mode)
        check_request(self.contract, request)
        prefix = np.empty((0, 0)) if request.prefix is None else request.prefix
        plan = plan_request(
            request.mode,
            chunk=model.chunk,
            domain=model.domain_id,
            raw_action_dim=model.width,
            rate_hz=model.rate_hz,
            state_row=model.state_row,
            history=model.history,
            frozen=len(prefix),
        )
        rows = np.zeros((len(plan.action_clean), model.width))
        rows[: self.codec.lead] = self.codec.lead_rows(request.observation)
        if request.mode == "fd" and request.actions is not None:
            rows[self.codec.lead :] = self.codec.model_from_raw(request.actions)
        elif len(prefix):
            given = self.codec.model_from_commands(prefix, request.observation)
            rows[self.codec.lead : self.codec.lead + len(prefix)] = given
        seen = self._frame(request)
        return Job(
            request=request,
            plan=plan,
            sampling=self.card.requested(request),
            seed=self._seed(request),
            frame=seen,
            prompt=render(model, request.observation.instruction, mode=request.mode, fit=seen.fit),
            rows=rows,
            want_video=request.mode == "fd" or (request.want_video and request.mode == "policy"),
        )

    def answer(self, jobs: Sequence[Job], preprocess_ms: float = 0.0) -> list[Prediction]:
        """One batch of one key: the network's part of the story."""
        first, device = jobs[0], self.network.device
        watch = Stopwatch(device)
        prompt = self.prompts([job.prompt for job in jobs])
        guidance = Guidance(first.sampling.guidance, first.sampling.interval, first.sampling.video_guidance)
        schedule = flow_schedule(first.sampling.schedule, first.sampling.steps, first.sampling.shift)
        guided = any(guidance.active(t) for t in schedule.timesteps)
        empty = self.prompts.one("") if guided else None
        latents = self.encode(jobs)
        watch.lap("encode")
        actions = torch.zeros(len(jobs), len(first.rows), self.network.config.action_dim)
        actions[:, :, : first.rows.shape[1]] = torch.from_numpy(np.stack([job.rows for job in jobs]))
        shape = first.plan.shape(*latents.shape[-2:])
        seeds = [job.seed for job in jobs]
        noise = self.noise(first.sampling.noise, seeds, shape, latents.shape[1], actions.shape[-1], device)
        result = self.runner.sample(
            self.network,
            [job.plan for job in jobs],
            Start(latents, actions.to(device), *noise),
            schedule,
            guidance,
            prompt,
            empty,
            want_video=first.want_video,
            progress=self.on_step,
        )
        rows = result.actions[:, self.codec.lead :, : first.rows.shape[1]]
        watch.lap("denoise")
        out = rows.double().cpu().numpy()  # the one wait for the GPU
        videos = self.decode(result) if first.want_video else [None] * len(jobs)
        chunks = [self._chunk(job, row) for job, row in zip(jobs, out, strict=True)]
        watch.lap("postprocess")
        spent = {f"{name}_ms": ms for name, ms in watch.ms().items()}
        ledger = Ledger(preprocess_ms=preprocess_ms, forwards=result.forwards, batch=len(jobs), **spent)
        return [
            Prediction(chunk=chunk, video=video, seed=job.seed, ledger=ledger)
            for job, chunk, video in zip(jobs, chunks, videos, strict=True)
        ]

    def encode(self, jobs: Sequence[Job]) -> torch.Tensor:
        """Clean latents [B, C, T, h, w] of the content, fp32; zero frames where they are to be denoised."""
        first = jobs[0]
        if first.request.mode != "id":
            pictures = np.concatenate([job.frame.pixels for job in jobs])
            return self.runner.encode(pictures, first.frame.fit, len(first.plan.video_clean))
        content = (first.frame.fit.content_height, first.frame.fit.content_width)
        clips = (torch.from_numpy(np.require(job.frame.pixels, requirements=["C", "W"])) for job in jobs)
        pixels = torch.cat([pixels_from_uint8(clip.to(self.network.device)) for clip in clips])
        return crop_content(self.vae.encode_video(pixels), content)

    def decode(self, result: Sample) -> list[np.ndarray]:
        """uint8 [T, h, w, 3] frames of each row of a batch, one row at a time to bound memory."""
        assert result.latents is not None
        return [uint8_from_pixels(self.vae.decode(row[None]))[0] for row in result.latents]

    def describe(self) -> dict[str, Any]:
        """What a server says it serves, as plain data: the fields of `serving.served.Served`."""
        contract, card, chunk = self.contract, self.card, self.contract.model.chunk
        modes = card.modes(contract)
        rendered = {"render_profile": card.render_profile} if card.render_profile else {}
        return {
            "embodiment": contract.name,
            "contract": json.loads(tables.canonical(contract)),
            "wire": json.loads(tables.canonical(contract.wire)),
            "wire_sha256": contract.wire_hash,
            "model_sha256": contract.model_hash,
            "card": {"name": card.name, **rendered, **{mode: card.sampling(mode).line() for mode in modes}},
            "weights_sha256": self.weights_sha256,
            "sampler": card.sampling(modes[0]).line(),
            "device": f"{self.network.device}, {str(self.network.dtype).removeprefix('torch.')}",
            "period": 1.0 / contract.wire.rate_hz,
            "chunk_rows": chunk,
            "modes": list(modes),
            "steps": list(card.bounds.steps),
            "guidance": list(card.bounds.guidance),
            "max_prefix_rows": chunk - 1,
            "video": True,
            "composed": True,
            "deterministic": self.deterministic,
        }

    def warm_up(self) -> None:
        """One call on a grey picture, so that the first robot does not pay for lazy set-up."""
        from wamserve.policy_server.blank import blank_request

        self.infer(blank_request(self.contract, self.card.modes(self.contract)[0]))

    def _frame(self, request: Request) -> Frame:
        canvas = self.contract.model.canvas
        if request.mode != "id":
            seen = frame(canvas, request.observation.images)
            return Frame(seen.pixels[None], seen.fit)
        assert request.video is not None
        height, width = request.video.shape[1:3]
        whole = abs(height * canvas.width / (width * canvas.height) - 1) <= 0.01
        return fit_frame(compose(canvas, {"canvas": request.video}) if whole else request.video, canvas.tier)

    def _chunk(self, job: Job, rows: np.ndarray) -> ActionChunk | None:
        if job.request.mode == "fd":
            return None
        if not np.isfinite(rows).all():
            raise RequestError("the model answered with NaN or infinity", seen=f"seed {job.seed}")
        seen = job.request.observation
        inverse = (
            job.request.mode == "id"
        )  # what was done, in raw rows; a policy says what to do, in commands
        actions = self.codec.raw_from_model(rows) if inverse else self.codec.commands_from_model(rows, seen)
        return ActionChunk(actions, seen.time, 1.0 / self.contract.wire.rate_hz, job.request.delay)

    def _seed(self, request: Request) -> int:
        """The request's own; else one per (session, step); else the next of the server's stream."""
        if request.seed is not None:
            return int(request.seed)
        if request.session:
            text = f"{self.seed}:{request.session}:{request.step}"
            return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
        return int(self._seeds.integers(0, 2**31))

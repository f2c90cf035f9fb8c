"""A whole policy call of the engine beside diffusers' pipeline on one folder, in turns, actions compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wamserve.embodiments.canvas import fit_frame
from wamserve.embodiments.prompt import json_prompt
from wamserve.policy_server.engine.engine import Engine
from wamserve.policy_server.engine.options import EngineOptions
from wamserve.policy_server.load import load_network, load_vae, pick_device, pick_dtype
from wamserve.policy_server.parity import diffusers_pipeline, published_schedule
from wamserve.policy_server.prompt_cache import PromptCache
from wamserve.policy_server.runner import Plain, Runner
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.noise import draw_noise
from wamserve.policy_server.sampling.start import Start
from wamserve.policy_server.world_model.checkpoint import Checkpoint, open_checkpoint
from wamserve.policy_server.world_model.network import WorldModel
from wamserve.policy_server.world_model.text import PromptTokenizer, load_tokenizer
from wamserve.policy_server.world_model.tokens import plan_request
from wamserve.policy_server.world_model.vae import VideoVAE

TASK = "Put the banana in the bowl."
CHUNK, RATE_HZ, STEPS, GUIDANCE, COLUMNS, DOMAIN = 32, 15, 4, 3.0, 10, 8  # droid_lerobot as diffusers has it
PICTURE, TIER = (528, 640), "480"  # a size that neither side resizes; latents 9 x 33 x 40 as for DROID's 540
INTERVAL = (960.0, 1001.0)  # guides the first of four steps, as Edge's card does


class Ours:
    """A policy call without a contract: picture in, action rows on the host out."""

    def __init__(self, checkpoint: Checkpoint, network: WorldModel, vae: VideoVAE, runner: Runner) -> None:
        self.network, self.vae, self.runner = network, vae, runner
        self.schedule = published_schedule(checkpoint, STEPS)
        tokenizer = load_tokenizer(checkpoint.tokenizer_folder, checkpoint.config.vocab_size)
        self.prompts = PromptCache(network, tokenizer)
        self.tokenizer: PromptTokenizer = tokenizer
        self.encode_s = self.denoise_s = 0.0  # of the last call, as the host sees them
        self.forwards = 0

    def words(self) -> str:
        height, width = 544, 736
        return json_prompt(TASK, "concat_view", "", frames=CHUNK + 1, fps=RATE_HZ, height=height, width=width)

    def __call__(self, picture: np.ndarray, seed: int, guidance: Guidance) -> np.ndarray:
        plan = plan_request("policy", chunk=CHUNK, domain=DOMAIN, raw_action_dim=COLUMNS, rate_hz=RATE_HZ)
        device = self.network.device
        seen = fit_frame(picture, TIER)
        prompt, empty = self.prompts.one(self.words()), self.prompts.one("")
        begin = time.perf_counter()
        latents = self.runner.encode(seen.pixels[None], seen.fit, len(plan.video_clean))
        encoded = time.perf_counter()
        shape = plan.shape(*latents.shape[-2:])
        noise = draw_noise("diffusers", [seed], shape, latents.shape[1], device=device)
        actions = torch.zeros(1, CHUNK, self.network.config.action_dim, device=device)
        drawn = time.perf_counter()
        result = self.runner.sample(
            self.network, [plan], Start(latents, actions, *noise), self.schedule, guidance, prompt, empty,
            want_video=False,
        )  # fmt: skip
        rows: np.ndarray = result.actions[0, :, :COLUMNS].float().cpu().numpy()  # the one wait
        self.encode_s, self.denoise_s = encoded - begin, time.perf_counter() - drawn
        self.forwards = result.forwards
        return rows


class Theirs:
    """The same call in diffusers, latents returned, so that it decodes no video either."""

    def __init__(self, checkpoint: Checkpoint, network: WorldModel) -> None:
        self.pipeline, self.condition = diffusers_pipeline(checkpoint, network)
        self.transformer_s = self.encode_s = 0.0  # of the last call
        self.pipeline.transformer.forward = self._timed(self.pipeline.transformer.forward, "transformer_s")
        self.pipeline.vae.encode = self._timed(self.pipeline.vae.encode, "encode_s")

    def _timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            out = function(*args, **kwargs)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            setattr(self, name, getattr(self, name) + time.perf_counter() - begin)
            return out

        return run

    def __call__(self, picture: np.ndarray, seed: int) -> np.ndarray:
        self.transformer_s = self.encode_s = 0.0
        condition = self.condition("policy", CHUNK, picture[None], np.zeros(0))
        condition.resolution_tier = int(TIER)
        answer = self.pipeline(
            prompt=TASK, action=condition,
            fps=float(RATE_HZ), num_inference_steps=STEPS, guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(seed), output_type="latent",
            use_system_prompt=False, enable_safety_check=False,
        )  # fmt: skip
        rows: np.ndarray = answer.action[0].float().cpu().numpy()
        return rows


def versus(
    folder: Path, rounds: int = 5, device: str = "auto", dtype: str = "auto",
    options: Mapping[str, Any] | None = None, with_plain: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """`rounds` interleaved calls of diffusers, the engine, it with Edge's interval.

    Seconds per round, medians, ratios to diffusers, and the largest difference of the actions.
    """
    checkpoint = open_checkpoint(folder)
    place, kind = pick_device(device), pick_dtype(dtype, device)
    network = load_network(checkpoint, place, kind, lambda *_: None)
    theirs = Theirs(checkpoint, network)
    vae = load_vae(checkpoint, place, kind)
    plain = Ours(checkpoint, network, vae, Plain(vae, place))
    engine_network = load_network(checkpoint, place, kind, lambda *_: None)
    engine_vae = load_vae(checkpoint, place, kind)
    engine = Engine(engine_network, engine_vae, EngineOptions(**(options or {})))
    ours = Ours(checkpoint, engine_network, engine_vae, engine)
    full, first = Guidance(GUIDANCE), Guidance(GUIDANCE, INTERVAL)
    calls: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
        "diffusers": theirs,
        "plain": lambda picture, seed: plain(picture, seed, full),
        "engine": lambda picture, seed: ours(picture, seed, full),
        "engine, guidance interval": lambda picture, seed: ours(picture, seed, first),
    }
    if not with_plain:
        del calls["plain"]
    picture = _picture(0)
    for name, call in calls.items():
        if name != "diffusers":  # its first call is as slow as any; ours compile, capture and fill the cache
            call(picture, 0)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    parts: dict[str, list[float]] = {}
    worst = 0.0
    for turn in range(rounds):
        picture, answers = _picture(turn + 1), {}
        for name, call in calls.items():
            begin, busy = time.perf_counter(), time.process_time()
            answers[name] = call(picture, turn)
            spent[name].append(time.perf_counter() - begin)
            cpu[name].append(time.process_time() - busy)
            if name == "diffusers":
                pair = (theirs.encode_s, theirs.transformer_s)
            else:
                source = plain if name == "plain" else ours
                pair = (source.encode_s, source.denoise_s)
            for part, seconds in zip(("encode", "transformer"), pair, strict=True):
                parts.setdefault(f"{name}: {part}", []).append(seconds)
        worst = max(worst, float(np.abs(answers["engine"] - answers["diffusers"]).max()))
    median = {name: statistics.median(seconds) for name, seconds in spent.items()}
    median_cpu = {name: statistics.median(seconds) for name, seconds in cpu.items()}
    return {
        "device": f"{place}",
        "dtype": str(kind).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "prompt_tokens": len(ours.tokenizer.ids(ours.words())),
        "seconds": spent,
        "median_s": median,
        "cpu_seconds": cpu,
        "median_cpu_s": median_cpu,
        "parts_median_s": {name: statistics.median(seconds) for name, seconds in parts.items()},
        "faster_than_diffusers": {name: median["diffusers"] / seconds for name, seconds in median.items()},
        "less_cpu_than_diffusers": {n: median_cpu["diffusers"] / s for n, s in median_cpu.items()},
        "max_action_difference": worst,
        "engine": engine.report(),
    }


def print_versus(found: Mapping[str, Any]) -> None:
    print(
        f"{found['device']}, {found['dtype']}, {found['threads']} threads, medians of {found['rounds']} "
        f"interleaved calls, {found['prompt_tokens']} prompt tokens"
    )
    parts = found["parts_median_s"]
    print(
        f"{'':28}{'call s':>9}{'encode s':>10}{'network s':>11}{'x diffusers':>13}"
        f"{'cpu s':>9}{'x diffusers':>13}"
    )
    for name, seconds in found["median_s"].items():
        encode, network = parts[f"{name}: encode"], parts[f"{name}: transformer"]
        ratio = found["faster_than_diffusers"][name]
        print(
            f"{name:28}{seconds:9.2f}{encode:10.3f}{network:11.2f}{ratio:13.2f}{found['median_cpu_s'][name]:9.2f}"
            f"{found['less_cpu_than_diffusers'][name]:13.2f}"
        )
    print(f"max |action - diffusers'| {found['max_action_difference']:.1e}")


def _picture(seed: int) -> np.ndarray:
    """uint8 [H, W, 3] of coloured blocks."""
    coarse = np.random.default_rng(seed).integers(0, 256, (PICTURE[0] // 16, PICTURE[1] // 16, 3), np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)

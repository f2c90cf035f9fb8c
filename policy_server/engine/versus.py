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
from wamserve.policy_server.engine.diffusers_call import Theirs
from wamserve.policy_server.engine.engine import Engine
from wamserve.policy_server.engine.options import EngineOptions
from wamserve.policy_server.engine.shapes import CallShapes
from wamserve.policy_server.load import load_network, load_vae, pick_device, pick_dtype
from wamserve.policy_server.parity import published_schedule
from wamserve.policy_server.prompt_cache import PromptCache
from wamserve.policy_server.runner import Plain, Runner
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.noise import draw_noise
from wamserve.policy_server.sampling.start import Start
from wamserve.policy_server.world_model.checkpoint import Checkpoint, open_checkpoint
from wamserve.policy_server.world_model.network import WorldModel
from wamserve.policy_server.world_model.text import PromptTokenizer, load_tokenizer
from wamserve.policy_server.world_model.vae import VideoVAE

EQUAL = 2e-4  # largest difference of an action, in model units, that counts as the same answer in fp32


class Ours:
    """A policy call without a robot: picture in, action rows on the host out."""

    def __init__(
        self, checkpoint: Checkpoint, network: WorldModel, vae: VideoVAE, runner: Runner, shapes: CallShapes
    ) -> None:
        self.network, self.vae, self.runner, self.shapes = network, vae, runner, shapes
        # The folder's own scheduler files, as diffusers reads no card.
        self.schedule = published_schedule(checkpoint, shapes.steps)
        tokenizer = load_tokenizer(checkpoint.tokenizer_folder, checkpoint.config.vocab_size)
        self.prompts = PromptCache(network, tokenizer)
        self.tokenizer: PromptTokenizer = tokenizer
        self.encode_s = self.denoise_s = 0.0  # of the last call, as the host sees them

    def __call__(self, picture: np.ndarray, seed: int, guidance: Guidance, lead: bool = False) -> np.ndarray:
        """lead: with the rows before the chunk, all zero."""
        plan, device = self.shapes.plan(lead), self.network.device
        seen = fit_frame(picture, self.shapes.tier)
        prompt = self.prompts.one(self.shapes.words)
        empty = self.prompts.one("") if guidance.scale != 1.0 else None
        begin = time.perf_counter()
        latents = self.runner.encode(seen.pixels[None], seen.fit, len(plan.video_clean))
        encoded = time.perf_counter()
        shape = plan.shape(*latents.shape[-2:])
        noise = draw_noise("diffusers", [seed], shape, latents.shape[1], device=device)
        actions = torch.zeros(1, shape.actions, self.network.config.action_dim, device=device)
        drawn = time.perf_counter()
        result = self.runner.sample(
            self.network, [plan], Start(latents, actions, *noise), self.schedule, guidance, prompt, empty,
            want_video=False,
        )  # fmt: skip
        kept = result.actions[0, plan.lead :, : self.shapes.columns]
        rows: np.ndarray = kept.float().cpu().numpy()  # the one wait
        self.encode_s, self.denoise_s = encoded - begin, time.perf_counter() - drawn
        return rows


def versus(
    folder: Path, shapes: CallShapes, rounds: int = 5, device: str = "auto", dtype: str = "auto",
    options: Mapping[str, Any] | None = None, with_plain: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """`rounds` interleaved calls of diffusers and of the engine, also as a card guides and a robot calls it.

    Seconds per round, medians, ratios to diffusers, and the largest difference of the actions.
    """
    checkpoint = open_checkpoint(folder)
    place, kind = pick_device(device), pick_dtype(dtype, device)
    network = load_network(checkpoint, place, kind, lambda *_: None)
    theirs = Theirs(checkpoint, network, shapes)
    vae = load_vae(checkpoint, place, kind)
    plain = Ours(checkpoint, network, vae, Plain(vae, place), shapes)
    engine_network = load_network(checkpoint, place, kind, lambda *_: None)
    engine_vae = load_vae(checkpoint, place, kind)
    engine = Engine(engine_network, engine_vae, EngineOptions(**(options or {})))
    ours = Ours(checkpoint, engine_network, engine_vae, engine, shapes)
    full, own = Guidance(shapes.guidance), Guidance(shapes.guidance, shapes.interval)
    calls: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"diffusers": theirs}
    if with_plain:
        calls["plain"] = lambda picture, seed: plain(picture, seed, full)
    calls["engine"] = lambda picture, seed: ours(picture, seed, full)
    if own != full:
        calls["engine, guidance interval"] = lambda picture, seed: ours(picture, seed, own)
    if shapes.lead:
        calls[f"engine, with {' and '.join(shapes.lead)}"] = lambda picture, seed: ours(
            picture, seed, own, lead=True
        )
    for call in calls.values():  # what happens once in a process counts for none of them
        call(shapes.pixels(0), 0)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    parts: dict[str, list[float]] = {}
    worst = largest = 0.0
    for turn in range(rounds):
        picture, answers = shapes.pixels(turn + 1), {}
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
        largest = max(largest, float(np.abs(answers["diffusers"]).max()))
    median = {name: statistics.median(seconds) for name, seconds in spent.items()}
    median_cpu = {name: statistics.median(seconds) for name, seconds in cpu.items()}
    return {
        "shapes": shapes.line(),
        "handed_to_diffusers": theirs.handed,
        "left_out_of_both": shapes.lead,
        "device": f"{place}",
        "dtype": str(kind).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "prompt_tokens": len(ours.tokenizer.ids(shapes.words)),
        "seconds": spent,
        "median_s": median,
        "cpu_seconds": cpu,
        "median_cpu_s": median_cpu,
        "parts_median_s": {name: statistics.median(seconds) for name, seconds in parts.items()},
        "faster_than_diffusers": {name: median["diffusers"] / seconds for name, seconds in median.items()},
        "less_cpu_than_diffusers": {n: median_cpu["diffusers"] / s for n, s in median_cpu.items()},
        "max_action_difference": worst,
        "max_action": largest,
        "engine": engine.report(),
    }


def print_versus(found: Mapping[str, Any]) -> None:
    print(found["shapes"])
    print(
        f"{found['device']}, {found['dtype']}, {found['threads']} threads, medians of {found['rounds']} "
        f"interleaved calls, {found['prompt_tokens']} prompt tokens"
    )
    if found["handed_to_diffusers"]:
        handed = ", ".join(found["handed_to_diffusers"])
        print(f"handed to diffusers, which has no such tables or words: {handed}")
    if found["left_out_of_both"]:
        print(f"left out of both, as diffusers' policy mode has none: {', '.join(found['left_out_of_both'])}")
    parts = found["parts_median_s"]
    print(
        f"{'':28}{'call s':>9}{'encode s':>10}{'network s':>11}{'x diffusers':>13}"
        f"{'cpu s':>9}{'x diffusers':>13}"
    )
    for name, seconds in found["median_s"].items():
        encode, network = parts[f"{name}: encode"], parts[f"{name}: transformer"]
        ratio = found["faster_than_diffusers"][name]
        print(
            f"{name:28}{seconds:9.3f}{encode:10.3f}{network:11.3f}{ratio:13.2f}{found['median_cpu_s'][name]:9.3f}"
            f"{found['less_cpu_than_diffusers'][name]:13.2f}"
        )
    worst = found["max_action_difference"]
    same = "equal" if worst <= EQUAL else "NOT equal"
    print(
        f"engine: max |action - diffusers'| {worst:.1e} of at most {found['max_action']:.2f}: "
        f"{same} to {EQUAL:.0e}"
    )

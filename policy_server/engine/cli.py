"""`wam bench`: where the milliseconds of a request go, in four layers, beside the roofline and diffusers."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from wamserve.policy_server.engine.options import EngineOptions

if TYPE_CHECKING:
    from wamserve.policy_server.policy import WorldActionPolicy

LAYERS = {
    "model": "the denoising loop, on the device's own clock (with graphs: the encoder too)",
    "engine": "and canvas, prompt, first frame, action rows",
    "server": "and decoding, queue, reply",
    "client": "and the websocket, as the robot's process sees it",
}


def bench(
    checkpoint: Annotated[str | None, tyro.conf.Positional] = None,
    /,
    preset: str = "mid-nano",
    random_weights: bool = False,
    embodiment: str | None = None,
    card: str | None = None,
    rounds: int = 20,
    warm_up: int = 2,
    device: str = "auto",
    dtype: str = "auto",
    guidance: float | None = None,
    steps: int | None = None,
    engine: Annotated[EngineOptions, tyro.conf.arg(name="")] = EngineOptions(),  # noqa: B008
    plain: bool = False,
    diffusers: int = 0,
    profile: bool = False,
    out: Path = Path("bench.json"),
) -> int:
    """Measure a policy through its server: p50, p95 and p99 of each layer, forwards, memory, roofline.

    Args:
        checkpoint: Folder or Hugging Face id.
        preset: Size of the network, with --random-weights.
        random_weights: Measure untrained weights of a preset; the time is that of trained ones.
        embodiment: Contract to serve; droid_lerobot for random weights.
        card: Policy card, where the checkpoint brings none.
        rounds: Requests that count.
        warm_up: Requests before them.
        device: As torch names it.
        dtype: fp32, bf16 or fp16; "auto" is bf16 on CUDA and fp32 on a CPU.
        guidance: Another scale than the card's.
        steps: Another number of steps than the card's.
        plain: Measure the plain path, not the engine.
        diffusers: Calls to measure beside diffusers' pipeline, in turns, where it is installed; 0 is none.
        profile: Print the kernels of a forward and the launches of a call too, by torch's profiler.
        out: JSON file for every number.
    """
    from wamserve.action_codec.errors import CheckpointError, RequestError
    from wamserve.policy_server.load import load_policy
    from wamserve.policy_server.world_model.random_weights import write_random_checkpoint

    if rounds < 1 or warm_up < 0 or diffusers < 0:
        raise RequestError(
            "nothing to measure", seen=f"rounds {rounds}, warm_up {warm_up}, diffusers {diffusers}",
            expected="rounds of 1 or more, the others 0 or more",
        )  # fmt: skip
    if (checkpoint is None) != random_weights:
        raise CheckpointError(
            "wam bench measures a checkpoint or random weights", seen=checkpoint or "neither",
            fix="wam bench CHECKPOINT, or wam bench --random-weights --preset mid-nano",
        )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="wamserve-bench-") as scratch:
        options: dict[str, Any] = {"embodiment": embodiment, "device": device, "dtype": dtype, "card": card}
        if random_weights:
            checkpoint = str(write_random_checkpoint(Path(scratch), preset))
            options |= {"embodiment": embodiment or "droid_lerobot", "card": card or "random-weights"}
        assert checkpoint is not None
        options |= {"hash_weights": False, "engine": None if plain else dataclasses.asdict(engine)}
        # Measured in the server's processes; here the plain path only says what the requests look like.
        policy = load_policy(checkpoint, **{**options, "engine": None})
        requests = _requests(policy, rounds + warm_up, guidance, steps)
        found = _about(policy, preset if random_weights else checkpoint, requests[0])
        contract, known = policy.contract, policy.card
        del policy
        found |= _through_server(checkpoint, options, requests, warm_up)
        if diffusers:
            from wamserve.policy_server.engine.shapes import DROID, contract_shapes
            from wamserve.policy_server.engine.versus import print_versus, versus

            bare = random_weights and embodiment is None
            shapes = DROID if bare else contract_shapes(contract, known)
            switches = dataclasses.asdict(engine)
            found["versus"] = versus(Path(checkpoint), shapes, diffusers, device, dtype, switches)
            print_versus(found["versus"])
        if profile:
            alone = dataclasses.asdict(dataclasses.replace(engine, cfg_parallel=False))  # one rank's work
            found["kernels"] = _kernels(checkpoint, {**options, "engine": alone}, requests)
    _show(found)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(_row(found))
    print(f"{out}")
    return 0


def _requests(policy: WorldActionPolicy, count: int, guidance: float | None, steps: int | None) -> list[Any]:
    """Requests of one instruction with a picture and a seed of their own each."""
    from wamserve.policy_server.blank import blank_request

    made = []
    for seed in range(count):
        blank = blank_request(policy.contract, policy.card.modes(policy.contract)[0], seed)
        rng = np.random.default_rng(seed)
        images = {}
        for name, grey in blank.observation.images.items():
            coarse = rng.integers(0, 256, (-(-grey.shape[0] // 16), -(-grey.shape[1] // 16), 3), np.uint8)
            images[name] = coarse.repeat(16, 0).repeat(16, 1)[: grey.shape[0], : grey.shape[1]]
        seen = dataclasses.replace(blank.observation, images=images)
        made.append(dataclasses.replace(blank, observation=seen, guidance=guidance, steps=steps))
    return made


def _about(policy: WorldActionPolicy, name: str, request: Any) -> dict[str, Any]:
    """What is measured, and the least time it can take here."""
    import platform

    import torch

    from wamserve.policy_server.engine.roofline import find_device, forward_work

    job, network = policy.prepare(request), policy.network
    shape = job.plan.shape(job.frame.fit.content_height // 16, job.frame.fit.content_width // 16)
    tokens = shape.video_tokens(network.config.latent_patch_size) + shape.actions
    prompt = len(policy.prompts.tokenizer.ids(job.prompt))
    device = find_device(network.device, network.dtype)
    work = forward_work(network.config, tokens, prompt, network.dtype.itemsize)
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    return {
        "model": name,
        "embodiment": policy.contract.name,
        "sampling": job.sampling.line(),
        "tokens": tokens,
        "prompt_tokens": prompt,
        "device": device.name
        if network.device.type == "cuda"
        else f"CPU, {platform.processor() or 'x86-64'}",
        "threads": torch.get_num_threads(),
        "dtype": str(network.dtype).removeprefix("torch."),
        "commit": commit or "unknown",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "peak": dataclasses.asdict(device),
        "forward_tflop": (work.gemm + work.attention) / 1e12,
        "forward_roofline_ms": 1e3 * work.seconds(device),
    }


def _through_server(
    checkpoint: str, options: dict[str, Any], requests: list[Any], warm_up: int
) -> dict[str, Any]:
    """The requests, one after the other, to a server in processes of its own."""
    import resource

    from wamserve.clients.client import PolicyClient

    given = {key: value for key, value in options.items() if value is not None}
    command = [sys.executable, "-m", "wam", "serve", checkpoint, "--port", "0", "--plain"]
    command += ["--factory-args", json.dumps(given)]
    if (options["engine"] or {}).get("cfg_parallel"):
        command += ["--ranks", "2"]
    start = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = _ready(server)
        cold_s = time.perf_counter() - start
        spent: dict[str, list[float]] = {layer: [] for layer in LAYERS}
        with_client = PolicyClient(url)
        forwards = 0
        for turn, request in enumerate(requests):
            sent = time.perf_counter()
            ledger = with_client.infer(request).ledger
            wall = 1e3 * (time.perf_counter() - sent)
            if turn < warm_up:
                continue
            outside = ledger.decode_ms + ledger.queue_ms + ledger.reply_ms
            numbers = (ledger.denoise_ms, ledger.infer_ms, ledger.infer_ms + outside, wall)
            for layer, ms in zip(LAYERS, numbers, strict=True):
                spent[layer].append(ms)
            forwards = ledger.forwards
        with_client.close()
        gpu = _metric(url, "gpu_memory")
    finally:
        server.terminate()
        server.wait(60)
    percentiles = {
        layer: {f"p{p}": float(np.percentile(ms, p)) for p in (50, 95, 99)} for layer, ms in spent.items()
    }
    host = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"layers_ms": percentiles, "rounds": len(spent["model"]), "forwards": forwards,
            "cold_start_s": cold_s, "gpu_bytes": gpu, "host_peak_bytes": host}  # fmt: skip


def _kernels(checkpoint: str, options: dict[str, Any], requests: list[Any]) -> dict[str, Any]:
    """A warm call's kernels, in this process."""
    from wamserve.policy_server.engine.kernels import kernel_table
    from wamserve.policy_server.load import load_policy

    policy = load_policy(checkpoint, **options)
    for request in requests[:2]:
        forwards = policy.infer(request).ledger.forwards
    table = kernel_table(policy.network.device, forwards, lambda: policy.infer(requests[-1]))
    print("\n".join([*table.lines(), ""]))
    return dataclasses.asdict(table)


def _ready(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith("ready at "):
            return line.removeprefix("ready at ").strip()
    from wamserve.action_codec.errors import PolicyUnavailable

    raise PolicyUnavailable("the server ended before it was ready", seen=f"exit code {server.wait()}")


def _metric(url: str, name: str) -> int:
    """A number of /metrics whose name contains `name`; 0 where the server does not tell it."""
    import urllib.request

    with urllib.request.urlopen(url.replace("ws", "http", 1) + "/metrics", timeout=10) as page:
        for line in page.read().decode().splitlines():
            if name in line and not line.startswith("#"):
                return int(float(line.split()[-1]))
    return 0


def _show(found: dict[str, Any]) -> None:
    floor = found["forward_roofline_ms"] * found["forwards"]
    print(f"{found['model']} as {found['embodiment']}, {found['sampling']}")
    print(f"{found['device']}, {found['dtype']}, {found['threads']} threads, commit {found['commit']}")
    print(
        f"{found['forwards']} forwards of {found['tokens']} + {found['prompt_tokens']} tokens, "
        f"{found['forward_tflop']:.3f} TFLOP each; roofline {floor:.1f} ms "
        f"(peak {found['peak']['source']}: {found['peak']['flops'] / 1e12:.2f} TFLOP/s)"
    )
    print(f"{'':8}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}")
    for layer, what in LAYERS.items():
        numbers = found["layers_ms"][layer]
        print(f"{layer:8}" + "".join(f"{numbers[p]:10.1f}" for p in ("p50", "p95", "p99")) + f"   {what}")
    memory = f"GPU {found['gpu_bytes'] / 2**30:.1f} GiB" if found["gpu_bytes"] else "no GPU memory"
    print(
        f"model / roofline {found['layers_ms']['model']['p50'] / floor:.2f}, cold start "
        f"{found['cold_start_s']:.1f} s, {memory}, host peak {found['host_peak_bytes'] / 2**30:.2f} GiB"
    )


def _row(found: dict[str, Any]) -> str:
    """A row of docs/latency.md."""
    layers = [
        f"{found['layers_ms'][layer]['p50']:.0f} / {found['layers_ms'][layer]['p95']:.0f}" for layer in LAYERS
    ]
    cells = [
        found["date"],
        found["commit"],
        found["model"],
        found["device"],
        found["dtype"],
        found["forwards"],
    ]
    return "| " + " | ".join(map(str, [*cells, *layers])) + " |"

"""The least time a call can take on a device: arithmetic at its peak rate, weights at its bandwidth."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from wamserve.policy_server.world_model.config import WorldModelConfig

# Dense bf16 rate and memory bandwidth that large kernels reach, by a word of the device's name.
KNOWN = {
    "H200": (790e12, 4.3e12),
    "H100": (790e12, 3.0e12),
    "RTX PRO 6000": (440e12, 1.6e12),
    "A100": (280e12, 1.8e12),
    "4090": (160e12, 0.95e12),
    "L40S": (330e12, 0.8e12),
}


@dataclass(frozen=True)
class Device:
    """What a roofline is drawn from."""

    name: str
    flops: float  # per second, dense, in the dtype of the run
    bandwidth: float  # bytes per second
    source: str  # "table" or "measured": a CPU, or a GPU the table lacks, is measured


@dataclass(frozen=True)
class Work:
    """One forward of the generation tower over one row."""

    gemm: float  # floating-point operations of the projections
    attention: float
    weights: float  # bytes read

    def seconds(self, device: Device) -> float:
        return max((self.gemm + self.attention) / device.flops, self.weights / device.bandwidth)


def forward_work(config: WorldModelConfig, tokens: int, prompt: int, bytes_per_weight: int) -> Work:
    """`tokens` generation tokens that attend to themselves and to `prompt` text tokens."""
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    branches = 3 if config.hidden_act == "silu" else 2
    weights = config.num_hidden_layers * (
        config.hidden_size * (2 * query + 2 * key) + branches * config.hidden_size * config.intermediate_size
    )
    attention = config.num_hidden_layers * 4 * tokens * (tokens + prompt) * query
    return Work(2.0 * tokens * weights, float(attention), float(weights * bytes_per_weight))


def find_device(device: torch.device, dtype: torch.dtype) -> Device:
    """From the table for known GPUs in half precision; everything else is measured, in under a second."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    if dtype in (torch.bfloat16, torch.float16):
        for word, (flops, bandwidth) in KNOWN.items():
            if word in name:
                return Device(name, flops, bandwidth, "table")
    return Device(name, *_measure(device, dtype), "measured")


def _measure(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Best of a few square matrix products, and of a few large copies."""
    side = 4096 if device.type == "cuda" else 768
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    linear = torch.nn.functional.linear
    if device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        product = lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")  # noqa: E731
    else:
        product = lambda: linear(a, b)  # noqa: E731
    flops = 2 * side**3 / _best(product, device)
    source = torch.empty(1 << 26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return flops, 2 * source.numel() / _best(lambda: target.copy_(source), device)


def _best(run: object, device: torch.device, rounds: int = 7) -> float:
    assert callable(run)
    times = []
    for _ in range(rounds):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times)

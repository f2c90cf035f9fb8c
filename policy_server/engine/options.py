"""The engine's switches. Each is exact or its error is stated, and has a test against the plain path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from wamserve.action_codec.errors import RequestError

Branches = Literal["auto", "batched", "split"]
Attention = Literal["auto", "sliced", "blocked", "merged"]
Quantize = Literal["none", "int8", "fp8"]


@dataclass(frozen=True)
class EngineOptions:
    """How a call is run. None of it changes what is computed, up to rounding, but `quantize`."""

    # Both guidance branches in one batch, or one after the other. auto: batched on CUDA, where a batch fills
    # the tiles, split on a CPU, where it only outgrows the caches.
    branches: Branches = "auto"
    # sliced: one attention over [prompt; generation], cut at the prompt's length, which is read on the host.
    # merged: two attentions joined by their log-sum-exp; the length is data on the device, so a graph serves
    # every prompt of its bucket. blocked: sliced, by oneDNN, a head on each thread, for fp32 on a CPU.
    # auto: merged where graphs are captured, else blocked where it fits, else sliced.
    attention: Attention = "auto"
    graphs: bool = True  # capture whole calls, on CUDA; nothing on a CPU
    max_calls: int = 8  # shapes with buffers (and graphs) of their own; the next ones run without
    compile: bool = False  # torch.compile of the decoder layer; a minute at start
    quantize: Quantize = "none"  # of the generation tower's layers
    cfg_parallel: bool = False  # two ranks, a guidance branch each
    offload_text_tower: bool = False  # the text tower's weights stay in host memory until a prompt is read
    channels_last: bool = True  # of the first-frame encoder
    draw_ahead: bool = True  # the next request's noise is drawn once a reply is out
    threads: int = 0  # of torch on a CPU; 0 leaves them as they are

    def __post_init__(self) -> None:
        for name, kind in (("branches", Branches), ("attention", Attention), ("quantize", Quantize)):
            if getattr(self, name) not in get_args(kind):
                raise RequestError(
                    f"no engine option {name}={getattr(self, name)!r}", expected=", ".join(get_args(kind))
                )
        if self.attention == "blocked" and self.compile:
            raise RequestError(
                "the compiler has kernels of its own",
                seen="attention=blocked with compile",
                expected="sliced",
            )
        if self.max_calls < 0 or self.threads < 0:
            raise RequestError(
                "engine options out of range",
                seen=f"max_calls {self.max_calls}, threads {self.threads}",
                expected="0 or more",
            )

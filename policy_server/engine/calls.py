"""A bounded set of calls by key. Within the bound a call keeps its buffers and, on CUDA, its graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from wamserve.policy_server.engine.call import Call, Progress
from wamserve.policy_server.engine.key import CallKey

logger = logging.getLogger("wamserve.engine")

Replay = Callable[[], object]
Capture = Callable[[Callable[[], None]], Replay]  # records a program over static buffers


@dataclass
class Kept:
    """One shape that is ready."""

    call: Call
    replay: Replay | None  # None: run eagerly


class Calls:
    """The first `bound` keys are kept until the end; later ones run without graph, buffers made and dropped.

    Nothing is evicted: a graph costs seconds to capture, and two shapes that took turns would pay each time.
    """

    def __init__(self, make: Callable[[CallKey], Call], capture: Capture | None, bound: int) -> None:
        self.make, self.capture, self.bound = make, capture, bound
        self.captures = 0  # graphs made
        self.replays = 0  # calls answered by one
        self.eager = 0  # calls run kernel by kernel
        self.past_bound = 0  # of those, calls whose shape found no place
        self._kept: dict[CallKey, Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        return sum(kept.call.nbytes for kept in self._kept.values())

    def at(self, key: CallKey) -> Call:
        """The call to load. Buffers of a kept key are those of its last use."""
        kept = self._kept.get(key)
        if kept is None and len(self._kept) < self.bound:
            kept = self._kept[key] = Kept(self.make(key), None)
        if kept is not None:
            return kept.call
        if self.past_bound == 0:
            logger.warning("more than %d shapes: the next ones run without graph or kept buffers", self.bound)
        self.past_bound += 1
        return self.make(key)

    def run(self, call: Call, progress: Progress | None = None) -> None:
        """Runs a loaded call: by its graph, captured at first use, or kernel by kernel."""
        kept = self._kept.get(call.key)
        if kept is None or kept.call is not call or self.capture is None:
            self.eager += 1
            call.run(progress)
            return
        if kept.replay is None:
            kept.replay = self.capture(call.run)
            self.captures += 1
        kept.replay()
        self.replays += 1
        if progress is not None:
            steps = len(call.key.guided)
            progress(steps, steps)  # a graph tells nothing on its way

    def report(self) -> dict[str, int]:
        return {
            "shapes": len(self),
            "buffer_bytes": self.nbytes,
            "captures": self.captures,
            "replays": self.replays,
            "eager": self.eager,
            "past_bound": self.past_bound,
        }


def capture_cuda_graph(run: Callable[[], None]) -> Replay:
    """Captures `run` as one CUDA graph, after warm-up runs on a side stream (lazy kernels, autotuning)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay

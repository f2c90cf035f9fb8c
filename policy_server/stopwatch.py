"""Milliseconds of the stages of one call, on the host's clock or the GPU's own."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """`lap(name)` ends a stage. On CUDA a lap only records an event; nothing waits before `ms`."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = []
        self.lap("")

    def lap(self, name: str) -> None:
        mark: Any
        if self.cuda:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self.marks.append((name, mark))

    def ms(self) -> dict[str, float]:
        """Stage -> milliseconds. Waits for the GPU to reach the last lap."""
        if self.cuda:
            self.marks[-1][1].synchronize()
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return {
            name: float(before.elapsed_time(mark)) if self.cuda else 1e3 * (mark - before)
            for (_, before), (name, mark) in pairs
        }

"""Threads that run torch operators side by side on one core each, where one operator's threads would wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

Job = TypeVar("Job")


class Lanes:
    """As many lanes as torch has threads. Operators release Python's lock: lanes really run together."""

    def __init__(self) -> None:
        self.count = torch.get_num_threads()
        if self.count == 1:
            return
        born = Barrier(self.count + 1)

        def begin() -> None:
            torch.get_num_threads()  # a thread's first operator would set what all others have
            torch.set_num_threads(1)  # of OpenMP, which keeps a number for each thread
            born.wait()

        self._pool = ThreadPoolExecutor(self.count, "wamserve-lane", initializer=begin)
        for _ in range(self.count):
            self._pool.submit(int)
        born.wait()
        torch.set_num_threads(self.count)  # what torch tells threads that come later

    def each(self, work: Callable[[Job], None], jobs: Iterable[Job]) -> None:
        """`work` on every job, in no order, without gradients; an error of one is raised here."""
        if self.count == 1:
            for job in jobs:
                work(job)
            return
        inference = torch.is_inference_mode_enabled()

        def run(job: Job) -> None:
            with torch.inference_mode(inference), torch.no_grad():  # modes are each thread's own
                work(job)

        for _ in self._pool.map(run, jobs):
            pass

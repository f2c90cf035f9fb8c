"""Worker processes of one thread each, for preparing and labelling."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import torch

from wamserve.action_codec.errors import RunError


@contextmanager
def crew(workers: int) -> Iterator[ProcessPoolExecutor]:
    """RunError where one of them is killed."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    except BrokenProcessPool:
        raise RunError(
            "a worker was killed, as when memory runs out", seen=f"{workers} workers", fix="fewer --workers"
        ) from None

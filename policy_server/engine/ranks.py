"""Guidance over two processes: rank 0 computes the conditional branch, rank 1 the unconditional one.

Both hold the whole network and walk the whole loop; a guided step costs one forward and one exchange of
velocities instead of two forwards. NCCL where the ranks have GPUs, else gloo, on the same code.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from wamserve.action_codec.errors import RequestError

WORLD = 2


class RankLost(SystemExit):
    """The other rank is gone. Not an Exception: nothing may answer this request and stay up, since the ranks
    no longer walk in step. The process ends, the server sees it and restarts the group."""


class Ranks:
    """The collectives of a pair of ranks; every call blocks (gloo) or is enqueued (NCCL) on both."""

    def __init__(self, device: torch.device, timeout_s: float = 60.0) -> None:
        """Joins the group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe (torchrun, wam serve
        --ranks). Raises RequestError without them."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size != WORLD:
            raise RequestError(
                "guidance runs in parallel on two ranks", seen=f"WORLD_SIZE {size}", expected=WORLD,
                fix="wam serve --cfg-parallel, or torchrun --nproc-per-node 2",
            )  # fmt: skip
        self.rank = int(os.environ["RANK"])
        if not dist.is_initialized():
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s)
            )

    def broadcast(self, state: Tensor) -> None:
        """Rank 0's initial state to both: from here on they compute the same bits."""
        self._together("the initial state", lambda: dist.broadcast(state, src=0))

    def exchange(self, own: Tensor) -> list[Tensor]:
        """[conditional, unconditional] velocities from each rank's own."""
        both = [torch.empty_like(own) for _ in range(WORLD)]
        self._together("velocities", lambda: dist.all_gather(both, own.contiguous()))
        return both

    def _together(self, what: str, collective: Callable[[], object]) -> None:
        try:
            collective()
        except RuntimeError as error:  # torch.distributed raises nothing narrower when a peer is gone
            self.close()  # its threads, left to the interpreter's end, may abort the process
            raise RankLost(
                f"rank {1 - self.rank} is gone: exchanging {what} failed ({str(error).splitlines()[0]})"
            ) from error

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

"""The ranks of one training run: who this process is, and weights that may be spread over all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wamserve.policy_server.world_model.network import WorldModel


@dataclass(frozen=True)
class Ranks:
    """One process's place; a run without torchrun is rank 0 of 1."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean of `value` over all ranks."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Reads torchrun's variables; NCCL where there is a GPU per rank, gloo otherwise."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if size == 1:
        yield Ranks(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(rank, size, device)
    finally:
        dist.destroy_process_group()


def shard(network: WorldModel, ranks: Ranks) -> None:
    """FSDP2, one unit per layer and one for the rest, in place.

    `text`, `prefill` and `denoise` are entry points beside `forward`, so each is told to gather its weights.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for layer in network.layers:
        fully_shard(layer, mesh=mesh)
        register_fsdp_forward_method(layer, "text")
    # The root would stay gathered after a validation pass, and the weights seen then are no shards.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    for entry in ("prefill", "denoise"):
        register_fsdp_forward_method(network, entry)


def average_gradients(network: nn.Module, ranks: Ranks) -> None:
    """Data parallelism without sharding: every rank ends with the mean gradient.

    One exchange for all weights: hundreds of small ones cost more in waiting than in bytes. What no sample of
    any rank used keeps no gradient, so that the optimizer leaves it alone as it does on one rank.
    """
    if ranks.size == 1:
        return
    moving = [parameter for parameter in network.parameters() if parameter.requires_grad]
    used = torch.tensor([parameter.grad is not None for parameter in moving], dtype=torch.float32)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in moving]
    total = torch.cat([*(grad.flatten() for grad in grads), used.to(ranks.device)])
    dist.all_reduce(total)
    *means, used = (total / ranks.size).split([*(parameter.numel() for parameter in moving), len(moving)])
    for parameter, mean, share in zip(moving, means, used.tolist(), strict=True):
        parameter.grad = mean.view_as(parameter) if share else None


def local(value: Tensor) -> Tensor:
    """This rank's part of a weight; the weight itself where nothing is sharded."""
    return value.to_local() if hasattr(value, "to_local") else value


def whole(value: Tensor) -> Tensor:
    """The full weight on the CPU. A collective call where it is sharded."""
    full = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full.detach().cpu()

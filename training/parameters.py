"""Which weights move, how fast, and their running average."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from wamserve.action_codec.errors import WamError
from wamserve.policy_server.world_model.network import WorldModel
from wamserve.training.config import Optimizer, Trainable

ACTION_HEADS = ("action_proj_in.", "action_proj_out.", "action_modality_embed")
# Weights of a layer that belong to generation; everything else in a layer is the text tower's.
GENERATION_MARKS = ("_moe_gen", ".add_", ".to_add_out", ".norm_added_", "k_norm_und_for_gen")


def is_text_tower(name: str) -> bool:
    """True for weights that only the prompt passes through."""
    if name.startswith("embed_tokens."):
        return True
    return name.startswith("layers.") and not any(mark in name for mark in GENERATION_MARKS)


class LoraLinear(nn.Module):
    """A frozen linear map plus a trainable low-rank one: W x + (alpha / rank) B A x."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        device = base.weight.device
        self.down = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        low = nn.functional.linear(x, self.down.to(x.dtype))
        return self.base(x) + self.scale * nn.functional.linear(low, self.up.to(x.dtype))

    def merged(self) -> nn.Linear:
        """The plain linear with the same output."""
        with torch.no_grad():
            self.base.weight += (self.scale * self.up @ self.down).to(self.base.weight.dtype)
        return self.base


def prepare_parameters(network: WorldModel, trainable: Trainable) -> list[str]:
    """Freezes, or wraps in LoRA, in place; returns the names of the weights that train."""
    if trainable.lora_rank < 0:
        raise WamError("lora_rank must be 0 (full weights) or more", seen=trainable.lora_rank)
    if trainable.lora_rank:
        _wrap(network, trainable)
    names = []
    for name, parameter in network.named_parameters():
        low_rank = name.endswith((".down", ".up"))
        head = name.startswith(ACTION_HEADS)
        if trainable.lora_rank:
            parameter.requires_grad_(low_rank or head)
        else:
            parameter.requires_grad_(trainable.text_tower or not is_text_tower(name))
        if parameter.requires_grad:
            names.append(name)
    return names


def _wrap(network: WorldModel, trainable: Trainable) -> None:
    for name, module in list(network.named_modules()):
        for child_name, child in list(module.named_children()):
            full = f"{name}.{child_name}"
            if (
                isinstance(child, nn.Linear)
                and full.startswith("layers.")
                and not is_text_tower(full + ".weight")
            ):
                setattr(module, child_name, LoraLinear(child, trainable.lora_rank, trainable.lora_alpha))


def merge_lora(network: WorldModel) -> None:
    """Folds every low-rank delta into its linear, in place: the result is a plain checkpoint again."""
    for module in list(network.modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                setattr(module, child_name, child.merged())


def make_optimizer(network: nn.Module, optimizer: Optimizer) -> torch.optim.AdamW:
    """Action heads in a group of their own. No weight decay on norms, biases, embeddings and action heads:
    decay would wear out the rows of every embodiment that this run does not train."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            head = name.startswith(ACTION_HEADS)
            decays = parameter.ndim > 1 and not head and not name.startswith("embed_tokens.")
            groups.setdefault((head, decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": optimizer.weight_decay if decays else 0.0,
                "factor": optimizer.action_head_factor if head else 1.0,
            }
            for (head, decays), parameters in groups.items()
        ],
        lr=optimizer.learning_rate,
        betas=optimizer.betas,
    )


def set_learning_rate(adam: torch.optim.AdamW, optimizer: Optimizer, step: int, steps: int) -> float:
    """Warm-up then cosine; returns the rate of the ordinary groups."""
    if step < optimizer.warmup:
        factor = (step + 1) / optimizer.warmup
    else:
        progress = (step - optimizer.warmup) / max(1, steps - optimizer.warmup)
        factor = optimizer.floor + (1 - optimizer.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    for group in adam.param_groups:
        group["lr"] = optimizer.learning_rate * factor * group["factor"]
    return optimizer.learning_rate * factor


class Average:
    """Exponential moving average of the trainable weights, in fp32, sharded as they are."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self.decay = decay
        self.values = {
            name: parameter.detach().float().clone()
            for name, parameter in parameters
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, parameters: Iterable[tuple[str, nn.Parameter]], step: int) -> None:
        """Early steps average less, so that the start does not linger: decay(step) = min(d, (1+s)/(10+s))."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in parameters:
            if name in self.values:
                self.values[name].lerp_(parameter.detach().float(), 1 - decay)

    @torch.no_grad()
    def swap(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Exchanges the live weights with the averaged ones, in place; twice is the identity."""
        for name, parameter in parameters:
            if name in self.values:
                live = parameter.detach().float().clone()
                parameter.copy_(self.values[name])
                self.values[name].copy_(live)

"""The text tower's whole contribution: keys and values per layer, a function of the prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wamserve.action_codec.errors import RequestError


@dataclass(frozen=True)
class PromptKV:
    """What `prefill` leaves behind for every denoising step of every request with these prompts."""

    keys: Tensor  # [L, B, kv_heads, S, D] roped, as the generation tower reads them
    values: Tensor  # [L, B, kv_heads, S, D]
    lengths: tuple[int, ...]  # B prompt lengths; positions past them are padding and never attended

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        return (self.keys.numel() + self.values.numel()) * self.keys.element_size()

    def rows(self, indices: Sequence[int]) -> PromptKV:
        """The prompts of these rows, repeated or reordered at will, trimmed to the longest of them."""
        lengths = tuple(self.lengths[i] for i in indices)
        longest = max(lengths)
        index = list(indices)
        return PromptKV(self.keys[:, index, :, :longest], self.values[:, index, :, :longest], lengths)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PromptKV:
        return PromptKV(
            self.keys.to(device, non_blocking=non_blocking),
            self.values.to(device, non_blocking=non_blocking),
            self.lengths,
        )

    @staticmethod
    def concat(parts: Sequence[PromptKV]) -> PromptKV:
        """One batch of several, padded with zeros to the longest prompt."""
        if not parts:
            raise RequestError(
                "no prompt to denoise with", seen="an empty list", expected="one PromptKV or more"
            )
        longest = max(part.keys.shape[3] for part in parts)

        def padded(x: Tensor) -> Tensor:
            return F.pad(x, (0, 0, 0, longest - x.shape[3]))

        return PromptKV(
            torch.cat([padded(part.keys) for part in parts], dim=1),
            torch.cat([padded(part.values) for part in parts], dim=1),
            tuple(n for part in parts for n in part.lengths),
        )

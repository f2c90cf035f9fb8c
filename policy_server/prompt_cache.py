"""Keys and values of the text tower, remembered by prompt: a robot asks with one sentence for minutes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from wamserve.action_codec.errors import RequestError
from wamserve.policy_server.world_model.prompt_kv import PromptKV
from wamserve.policy_server.world_model.text import PromptTokenizer


class Reader(Protocol):
    """What reads prompts: a `WorldModel`, or its text tower kept in host memory."""

    @property
    def device(self) -> torch.device: ...

    def prefill(self, token_ids: Tensor, lengths: Sequence[int] | None = None) -> PromptKV: ...


class PromptCache:
    """Least recently used prompts leave when the cache outgrows `max_bytes`. Not for several threads.

    Every prompt is read alone, so its keys and values never depend on what else was asked.
    """

    def __init__(self, network: Reader, tokenizer: PromptTokenizer, max_bytes: int = 1 << 30) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self._kept: OrderedDict[str, PromptKV] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        return self._bytes

    def __call__(self, prompts: Sequence[str]) -> PromptKV:
        """One row per prompt, in order."""
        parts = [self.one(prompt) for prompt in prompts]
        return parts[0] if len(parts) == 1 else PromptKV.concat(parts)

    def warm(self, prompts: Sequence[str]) -> None:
        """Reads prompts ahead of the first request, and the empty one. Raises RequestError where they do not
        fit: the first ones would have left again before they were asked for."""
        for prompt in ("", *prompts):
            self.one(prompt)
        if len(self) < len({"", *prompts}):
            raise RequestError(
                "the prompt cache is too small for the prompts to warm it with",
                seen=f"{len(prompts)} prompts, {self.max_bytes >> 20} MiB",
                expected="room for all of them",
                fix="fewer prompts, or a larger prompt_cache_bytes",
            )

    def one(self, prompt: str) -> PromptKV:
        kept = self._kept.get(prompt)
        if kept is not None:
            self._kept.move_to_end(prompt)
            self.hits += 1
            return kept
        self.misses += 1
        ids = torch.tensor([self.tokenizer.ids(prompt)], device=self.network.device)
        with torch.no_grad():
            read = self.network.prefill(ids)
        self._kept[prompt] = read
        self._bytes += read.nbytes
        while self._bytes > self.max_bytes and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes
        return read

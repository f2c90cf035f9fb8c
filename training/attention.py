"""Attention of a training step on a CPU: two matrix products, which beat the fused kernel's backward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prompt_key: Tensor,
    prompt_value: Tensor,
    lengths: Sequence[int],
) -> Tensor:
    """`joint_attention` in bf16, all rows at once with the padding of short prompts hidden.

    At some two hundred tokens the scores fit the cache, and forward and backward together take less than half
    of the time that `scaled_dot_product_attention` takes.
    """
    half = torch.bfloat16
    batch, heads, rows, width = query.shape
    kv_heads = key.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        keys = torch.cat([prompt_key.to(half), key.to(half)], dim=2)
        values = torch.cat([prompt_value.to(half), value.to(half)], dim=2)
        # Query heads that share a key head stand below each other, so that no key is copied.
        asked = (query * width**-0.5).to(half).reshape(batch, kv_heads, heads // kv_heads * rows, width)
        scores = asked @ keys.transpose(-1, -2)
        if len(set(lengths)) > 1 or lengths[0] < prompt_key.shape[2]:
            padding = torch.zeros(batch, 1, 1, keys.shape[2], dtype=half, device=query.device)
            for row, length in enumerate(lengths):
                padding[row, ..., length : prompt_key.shape[2]] = -torch.inf
            scores = scores + padding
        out = torch.softmax(scores, dim=-1) @ values
    return out.reshape(batch, heads, rows, width).to(query.dtype)

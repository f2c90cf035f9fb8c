"""The two-tower attention of Cosmos 3: text attends causally to text, generation to text and generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wamserve.policy_server.world_model.config import WorldModelConfig
from wamserve.policy_server.world_model.rope import rotate

# (query, key, value, prompt key, prompt value, prompt lengths) -> [B, heads, N, D]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Sequence[int]], Tensor]


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with the statistics in fp32.

    `round_first`: cast to the weight's dtype before multiplying by it (Qwen: Nano, Super) or after
    (Nemotron: Edge). Equal in fp32, different in bf16.
    """

    def __init__(self, size: int, eps: float, round_first: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self.round_first = round_first

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.round_first:
            return wide.to(self.weight.dtype) * self.weight
        return (self.weight.float() * wide).to(x.dtype)


def joint_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prompt_key: Tensor,
    prompt_value: Tensor,
    lengths: Sequence[int],
) -> Tensor:
    """Full attention of generation queries over [prompt; generation] keys.

    query [B, heads, N, D]; key, value [B, kv_heads, M, D]; prompt_* [B, kv_heads, S, D] of which row b uses
    the first lengths[b]. Rows are attended in runs of equal prompt length, so no mask is needed and flash
    kernels apply: cond + uncond of one robot are two runs.
    """
    runs = []
    start = 0
    for length, run in groupby(lengths):
        rows = slice(start, start + len(list(run)))
        start = rows.stop
        runs.append(
            F.scaled_dot_product_attention(
                query[rows],
                torch.cat([prompt_key[rows, :, :length], key[rows]], dim=2),
                torch.cat([prompt_value[rows, :, :length], value[rows]], dim=2),
                enable_gqa=True,
            )
        )
    return runs[0] if len(runs) == 1 else torch.cat(runs)


class MoTAttention(nn.Module):
    """Attention of one layer: `to_*`, `norm_*` are the text tower's, `add_*`, `norm_added_*` generation's.

    `last`: the final layer's text queries and output serve nobody, and are not built.
    """

    def __init__(self, config: WorldModelConfig, last: bool) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.attend: Attend = joint_attention  # a runtime may put an equal kernel here
        hidden, bias = config.hidden_size, config.attention_bias
        wide, narrow = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim

        def norm() -> RMSNorm:
            return RMSNorm(self.head_dim, config.rms_norm_eps, config.rounds_before_norm_weight)

        self.to_k = nn.Linear(hidden, narrow, bias=bias)
        self.to_v = nn.Linear(hidden, narrow, bias=bias)
        self.to_q = None if last else nn.Linear(hidden, wide, bias=bias)
        self.to_out = None if last else nn.Linear(wide, hidden, bias=bias)
        self.norm_q = norm() if config.qk_norm_for_text and not last else None
        self.norm_k = norm() if config.qk_norm_for_text else None
        self.k_norm_und_for_gen = norm() if config.has_und_k_norm_for_gen else None
        self.add_q_proj = nn.Linear(hidden, wide, bias=bias)
        self.add_k_proj = nn.Linear(hidden, narrow, bias=bias)
        self.add_v_proj = nn.Linear(hidden, narrow, bias=bias)
        self.to_add_out = nn.Linear(wide, hidden, bias=bias)
        self.norm_added_q = norm()
        self.norm_added_k = norm()

    def heads(self, x: Tensor) -> Tensor:
        """[B, N, heads * D] -> [B, heads, N, D]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def text(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """x [B, S, H] normed text -> (attention output or None in the last layer, key for gen, value)."""
        raw_key = self.heads(self.to_k(x))
        value = self.heads(self.to_v(x))
        key = rotate(raw_key if self.norm_k is None else self.norm_k(raw_key), cos, sin)
        # Edge keeps two versions of the text keys: raw ones for the text itself, normed ones for generation.
        for_gen = (
            key if self.k_norm_und_for_gen is None else rotate(self.k_norm_und_for_gen(raw_key), cos, sin)
        )
        if self.to_q is None or self.to_out is None:
            return None, for_gen, value
        query = self.heads(self.to_q(x))
        query = rotate(query if self.norm_q is None else self.norm_q(query), cos, sin)
        # Padding stands after the prompt, so the causal mask hides it from every real token.
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.to_out(out.transpose(1, 2).flatten(2)), for_gen, value

    def generate(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        prompt_key: Tensor,
        prompt_value: Tensor,
        lengths: Sequence[int],
        keep: slice,
    ) -> Tensor:
        """x [B, N, H] normed generation tokens -> attention output of the tokens in `keep`."""
        query = rotate(
            self.norm_added_q(self.heads(self.add_q_proj(x[:, keep]))), cos[:, :, keep], sin[:, :, keep]
        )
        key = rotate(self.norm_added_k(self.heads(self.add_k_proj(x))), cos, sin)
        value = self.heads(self.add_v_proj(x))
        out = self.attend(query, key, value, prompt_key, prompt_value, lengths)
        return self.to_add_out(out.transpose(1, 2).flatten(2))

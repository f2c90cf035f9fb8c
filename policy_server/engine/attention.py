"""Attention of generation queries over [prompt; generation] keys that lie in one buffer, `bucket` first.

The prompt is right-aligned: its tokens end where generation's begin, so that a row's keys are one span.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from wamserve.policy_server.engine.lanes import Lanes

SHORT = 2048  # queries; with fewer, several lanes take longer than torch's kernel with all threads
BLOCK = 192  # queries; with 3200 keys their fp32 scores take 2.5 MB
# (query, keys, values, bucket, prompt lengths) -> attended
Attend = Callable[[Tensor, Tensor, Tensor, int, Sequence[int]], Tensor]
MASKED = -3e4  # a bias that exp turns into exactly 0 in every dtype, finite in fp16 too


def attend_sliced(query: Tensor, keys: Tensor, values: Tensor, bucket: int, lengths: Sequence[int]) -> Tensor:
    """Exact, without masks: rows of equal prompt length together, each over its own span of the buffer.

    query [R, heads, N, D]; keys, values [R, kv_heads, bucket + M, D] -> [R, heads, N, D]. The lengths are
    read on the host: a captured graph would keep them.
    """
    runs = []
    start = 0
    for length, run in groupby(lengths):
        rows = slice(start, start + len(list(run)))
        start = rows.stop
        span = slice(bucket - length, None)
        runs.append(
            F.scaled_dot_product_attention(
                query[rows], keys[rows, :, span], values[rows, :, span], enable_gqa=True
            )
        )
    return runs[0] if len(runs) == 1 else torch.cat(runs)


def attend_blocked(
    query: Tensor, keys: Tensor, values: Tensor, bucket: int, lengths: Sequence[int], lanes: Lanes
) -> Tensor:
    """`attend_sliced` for fp32 on a CPU, by oneDNN's matrix products: exact up to rounding.

    torch's flash kernel calls MKL for its products, which is half as fast on AMD. Blocks of queries keep the
    scores in cache. A head is one thread's: threads that share a product this short mostly wait.
    """
    rows, heads, tokens, size = query.shape
    if lanes.count > 1 and tokens < SHORT:
        return attend_sliced(query, keys, values, bucket, lengths)
    group = heads // keys.shape[1]
    product = torch.ops.mkldnn._linear_pointwise
    out = torch.empty(rows, heads, tokens, size)

    def attend(at: tuple[int, int]) -> None:
        row, head = at
        key = keys[row, head // group, bucket - lengths[row] :] * size**-0.5
        value = values[row, head // group, bucket - lengths[row] :].t().contiguous()
        for block in range(0, tokens, BLOCK):
            span = (row, head, slice(block, block + BLOCK))
            scores = product(query[span], key, None, "none", [], "")
            torch.softmax(scores, dim=-1, out=scores)  # in place: a second block is not in cache
            out[span] = product(scores, value, None, "none", [], "")

    lanes.each(attend, [(row, head) for row in range(rows) for head in range(heads)])
    return out


def attend_merged(query: Tensor, keys: Tensor, values: Tensor, bucket: int, bias: Tensor) -> Tensor:
    """The same for any prompt length inside one graph: flash over generation, a small masked attention over
    the bucket, joined by their log-sum-exp. Exact up to rounding.

    bias [R, 1, 1, bucket] in the query's dtype: 0 where a prompt token lies, MASKED elsewhere.
    """
    own, own_lse = flash(query, keys[:, :, bucket:], values[:, :, bucket:])
    text, text_lse = masked(query, keys[:, :, :bucket], values[:, :, :bucket], bias)
    return merge(own, own_lse, text, text_lse)


def merge(one: Tensor, one_lse: Tensor, two: Tensor, two_lse: Tensor) -> Tensor:
    """Two softmax averages [R, heads, N, D] over disjoint keys -> the one over their union.

    The weight of each is its share of the normaliser: exp(lse) / (exp(lse_1) + exp(lse_2)), a sigmoid.
    """
    share = torch.sigmoid(one_lse - two_lse)[..., None]  # [R, heads, N, 1] fp32
    return torch.lerp(two.float(), one.float(), share).to(one.dtype)


def flash(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Unmasked attention and its log-sum-exp [R, heads, N] fp32, by the flash kernel of the device."""
    if query.is_cuda:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[:2]
        return out, lse
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    return out, lse


def masked(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over a short, biased span and its log-sum-exp [R, heads, N] fp32."""
    rows, heads, tokens, _ = query.shape
    wide = bias.expand(rows, heads, tokens, -1)
    if not query.is_cuda:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=wide
        )
        return out, lse
    # The memory-efficient kernel takes a bias, wants as many key heads as query heads, and pads its lse.
    repeat = heads // key.shape[1]
    key, value = (x.repeat_interleave(repeat, dim=1) for x in (key, value))
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, wide, True)[:2]
    return out, lse[..., :tokens]

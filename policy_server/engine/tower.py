"""The generation tower as the engine runs it: fused projections, keys and values written in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wamserve.policy_server.engine.attention import Attend, attend_merged, attend_sliced
from wamserve.policy_server.world_model.attention import MoTAttention, RMSNorm
from wamserve.policy_server.world_model.network import MLP, DecoderLayer, WorldModel


@dataclass(frozen=True)
class Rows:
    """Buffers of some rows of a call: R = B of one guidance branch, or 2 B of both."""

    cos: Tensor  # [R, 1, N, D / 2] model dtype
    sin: Tensor
    keys: Tensor  # [L, R, kv_heads, bucket + N, D]; the prompt's end at `bucket`, generation's follow
    values: Tensor
    bias: Tensor  # [R, 1, 1, bucket]: 0 where a prompt token lies, MASKED elsewhere
    noisy: Tensor  # [R, N, 1]: 1 where the token is denoised
    domain: Tensor  # [R] int64
    bucket: int

    def slice(self, rows: slice) -> Rows:
        """Views of some of the rows."""
        return Rows(
            self.cos[rows], self.sin[rows], self.keys[:, rows], self.values[:, rows], self.bias[rows],
            self.noisy[rows], self.domain[rows], self.bucket,
        )  # fmt: skip


def rms_norm(x: Tensor, norm: RMSNorm) -> Tensor:
    """`norm(x)` in one kernel where that rounds as the checkpoint's family does."""
    if norm.round_first and x.dtype != torch.float32:
        return norm(x)
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.eps)


class OneDNNLinear(nn.Module):
    """`nn.Linear` in fp32 on a CPU through oneDNN, which on AMD is about twice as fast as the BLAS torch
    calls (MKL takes its slow paths there) and on Intel its equal. Shares the parameters."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out

    def swiglu(self, x: Tensor) -> Tensor:
        """silu(x Wg^T + bg) * (x Wu^T + bu) of a fused [gate; up]: the products' kernels do the rest as they
        write their results."""
        gate, up = self.weight.chunk(2)
        gate_bias, up_bias = (None, None) if self.bias is None else self.bias.chunk(2)
        product = torch.ops.mkldnn._linear_pointwise
        out: Tensor = product.binary(x, product(x, gate, gate_bias, "swish", [], ""), up, up_bias, "mul")
        return out

    @staticmethod
    def fits(linear: nn.Linear) -> bool:
        return (
            torch.backends.mkldnn.is_available()
            and linear.weight.device.type == "cpu"
            and linear.weight.dtype == torch.float32
        )


def exact(linear: nn.Linear, onednn: bool) -> nn.Module:
    """The fastest exact form of a projection on its device."""
    return OneDNNLinear(linear) if onednn and OneDNNLinear.fits(linear) else linear


def rotate_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates head vectors x [R, heads, N, D] by half tables [R, 1, N, D / 2] straight into `out`."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out[..., :half] = torch.addcmul(first * cos, second, sin, value=-1)
    out[..., half:] = torch.addcmul(second * cos, first, sin)
    return out


def fused(linears: Sequence[nn.Linear]) -> nn.Linear:
    """One linear map with the outputs of all, of equal input. Their weights become views of its own."""
    sizes = [one.out_features for one in linears]
    with torch.device("meta"):
        whole = nn.Linear(linears[0].in_features, sum(sizes), bias=linears[0].bias is not None)
    for name in ("weight", "bias"):
        parts = [getattr(one, name) for one in linears]
        if parts[0] is None:
            continue
        joined = torch.cat([part.detach() for part in parts])
        setattr(whole, name, nn.Parameter(joined, requires_grad=False))
        for part, view in zip(parts, joined.split(sizes), strict=True):
            part.data = view
    return whole


class EngineLayer(nn.Module):
    """Generation's half of one decoder layer."""

    def __init__(self, layer: DecoderLayer, onednn: bool) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp_moe_gen
        assert isinstance(attention, MoTAttention) and isinstance(mlp, MLP)
        self.heads = (
            attention.add_q_proj.out_features // attention.head_dim,
            attention.add_k_proj.out_features // attention.head_dim,
        )
        self.head_dim = attention.head_dim
        self.qkv = exact(fused([attention.add_q_proj, attention.add_k_proj, attention.add_v_proj]), onednn)
        self.out = exact(attention.to_add_out, onednn)
        self.norm_q, self.norm_k = attention.norm_added_q, attention.norm_added_k
        self.attend: Attend = attend_sliced
        self.gated = mlp.gate_proj is not None
        self.up = exact(mlp.up_proj if mlp.gate_proj is None else fused([mlp.gate_proj, mlp.up_proj]), onednn)
        self.down = exact(mlp.down_proj, onednn)
        self.norm_in = layer.input_layernorm_moe_gen
        self.norm_post = layer.post_attention_layernorm_moe_gen

    def forward(
        self, x: Tensor, rows: Rows, index: int, lengths: Sequence[int] | None, keep: slice
    ) -> Tensor:
        """x [R, N, H] -> the tokens in `keep`. `lengths` None: attention takes them from `rows.bias`."""
        query_heads, key_heads = self.heads
        split = self.qkv(rms_norm(x, self.norm_in)).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        query, key, value = split.split((query_heads, key_heads, key_heads), dim=1)
        keys, values = rows.keys[index], rows.values[index]
        rotate_into(keys[:, :, rows.bucket :], rms_norm(key, self.norm_k), rows.cos, rows.sin)
        values[:, :, rows.bucket :].copy_(value)
        query = rms_norm(query[:, :, keep], self.norm_q)
        turned = torch.empty_like(query)
        rotate_into(turned, query, rows.cos[:, :, keep], rows.sin[:, :, keep])
        if lengths is None:
            attended = attend_merged(turned, keys, values, rows.bucket, rows.bias)
        else:
            attended = self.attend(turned, keys, values, rows.bucket, lengths)
        x = x[:, keep] + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.feed_forward(rms_norm(x, self.norm_post))

    def feed_forward(self, x: Tensor) -> Tensor:
        if self.gated and isinstance(self.up, OneDNNLinear):
            return self.down(self.up.swiglu(x))
        wide = self.up(x)
        if not self.gated:
            return self.down(F.relu(wide).square())
        gate, up = wide.chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Tower(nn.Module):
    """Velocity of tokens: `network.denoise` between `patchify` and `unpatchify`, over buffers."""

    def __init__(self, network: WorldModel, onednn: bool = True) -> None:
        super().__init__()
        self.network = [network]  # a list, so that its text tower is no part of this module
        self.layers = nn.ModuleList(EngineLayer(layer, onednn) for layer in network.layers)  # type: ignore[arg-type]

    def time_rows(self, timesteps: Sequence[int]) -> Tensor:
        """One time embedding per step [steps, H], in the model's dtype."""
        network = self.network[0]
        t = torch.tensor(timesteps, device=network.device)
        return network.time_embedder(t * network.config.timestep_scale).to(network.dtype)

    def forward(
        self,
        video: Tensor,
        action: Tensor,
        time: Tensor,
        rows: Rows,
        lengths: Sequence[int] | None,
        want_video: bool,
        want_action: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """video [R, Nv, patch features] and action [R, Ta, action_dim] tokens, time [H] -> their velocities,
        given rows not yet zeroed. The last layer computes only tokens that are wanted: no later one looks."""
        network = self.network[0]
        tokens = torch.cat(
            [
                network.proj_in(video.to(network.dtype)),
                network.action_proj_in(action.to(network.dtype), rows.domain) + network.action_modality_embed,
            ],
            dim=1,
        )
        x = torch.addcmul(tokens, rows.noisy, time)
        split = video.shape[1]
        final = slice(0 if want_video else split, None if want_action else split)
        for index, layer in enumerate(self.layers):
            keep = final if index == len(self.layers) - 1 else slice(None)
            x = layer(x, rows, index, lengths, keep)
        x = rms_norm(x, network.norm_moe_gen)
        v_video = network.proj_out(x[:, :split]) if want_video else None
        v_action = network.action_proj_out(x[:, -action.shape[1] :], rows.domain) if want_action else None
        return v_video, v_action

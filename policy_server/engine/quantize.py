"""Quantized projections of the generation tower: INT8 weights anywhere, FP8 weights and activations on a GPU.

Neither is exact. `gate.check_quantized` measures what the actions lose and refuses past the card's limit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wamserve.action_codec.errors import RequestError
from wamserve.policy_server.engine.tower import EngineLayer, Tower
from wamserve.policy_server.world_model.attention import MoTAttention
from wamserve.policy_server.world_model.network import MLP, DecoderLayer

PROJECTIONS = ("qkv", "out", "up", "down")
LARGEST = 127


class Int8Linear(nn.Module):
    """y = x W^T + b with W in int8 and one scale per output channel; weights are widened as they are used.

    At thousands of tokens a projection is bound by arithmetic, so this saves memory (a quarter of fp32, half
    of bf16), not time.
    """

    weight: Tensor  # int8 [out, in]
    scale: Tensor  # [out] in the model's dtype

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        wide = weight.detach().float()
        scale = wide.abs().amax(dim=1).clamp(min=1e-12) / LARGEST
        self.register_buffer("weight", (wide / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(weight.dtype))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        # The scale commutes with the sum over inputs: it multiplies [.., out], not the whole weight.
        out = F.linear(x, self.weight.to(x.dtype)) * self.scale
        return out if self.bias is None else out + self.bias


def quantize_int8(tower: Tower) -> None:
    """Replaces the projections of every layer. The network's own weights stay as they are."""
    for layer in tower.layers:
        for name in PROJECTIONS:
            linear = getattr(layer, name)
            setattr(layer, name, Int8Linear(linear.weight, linear.bias))


def quantize_fp8(tower: Tower) -> None:
    """FP8 weights and activations, one scale per row, by torchao. Raises RequestError where it cannot run."""
    device = next(tower.parameters()).device
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if capability < (8, 9):
        raise RequestError(
            "no FP8 arithmetic here",
            seen=f"{device}, compute capability {capability[0]}.{capability[1]}",
            expected="an NVIDIA GPU of capability 8.9 or more (Ada, Hopper, Blackwell)",
            fix="--quantize int8, or none",
        )
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_
    except ImportError as error:
        raise RequestError("FP8 needs torchao", fix="pip install 'wamserve[fp8]'") from error
    for layer in tower.layers:
        assert isinstance(layer, EngineLayer)
        for name in PROJECTIONS:
            # A linear of its own: torchao swaps parameters in place, and these are shared with the network.
            source = getattr(layer, name)
            with torch.device("meta"):
                linear = nn.Linear(source.in_features, source.out_features, bias=source.bias is not None)
            linear.weight = nn.Parameter(source.weight.detach(), requires_grad=False)
            if source.bias is not None:
                linear.bias = source.bias
            setattr(layer, name, linear)
    config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    quantize_(tower.layers, config, filter_fn=lambda module, name: name.endswith(PROJECTIONS))


def release_plain_weights(tower: Tower) -> int:
    """Drops the network's own generation projections, once the quantized ones have passed; bytes freed.

    `network.denoise` cannot run afterwards: only the engine holds those weights.
    """
    freed = 0
    for layer in tower.network[0].layers:
        assert isinstance(layer, DecoderLayer) and isinstance(layer.self_attn, MoTAttention)
        attention, mlp = layer.self_attn, layer.mlp_moe_gen
        assert isinstance(mlp, MLP)
        linears = [attention.add_q_proj, attention.add_k_proj, attention.add_v_proj, attention.to_add_out]
        linears += [one for one in (mlp.gate_proj, mlp.up_proj, mlp.down_proj) if one is not None]
        for linear in linears:
            freed += linear.weight.nbytes
            linear.weight = nn.Parameter(torch.empty(0, device="meta"), requires_grad=False)
    return freed

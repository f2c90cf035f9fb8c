"""The Cosmos 3 world-action network: a text tower run once per prompt, a generation tower run once per step.

Parameter names are those of the diffusers checkpoint; what serving actions never reads is not built
(`names.is_unused`). Nothing here is tied to inference: gradients flow through both towers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wamserve.action_codec.errors import RequestError
from wamserve.policy_server.world_model.attention import MoTAttention, RMSNorm
from wamserve.policy_server.world_model.config import WorldModelConfig
from wamserve.policy_server.world_model.layout import TokenLayout
from wamserve.policy_server.world_model.names import KEEP_FP32
from wamserve.policy_server.world_model.prompt_kv import PromptKV
from wamserve.policy_server.world_model.rope import rotary_tables, text_positions
from wamserve.policy_server.world_model.tokens import patchify, unpatchify

TIME_CHANNELS = 256


class Velocity(NamedTuple):
    """dx/dsigma of every value; exactly zero where the value is given or padded."""

    video: Tensor | None  # [B, C, T, h, w], None when it was not asked for
    action: Tensor  # [B, Ta, action_dim]


class MLP(nn.Module):
    """SwiGLU, or relu² without a gate on Edge."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False) if config.hidden_act == "silu" else None
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(F.relu(self.up_proj(x)).square())
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DomainLinear(nn.Module):
    """A linear map with its own weights per embodiment domain, stored input-major: y = x @ W[in, out] + b."""

    def __init__(self, inputs: int, outputs: int, domains: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.fc = nn.Embedding(domains, inputs * outputs)
        self.bias = nn.Embedding(domains, outputs)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """x [B, T, in], domain [B] -> [B, T, out]."""
        weight = self.fc(domain).view(-1, self.inputs, self.outputs)
        return torch.bmm(x, weight) + self.bias(domain)[:, None]  # two roundings in bf16, as the reference


class TimeEmbedder(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(TIME_CHANNELS, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, t: Tensor) -> Tensor:
        """t [B] in [0, 1] -> [B, H]; cosines before sines."""
        half = TIME_CHANNELS // 2
        frequency = torch.exp(
            -math.log(1e4) * torch.arange(half, dtype=torch.float32, device=t.device) / half
        )
        angle = t.float()[:, None] * frequency
        wave = torch.cat([angle.cos(), angle.sin()], dim=-1)
        return self.linear_2(F.silu(self.linear_1(wave.to(self.linear_1.weight.dtype))))


class DecoderLayer(nn.Module):
    """One layer of both towers; generation's own weights carry the suffix `_moe_gen`."""

    def __init__(self, config: WorldModelConfig, last: bool) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.rms_norm_eps, config.rounds_before_norm_weight)

        self.self_attn = MoTAttention(config, last)
        self.input_layernorm = norm()
        self.input_layernorm_moe_gen = norm()
        self.post_attention_layernorm = None if last else norm()
        self.post_attention_layernorm_moe_gen = norm()
        self.mlp = None if last else MLP(config)
        self.mlp_moe_gen = MLP(config)

    def text(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Text tower: x [B, S, H] -> (x, key and value [B, kv_heads, S, D] as generation reads them)."""
        out, key, value = self.self_attn.text(self.input_layernorm(x), cos, sin)
        if out is not None and self.mlp is not None and self.post_attention_layernorm is not None:
            x = x + out
            x = x + self.mlp(self.post_attention_layernorm(x))
        return x, key, value

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        prompt_key: Tensor,
        prompt_value: Tensor,
        lengths: Sequence[int],
        keep: slice = slice(None),
    ) -> Tensor:
        """Generation tower: x [B, N, H] -> the tokens in `keep`, which still attend to all N."""
        normed = self.input_layernorm_moe_gen(x)
        x = x[:, keep] + self.self_attn.generate(normed, cos, sin, prompt_key, prompt_value, lengths, keep)
        return x + self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(x))


class WorldModel(nn.Module):
    """`prefill` reads prompts, `denoise` predicts the velocity of video latents and actions."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False  # recompute generation layers in the backward pass
        last = config.num_hidden_layers - 1
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i == last) for i in range(last + 1))
        self.norm_moe_gen = RMSNorm(config.hidden_size, config.rms_norm_eps, config.rounds_before_norm_weight)
        self.proj_in = nn.Linear(config.patch_latent_dim, config.hidden_size)
        self.proj_out = nn.Linear(config.hidden_size, config.patch_latent_dim)
        self.time_embedder = TimeEmbedder(config.hidden_size)
        self.action_proj_in = DomainLinear(
            config.action_dim, config.hidden_size, config.num_embodiment_domains
        )
        self.action_proj_out = DomainLinear(
            config.hidden_size, config.action_dim, config.num_embodiment_domains
        )
        self.action_modality_embed = nn.Parameter(torch.zeros(config.hidden_size))

    @property
    def dtype(self) -> torch.dtype:
        return self.action_modality_embed.dtype

    @property
    def device(self) -> torch.device:
        return self.action_modality_embed.device

    def cast(self, dtype: torch.dtype) -> WorldModel:
        """All parameters to `dtype` but those of `KEEP_FP32`, in place."""
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(torch.float32 if name.startswith(KEEP_FP32) else dtype)
        return self

    def prefill(self, token_ids: Tensor, lengths: Sequence[int] | None = None) -> PromptKV:
        """Runs the text tower: token_ids [B, S] int64, of which row b uses the first lengths[b].

        Raises RequestError for lengths or ids that do not fit, e.g. those of another tokenizer.
        """
        batch, longest = token_ids.shape
        lengths = (longest,) * batch if lengths is None else tuple(lengths)
        if len(lengths) != batch or not all(1 <= n <= longest for n in lengths):
            raise RequestError("prompt lengths do not fit", seen=lengths, expected=f"{batch} in 1..{longest}")
        low, high = token_ids.aminmax()
        if low < 0 or high >= self.config.vocab_size:
            raise RequestError(
                "token ids past the vocabulary",
                seen=f"{int(low)}..{int(high)}",
                expected=f"0..{self.config.vocab_size - 1}",
                fix="the tokenizer in the checkpoint's text_tokenizer/ folder",
            )
        cos, sin = rotary_tables(self.config, text_positions(longest).to(token_ids.device), self.dtype)
        x = self.embed_tokens(token_ids)
        keys, values = [], []
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            x, key, value = layer.text(x, cos, sin)
            keys.append(key)
            values.append(value)
        return PromptKV(torch.stack(keys), torch.stack(values), lengths)

    def embed(self, latents: Tensor, actions: Tensor, timestep: Tensor, layout: TokenLayout) -> Tensor:
        """Generation tokens [B, N, H]; the time embedding goes to noisy tokens only."""
        video = self.proj_in(patchify(latents.to(self.dtype), self.config.latent_patch_size))
        action = self.action_proj_in(actions.to(self.dtype), layout.domain) + self.action_modality_embed
        time = self.time_embedder(timestep * self.config.timestep_scale).to(self.dtype)
        return torch.addcmul(torch.cat([video, action], dim=1), layout.noisy, time[:, None])

    def denoise(
        self,
        latents: Tensor,
        actions: Tensor,
        timestep: Tensor,
        layout: TokenLayout,
        prompt: PromptKV,
        want_video: bool = True,
    ) -> Velocity:
        """Velocity at one step.

        latents [B, C, T, h, w] and actions [B, Ta, action_dim], any float dtype, given values in place;
        timestep [B] or [1], the integer 0..999 of the schedule. `want_video=False` spares the last layer
        its video tokens, exactly: no later layer attends to them.
        """
        x = self.embed(latents, actions, timestep, layout)
        want_video = want_video and layout.video_moves
        split = layout.actions_from
        final = (
            slice(None)
            if want_video and layout.action_moves
            else slice(split)
            if want_video
            else slice(split, None)
        )
        for i, layer in enumerate(self.layers):
            keep = final if i == len(self.layers) - 1 else slice(None)
            inputs = (x, layout.cos, layout.sin, prompt.keys[i], prompt.values[i], prompt.lengths, keep)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                x = layer(*inputs)
        x = self.norm_moe_gen(x)
        video = None
        if want_video:
            patches = self.proj_out(x[:, :split])
            video = unpatchify(patches, layout.shape, self.config.latent_patch_size) * layout.video_noisy
        elif not layout.video_moves:
            video = torch.zeros_like(latents, dtype=self.dtype)
        if layout.action_moves:
            action = self.action_proj_out(x[:, -layout.shape.actions :], layout.domain) * layout.action_noisy
        else:
            action = torch.zeros_like(actions, dtype=self.dtype)
        return Velocity(video, action)


def init_random_(network: WorldModel, seed: int = 0) -> WorldModel:
    """Fills every weight with values of a trained network's size, in place: for benchmarks and tests."""
    generator = torch.Generator(network.device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            is_norm = "norm" in name
            parameter.normal_(1.0 if is_norm else 0.0, 0.1 if is_norm else 0.02, generator=generator)
    return network

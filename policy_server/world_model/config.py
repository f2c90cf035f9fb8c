"""Which Cosmos 3 transformer a checkpoint holds: sizes, variant, presets of the published ones."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from wamserve.action_codec.errors import CheckpointError

ARCHITECTURE = "Cosmos3OmniTransformer"
TEMPORAL_FACTOR = 4  # pixel frames per latent frame after the first (Wan 2.2 VAE)
SPATIAL_FACTOR = 16  # pixels per latent row or column

# Keys of a transformer/config.json that this network needs no value of (audio heads are never loaded).
IGNORED_KEYS = {
    "attention_dropout", "dtype", "rope_scaling", "sound_dim", "sound_gen", "sound_latent_fps",
}  # fmt: skip


NUMBERS: dict[Any, tuple[type, ...]] = {"int": (int,), "float": (int, float)}  # by declared type


@dataclass(frozen=True)
class WorldModelConfig:
    """Sizes of the network, named as in the diffusers `transformer/config.json`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    hidden_act: str = "silu"  # "silu": gated SwiGLU (Nano, Super); "relu2": down(relu(up x)^2) (Edge)
    rms_norm_eps: float = 1e-6
    rope_theta: float = 5e6
    qk_norm_for_text: bool = True  # per-head RMSNorm on the text tower's queries and keys
    use_und_k_norm_for_gen: bool = (
        False  # Edge: the generation tower reads text keys through a norm of its own
    )
    head_dim: int = 128
    rope_axes_dim: tuple[int, int, int] = (24, 20, 20)  # rotary pairs of time, height, width
    attention_bias: bool = False
    action_dim: int = 64  # channels of an action token, the raw action padded with zeros
    num_embodiment_domains: int = 32
    latent_channel: int = 48
    latent_patch_size: int = 2
    patch_latent_dim: int = 192
    base_fps: int = 24
    enable_fps_modulation: bool = True
    unified_3d_mrope_temporal_modality_margin: int = 15000  # positions between the text and frame 0
    unified_3d_mrope_reset_spatial_ids: bool = True
    timestep_scale: float = 0.001
    action_gen: bool = True

    def __post_init__(self) -> None:
        def need(ok: bool, what: str, seen: object, expected: object) -> None:
            if not ok:
                raise CheckpointError(f"transformer config: {what}", seen=seen, expected=expected)

        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in NUMBERS:
                ok = type(value) in NUMBERS[field.type] and value > 0
                need(ok, f"{field.name} is no size", repr(value), f"{field.type} > 0")
        need(self.hidden_act in ("silu", "relu2"), "unknown hidden_act", self.hidden_act, "silu or relu2")
        need(self.action_gen, "this checkpoint has no action heads", "action_gen false", "action_gen true")
        need(self.enable_fps_modulation, "positions without frame rate are not served", False, True)
        need(self.unified_3d_mrope_reset_spatial_ids, "spatial positions must restart at 0", False, True)
        need(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "query heads must be a multiple of key heads",
            (self.num_attention_heads, self.num_key_value_heads),
            "a multiple",
        )
        need(
            self.patch_latent_dim == self.latent_channel * self.latent_patch_size**2,
            "patch_latent_dim does not follow from channels and patch",
            self.patch_latent_dim,
            self.latent_channel * self.latent_patch_size**2,
        )
        need(
            sum(self.rope_axes_dim) == self.head_dim // 2,
            "rope_axes_dim does not fill half a head",
            self.rope_axes_dim,
            f"three numbers that sum to {self.head_dim // 2}",
        )

    @property
    def rounds_before_norm_weight(self) -> bool:
        """RMSNorm rounding: Qwen casts to the weight dtype before multiplying, Nemotron (relu2) after."""
        return self.hidden_act == "silu"

    @property
    def has_und_k_norm_for_gen(self) -> bool:
        return self.use_und_k_norm_for_gen and not self.qk_norm_for_text

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> WorldModelConfig:
        """Reads a diffusers `transformer/config.json`.

        Raises CheckpointError when it describes another architecture or lacks a size. Keys of later diffusers
        versions that this network does not know are reported as a warning.
        """
        name = raw.get("_class_name", ARCHITECTURE)
        if name != ARCHITECTURE:
            raise CheckpointError(
                "this checkpoint holds another network", seen=name, expected=ARCHITECTURE,
                fix="name a Cosmos 3 checkpoint in diffusers layout, e.g. nvidia/Cosmos3-Nano-Policy-DROID",
            )  # fmt: skip
        if raw.get("quantization_config"):
            raise CheckpointError(
                "pre-quantized weights are not read",
                seen="quantization_config",
                expected="bf16 or fp32 weights",
            )
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in raw.items() if key in known and value is not None}
        if "rope_axes_dim" not in values and raw.get("rope_scaling"):
            values["rope_axes_dim"] = raw["rope_scaling"].get("mrope_section", (24, 20, 20))
        if "rope_axes_dim" in values:
            values["rope_axes_dim"] = tuple(values["rope_axes_dim"])
        for field in fields(cls):  # JSON may say 24.0
            value = values.get(field.name)
            if field.type == "int" and isinstance(value, float) and value.is_integer():
                values[field.name] = int(value)
        required = {
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "vocab_size",
        }  # fmt: skip
        if missing := required - values.keys():
            raise CheckpointError(
                "transformer config lacks sizes", seen=sorted(raw), expected=f"also {sorted(missing)}"
            )
        if unknown := {k for k in raw if not k.startswith("_")} - known - IGNORED_KEYS:
            warnings.warn(f"transformer config keys not understood: {sorted(unknown)}", stacklevel=2)
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> WorldModelConfig:
        """`path`: a `config.json`, or the `transformer/` folder that has one."""
        path = Path(path)
        return cls.from_dict(json.loads((path / "config.json" if path.is_dir() else path).read_text()))


_NANO = WorldModelConfig(
    hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
    num_attention_heads=32, num_key_value_heads=8, vocab_size=151936,
)  # fmt: skip
_EDGE = WorldModelConfig(
    hidden_size=2048, intermediate_size=9216, num_hidden_layers=28,
    num_attention_heads=16, num_key_value_heads=8, vocab_size=131072,
    hidden_act="relu2", rms_norm_eps=1e-5, rope_theta=1e8,
    qk_norm_for_text=False, use_und_k_norm_for_gen=True,
)  # fmt: skip
_TINY: dict[str, Any] = dict(
    hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, vocab_size=507, head_dim=16, rope_axes_dim=(4, 2, 2),
)  # fmt: skip
_MID: dict[str, Any] = dict(
    hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=4,
    num_key_value_heads=2, vocab_size=507, head_dim=64, rope_axes_dim=(12, 10, 10),
)  # fmt: skip

# A checkpoint is read from its own config; presets are for random-weight benchmarks and tests.
PRESETS: dict[str, WorldModelConfig] = {
    "edge": _EDGE,
    "nano": _NANO,
    "super": replace(
        _NANO, hidden_size=5120, intermediate_size=25600, num_hidden_layers=64, num_attention_heads=64
    ),
    "tiny-edge": replace(_EDGE, **_TINY),
    "tiny-nano": replace(_NANO, **_TINY),
    "mid-edge": replace(_EDGE, **_MID),
    "mid-nano": replace(_NANO, **_MID),
}


def preset(name: str) -> WorldModelConfig:
    if name not in PRESETS:
        raise CheckpointError(f"no preset {name!r}", seen=name, expected=", ".join(PRESETS))
    return PRESETS[name]

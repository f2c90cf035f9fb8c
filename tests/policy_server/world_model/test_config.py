"""A checkpoint's own config decides, and one of another network is refused."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from wamserve.action_codec.errors import CheckpointError
from wamserve.policy_server.world_model.config import PRESETS, WorldModelConfig, preset
from wamserve.policy_server.world_model.names import is_unused

RAW = {"_class_name": "Cosmos3OmniTransformer", **asdict(PRESETS["tiny-nano"])}


def test_a_config_survives_its_json():
    for config in PRESETS.values():
        assert WorldModelConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(("folder", "name"), [("tiny-nano", "tiny-nano"), ("tiny-edge", "tiny-edge")])
def test_tiny_presets_are_the_reference_pipelines(shared, folder, name):
    assert WorldModelConfig.from_file(shared / "golden" / "model" / folder / "transformer") == preset(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("edge", (2048, 9216, 28, 16, 8, 131072, "relu2", 1e-5, 1e8, False, True)),
        ("nano", (4096, 12288, 36, 32, 8, 151936, "silu", 1e-6, 5e6, True, False)),
        ("super", (5120, 25600, 64, 64, 8, 151936, "silu", 1e-6, 5e6, True, False)),
    ],
)
def test_presets_have_the_published_sizes(name, expected):
    c = preset(name)
    assert expected == (
        c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads,
        c.vocab_size, c.hidden_act, c.rms_norm_eps, c.rope_theta,
        c.qk_norm_for_text, c.use_und_k_norm_for_gen,
    )  # fmt: skip
    assert (c.head_dim, c.rope_axes_dim, c.action_dim, c.num_embodiment_domains) == (
        128,
        (24, 20, 20),
        64,
        32,
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(_class_name="WanTransformer3DModel"), "holds another network; seen: WanTransformer3DModel"),
        (dict(hidden_act="gelu"), "unknown hidden_act; seen: gelu"),
        (dict(action_gen=False), "no action heads"),
        (dict(rope_axes_dim=[24, 20, 20]), "rope_axes_dim does not fill half a head"),
        (dict(num_attention_heads=5), "multiple of key heads"),
        (dict(patch_latent_dim=64), "patch_latent_dim does not follow"),
        (dict(enable_fps_modulation=False), "positions without frame rate"),
        (dict(quantization_config={"quant_method": "fp8"}), "pre-quantized weights"),
        (dict(hidden_size=None), "lacks sizes"),
        (dict(hidden_size="64"), "hidden_size is no size; seen: '64'; expected: int > 0"),
        (dict(num_key_value_heads=0), "num_key_value_heads is no size; seen: 0"),
        (dict(num_hidden_layers=2.5), "num_hidden_layers is no size; seen: 2.5"),
        (dict(rms_norm_eps=float("nan")), "rms_norm_eps is no size"),
    ],
)
def test_a_config_of_another_network_is_refused_with_its_reason(change, words):
    with pytest.raises(CheckpointError, match=words):
        WorldModelConfig.from_dict(RAW | change)


def test_whole_numbers_may_be_written_as_floats():
    assert WorldModelConfig.from_dict(RAW | {"base_fps": 24.0, "rope_theta": 5000000}) == PRESETS["tiny-nano"]


def test_a_key_nobody_understands_is_reported():
    with pytest.warns(UserWarning, match="window_size"):
        WorldModelConfig.from_dict(RAW | {"window_size": 7})


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(CheckpointError, match="edge, nano, super"):
        preset("micro")


def test_dead_weights_are_known_by_name():
    config = PRESETS["tiny-nano"]
    dead = [
        "lm_head.weight", "norm.weight", "audio_proj_in.weight", "audio_modality_embed",
        "layers.2.self_attn.to_q.weight", "layers.2.self_attn.norm_q.weight",
        "layers.2.self_attn.to_out.weight",
        "layers.2.mlp.up_proj.weight", "layers.2.post_attention_layernorm.weight",
    ]  # fmt: skip
    alive = [
        "norm_moe_gen.weight", "layers.2.self_attn.to_k.weight", "layers.2.self_attn.norm_k.weight",
        "layers.2.mlp_moe_gen.up_proj.weight", "layers.2.post_attention_layernorm_moe_gen.weight",
        "layers.1.mlp.up_proj.weight", "layers.1.self_attn.to_q.weight", "layers.2.input_layernorm.weight",
    ]  # fmt: skip
    assert all(is_unused(name, config.num_hidden_layers) for name in dead)
    assert not any(is_unused(name, config.num_hidden_layers) for name in alive)

"""Opening, comparing, streaming and hashing checkpoints of both layouts."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wamserve.action_codec.errors import CheckpointError
from wamserve.policy_server.world_model.checkpoint import (
    load_weights,
    open_checkpoint,
    weights_hash,
)
from wamserve.policy_server.world_model.names import diffusers_name_from_framework, is_unused
from wamserve.policy_server.world_model.random_weights import parameter_shapes, write_random_checkpoint

# cosmos-framework spelling of each diffusers name, written out by hand.
FRAMEWORK_NAMES = {
    "embed_tokens.weight": "net.language_model.model.embed_tokens.weight",
    "lm_head.weight": "net.language_model.lm_head.weight",
    "norm.weight": "net.language_model.model.norm.weight",
    "norm_moe_gen.weight": "net.language_model.model.norm_moe_gen.weight",
    "proj_in.weight": "net.vae2llm.weight",
    "proj_in.bias": "net.vae2llm.bias",
    "proj_out.weight": "net.llm2vae.weight",
    "proj_out.bias": "net.llm2vae.bias",
    "time_embedder.linear_1.weight": "net.time_embedder.mlp.0.weight",
    "time_embedder.linear_1.bias": "net.time_embedder.mlp.0.bias",
    "time_embedder.linear_2.weight": "net.time_embedder.mlp.2.weight",
    "time_embedder.linear_2.bias": "net.time_embedder.mlp.2.bias",
    "action_proj_in.fc.weight": "net.action2llm.fc.weight",
    "action_proj_in.bias.weight": "net.action2llm.bias.weight",
    "action_proj_out.fc.weight": "net.llm2action.fc.weight",
    "action_proj_out.bias.weight": "net.llm2action.bias.weight",
    "action_modality_embed": "net.action_modality_embed",
}
FRAMEWORK_ATTENTION = {
    "to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "o_proj",
    "norm_q": "q_norm", "norm_k": "k_norm",
    "add_q_proj": "q_proj_moe_gen", "add_k_proj": "k_proj_moe_gen", "add_v_proj": "v_proj_moe_gen",
    "to_add_out": "o_proj_moe_gen", "norm_added_q": "q_norm_moe_gen", "norm_added_k": "k_norm_moe_gen",
    "k_norm_und_for_gen": "k_norm_und_for_gen",
}  # fmt: skip


def framework_name(name):
    if name in FRAMEWORK_NAMES:
        return FRAMEWORK_NAMES[name]
    parts = name.split(".")
    if parts[2] == "self_attn":
        parts[3] = FRAMEWORK_ATTENTION[parts[3]]
    return "net.language_model.model." + ".".join(parts)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WAMSERVE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["tiny-nano", "tiny-edge"])
def folder(request, tmp_path):
    return write_random_checkpoint(tmp_path / "weights", request.param, shards=3)


def shard(folder, number=1):
    return sorted((folder / "transformer").glob("*.safetensors"))[number - 1]


def network_for(checkpoint):
    """A module on the meta device with exactly the parameters that are used."""
    root = nn.Module()
    for name, tensor in checkpoint.tensors.items():
        owner = root
        *path, leaf = name.split(".")
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        owner.register_parameter(
            leaf, nn.Parameter(torch.empty(tensor.shape, device="meta"), requires_grad=False)
        )
    return root


def stored(folder):
    return {
        k: v for file in (folder / "transformer").glob("*.safetensors") for k, v in load_file(file).items()
    }


def rewrite(folder, change):
    """One shard instead of three, with `change` applied to the tensors."""
    tensors = change(stored(folder))
    for file in (folder / "transformer").glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, folder / "transformer" / "model.safetensors")
    return folder


def test_every_used_weight_arrives_unchanged(folder):
    checkpoint = open_checkpoint(folder)
    network = network_for(checkpoint)
    load_weights(network, checkpoint, "cpu", torch.float32)
    truth = stored(folder)
    for name, value in network.state_dict().items():
        assert torch.equal(value, truth[name]), name


def test_dead_weights_are_never_read(folder):
    checkpoint = open_checkpoint(folder)
    left_out = set(parameter_shapes(checkpoint.config)) - set(checkpoint.tensors)
    last = f"layers.{checkpoint.config.num_hidden_layers - 1}"
    expected = {
        "lm_head.weight",
        "norm.weight",
        f"{last}.self_attn.to_q.weight",
        f"{last}.self_attn.to_out.weight",
    }
    expected |= {f"{last}.post_attention_layernorm.weight", f"{last}.mlp.up_proj.weight"}
    expected |= {f"{last}.mlp.down_proj.weight"}
    if checkpoint.config.hidden_act == "silu":
        expected |= {f"{last}.mlp.gate_proj.weight", f"{last}.self_attn.norm_q.weight"}
    assert left_out == expected
    # keys and values of the last text layer are read by the generation tower, so they stay
    assert not is_unused(f"{last}.self_attn.to_k.weight", checkpoint.config.num_hidden_layers)
    assert not is_unused(f"{last}.input_layernorm.weight", checkpoint.config.num_hidden_layers)


def test_the_time_embedder_stays_fp32_when_the_model_is_bf16(folder):
    checkpoint = open_checkpoint(folder)
    network = network_for(checkpoint)
    load_weights(network, checkpoint, "cpu", torch.bfloat16)
    dtypes = {name: value.dtype for name, value in network.state_dict().items()}
    assert {d for n, d in dtypes.items() if n.startswith("time_embedder.")} == {torch.float32}
    assert {d for n, d in dtypes.items() if not n.startswith("time_embedder.")} == {torch.bfloat16}


def test_framework_names_translate_one_by_one(folder):
    for name in parameter_shapes(open_checkpoint(folder).config):
        assert diffusers_name_from_framework(framework_name(name)) == name
        assert diffusers_name_from_framework("model." + framework_name(name)) == name
        assert diffusers_name_from_framework(name) == name


def test_both_layouts_give_the_same_weights_and_the_same_hash(folder):
    before = open_checkpoint(folder)
    wanted, hash_before = stored(folder), weights_hash(before)
    rewrite(folder, lambda tensors: {framework_name(name): value for name, value in tensors.items()})
    checkpoint = open_checkpoint(folder)
    assert (before.layout, checkpoint.layout) == ("diffusers", "framework")
    network = network_for(checkpoint)
    load_weights(network, checkpoint, "cpu", torch.float32)
    assert all(torch.equal(value, wanted[name]) for name, value in network.state_dict().items())
    assert weights_hash(checkpoint) == hash_before


def test_one_changed_number_changes_the_hash_and_a_dead_weight_does_not(folder):
    def nudge(name):
        def change(tensors):
            tensors[name].view(-1)[-1] += 1e-3
            return tensors

        return change

    first = weights_hash(open_checkpoint(folder))
    assert weights_hash(open_checkpoint(rewrite(folder, nudge("lm_head.weight")))) == first
    assert weights_hash(open_checkpoint(rewrite(folder, nudge("proj_in.bias")))) != first


def test_the_hash_is_remembered_until_a_shard_changes(folder, monkeypatch):
    from wamserve.policy_server.world_model import checkpoint as module

    first = weights_hash(open_checkpoint(folder))
    monkeypatch.setattr(module, "hash_tensors", lambda *_: pytest.fail("hashed again"))
    assert weights_hash(open_checkpoint(folder)) == first


def test_missing_extra_and_misshaped_keys_are_one_report(folder):
    checkpoint = open_checkpoint(folder)
    network = network_for(checkpoint)

    def change(tensors):
        del tensors["layers.0.self_attn.add_q_proj.weight"]
        tensors["layers.0.self_attn.lora_a.weight"] = torch.zeros(2)
        tensors["proj_in.weight"] = torch.zeros(64, 191)
        tensors["norm_moe_gen.weight"] = torch.zeros(64, dtype=torch.int64)
        return tensors

    with pytest.raises(CheckpointError) as caught:
        load_weights(network, open_checkpoint(rewrite(folder, change)), "cpu", torch.float32)
    text = str(caught.value)
    assert "1 missing:\n    layers.0.self_attn.add_q_proj.weight" in text
    assert "1 extra:\n    layers.0.self_attn.lora_a.weight" in text
    assert "1 mis-shaped:\n    proj_in.weight is [64, 191], not [64, 192]" in text
    assert (
        "1 in a format that is not read (F32, BF16, F16 and F64 are):\n    norm_moe_gen.weight is I64" in text
    )
    assert all(value.is_meta for value in network.parameters()), "nothing was loaded"


def test_a_framework_key_is_reported_under_both_names(folder):
    network = network_for(open_checkpoint(folder))

    def change(tensors):
        tensors["proj_in.weight"] = torch.zeros(1)
        return {framework_name(name): value for name, value in tensors.items()}

    with pytest.raises(CheckpointError, match=r"proj_in.weight \(stored as net.vae2llm.weight\) is \[1\]"):
        load_weights(network, open_checkpoint(rewrite(folder, change)), "cpu", torch.float32)


def test_a_truncated_shard_is_found_when_the_checkpoint_is_opened(folder):
    whole = shard(folder, 2).read_bytes()
    shard(folder, 2).write_bytes(whole[:-1])
    with pytest.raises(
        CheckpointError, match=rf"is truncated; seen: {len(whole) - 1} bytes; expected: {len(whole)}"
    ):
        open_checkpoint(folder)
    shard(folder, 2).write_bytes(whole[:20])
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        open_checkpoint(folder)
    shard(folder, 2).write_bytes(b"")
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        open_checkpoint(folder)


def test_a_missing_shard_is_named(folder):
    name = shard(folder, 2).name
    shard(folder, 2).unlink()
    with pytest.raises(CheckpointError, match=f"1 of 3 shards are missing.*{name}"):
        open_checkpoint(folder)


def test_other_models_and_empty_folders_are_refused(folder, tmp_path):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    with pytest.raises(CheckpointError, match=r"another model; seen: model_index\.json of FluxPipeline"):
        open_checkpoint(folder)
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"model_index\.json is no JSON object; seen: list"):
        open_checkpoint(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no model_index\.json"):
        open_checkpoint(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"no checkpoint at \./nowhere.*org/name"):
        open_checkpoint("./nowhere")


def test_another_transformer_is_refused(folder):
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "WanTransformer3DModel"}))
    with pytest.raises(CheckpointError, match="WanTransformer3DModel"):
        open_checkpoint(folder)


def test_progress_ends_at_the_number_of_used_bytes(folder):
    checkpoint = open_checkpoint(folder)
    seen = []
    load_weights(network_for(checkpoint), checkpoint, "cpu", torch.float32, lambda *step: seen.append(step))
    assert seen[0] == (0, checkpoint.nbytes) and seen[-1] == (checkpoint.nbytes, checkpoint.nbytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


PEAK = """
import resource, sys, torch
from torch import nn
from wamserve.policy_server.world_model import checkpoint as module
from wamserve.policy_server.world_model.checkpoint import load_weights, open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
network = nn.Module()
for name, tensor in checkpoint.tensors.items():
    owner = network
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    empty = torch.empty(tensor.shape, device="meta")
    owner.register_parameter(leaf, nn.Parameter(empty, requires_grad=False))
from safetensors import safe_open  # imported first, so that only loading is measured
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[2] == "away":  # every tensor is read, cast and handed over, and leaves the host
    module._place = lambda network, name, value: float(value.view(-1)[0])
load_weights(network, checkpoint, "cpu", torch.bfloat16)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, checkpoint.nbytes)
"""


@pytest.mark.parametrize("where", ["away", "cpu"])
def test_host_memory_peaks_near_one_shard(tmp_path, where):
    from dataclasses import replace

    from wamserve.policy_server.world_model.config import preset

    config = replace(preset("tiny-edge"), hidden_size=512, intermediate_size=4096, num_hidden_layers=6)
    folder = write_random_checkpoint(tmp_path / "large", config, shards=8)  # ~ 180 MB in fp32
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder), where],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    grown, total = map(int, run.stdout.split())
    kept = total // 2 if where == "cpu" else 0  # bf16 weights that stay in host memory
    assert grown < kept + 2 * total / 8 + 20e6, f"{grown / 1e6:.0f} MB for {total / 1e6:.0f} MB of weights"

"""What must hold of the network whatever its weights are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from wamserve.action_codec.errors import RequestError
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.sampler import Start, sample
from wamserve.policy_server.sampling.schedule import flow_schedule
from wamserve.policy_server.world_model.attention import RMSNorm
from wamserve.policy_server.world_model.config import PRESETS
from wamserve.policy_server.world_model.layout import TokenLayout
from wamserve.policy_server.world_model.network import DomainLinear, WorldModel
from wamserve.policy_server.world_model.prompt_kv import PromptKV
from wamserve.policy_server.world_model.tokens import plan_request

FLAVOURS = pytest.mark.parametrize("flavour", ["tiny-nano", "tiny-edge"])
BATCH = 1e-5  # batched against single, fp32
TEXT_TOWER = ("to_q", "to_k", "to_v", "to_out", "norm_q", "norm_k", "k_norm_und", "mlp.", "embed_tokens")


def text_tower(network):
    """Parameters of the text tower alone."""
    for name, parameter in network.named_parameters():
        if "moe_gen" not in name and (
            any(f".{part}" in f".{name}" for part in TEXT_TOWER) or "layernorm" in name
        ):
            yield name, parameter


def policy_plan(**changes):
    values = dict(chunk=8, domain=8, raw_action_dim=8, rate_hz=15, state_row=True) | changes
    return plan_request(values.pop("mode", "policy"), **values)


def prompts_of(network, lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, network.config.vocab_size, (n,), generator=generator) for n in lengths]


def prefill(network, prompts):
    return network.prefill(pad_sequence(prompts, batch_first=True), [len(p) for p in prompts])


def step(network, start, plans, prompt, timestep=(833,), **kwargs):
    shape = plans[0].shape(*start.latents.shape[-2:])
    layout = TokenLayout.build(network.config, shape, plans, prompt.lengths)
    return network.denoise(start.latents, start.actions, torch.tensor(timestep), layout, prompt, **kwargs)


@FLAVOURS
@torch.no_grad()
def test_the_text_tower_does_not_run_inside_a_step(flavour, random_network, random_start):
    network = random_network(PRESETS[flavour])
    plans = [policy_plan()]
    start = random_start(network.config, plans, 6, 5)
    prompt = prefill(network, prompts_of(network, [12]))
    before = step(network, start, plans, prompt)
    spoiled = [name for name, parameter in text_tower(network) if parameter.fill_(float("nan")) is not None]
    assert len(spoiled) > 20
    after = step(network, start, plans, prompt)
    assert torch.equal(before.video, after.video) and torch.equal(before.action, after.action)


@FLAVOURS
@torch.no_grad()
def test_prompt_keys_are_causal_and_padding_changes_nothing(flavour, random_network, close):
    network = random_network(PRESETS[flavour])
    long, short = prompts_of(network, [14, 9])
    both = prefill(network, [long, short])
    alone = prefill(network, [short])
    close(both.keys[:, 1:, :, :9], alone.keys, BATCH)
    close(both.values[:, 1:, :, :9], alone.values, BATCH)
    changed = long.clone()
    changed[7] = (changed[7] + 1) % network.config.vocab_size
    other = prefill(network, [changed])
    assert torch.equal(other.keys[:, 0, :, :7], prefill(network, [long]).keys[:, 0, :, :7])
    deeper = slice(1, None)  # layer 0 sees no neighbours yet
    assert (other.keys - both.keys[:, :1])[deeper, 0, :, 7:].abs().amax((1, 3)).min() > 1e-2


@FLAVOURS
@torch.no_grad()
def test_a_batched_guided_call_equals_single_calls(flavour, random_network, random_start, close):
    """Four robots with prompts, seeds and modes of their own, cond and uncond in one batch."""
    network = random_network(PRESETS[flavour])
    plans = [
        policy_plan(),
        policy_plan(mode="fd", domain=1),
        policy_plan(frozen=3, domain=2, rate_hz=5),
        policy_plan(mode="id"),
    ]
    start = random_start(network.config, plans, 5, 6)
    prompts = prompts_of(network, [21, 8, 8, 30])
    empty = prefill(network, prompts_of(network, [6], seed=9))
    schedule, guidance = flow_schedule(), Guidance(3.0, interval=(900, 1001), video_scale=2.0)
    whole = sample(network, plans, start, schedule, guidance, prefill(network, prompts), empty)
    assert whole.forwards == 6  # steps at 999 and 937 guided, 833 and 624 conditional only
    for b, plan in enumerate(plans):
        one = Start(*(getattr(start, name)[b : b + 1] for name in vars(start)))
        alone = sample(network, [plan], one, schedule, guidance, prefill(network, prompts[b : b + 1]), empty)
        close(whole.latents[b : b + 1], alone.latents, BATCH)
        close(whole.actions[b : b + 1], alone.actions, BATCH)


@pytest.mark.parametrize("mode", ["policy", "fd", "id"])
@torch.no_grad()
def test_given_values_never_move_and_padding_stays_zero(mode, random_network, random_start):
    network = random_network(PRESETS["tiny-nano"])
    plan = policy_plan(mode=mode, history=2, frozen=3 if mode == "policy" else 0)
    start = random_start(network.config, [plan], 6, 5)
    prompt = prefill(network, prompts_of(network, [12]))
    got = sample(network, [plan], start, flow_schedule(steps=7), Guidance(), prompt)
    frames, rows = torch.tensor(plan.video_clean), torch.tensor(plan.action_clean)
    assert torch.equal(got.latents[:, :, frames], start.latents[:, :, frames])
    assert torch.equal(got.actions[:, rows], start.actions[:, rows])
    assert not got.actions[:, :, plan.raw_action_dim :].any()
    if mode != "id":
        assert (got.latents - start.video_noise)[:, :, ~frames].abs().amin() > 0
    if mode != "fd":
        assert (got.actions - start.action_noise)[:, ~rows, :8].abs().amin() > 0


@FLAVOURS
@torch.no_grad()
def test_leaving_out_the_last_layers_video_tokens_is_exact(flavour, random_network, random_start, close):
    network = random_network(PRESETS[flavour])
    plans = [policy_plan(), policy_plan(domain=3)]
    start = random_start(network.config, plans, 6, 5)
    prompt = prefill(network, prompts_of(network, [12, 7]))
    full = step(network, start, plans, prompt)
    short = step(network, start, plans, prompt, want_video=False)
    assert short.video is None
    close(short.action, full.action, 1e-6)
    calls = [
        sample(network, plans, start, flow_schedule(), Guidance(), prompt, want_video=wanted)
        for wanted in (True, False)
    ]
    assert calls[1].latents is None
    close(calls[1].actions, calls[0].actions, 1e-6)


@torch.no_grad()
def test_forward_dynamics_shows_another_video_for_shuffled_actions(random_network, random_start):
    network = random_network(PRESETS["tiny-nano"])
    plan = policy_plan(mode="fd")
    start = random_start(network.config, [plan], 6, 5)
    prompt = prefill(network, prompts_of(network, [12]))
    shuffled = replace(start, actions=start.actions.flip(1))
    one, other = (
        sample(network, [plan], s, flow_schedule(), Guidance(), prompt).latents for s in (start, shuffled)
    )
    assert torch.equal(one[:, :, 0], other[:, :, 0])
    assert (one - other)[:, :, 1:].abs().max() > 1e-2


@torch.no_grad()
def test_each_request_of_a_batch_may_stand_at_its_own_timestep(random_network, random_start, close):
    network = random_network(PRESETS["tiny-edge"])
    plans = [policy_plan(), policy_plan(mode="fd")]
    start = random_start(network.config, plans, 4, 6)
    prompt = prefill(network, prompts_of(network, [12, 5]))
    together = step(network, start, plans, prompt, timestep=(999, 120))
    for b, t in enumerate((999, 120)):
        one = Start(*(getattr(start, name)[b : b + 1] for name in vars(start)))
        close(
            together.video[b : b + 1],
            step(network, one, plans[b : b + 1], prompt.rows([b]), (t,)).video,
            BATCH,
        )


@torch.no_grad()
def test_another_attention_kernel_may_be_put_in(random_network, random_start, close):
    """It receives everything the default one does: here, one masked call over padded prompts."""

    def masked(query, key, value, prompt_key, prompt_value, lengths):
        padded = prompt_key.shape[2]
        allowed = torch.ones(len(lengths), 1, 1, padded + key.shape[2], dtype=torch.bool)
        allowed[:, 0, 0, :padded] = torch.arange(padded) < torch.tensor(lengths)[:, None]
        keys, values = (torch.cat(pair, dim=2) for pair in ((prompt_key, key), (prompt_value, value)))
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=allowed, enable_gqa=True)

    network = random_network(PRESETS["tiny-nano"])
    plans = [policy_plan()] * 3
    start = random_start(network.config, plans, 6, 5)
    prompt = prefill(network, prompts_of(network, [12, 4, 9]))
    runs = step(network, start, plans, prompt)
    for layer in network.layers:
        layer.self_attn.attend = masked
    other = step(network, start, plans, prompt)
    close(other.video, runs.video, BATCH)
    close(other.action, runs.action, BATCH)


@FLAVOURS
def test_gradients_reach_every_weight_of_both_towers(flavour, random_network, random_start):
    """And gradient checkpointing gives the same ones."""
    grads = []
    for checkpointing in (False, True):
        network = random_network(PRESETS[flavour])
        network.gradient_checkpointing = checkpointing
        plans = [policy_plan(domain=d) for d in range(2)]
        start = random_start(network.config, plans, 4, 4)
        velocity = step(network, start, plans, prefill(network, prompts_of(network, [9, 5])))
        (velocity.video.square().mean() + velocity.action.square().mean()).backward()
        grads.append({name: parameter.grad for name, parameter in network.named_parameters()})
    dead = [name for name, grad in grads[0].items() if grad is None or not grad.any()]
    assert dead == []
    assert all(torch.allclose(grads[0][name], grads[1][name], atol=1e-6) for name in grads[0])


@pytest.mark.parametrize("kind", ["Qwen", "Nemotron"])
def test_norms_round_bf16_as_the_reference_does(kind):
    reference = pytest.importorskip("diffusers.models.transformers.transformer_cosmos3")
    classes = {"Qwen": reference.RMSNorm, "Nemotron": reference.Cosmos3NemotronRMSNorm}
    weight = 1 + 0.3 * torch.randn(64)
    ours, theirs = RMSNorm(64, 1e-6, round_first=kind == "Qwen"), classes[kind](64, eps=1e-6)
    x = torch.randn(50, 64).bfloat16()
    for norm in (ours, theirs):
        norm.weight.data = weight.bfloat16()
    assert torch.equal(ours(x), theirs(x))
    ours.round_first = not ours.round_first
    assert not torch.equal(ours(x), theirs(x))


@FLAVOURS
@torch.no_grad()
def test_bf16_stays_near_fp32(flavour, random_network, random_start):
    network = random_network(PRESETS[flavour])
    plans = [policy_plan()]
    start = random_start(network.config, plans, 6, 5)
    prompts = prompts_of(network, [12])
    wide = sample(network, plans, start, flow_schedule(), Guidance(), prefill(network, prompts))
    network.cast(torch.bfloat16)
    assert network.dtype == torch.bfloat16
    assert network.time_embedder.linear_1.weight.dtype == torch.float32
    narrow = sample(network, plans, start, flow_schedule(), Guidance(), prefill(network, prompts))
    error = (narrow.actions - wide.actions)[:, :, :8].square().mean().sqrt() / wide.actions[:, :, :8].std()
    print(f"bf16 action error, rms over actions' spread: {error:.2e}")
    assert narrow.actions.dtype == torch.float32
    assert 1e-5 < error < 5e-2


def test_published_sizes_have_the_published_parameter_counts():
    """With lm_head and the dead weights of the last text layer, which are not built."""
    for name, billions in (("edge", 3.37), ("nano", 15.17), ("super", 64.0)):
        config = PRESETS[name]
        with torch.device("meta"):
            built = sum(p.numel() for p in WorldModel(config).parameters())
        hidden, heads = config.hidden_size, config.num_attention_heads * config.head_dim
        dead = config.vocab_size * hidden + 2 * hidden + 2 * hidden * heads
        dead += hidden * config.intermediate_size * (3 if config.hidden_act == "silu" else 2)
        assert abs((built + dead) / 1e9 - billions) < 0.01 * billions


def test_prompts_join_and_split_without_loss(random_network):
    network = random_network(PRESETS["tiny-nano"])
    first, second = prompts_of(network, [12, 5])
    joined = PromptKV.concat([prefill(network, [first]), prefill(network, [second])])
    assert joined.lengths == (12, 5) and joined.keys.shape[3] == 12
    assert torch.equal(joined.rows([1]).keys, prefill(network, [second]).keys)
    assert joined.rows([1, 0, 1]).lengths == (5, 12, 5)
    with pytest.raises(RequestError, match="prompt lengths"):
        network.prefill(first[None], [13])
    with pytest.raises(
        RequestError, match=r"token ids past the vocabulary; seen: 4\.\.507; expected: 0\.\.506"
    ):
        network.prefill(torch.tensor([[4, 507]]))


def test_the_weights_of_a_domain_are_stored_input_major(shared, close):
    """Recorded from the reference's DomainAwareLinear; reading a row as [out, in] gives other numbers."""
    golden = np.load(shared / "golden/actions/codec_unit.npz")
    want = {k.removeprefix("dal_"): torch.from_numpy(golden[k]) for k in golden.files if k.startswith("dal_")}
    (domains, outputs), inputs = want["bias_weight"].shape, want["x"].shape[-1]
    linear = DomainLinear(inputs, outputs, domains)
    linear.load_state_dict({"fc.weight": want["fc_weight"], "bias.weight": want["bias_weight"]})
    with torch.no_grad():
        close(linear(want["x"][:, None], want["domain_id"])[:, 0], want["y"], 1e-6)
        close(linear(want["x3"], want["domain_id3"]), want["y3"], 1e-6)
        transposed = want["fc_weight"].view(-1, outputs, inputs).transpose(1, 2).reshape(domains, -1)
        linear.fc.weight.copy_(transposed)
        assert (linear(want["x3"], want["domain_id3"]) - want["y3"]).abs().max() > 0.1

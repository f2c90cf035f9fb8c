"""The network and the sampler reproduce step-by-step arrays recorded from the reference implementation."""

from __future__ import annotations

import pytest
import torch

from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.noise import draw_noise
from wamserve.policy_server.sampling.sampler import Start, sample
from wamserve.policy_server.sampling.schedule import flow_schedule
from wamserve.policy_server.world_model.layout import TokenLayout
from wamserve.policy_server.world_model.rope import rotary_tables, text_positions
from wamserve.policy_server.world_model.tokens import plan_request

VARIANT = {"nano": "diffusers", "edge": "framework"}  # the schedule each tiny pipeline is configured with
FLAVOURS = pytest.mark.parametrize("flavour", ["nano", "edge"])


def droid_plan():
    return plan_request("policy", chunk=8, domain=8, raw_action_dim=10, rate_hz=15)


@FLAVOURS
def test_positions_and_every_layer_of_both_towers_match(flavour, tiny, golden, close):
    network, layers, policy = tiny(flavour), golden(f"{flavour}_layers"), golden(f"{flavour}_policy")
    ids = policy["cond/input_ids"][None]
    plan = droid_plan()
    layout = TokenLayout.build(network.config, plan.shape(12, 15), [plan], [ids.shape[1]])
    cos, sin = rotary_tables(network.config, text_positions(ids.shape[1]), torch.float32)
    assert torch.equal(layout.cos[0, 0], layers["cos_gen"]) and torch.equal(
        layout.sin[0, 0], layers["sin_gen"]
    )
    assert torch.equal(cos, layers["cos_und"]) and torch.equal(sin, layers["sin_und"])
    with torch.no_grad():
        prompt = network.prefill(ids)
        text = network.embed_tokens(ids)
        x = network.embed(
            policy["step0/vision_in"], policy["step0/action_in"][None], policy["step0/timestep"], layout
        )
        close(text[0], layers["embed_und"])
        close(x[0], layers["embed_gen"])
        last = len(network.layers) - 1
        for i, layer in enumerate(network.layers):
            text, _, _ = layer.text(text, cos, sin)
            x = layer(x, layout.cos, layout.sin, prompt.keys[i], prompt.values[i], prompt.lengths)
            close(prompt.keys[i, 0].transpose(0, 1), layers[f"layer{i}/und_k_for_gen"])
            close(prompt.values[i, 0].transpose(0, 1), layers[f"layer{i}/und_v"])
            close(x[0], layers[f"layer{i}/gen_out"])
            if i < last:  # what the text tower computes after its last keys is read by nobody
                close(text[0], layers[f"layer{i}/und_out"])


@FLAVOURS
@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_every_step_of_each_guidance_branch_matches(flavour, branch, tiny, golden, close):
    network, steps = tiny(flavour), golden(f"{flavour}_policy")
    ids = steps[f"{branch}/input_ids"][None]
    plan = droid_plan()
    layout = TokenLayout.build(network.config, plan.shape(12, 15), [plan], [ids.shape[1]])
    with torch.no_grad():
        prompt = network.prefill(ids)
        for k in range(4):
            velocity = network.denoise(
                steps[f"step{k}/vision_in"], steps[f"step{k}/action_in"][None], steps[f"step{k}/timestep"],
                layout, prompt,
            )  # fmt: skip
            close(velocity.video, steps[f"step{k}/{branch}_pred_vision"])
            close(velocity.action[0, :, :10], steps[f"step{k}/{branch}_pred_action"][:, :10])


@FLAVOURS
def test_policy_call_of_four_guided_steps_matches(flavour, tiny, golden, close):
    network, want = tiny(flavour), golden(f"{flavour}_policy")
    plan = droid_plan()
    noise = draw_noise("diffusers", [0], plan.shape(12, 15))
    start = Start(want["x0_latent_cropped"], torch.zeros(1, 8, 64), *noise)
    prompts = [network.prefill(want[f"{branch}/input_ids"][None]) for branch in ("cond", "uncond")]
    got = sample(network, [plan], start, flow_schedule(VARIANT[flavour]), Guidance(3.0), *prompts)
    close(got.actions[0, :, :10], want["final_action"])
    close(got.latents, want["final_latents"])
    assert got.forwards == 8


def test_policy_call_with_a_state_row_matches_the_nvidia_server(tiny, golden, close):
    network, want = tiny("nano"), golden("nano_policy_state")
    plan = plan_request("policy", chunk=8, domain=8, raw_action_dim=8, rate_hz=15, state_row=True)
    noise = draw_noise("framework", [int(want["seed"])], plan.shape(13, 16))
    start = Start(want["x0_vision"], want["x0_action"][None], *noise)
    prompts = [network.prefill(want[f"{branch}/input_ids"][None]) for branch in ("cond", "uncond")]
    got = sample(network, [plan], start, flow_schedule("framework"), Guidance(3.0), *prompts)
    close(got.actions[0], want["final_action_model"])
    close(got.latents, want["final_latents"])


def test_forward_dynamics_call_matches(tiny, golden, close):
    network, want = tiny("nano"), golden("nano_fd")
    plan = plan_request("fd", chunk=8, domain=1, raw_action_dim=9, rate_hz=10)
    actions = torch.zeros(1, 8, 64)
    actions[0, :, :9] = want["raw_actions"][:8]
    latents = torch.zeros(1, 48, 3, 12, 20)
    latents[:, :, 0] = want["step0/vision_in"][:, :, 0]
    start = Start(latents, actions, *draw_noise("diffusers", [1], plan.shape(12, 20)))
    prompt = network.prefill(want["cond/input_ids"][None])
    got = sample(network, [plan], start, flow_schedule("diffusers"), Guidance(1.0), prompt)
    close(got.latents, want["final_latents"])
    assert torch.equal(got.actions, actions)
    assert got.forwards == 4


def test_inverse_dynamics_call_matches(tiny, golden, close):
    network, want = tiny("edge"), golden("edge_id")
    plan = plan_request("id", chunk=4, domain=7, raw_action_dim=10, rate_hz=5)
    clip = want["step0/vision_in"]
    start = Start(clip, torch.zeros(1, 4, 64), *draw_noise("diffusers", [2], plan.shape(16, 19)))
    prompt = network.prefill(want["cond/input_ids"][None])
    got = sample(network, [plan], start, flow_schedule("framework"), Guidance(1.0), prompt)
    close(got.actions[0, :, :10], want["final_action"])
    assert torch.equal(got.latents, clip)


def test_the_wrong_schedule_or_noise_order_is_seen(tiny, golden):
    """The parity tolerance is tight enough to notice a convention of another implementation."""
    network, want = tiny("nano"), golden("nano_policy")
    plan = droid_plan()
    prompts = [network.prefill(want[f"{branch}/input_ids"][None]) for branch in ("cond", "uncond")]
    for noise_kind, variant in (("framework", "diffusers"), ("diffusers", "framework")):
        noise = draw_noise(noise_kind, [0], plan.shape(12, 15))
        start = Start(want["x0_latent_cropped"], torch.zeros(1, 8, 64), *noise)
        got = sample(network, [plan], start, flow_schedule(variant), Guidance(3.0), *prompts)
        assert (got.actions[0, :, :10] - want["final_action"]).abs().max() > 1e-3

"""The network and the sampler equal diffusers' Cosmos 3 pipeline, run here on random weights."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.noise import draw_noise
from wamserve.policy_server.sampling.sampler import Start, sample
from wamserve.policy_server.sampling.schedule import flow_schedule
from wamserve.policy_server.world_model.config import PRESETS, WorldModelConfig
from wamserve.policy_server.world_model.layout import TokenLayout
from wamserve.policy_server.world_model.names import is_unused
from wamserve.policy_server.world_model.network import WorldModel
from wamserve.policy_server.world_model.tokens import plan_request
from wamserve.policy_server.world_model.vae import VideoVAE, crop_content

diffusers = pytest.importorskip("diffusers")
cosmos = pytest.importorskip("diffusers.pipelines.cosmos.pipeline_cosmos3_omni")

FLAVOURS = pytest.mark.parametrize("flavour", ["nano", "edge"])
VARIANT = {"nano": "diffusers", "edge": "framework"}
SIZES = {  # other sizes than the recorded ones: an odd head ratio, bias, uneven axes
    "nano": replace(PRESETS["tiny-nano"], num_attention_heads=6, num_key_value_heads=2, attention_bias=True),
    "edge": replace(
        PRESETS["tiny-edge"], hidden_size=96, num_hidden_layers=2, head_dim=24, rope_axes_dim=(6, 3, 3)
    ),
}


def reference_transformer(config: WorldModelConfig, seed: int):
    values = {k: v for k, v in asdict(config).items() if k != "action_gen"}
    network = diffusers.Cosmos3OmniTransformer(**values, action_gen=True).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif "action_proj" in name:
                parameter.copy_(0.12 * noise)
            else:
                parameter.copy_(noise / (parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 10))
    return network


def our_network(reference, config: WorldModelConfig) -> WorldModel:
    network = WorldModel(config).eval()
    weights = {k: v for k, v in reference.state_dict().items() if not is_unused(k, config.num_hidden_layers)}
    network.load_state_dict(weights)
    return network


def reference_step(reference, ids, latents, actions, timestep, plan):
    """One forward of diffusers' transformer, packed here by its own position functions."""
    count = len(ids)
    offset = count + 15000
    _, _, frames, height, width = latents.shape
    grid = (frames, -(-height // 2), -(-width // 2))
    text, _ = cosmos.get_3d_mrope_ids_text_tokens(count, 0, use_float_positions=True)
    vision, _ = cosmos.get_3d_mrope_ids_vae_tokens(*grid, offset, fps=plan.rate_hz)
    rows = len(plan.action_clean)
    action, _ = cosmos.get_3d_mrope_ids_vae_tokens(
        rows, 1, 1, offset, fps=plan.rate_hz, temporal_compression_factor=1,
        base_temporal_compression_factor=4, start_frame_offset=plan.action_start,
    )  # fmt: skip
    tokens = grid[0] * grid[1] * grid[2]
    vision_at = count + torch.arange(tokens)
    action_at = count + tokens + torch.arange(rows)
    noisy_frames = torch.tensor(
        [i for i, clean in enumerate(plan.video_clean) if not clean], dtype=torch.long
    )
    noisy_rows = torch.tensor([i for i, clean in enumerate(plan.action_clean) if not clean], dtype=torch.long)
    per_frame = vision_at.view(frames, -1)
    with torch.no_grad():
        video, _, action = reference(
            input_ids=ids, text_indexes=torch.arange(count),
            position_ids=torch.cat([text, vision, action], dim=1),
            und_len=count, sequence_length=count + tokens + rows,
            vision_tokens=[latents], vision_token_shapes=[grid], vision_sequence_indexes=vision_at,
            vision_mse_loss_indexes=per_frame[noisy_frames].flatten(),
            vision_timesteps=torch.full((per_frame[noisy_frames].numel(),), timestep),
            vision_noisy_frame_indexes=[noisy_frames],
            action_tokens=[actions], action_token_shapes=[(rows, 1, 1)], action_sequence_indexes=action_at,
            action_mse_loss_indexes=action_at[noisy_rows],
            action_timesteps=torch.full((len(noisy_rows),), timestep),
            action_noisy_frame_indexes=[noisy_rows], action_domain_ids=[torch.tensor([plan.domain])],
            return_dict=False,
        )  # fmt: skip
    return video[0], action[0]


PLANS = {
    "policy": dict(mode="policy", chunk=8),
    "policy with state": dict(mode="policy", chunk=8, state_row=True),
    "policy with state and history": dict(mode="policy", chunk=12, state_row=True, history=2),
    "policy with history": dict(mode="policy", chunk=4, history=3),
    "policy with a frozen prefix": dict(mode="policy", chunk=8, state_row=True, frozen=3),
    "forward dynamics": dict(mode="fd", chunk=8),
    "inverse dynamics": dict(mode="id", chunk=4),
}


@FLAVOURS
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_step_of_every_mode_equals_diffusers(flavour, plan, close):
    config = SIZES[flavour]
    reference = reference_transformer(config, seed=len(plan))
    network = our_network(reference, config)
    plan = plan_request(**plan, domain=8, raw_action_dim=64, rate_hz=12)
    generator = torch.Generator().manual_seed(plan.chunk)
    latents = torch.randn(1, 48, len(plan.video_clean), 5, 7, generator=generator)
    actions = torch.randn(len(plan.action_clean), 64, generator=generator)
    ids = torch.randint(0, config.vocab_size, (23,), generator=generator)
    layout = TokenLayout.build(config, plan.shape(5, 7), [plan], [len(ids)])
    with torch.no_grad():
        got = network.denoise(latents, actions[None], torch.tensor([833]), layout, network.prefill(ids[None]))
    video, action = reference_step(reference, ids, latents, actions, 833, plan)
    assert max(video.abs().max(), action.abs().max()) > 0.5  # there is something to compare
    close(got.video, video)
    close(got.action[0], action)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(action_start=1),
        dict(rate_hz=13.0),
        dict(domain=9),
        dict(action_clean=(False,) * 9),
        dict(video_clean=(False,) * 3),
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_step_under_another_convention_is_told_apart(wrong):
    config = SIZES["nano"]
    reference = reference_transformer(config, seed=1)
    network = our_network(reference, config)
    plan = plan_request("policy", chunk=8, domain=8, raw_action_dim=64, rate_hz=12, state_row=True)
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(1, 48, 3, 4, 4, generator=generator)
    actions = torch.randn(9, 64, generator=generator)
    ids = torch.randint(0, config.vocab_size, (20,), generator=generator)
    layout = TokenLayout.build(config, plan.shape(4, 4), [plan], [len(ids)])
    with torch.no_grad():
        got = network.denoise(latents, actions[None], torch.tensor([937]), layout, network.prefill(ids[None]))
    _, action = reference_step(reference, ids, latents, actions, 937, replace(plan, **wrong))
    assert (got.action[0] - action)[1:].abs().max() > 1e-3


@FLAVOURS
def test_a_batch_of_four_unlike_requests_equals_four_diffusers_steps(flavour, close):
    """Different prompts, prompt lengths, modes, domains and frame rates side by side."""
    config = SIZES[flavour]
    reference = reference_transformer(config, seed=4)
    network = our_network(reference, config)
    plans = [
        plan_request(mode, chunk=8, domain=domain, raw_action_dim=64, rate_hz=rate)
        for mode, domain, rate in (("policy", 8, 15), ("fd", 1, 10), ("id", 7, 5), ("policy", 20, 3))
    ]
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(4, 48, 3, 6, 5, generator=generator)
    actions = torch.randn(4, 8, 64, generator=generator)
    prompts = [torch.randint(0, config.vocab_size, (n,), generator=generator) for n in (31, 9, 9, 17)]
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=3)
    layout = TokenLayout.build(config, plans[0].shape(6, 5), plans, [len(p) for p in prompts])
    with torch.no_grad():
        prompt = network.prefill(padded, [len(p) for p in prompts])
        got = network.denoise(latents, actions, torch.tensor([417]), layout, prompt)
    for row, (plan, ids) in enumerate(zip(plans, prompts, strict=True)):
        video, action = reference_step(reference, ids, latents[row : row + 1], actions[row], 417, plan)
        close(got.video[row : row + 1], video)
        close(got.action[row], action)


@FLAVOURS
def test_a_bf16_step_rounds_where_diffusers_rounds(flavour):
    """To the bit where matrix kernels sum in one order; elsewhere far nearer than bf16 is to fp32."""
    config = SIZES[flavour]
    reference = reference_transformer(config, seed=2)
    network = our_network(reference, config).cast(torch.bfloat16)
    plan = plan_request("policy", chunk=8, domain=8, raw_action_dim=64, rate_hz=15, state_row=True)
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(1, 48, 3, 6, 7, generator=generator)
    actions = torch.randn(9, 64, generator=generator)
    ids = torch.randint(0, config.vocab_size, (30,), generator=generator)
    layout = TokenLayout.build(config, plan.shape(6, 7), [plan], [len(ids)], dtype=torch.bfloat16)
    with torch.no_grad():
        got = network.denoise(latents, actions[None], torch.tensor([833]), layout, network.prefill(ids[None]))
    exact = reference_step(reference, ids, latents, actions, 833, plan)
    kept = deepcopy(reference.time_embedder), reference.rotary_emb.inv_freq.clone()
    reference.to(torch.bfloat16)
    reference.time_embedder, reference.rotary_emb.inv_freq = kept  # fp32, as from_pretrained leaves them
    half = reference_step(reference, ids, latents.bfloat16(), actions.bfloat16(), 833, plan)
    for ours, theirs, wide in zip(got, half, exact, strict=True):
        apart = (ours.float().view_as(wide) - theirs.float()).square().mean().sqrt()
        rounding = (theirs.float() - wide).square().mean().sqrt()
        print(f"ours to diffusers in bf16 {apart:.1e} rms, diffusers' bf16 to fp32 {rounding:.1e}")
        assert apart < 0.1 * rounding and rounding > 1e-3


@FLAVOURS
@pytest.mark.parametrize(
    ("history", "interval", "forwards"),
    [(0, None, 8), (2, (960, 1001), 5)],
    ids=["state", "history and interval"],
)
def test_a_server_call_equals_a_loop_of_diffusers_parts(flavour, history, interval, forwards, close):
    """State and history rows, numpy noise, native schedule and guidance interval: NVIDIA's server call, built
    from diffusers' transformer and scheduler, since its pipeline cannot express it."""
    config = SIZES[flavour]
    reference = reference_transformer(config, seed=3)
    network = our_network(reference, config)
    plan = plan_request(
        "policy", chunk=8, domain=8, raw_action_dim=8, rate_hz=15, state_row=True, history=history
    )
    given, width = plan.lead, plan.raw_action_dim
    rng = torch.Generator().manual_seed(history)
    ids, empty = (torch.randint(0, config.vocab_size, (n,), generator=rng) for n in (29, 10))
    frame = torch.randn(1, 48, 1, 5, 6, generator=rng)
    known = torch.zeros(len(plan.action_clean), 64)
    known[:given, :width] = torch.randn(given, width, generator=rng)

    seed = 77
    x = torch.from_numpy(np.random.RandomState(seed).standard_normal((1, 48, 3, 5, 6)).astype(np.float32))
    a = torch.from_numpy(np.random.RandomState(seed).standard_normal(known.shape).astype(np.float32))
    x[:, :, :1], a[:given], a[:, width:] = frame, known[:given], 0
    noise = x.clone(), a.clone()
    solvers = []
    for _ in range(2):
        solver = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
        )
        solver.set_timesteps(4, sigmas=np.linspace(0.999, 0.0, 5)[:-1])
        solvers.append(solver)
    for t in solvers[0].timesteps:
        velocity = reference_step(reference, ids, x, a, int(t), plan)
        if interval is None or interval[0] < int(t) < interval[1]:
            plain = reference_step(reference, empty, x, a, int(t), plan)
            velocity = [u + 3.0 * (c - u) for c, u in zip(velocity, plain, strict=True)]
        moved = velocity[1].clone()
        moved[:, width:] = 0
        x = solvers[0].step(velocity[0], t, x, return_dict=False)[0]
        a = solvers[1].step(moved[None], t, a[None], return_dict=False)[0][0]

    latents = torch.zeros_like(x)
    latents[:, :, :1] = frame
    start = Start(latents, known[None], *draw_noise("framework", [seed], plan.shape(5, 6)))
    assert torch.equal(start.video_noise[:, :, 1:], noise[0][:, :, 1:])
    prompts = [network.prefill(tokens[None]) for tokens in (ids, empty)]
    got = sample(network, [plan], start, flow_schedule("framework"), Guidance(3.0, interval), *prompts)
    assert got.forwards == forwards
    close(got.latents, x)
    close(got.actions[0], a)


@pytest.fixture(scope="module")
def pipelines(shared):
    """Tiny diffusers pipelines whose transformer has random weights, and a recorder of what it was fed."""

    def make(flavour, seed):
        folder = shared / "golden" / "model" / f"tiny-{flavour}"
        config = SIZES[flavour]
        pipeline = diffusers.Cosmos3OmniPipeline.from_pretrained(
            folder, transformer=reference_transformer(config, seed), dtype=torch.float32
        )
        pipeline.set_progress_bar_config(disable=True)
        seen = {"prompts": []}
        forward, encode = pipeline.transformer.forward, pipeline._encode_video

        def recording_forward(*args, **kwargs):
            seen["prompts"].append(kwargs["input_ids"])
            return forward(*args, **kwargs)

        def recording_encode(pixels):
            seen["pixels"] = pixels
            return encode(pixels)

        pipeline.transformer.forward, pipeline._encode_video = recording_forward, recording_encode
        return pipeline, our_network(pipeline.transformer, config), seen

    return make


CALLS = [
    # flavour, mode, guidance, steps, chunk, image size (h, w), rate, domain name, domain, raw width, seed
    ("nano", "policy", 3.0, 4, 8, (200, 240), 15.0, "droid_lerobot", 8, 10, 11),
    ("edge", "policy", 3.0, 4, 4, (256, 256), 5.0, "bridge_orig_lerobot", 7, 10, 12),
    ("nano", "policy", 1.5, 5, 12, (128, 208), 20.0, "umi", 6, 10, 13),
    ("edge", "policy", 1.0, 7, 8, (160, 96), 10.0, "av", 1, 9, 14),
    ("nano", "fd", 1.0, 6, 8, (192, 320), 10.0, "av", 1, 9, 15),
    ("edge", "fd", 2.0, 3, 4, (256, 320), 3.0, "fractal", 20, 10, 16),
    ("nano", "id", 1.0, 4, 8, (160, 192), 5.0, "bridge_orig_lerobot", 7, 10, 17),
    ("edge", "id", 3.0, 4, 4, (96, 112), 15.0, "robomind-franka-dual", 12, 20, 18),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda c: f"{c[0]}-{c[1]}-{c[3]}steps-chunk{c[4]}")
def test_a_whole_call_equals_the_diffusers_pipeline(call, pipelines, close):
    flavour, mode, guidance, steps, chunk, size, rate, name, domain, width, seed = call
    pipeline, network, seen = pipelines(flavour, seed)
    rng = np.random.default_rng(seed)
    frames = [Image.fromarray(f) for f in rng.integers(0, 256, (chunk + 1, *size, 3), dtype=np.uint8)]
    raw = torch.from_numpy(rng.normal(size=(chunk, width)).astype(np.float32))
    condition = diffusers.pipelines.cosmos.CosmosActionCondition(
        mode={"policy": "policy", "fd": "forward_dynamics", "id": "inverse_dynamics"}[mode],
        chunk_size=chunk, domain_name=name, resolution_tier=256,
        raw_actions=raw if mode == "fd" else None,
        **({"video": frames} if mode == "id" else {"image": frames[0]}),
    )  # fmt: skip
    want = pipeline(
        prompt=f"Move object {seed} to the left", action=condition, fps=rate, num_inference_steps=steps,
        guidance_scale=guidance, generator=torch.Generator().manual_seed(seed), output_type="latent",
        use_system_prompt=False, enable_safety_check=False,
    )  # fmt: skip

    vae = VideoVAE(pipeline.vae)
    plan = plan_request(mode, chunk=chunk, domain=domain, raw_action_dim=width, rate_hz=rate)
    clip = seen["pixels"]
    encoded = vae.encode_video(clip) if mode == "id" else vae.encode_first_frame(clip[:, :, 0])
    height, width_ = want.video.shape[-2:]
    latents = torch.zeros_like(want.video)
    latents[:, :, : encoded.shape[2]] = crop_content(encoded, (height * 16, width_ * 16))
    actions = torch.zeros(1, chunk, 64)
    if mode == "fd":
        actions[0, :, :width] = raw
    start = Start(latents, actions, *draw_noise("diffusers", [seed], plan.shape(height, width_)))
    prompts = [
        network.prefill(ids[None]) for ids in (seen["prompts"][:2] if guidance != 1 else seen["prompts"][:1])
    ]
    got = sample(network, [plan], start, flow_schedule(VARIANT[flavour], steps), Guidance(guidance), *prompts)
    assert got.forwards == len(seen["prompts"])
    close(got.latents, want.video)
    if mode != "fd":
        close(got.actions[0, :, :width], want.action[0])

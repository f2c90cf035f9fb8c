"""Every switch of the engine gives the plain path's numbers: to 3e-5 in fp32, where values reach 7."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wamserve.action_codec.errors import RequestError
from wamserve.embodiments.canvas import Fit
from wamserve.policy_server.engine.engine import Engine
from wamserve.policy_server.engine.options import EngineOptions
from wamserve.policy_server.load import random_policy
from wamserve.policy_server.runner import Plain
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.sampler import sample
from wamserve.policy_server.sampling.schedule import flow_schedule
from wamserve.policy_server.sampling.start import Start

from .conftest import NoVAE, make_network, make_plan, make_start, read

EXACT = 3e-5
FIRST_STEP = Guidance(3.0, (960.0, 1001.0))


def worst(plain, got):
    gaps = [(plain.actions - got.actions).abs().max()]
    if plain.latents is not None:
        gaps.append((plain.latents - got.latents).abs().max())
    return max(gaps).item()


@pytest.mark.parametrize("branches", ["batched", "split"])
@pytest.mark.parametrize("attention", ["sliced", "blocked", "merged"])
@pytest.mark.parametrize(
    "guidance", [Guidance(3.0), FIRST_STEP, Guidance(1.0), Guidance(3.0, video_scale=1.0)]
)
def test_every_way_to_run_a_call_equals_the_plain_path(network, compare, branches, attention, guidance):
    plain, got, _ = compare(network, guidance=guidance, branches=branches, attention=attention)
    assert worst(plain, got) < EXACT and got.forwards == plain.forwards


@pytest.mark.parametrize("mode", ["policy", "fd", "id"])
def test_every_mode_equals_the_plain_path(network, compare, mode):
    plain, got, _ = compare(network, [make_plan(mode)], guidance=Guidance(1.0), steps=6)
    assert worst(plain, got) < EXACT


@pytest.mark.parametrize("attention", ["sliced", "blocked", "merged"])
def test_a_batch_of_unlike_prompts_prefixes_and_domains_equals_the_plain_path(network, compare, attention):
    plans = [make_plan(), make_plan(frozen=3), make_plan(domain=4, raw_action_dim=10), make_plan()]
    for branches in ("batched", "split"):
        plain, got, _ = compare(network, plans, (20, 90, 90, 7), attention=attention, branches=branches)
        assert worst(plain, got) < EXACT


def test_the_last_layer_without_video_rows_changes_no_action(network, compare):
    plain, got, _ = compare(network, want_video=False)
    _, whole, _ = compare(network, want_video=True)
    assert got.latents is None
    torch.testing.assert_close(got.actions, whole.actions, rtol=0, atol=EXACT)
    assert worst(plain, got) < EXACT


@pytest.mark.parametrize("attention", ["sliced", "blocked", "merged"])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 128])
def test_prompts_at_the_edges_of_a_bucket_are_exact(nano, compare, attention, length):
    plain, got, _ = compare(nano, lengths=(length,), attention=attention)
    assert worst(plain, got) < EXACT


def test_other_noise_levels_scales_and_steps_reach_a_kept_call(nano, compare):
    _, _, engine = compare(nano)
    for guidance, steps, seed in ((Guidance(2.0), 4, 1), (Guidance(3.0), 4, 2), (Guidance(3.0), 3, 3)):
        plain, got, _ = compare(nano, guidance=guidance, steps=steps, seed=seed, engine=engine)
        assert worst(plain, got) < EXACT
    assert len(engine.calls) == 2, "three steps are another program, another scale is not"


def test_what_a_call_returns_outlives_the_next_one(nano, compare):
    _, first, engine = compare(nano, seed=1)
    before = first.actions.clone()
    compare(nano, seed=2, engine=engine)
    assert torch.equal(first.actions, before)


def test_fusing_leaves_the_plain_network_as_it_was():
    network = make_network("tiny-nano")
    plans = [make_plan()]
    arguments = (plans, make_start(plans), flow_schedule(), Guidance(1.0), read(network, 20))
    before = sample(network, *arguments)
    held = sum(p.untyped_storage().nbytes() for p in network.parameters())
    engine = Engine(network, NoVAE())
    after = sample(network, *arguments)
    assert torch.equal(before.actions, after.actions)
    own = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
           for module in (network, engine.tower) for p in module.parameters()}  # fmt: skip
    assert sum(own.values()) == held, "the fused weights are the network's own, not copies"


def test_bf16_on_a_cpu_stays_near_fp32(compare):
    """The error of bf16 is the weights' and activations' rounding, as large on the plain path."""
    network = make_network("tiny-nano", torch.bfloat16)
    plain, got, _ = compare(network)
    full, _, _ = compare(make_network("tiny-nano"))
    spread = (plain.actions - full.actions).abs().mean().item()
    ours = (got.actions - full.actions).abs().mean().item()
    print(f"bf16 against fp32, mean |difference|: plain {spread:.4f}, engine {ours:.4f}")
    assert ours < 1.5 * spread + 1e-3


@pytest.mark.slow
def test_a_compiled_layer_equals_the_plain_path(compare):
    network = make_network("tiny-nano")
    plain, got, _ = compare(network, compile=True, guidance=FIRST_STEP)
    assert worst(plain, got) < EXACT


def test_a_nan_in_a_start_is_refused_before_any_forward(nano):
    plans = [make_plan()]
    start = make_start(plans)
    broken = Start(start.latents, start.actions, start.video_noise * float("nan"), start.action_noise)
    engine = Engine(nano, NoVAE())
    with pytest.raises(RequestError, match="video_noise hold NaN"):
        engine.sample(nano, plans, broken, flow_schedule(), Guidance(1.0), read(nano, 9))
    with pytest.raises(RequestError, match="guidance needs the empty prompt"):
        engine.sample(nano, plans, start, flow_schedule(), Guidance(3.0), read(nano, 9))


@pytest.mark.parametrize("wrong", [dict(branches="both"), dict(quantize="int2"), dict(max_calls=-1)])
def test_options_that_do_not_exist_are_refused(wrong):
    with pytest.raises(RequestError):
        EngineOptions(**wrong)


@pytest.fixture(scope="module")
def pusht():
    return random_policy("tiny-nano", "pusht")


def test_the_channels_last_encoder_equals_the_plain_one(pusht):
    frames = np.random.default_rng(0).integers(0, 256, (2, 128, 160, 3), np.uint8)
    fit = Fit(128, 160, 120, 150)
    plain = Plain(pusht.vae, torch.device("cpu")).encode(frames, fit, 5)
    fast = Engine(pusht.network, pusht.vae).encode(frames, fit, 5)
    assert fast.shape == plain.shape == (2, 48, 5, 7, 9)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)
    assert not fast[:, :, 1:].any()

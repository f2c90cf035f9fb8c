"""The loop itself: what it refuses before the first forward, what it reports, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wamserve.action_codec.errors import RequestError
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.sampler import Start, sample
from wamserve.policy_server.sampling.schedule import flow_schedule
from wamserve.policy_server.world_model.config import PRESETS
from wamserve.policy_server.world_model.network import WorldModel, init_random_
from wamserve.policy_server.world_model.tokens import plan_request

PLAN = plan_request("policy", chunk=4, domain=8, raw_action_dim=8, rate_hz=15, state_row=True)


@pytest.fixture(scope="module")
def network():
    return init_random_(WorldModel(PRESETS["tiny-nano"])).eval()


@pytest.fixture
def start():
    generator = torch.Generator().manual_seed(0)
    video, action = torch.zeros(1, 48, 2, 4, 4), torch.zeros(1, 5, 64)
    return Start(video, action, *(torch.randn(x.shape, generator=generator) for x in (video, action)))


@pytest.fixture
def prompts(network):
    with torch.no_grad():
        return [network.prefill(torch.arange(n)[None]) for n in (9, 4)]


def test_forwards_count_both_branches_and_progress_counts_steps(network, start, prompts):
    seen = []
    got = sample(
        network, [PLAN], start, flow_schedule(), Guidance(3.0), *prompts,
        progress=lambda done, steps: seen.append((done, steps)),
    )  # fmt: skip
    assert got.forwards == 8 and seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    inside = sample(network, [PLAN], start, flow_schedule(), Guidance(3.0, interval=(960, 1001)), *prompts)
    assert inside.forwards == 5
    plain = sample(network, [PLAN], start, flow_schedule(steps=50), Guidance(1.0), prompts[0])
    assert plain.forwards == 50
    assert not any(got.actions.requires_grad for got in (got, inside, plain))


def test_the_same_seed_gives_the_same_bits(network, start, prompts):
    one, two = (sample(network, [PLAN], start, flow_schedule(), Guidance(3.0), *prompts) for _ in range(2))
    assert torch.equal(one.actions, two.actions) and torch.equal(one.latents, two.latents)


def test_guidance_of_one_modality_reaches_the_other_only_through_the_network(network, start, prompts):
    """With one step there is no such way: the video's scale cannot touch the actions."""
    schedule = flow_schedule(steps=1)
    both = sample(network, [PLAN], start, schedule, Guidance(3.0), *prompts)
    video_only = sample(network, [PLAN], start, schedule, Guidance(1.0, video_scale=3.0), *prompts)
    none = sample(network, [PLAN], start, schedule, Guidance(1.0), prompts[0])
    assert torch.equal(both.latents, video_only.latents)
    torch.testing.assert_close(video_only.actions, none.actions, rtol=0, atol=1e-6)
    assert (both.actions - none.actions).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (dict(latents=torch.zeros(1, 48, 3, 4, 4)), "latents have the wrong shape"),
        (dict(actions=torch.zeros(1, 5, 8)), "actions have the wrong shape"),
        (dict(action_noise=torch.zeros(1, 4, 64)), "action_noise have the wrong shape"),
        (dict(actions=torch.zeros(1, 5, 64).double()), "not fp32 where the network is; seen: torch.float64"),
        (dict(video_noise=torch.full((1, 48, 2, 4, 4), float("nan"))), "video_noise hold NaN"),
        (dict(actions=torch.full((1, 5, 64), float("inf"))), "actions hold NaN or infinity"),
        (dict(actions=torch.ones(1, 5, 64)), "padded action channels must be zero"),
    ],
)
def test_bad_values_are_refused_before_the_first_forward(network, start, prompts, broken, words, monkeypatch):
    monkeypatch.setattr(network, "denoise", lambda *_: pytest.fail("a forward ran"))
    with pytest.raises(RequestError, match=words):
        sample(network, [PLAN], replace(start, **broken), flow_schedule(), Guidance(1.0), prompts[0])


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (replace(PLAN, domain=32), "unknown embodiment domain; seen: 32; expected: 0..31"),
        (replace(PLAN, raw_action_dim=65), "wider than the head; seen: 65"),
    ],
)
def test_plans_that_do_not_fit_the_network_are_refused(network, start, prompts, plan, words):
    with pytest.raises(RequestError, match=words):
        sample(network, [plan], start, flow_schedule(), Guidance(1.0), prompts[0])


def test_guidance_without_the_empty_prompt_is_refused(network, start, prompts):
    with pytest.raises(RequestError, match="guidance needs the empty prompt"):
        sample(network, [PLAN], start, flow_schedule(), Guidance(3.0), prompts[0])


def test_a_request_without_a_prompt_is_refused(network, start, prompts):
    two = prompts[0].rows([0, 0])
    with pytest.raises(RequestError, match="every request needs one prompt; seen: 2 prompts; expected: 1"):
        sample(network, [PLAN], start, flow_schedule(), Guidance(1.0), two)

"""A tiny network whose every token matters, its prompts, and calls by the plain path and by an engine."""

from __future__ import annotations

import pytest
import torch

from wamserve.policy_server.engine.engine import Engine
from wamserve.policy_server.engine.options import EngineOptions
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.sampler import sample
from wamserve.policy_server.sampling.schedule import flow_schedule
from wamserve.policy_server.sampling.start import Start
from wamserve.policy_server.world_model.config import PRESETS
from wamserve.policy_server.world_model.network import WorldModel, init_random_
from wamserve.policy_server.world_model.prompt_kv import PromptKV
from wamserve.policy_server.world_model.tokens import plan_request


class NoVAE:
    """For calls whose latents are given."""

    first_frame = torch.nn.Identity()
    channels = 48


def make_network(preset, dtype=torch.float32):
    network = init_random_(WorldModel(PRESETS[preset])).eval().requires_grad_(False)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                parameter.mul_(8.0)
    return network.cast(dtype)


def make_start(plans, height=5, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch, frames, rows = len(plans), len(plans[0].video_clean), len(plans[0].action_clean)
    video, action = (batch, 48, frames, height, width), (batch, rows, 64)
    latents, actions, video_noise, action_noise = (
        torch.randn(size, generator=generator) for size in (video, action, video, action)
    )
    for row, plan in enumerate(plans):
        actions[row, :, plan.raw_action_dim :] = 0
    return Start(latents, actions, video_noise, action_noise)


def make_plan(mode="policy", **changes):
    settings = dict(chunk=8, domain=8, raw_action_dim=8, rate_hz=15, state_row=True)
    return plan_request(mode, **{**settings, **changes})


@pytest.fixture(scope="session", params=["tiny-nano", "tiny-edge"])
def network(request):
    return make_network(request.param)


@pytest.fixture(scope="session")
def nano():
    return make_network("tiny-nano")


def read(network, *lengths):
    """One PromptKV of prompts of these lengths."""
    with torch.no_grad():
        return PromptKV.concat([network.prefill((torch.arange(n) + 7 * n)[None] % 500) for n in lengths])


@pytest.fixture(scope="session")
def compare():
    """compare(network, plans, lengths, guidance, ...) -> (plain Sample, engine's Sample, the engine)."""

    def run(
        network, plans=None, lengths=(90,), guidance=None, steps=4, want_video=True, empty=10, seed=0,
        engine=None, capture=None, **options,
    ):  # fmt: skip
        plans = plans or [make_plan()]
        arguments = (
            plans, make_start(plans, seed=seed), flow_schedule(steps=steps), guidance or Guidance(3.0),
            read(network, *lengths), read(network, empty),
        )  # fmt: skip
        plain = sample(network, *arguments, want_video=want_video)
        engine = engine or Engine(network, NoVAE(), EngineOptions(**options), capture)
        return plain, engine.sample(network, *arguments, want_video=want_video), engine

    return run

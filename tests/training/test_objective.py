"""The objective adds noise where inference will find noise, and asks for the velocity there only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wamserve.policy_server.world_model.config import preset
from wamserve.policy_server.world_model.network import Velocity, WorldModel, init_random_
from wamserve.policy_server.world_model.tokens import plan_request
from wamserve.training.objective import Objective, draw_modes, flow_losses, shifted

ROBOT = dict(chunk=8, domain=4, raw_action_dim=2, rate_hz=10.0, state_row=True)


@pytest.fixture(scope="module")
def network() -> WorldModel:
    return init_random_(WorldModel(preset("tiny-nano")))


def run(network, mode, denoise=None, frozen=0):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 48, 3, 4, 4, generator=generator)
    actions = torch.zeros(1, 9, 64)
    actions[..., :2] = torch.randn(1, 9, 2, generator=generator)
    noise = (torch.randn(latents.shape, generator=generator), torch.randn(actions.shape, generator=generator))
    prompt = network.prefill(torch.tensor([[1, 2, 3]]))
    plans = [plan_request(mode, frozen=frozen, **ROBOT)]
    seen = {}
    original = network.denoise

    def spy(x, a, t, layout, kv, want_video=True):
        seen.update(latents=x, actions=a, t=t)
        return denoise(x, a, t) if denoise else original(x, a, t, layout, kv, want_video)

    network.denoise = spy
    try:
        losses = flow_losses(
            network, Objective(), latents, actions, torch.tensor([0.25]), plans, prompt, noise
        )
    finally:
        del network.denoise
    return losses, seen, latents, actions, noise


def test_given_values_enter_clean_and_the_rest_is_a_quarter_noise(network):
    _, seen, latents, actions, noise = run(network, "policy", frozen=3)
    assert torch.equal(seen["latents"][:, :, 0], latents[:, :, 0])
    expected = 0.25 * noise[0][:, :, 1:] + 0.75 * latents[:, :, 1:]
    torch.testing.assert_close(seen["latents"][:, :, 1:], expected)
    assert torch.equal(seen["actions"][:, :4], actions[:, :4])  # the state row and three committed rows
    torch.testing.assert_close(seen["actions"][:, 4:, :2], (0.25 * noise[1] + 0.75 * actions)[:, 4:, :2])
    assert not seen["actions"][..., 2:].any()  # channels past the raw action
    assert seen["t"].item() == 250.0


@pytest.mark.parametrize("mode", ["policy", "fd", "id"])
def test_the_true_velocity_has_no_loss(network, mode):
    def truth(x, a, t):
        # noise - x0 wherever noise was added; x = x0 + sigma (noise - x0)
        return Velocity((x - run.latents) / 0.25, (a - run.actions) / 0.25)

    _, _, run.latents, run.actions, _ = run(network, mode)
    losses, *_ = run(network, mode, truth)
    assert float(losses.total) == pytest.approx(0.0, abs=1e-8)


def test_forward_dynamics_has_no_action_loss_and_inverse_dynamics_no_video_loss(network):
    assert float(run(network, "fd")[0].action) == 0.0
    assert float(run(network, "id")[0].video) == 0.0


def test_modes_follow_their_weights():
    drawn = draw_modes({"policy": 3.0, "fd": 1.0, "id": 0.0}, np.random.default_rng(0), 4000)
    assert "id" not in drawn
    assert 0.72 < drawn.count("policy") / 4000 < 0.78


def test_shift_five_moves_the_middle_level_to_five_sixths():
    assert shifted(np.array([0.5]), 5.0)[0] == pytest.approx(5 / 6)
    assert shifted(np.array([0.3]), 1.0)[0] == pytest.approx(0.3)

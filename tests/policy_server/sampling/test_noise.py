"""A seed gives the numbers of the implementation named, whatever else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wamserve.action_codec.errors import RequestError
from wamserve.policy_server.sampling.noise import draw_noise
from wamserve.policy_server.world_model.tokens import LatentShape

SHAPE = LatentShape(frames=3, height=4, width=5, actions=9)


def test_framework_noise_restarts_the_stream_for_the_actions():
    video, action = draw_noise("framework", [7], SHAPE)
    stream = np.random.RandomState(7).standard_normal(video.numel()).astype(np.float32)
    assert torch.equal(video.flatten(), torch.from_numpy(stream))
    assert torch.equal(action.flatten(), video.flatten()[: action.numel()])


def test_diffusers_noise_draws_video_then_actions_from_one_stream():
    video, action = draw_noise("diffusers", [7], SHAPE)
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(video, torch.randn(1, 48, 3, 4, 5, generator=generator))
    assert torch.equal(action[0], torch.randn(9, 64, generator=generator))


def test_framework_noise_is_the_recorded_one(shared):
    want = np.load(shared / "golden" / "model" / "nano_policy_state.npz")
    shape = LatentShape(frames=3, height=13, width=16, actions=9)
    video, action = draw_noise("framework", [int(want["seed"])], shape)
    assert torch.equal(video[:, :, 1:], torch.from_numpy(want["step0/vision_in"])[:, :, 1:])
    assert torch.equal(action[0, 1:, :8], torch.from_numpy(want["step0/action_in"])[1:, :8])


@pytest.mark.parametrize("kind", ["framework", "diffusers", "torch"])
def test_a_row_depends_on_its_own_seed_alone(kind):
    together = draw_noise(kind, [3, 4], SHAPE)
    alone = draw_noise(kind, [4], SHAPE)
    assert all(torch.equal(a[1:], b) for a, b in zip(together, alone, strict=True))
    assert not torch.equal(together[0][0], together[0][1])
    assert together[0].dtype == torch.float32 and together[0].std() == pytest.approx(1, abs=0.05)


def test_unknown_noise_and_impossible_seeds_are_refused():
    with pytest.raises(RequestError, match="framework, diffusers, torch"):
        draw_noise("philox", [0], SHAPE)
    with pytest.raises(RequestError, match="seed out of range"):
        draw_noise("framework", [2**32], SHAPE)
    with pytest.raises(RequestError, match="seed out of range"):
        draw_noise("diffusers", [], SHAPE)

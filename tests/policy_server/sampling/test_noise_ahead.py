"""Noise drawn ahead is the noise of its seed, and a policy that draws ahead answers as one that does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from wamserve.policy_server.blank import blank_request
from wamserve.policy_server.load import random_policy
from wamserve.policy_server.sampling.noise import draw_noise
from wamserve.policy_server.sampling.noise_ahead import NoiseAhead
from wamserve.policy_server.world_model.tokens import LatentShape

SHAPE, OTHER = LatentShape(3, 4, 5, 9), LatentShape(3, 4, 6, 9)


def equal(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ["framework", "diffusers", "torch"])
def test_rows_drawn_ahead_equal_rows_drawn_on_time_in_any_mixture(kind):
    ahead = NoiseAhead()
    ahead(kind, [1], SHAPE, 48, 64)
    for seed in (7, 8, 9):
        ahead.draw(seed)
    for seeds in ([7], [3, 8, 4], [9, 9], [9]):
        assert equal(ahead(kind, seeds, SHAPE, 48, 64), draw_noise(kind, seeds, SHAPE, 48, 64))
    assert (ahead.hits, ahead.misses) == (3, 4)


def test_noise_of_another_shape_is_not_mistaken_for_it():
    ahead = NoiseAhead()
    ahead("framework", [1], SHAPE, 48, 64)
    ahead.draw(7)
    assert equal(ahead("framework", [7], OTHER, 48, 64), draw_noise("framework", [7], OTHER, 48, 64))
    assert ahead.hits == 0


def test_what_nobody_asks_for_is_dropped_oldest_first():
    ahead = NoiseAhead(keep=2)
    ahead("framework", [1], SHAPE, 48, 64)
    for seed in (5, 6, 7):
        ahead.draw(seed)
    for seed in (5, 6, 7):
        ahead("framework", [seed], SHAPE, 48, 64)
    assert ahead.hits == 2


def test_nothing_is_drawn_before_a_shape_is_known():
    ahead = NoiseAhead()
    ahead.draw(5)
    ahead("framework", [5], SHAPE, 48, 64)
    assert ahead.hits == 0


def test_a_policy_that_draws_ahead_gives_the_same_answer_to_the_same_seed():
    answers = {}
    for draw_ahead in (True, False):
        policy = random_policy("tiny-nano", "pusht", engine={"draw_ahead": draw_ahead})
        request = blank_request(policy.contract, seed=1)
        policy.infer(request)
        policy.draw_ahead(2)
        answers[draw_ahead] = policy.infer(replace(request, seed=2)).chunk.actions
        assert policy.noise.hits == draw_ahead
    np.testing.assert_array_equal(answers[True], answers[False])

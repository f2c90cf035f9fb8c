"""Guidance acts where it is asked to, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from wamserve.action_codec.errors import RequestError
from wamserve.policy_server.sampling.guidance import Guidance, combine
from wamserve.policy_server.sampling.schedule import flow_schedule


def test_guided_velocity_is_three_conditional_less_two_unconditional():
    cond, uncond = torch.tensor([2.0, 1.0]), torch.tensor([1.0, -1.0])
    assert combine(cond, uncond, 3.0).tolist() == [4.0, 5.0]
    assert combine(cond, uncond, 1.0) is cond
    assert combine(cond.bfloat16(), uncond.bfloat16(), 3.0).dtype == torch.float32


def test_interval_bounds_are_strict():
    guidance = Guidance(3.0, interval=(833, 999))
    assert [guidance.active(t) for t in flow_schedule().timesteps] == [False, True, False, False]


def test_the_edge_interval_guides_the_first_step_only():
    guidance = Guidance(3.0, interval=(960, 1001))
    assert [guidance.active(t) for t in flow_schedule().timesteps] == [True, False, False, False]


def test_scale_one_needs_no_unconditional_branch():
    assert not Guidance(1.0).active(999)
    assert Guidance(1.0, video_scale=2.0).active(999)
    assert Guidance(3.0, video_scale=2.0).scales == (2.0, 3.0)


def test_an_empty_interval_is_refused():
    with pytest.raises(RequestError, match="empty guidance interval"):
        Guidance(3.0, interval=(1001, 960))


def test_a_scale_that_is_no_number_is_refused():
    with pytest.raises(RequestError, match="guidance is not finite"):
        Guidance(float("nan"))

"""Every named schedule is that of the implementation it is named after."""

from __future__ import annotations

import numpy as np
import pytest

from wamserve.action_codec.errors import RequestError
from wamserve.policy_server.sampling.schedule import DEFAULTS, flow_schedule


def reference(variant, steps, shift):
    diffusers = pytest.importorskip("diffusers")
    common = dict(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    if variant == "karras":
        common |= dict(use_karras_sigmas=True, sigma_min=0.147, sigma_max=200.0)
    scheduler = diffusers.UniPCMultistepScheduler(**common)
    if variant == "framework":
        scheduler.set_timesteps(steps, sigmas=np.linspace(0.999, 0.0, steps + 1)[:-1])
    else:
        scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("variant", ["framework", "diffusers", "karras"])
@pytest.mark.parametrize(("steps", "shift"), [(1, 5.0), (4, 5.0), (4, 3.0), (10, 10.0), (35, 1.0), (50, 5.0)])
def test_schedules_equal_the_diffusers_scheduler(variant, steps, shift):
    ours, theirs = flow_schedule(variant, steps, shift), reference(variant, steps, shift)
    assert list(ours.timesteps) == theirs.timesteps.tolist()
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("variant", "shift", "timesteps", "sigmas"),
    [
        ("diffusers", 5, (999, 937, 833, 625), (0.999998987, 0.937578082, 0.833610952, 0.625936091, 0)),
        ("framework", 5, (999, 937, 833, 624), (0.999799848, 0.937265456, 0.833055377, 0.624687314, 0)),
        ("framework", 3, (999, 899, 749, 499), (0.999666452, 0.899639785, 0.749624789, 0.499666542, 0)),
        ("karras", 5, (995, 973, 798, 128), (0.995024860, 0.973633111, 0.798596919, 0.128160417, 0)),
    ],
)
def test_four_step_schedules_have_the_recorded_levels(variant, shift, timesteps, sigmas):
    schedule = flow_schedule(variant, 4, shift)
    assert schedule.timesteps == timesteps
    np.testing.assert_allclose(schedule.sigmas, sigmas, rtol=0, atol=1e-7)


def test_defaults_are_those_of_the_paper():
    assert vars(DEFAULTS["policy"]) == dict(steps=4, guidance=3.0, shift=5.0)
    assert vars(DEFAULTS["fd"]) == vars(DEFAULTS["id"]) == dict(steps=50, guidance=1.0, shift=5.0)


def test_a_schedule_that_does_not_exist_is_refused():
    with pytest.raises(RequestError, match="framework, diffusers, karras"):
        flow_schedule("euler")
    with pytest.raises(RequestError, match="0 steps"):
        flow_schedule("framework", 0)
    with pytest.raises(RequestError, match="shift -1"):
        flow_schedule("framework", 4, -1)

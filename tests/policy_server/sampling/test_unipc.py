"""The solver's coefficient rows do what the step-by-step solver does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wamserve.policy_server.sampling.schedule import flow_schedule
from wamserve.policy_server.sampling.unipc import unipc_rows

VARIANTS = pytest.mark.parametrize("variant", ["framework", "diffusers", "karras"])


@VARIANTS
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 30, 50])
def test_rows_equal_the_diffusers_solver_on_random_velocities(variant, steps):
    diffusers = pytest.importorskip("diffusers")
    schedule = flow_schedule(variant, steps)
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(steps, sigmas=np.linspace(0.9, 0.1, steps))
    scheduler.sigmas = torch.tensor(schedule.sigmas, dtype=torch.float64)
    generator = torch.Generator().manual_seed(steps)
    noise, *velocities = torch.randn(steps + 1, 2, 9, generator=generator, dtype=torch.float64)
    rows = torch.from_numpy(unipc_rows(schedule.sigmas))
    x = noise
    for k, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(velocities[k], timestep, x, return_dict=False)[0]
        ours = noise + torch.einsum("j,jbm->bm", rows[k, : k + 1], torch.stack(velocities[: k + 1]))
        torch.testing.assert_close(ours, x, rtol=0, atol=1e-7)  # diffusers rounds its 0.5 and h to fp32


def test_rows_of_the_four_step_schedules_are_the_recorded_ones():
    framework = unipc_rows(flow_schedule("framework").sigmas)
    np.testing.assert_allclose(
        framework,
        [
            [-0.0625343899, 0, 0, 0],
            [-0.0266509212, -0.1400935354, 0, 0],
            [-0.0274609712, 0.0041768520, -0.3518284330, 0],
            [-0.0274609712, 0.0041768520, -0.3518284330, -0.6246873140],
        ],
        atol=1e-7,  # the recorded rows come from sigmas before rounding to fp32
    )
    assert unipc_rows(flow_schedule("diffusers").sigmas)[0, 0] == pytest.approx(-0.0624209047, abs=1e-7)


@VARIANTS
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_a_constant_velocity_is_followed_exactly(variant, steps):
    """dx/dsigma = v has the solution x_0 - sigma_0 v at sigma 0, and x_0 + (sigma_k - sigma_0) v before."""
    sigmas = np.array(flow_schedule(variant, steps).sigmas)
    np.testing.assert_allclose(unipc_rows(sigmas).sum(1), sigmas[1:] - sigmas[0], atol=1e-12)


def test_more_steps_come_closer_to_the_true_path():
    """On dx/dsigma = -x the error falls with the square of the step count, as an order-2 solver's must."""
    errors = []
    for steps in (8, 16, 32):
        sigmas = np.linspace(0.9, 0.1, steps + 1)
        rows = unipc_rows(np.append(sigmas, 0.0))[:steps]
        x, velocities = 1.0, []
        for k in range(steps):
            velocities.append(-x)
            x = 1.0 + rows[k, : k + 1] @ np.array(velocities)
        errors.append(abs(x - np.exp(0.8)))
    assert errors[0] / errors[1] > 3.5 and errors[1] / errors[2] > 3.5

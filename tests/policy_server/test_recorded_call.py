"""A recorded call says by its arrays alone which plan it was made with."""

import numpy as np
import pytest

from wamserve.action_codec.errors import CheckpointError
from wamserve.policy_server.recorded_call import read_call
from wamserve.policy_server.world_model.config import preset
from wamserve.policy_server.world_model.rope import action_positions
from wamserve.policy_server.world_model.tokens import plan_request

CONFIG = preset("tiny-nano")


def record(file, plan, frames, without=(), **more):
    """Arrays of a call by `plan`, in the manner of the reference data."""
    rows, text = len(plan.action_clean), 20
    offset = text + CONFIG.unified_3d_mrope_temporal_modality_margin
    values = {
        "cond/input_ids": np.arange(text),
        "cond/position_ids": action_positions(CONFIG, rows, plan.action_start, plan.rate_hz, offset).numpy(),
        "cond/vision_noisy_frame_indexes": np.flatnonzero(~np.array(plan.video_clean)),
        "cond/action_noisy_frame_indexes": np.flatnonzero(~np.array(plan.action_clean)),
        "cond/action_domain_id": np.array([plan.domain]),
        "step0/vision_in": np.zeros((1, 48, frames, 6, 6), np.float32),
        "step0/action_in": np.zeros((rows, 64), np.float32),
        "timesteps": np.array([999]),
        "sigmas": np.array([0.9998, 0.0], np.float32),
        "fps": np.float64(plan.rate_hz),
        "final_latents": np.zeros((1, 48, frames, 6, 6), np.float32),
        "final_action": np.zeros((plan.chunk, plan.raw_action_dim), np.float32),
        "raw_actions": np.zeros((rows + 3, plan.raw_action_dim), np.float32),
    } | more
    np.savez(file, **{name: value for name, value in values.items() if name not in without})
    return file


@pytest.mark.parametrize("rate_hz", [3, 5, 10, 15, 20])
@pytest.mark.parametrize(
    ("mode", "chunk", "lead"),
    [
        ("policy", 8, 0),
        ("policy", 8, 1),
        ("policy", 12, 3),
        ("policy", 4, 4),  # as many rows as a chunk of 8 without history
        ("policy", 6, 0),  # not a whole number of latent frames
        ("fd", 8, 0),
        ("id", 32, 0),
    ],
)
def test_mode_chunk_and_lead_rows_are_read_from_positions_and_masks(mode, chunk, lead, rate_hz, tmp_path):
    plan = plan_request(mode, chunk=chunk, domain=7, raw_action_dim=9, rate_hz=rate_hz, history=lead)
    without = ("final_action",) if mode == "fd" else ("raw_actions",)
    call = read_call(record(tmp_path / "call.npz", plan, len(plan.video_clean), without), CONFIG)
    assert call.plan == plan
    assert (call.final_latents is None) == (mode == "id") and (call.final_actions is None) == (mode == "fd")


def test_a_server_record_without_masks_is_a_policy_call_of_droid(tmp_path):
    plan = plan_request("policy", chunk=8, domain=8, raw_action_dim=8, rate_hz=15, state_row=True)
    without = [f"cond/{name}" for name in ("position_ids", "action_domain_id")]
    without += [f"cond/{name}_noisy_frame_indexes" for name in ("vision", "action")]
    model_space = np.arange(9 * 64, dtype=np.float32).reshape(9, 64)
    more = {
        "final_action_model": model_space,
        "guidance": np.float64(3),
        "guidance_interval": [960.0, 1001.0],
    }
    call = read_call(record(tmp_path / "call.npz", plan, 3, without, **more), CONFIG)
    assert call.plan == plan and call.guidance.active(999) and not call.guidance.active(937)
    np.testing.assert_array_equal(call.final_actions, model_space[:, :8])


@pytest.mark.parametrize("absent", ["timesteps", "fps", "cond/input_ids", "final_latents", "final_action"])
def test_a_missing_array_is_named(absent, tmp_path):
    plan = plan_request("policy", chunk=8, domain=8, raw_action_dim=8, rate_hz=15)
    with pytest.raises(CheckpointError, match=f"is no recorded call; seen: no array '{absent}'"):
        read_call(record(tmp_path / "call.npz", plan, 3, ("raw_actions", absent)), CONFIG)

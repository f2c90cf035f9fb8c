"""From a simulator to a served policy, with the commands a user types, at toy size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import wam


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_recorded_prepared_and_trained_model_answers_a_policy_request(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("wamserve.training.prepared.HOLD_OUT", 2)
    data, vae, start, ready = (str(tmp_path / name) for name in ("data", "vae", "start", "ready"))
    named = f"pusht={data}"
    (tmp_path / "vae.toml").write_text("base_dim = 8\nsteps = 20\nbatch = 2\nclip_frames = [1, 5]\n")
    (tmp_path / "train.toml").write_text(
        'start = "start"\nout = "run"\nsteps = 3\nbatch = 2\nprecision = "fp32"\n'
        'validation_batches = 1\n[trainable]\ntext_tower = true\n[[data]]\nprepared = "ready"\n'
    )
    for command in (
        ["record", "pusht/PushT", "--out", data, "--episodes", "3"],
        ["train", "vae", named, "--out", vae, "--recipe", str(tmp_path / "vae.toml")],
        ["train", "start", named, "--out", start, "--vae", vae, "--hidden", "64", "--layers", "2"],
        ["prepare", named, "--out", ready, "--vae", vae, "--hop", "80"],
        ["train", str(tmp_path / "train.toml")],
    ):
        assert wam.main(command) == 0, command

    from wamserve.clients.policy import Observation, Request
    from wamserve.policy_server.load import load_policy

    policy = load_policy(str(tmp_path / "run" / "checkpoint"), embodiment="pusht")
    picture = np.full((128, 128, 3), 255, np.uint8)
    seen = Observation({"top": picture}, {"agent_pos": np.array([256.0, 300.0], np.float32)}, "push the T")
    chunk = policy.infer(Request(seen, seed=0)).chunk
    assert chunk is not None
    assert chunk.actions.shape == (16, 2)
    assert np.isfinite(chunk.actions).all()

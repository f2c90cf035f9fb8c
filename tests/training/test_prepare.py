"""Prepared windows: the same for any number of workers, of one render profile."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from wamserve.action_codec.errors import WamError
from wamserve.embodiments.contract import load
from wamserve.policy_server.world_model.checkpoint import open_checkpoint
from wamserve.training.prepare import prepare
from wamserve.training.prepared import open_prepared


def test_workers_write_the_very_bytes_of_one_process(start, prepared, episodes, tmp_path):
    prepare(episodes(), load("pusht"), start / "vae", tmp_path, hop=5, workers=1, log=lambda line: None)
    assert (tmp_path / "latents.f16").read_bytes() == (prepared / "latents.f16").read_bytes()
    ours, theirs = (np.load(folder / "windows.npz") for folder in (tmp_path, prepared))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_pictures_of_two_render_profiles_are_not_mixed(start, episodes, tmp_path):
    mixed = (
        replace(episode, render_profile=profile)
        for episode, profile in zip(episodes(2), ("fast", "full"), strict=True)
    )
    with pytest.raises(WamError, match="several render profiles"):
        prepare(mixed, load("pusht"), start / "vae", tmp_path, hop=50, log=lambda line: None)


def test_windows_that_reach_too_far_are_never_drawn(start, prepared):
    checkpoint, contract = open_checkpoint(start), load("pusht")
    reaches = np.abs(np.load(prepared / "windows.npz")["actions"]).max(axis=(1, 2))
    limit = float(np.median(reaches))
    drawn = open_prepared(prepared, contract, checkpoint, limit).draw(
        np.random.default_rng(0), [False] * 200, held_out=False
    )
    assert np.abs(drawn.actions).max() <= limit < reaches.max()


def test_latents_that_were_cut_short_are_refused(start, prepared, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(prepared, cut)
    with (cut / "latents.f16").open("r+b") as file:
        file.truncate(1000)
    contract = load(json.loads((cut / "meta.json").read_text())["contract"])
    with pytest.raises(WamError, match="not whole; seen: 1000 bytes"):
        open_prepared(cut, contract, open_checkpoint(start))

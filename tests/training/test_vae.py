"""The VAE's training draws: small objects weigh, squares stay inside, a second stage goes on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from wamserve.action_codec.errors import WamError
from wamserve.training.vae import Clips, VaeRecipe, open_vae, train_vae

TINY = VaeRecipe(base_dim=8, steps=2, batch=2, clip_frames=(1,), crop=32)


@pytest.fixture
def clips() -> Clips:
    """White pictures with one red square of 8 pixels that moves."""
    frames = np.full((12, 64, 96, 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        frame[20:28, 4 * i : 4 * i + 8] = (200, 0, 0)
    return Clips(frames, np.array([0, 6]), np.array([6, 6]))


def test_rare_colour_weighs_by_the_root_of_its_rarity_up_to_a_bound(clips):
    red, white = 64 / (64 * 96), 1 - 64 / (64 * 96)
    weights = clips.weight(np.array([[255, 255, 255], [200, 0, 0], [0, 0, 255]], np.uint8), 20.0)
    np.testing.assert_allclose(weights, [1.0, np.sqrt(white / red), 20.0], rtol=1e-5)


def test_squares_are_laid_over_the_rare_object(clips):
    rng, recipe = np.random.default_rng(0), VaeRecipe(crop=32, full=0.0, rare=1.0)
    pixels, weights = clips.draw_batch(rng, 40, 5, recipe)
    assert pixels.shape == (40, 3, 5, 32, 32) and weights.shape == (40, 1, 5, 32, 32)
    assert ((pixels[:, 1] < 0).any(dim=(1, 2, 3))).float().mean() > 0.9


def test_short_episode_holds_its_last_frame(clips):
    drawn = clips.draw(np.random.default_rng(0), 9)
    assert (drawn[5:] == drawn[5]).all() and not (drawn[4] == drawn[5]).all()


def test_second_stage_goes_on_from_the_first(clips, tmp_path):
    torch.set_num_threads(1)
    train_vae(TINY, [clips], tmp_path / "a", lambda line: None)
    still = VaeRecipe(base_dim=8, steps=1, batch=2, clip_frames=(5,), crop=32, learning_rate=0.0,
                      start=str(tmp_path / "a"))  # fmt: skip
    again = train_vae(still, [clips], tmp_path / "b", lambda line: None)
    from diffusers import AutoencoderKLWan

    first = AutoencoderKLWan.from_pretrained(tmp_path / "a").float()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_decoder_alone_leaves_the_encoder_and_the_scale_of_its_latents_as_they_were(clips, tmp_path):
    torch.set_num_threads(1)
    first = train_vae(TINY, [clips], tmp_path / "a", lambda line: None)
    alone = replace(TINY, start=str(tmp_path / "a"), decoder_only=True, learning_rate=1e-2)
    second = train_vae(alone, [clips], tmp_path / "b", lambda line: None)
    moved = {
        name.partition(".")[0]
        for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert moved == {"decoder", "post_quant_conv"}
    assert second.config["latents_mean"] == first.config["latents_mean"]
    assert second.config["latents_std"] == first.config["latents_std"]
    with pytest.raises(WamError, match="keeps an encoder"):
        replace(alone, start="")


def test_folder_of_another_recipe_is_refused(clips, tmp_path):
    train_vae(TINY, [clips], tmp_path, lambda line: None)
    with pytest.raises(WamError, match="made by another recipe"):
        train_vae(replace(TINY, steps=3), [clips], tmp_path, lambda line: None)


def test_folder_without_a_vae_is_refused_and_not_looked_for_elsewhere(tmp_path):
    with pytest.raises(WamError, match="no VAE in"):
        open_vae(tmp_path / "nowhere")


@pytest.mark.parametrize("wrong", [{"crop": 50}, {"crop": 16}, {"clip_frames": (1, 4)}, {"clip_frames": ()}])
def test_recipe_that_cuts_latents_in_two_is_refused(wrong):
    with pytest.raises(WamError, match="whole latents"):
        VaeRecipe(**wrong)

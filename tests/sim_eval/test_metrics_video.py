"""PSNR, SSIM, moving regions and sensitivity against hand numbers, scikit-image and stored values."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from wamserve.action_codec.errors import CodecError
from wamserve.sim_eval.metrics import video
from wamserve.sim_eval.metrics.consistency import ImaginedChunk, consistency_score, executed_rows, pool
from wamserve.sim_eval.metrics.video import Rectangle


def grey(*levels, size=16):
    return np.stack([np.full((size, size, 3), level, np.uint8) for level in levels])


def noisy_pair(seed=0, frames=5, size=24):
    rng = np.random.default_rng(seed)
    recorded = rng.integers(0, 256, (frames, size, size, 3), dtype=np.uint8)
    noise = rng.normal(0, 12, recorded.shape) * np.arange(frames)[:, None, None, None]
    return np.clip(recorded + noise, 0, 255).round().astype(np.uint8), recorded


def test_psnr_of_a_constant_gap_is_the_hand_number():
    # gaps 0 (conditioning), 10, 20 levels: MSE 100 and 400
    predicted, recorded = grey(50, 60, 70), grey(50, 50, 50)
    assert video.psnr_global(predicted, recorded) == pytest.approx(10 * math.log10(255**2 / 250), abs=1e-12)
    assert video.psnr_per_frame(predicted, recorded) == pytest.approx(
        [10 * math.log10(255**2 / 100), 10 * math.log10(255**2 / 400)], abs=1e-12
    )


def test_conditioning_frame_is_left_out_unless_asked_for():
    predicted, recorded = grey(50, 60), grey(50, 50)
    assert video.psnr_global(predicted, recorded) == pytest.approx(10 * math.log10(255**2 / 100))
    assert video.psnr_global(predicted, recorded, conditioning=0) == pytest.approx(
        10 * math.log10(255**2 / 50)
    )


def test_psnr_and_ssim_equal_scikit_image():
    predicted, recorded = noisy_pair()
    ours = video.psnr_per_frame(predicted, recorded)
    theirs = [peak_signal_noise_ratio(recorded[t], predicted[t], data_range=255) for t in range(1, 5)]
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert video.psnr_global(predicted, recorded) == pytest.approx(
        peak_signal_noise_ratio(recorded[1:], predicted[1:], data_range=255), abs=1e-9
    )
    expected = [
        structural_similarity(
            recorded[t], predicted[t], channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for t in range(1, 5)
    ]  # fmt: skip
    assert video.ssim_per_frame(predicted, recorded) == pytest.approx(expected, abs=1e-9)


def test_ssim_equals_the_published_formula_on_constant_frames():
    # no variance: SSIM is the luminance term (2ab + C1) / (a^2 + b^2 + C1), C1 = (0.01 * 255)^2
    c1 = (0.01 * 255) ** 2
    hand = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    assert video.ssim_per_frame(grey(0, 150), grey(0, 100)) == pytest.approx([hand], abs=1e-9)


def test_psnr_equals_the_stored_reference_values(shared):
    stored = np.load(shared / "golden/actions/metrics.npz")
    recorded = np.ascontiguousarray(stored["video_gt_u8"].transpose(1, 2, 3, 0))
    predicted = np.ascontiguousarray(stored["video_pred_u8"].transpose(1, 2, 3, 0))
    # the reference pools in float32; the other values are float64
    assert video.psnr_global(predicted, recorded, conditioning=0) == pytest.approx(
        25.02546347960404, abs=1e-6
    )
    assert video.psnr_global(predicted, recorded) == pytest.approx(24.056363414357108, abs=1e-9)
    assert video.psnr_frame_mean(predicted, recorded) == pytest.approx(30.94977423999155, abs=1e-9)
    assert video.psnr_per_frame(predicted, recorded, conditioning=0) == pytest.approx(
        [math.inf, 41.93834810257469, 34.71584010610699, 28.58511248094722, 18.5597962703373], abs=1e-9
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_frame_mean_is_never_below_the_pooled_value(seed, frames):
    predicted, recorded = noisy_pair(seed, frames, size=12)
    assert video.psnr_frame_mean(predicted, recorded) >= video.psnr_global(predicted, recorded) - 1e-9


def test_horizon_pools_errors_of_the_clips_that_reach_it():
    long = (grey(50, 60, 70), grey(50, 50, 50))
    short = (grey(50, 50), grey(50, 50))  # exact: alone it would be infinite
    assert video.psnr_by_horizon([long, short]) == pytest.approx(
        [10 * math.log10(255**2 / 50), 10 * math.log10(255**2 / 400)]
    )


def test_views_are_scored_apart_and_padding_belongs_to_none():
    predicted, recorded = grey(0, 0), grey(0, 0)
    predicted[1, :, 8:] += 10  # the right view is wrong
    recorded[1, 12:, :8] = 255  # padding below the left view
    views = {"left": Rectangle(0, 0, 12, 8), "right": Rectangle(0, 8, 16, 8)}
    scores = video.psnr_per_view(predicted, recorded, views)
    assert scores == {"left": math.inf, "right": pytest.approx(10 * math.log10(255**2 / 100))}
    with pytest.raises(CodecError, match="outside the canvas"):
        video.psnr_per_view(predicted, recorded, {"left": Rectangle(0, 0, 17, 8)})


def test_moving_score_sees_a_frozen_prediction_that_plain_psnr_likes():
    recorded = grey(0, 0)
    recorded[1, :4, :4] = 100  # a sixteenth of the frame moves
    frozen = grey(0, 0)
    moving = video.psnr_moving(frozen, recorded)
    assert moving.moving_fraction == pytest.approx(1 / 16)
    assert moving.psnr_db == pytest.approx(10 * math.log10(255**2 / 100**2))
    assert video.psnr_global(frozen, recorded) == pytest.approx(moving.psnr_db + 10 * math.log10(16))


def test_moving_mask_comes_from_the_recording_alone():
    recorded = grey(0, 0)
    wild = grey(0, 200)
    assert video.psnr_moving(wild, recorded) == video.MovingScore(None, 0.0)


def test_a_copy_of_frame_zero_has_no_action_sensitivity():
    recorded = grey(0, 5, 9)
    copy = grey(0, 0, 0)
    assert video.action_sensitivity(copy, copy, recorded) == 0.0
    assert video.action_sensitivity(recorded, recorded, recorded) == 0.0
    better, worse = grey(0, 6, 10), grey(0, 15, 19)
    assert video.action_sensitivity(better, worse, recorded) == pytest.approx(20.0)


def test_unlike_clips_are_refused_not_resized():
    with pytest.raises(CodecError, match="differ in shape"):
        video.psnr_global(grey(0, 0), grey(0, 0, 0))
    with pytest.raises(CodecError, match="uint8 RGB"):
        video.psnr_global(grey(0, 0) / 255.0, grey(0, 0))
    with pytest.raises(CodecError, match="no predicted frame"):
        video.psnr_global(grey(0), grey(0))


def test_consistency_compares_imagined_and_executed_at_the_same_step():
    imagined = grey(0, 10, 20, 255)
    chunk = ImaginedChunk(imagined, grey(0, 0), steps=(1, 2))  # the last frame was never executed
    score = consistency_score([chunk], {"all": Rectangle(0, 0, 16, 16)})
    assert score.frames == 2 and score.frames_by_step == {1: 1, 2: 1}
    assert score.psnr_db == pytest.approx(10 * math.log10(255**2 / 250))
    assert score.psnr_db_by_view == {"all": pytest.approx(score.psnr_db)}
    assert score.psnr_db_by_step == {
        1: pytest.approx(10 * math.log10(255**2 / 100)),
        2: pytest.approx(10 * math.log10(255**2 / 400)),
    }
    shifted = consistency_score([ImaginedChunk(imagined, grey(10, 20), steps=(1, 2))])
    assert shifted.psnr_db == math.inf
    with pytest.raises(CodecError, match="outside the imagined chunk"):
        consistency_score([ImaginedChunk(imagined, grey(0), steps=(0,))])


def test_pooled_consistency_is_that_of_all_frames_together():
    one = ImaginedChunk(grey(0, 10, 20), grey(0, 0), steps=(1, 2))
    two = ImaginedChunk(grey(0, 30, 40), grey(0), steps=(1,))
    views = {"left": Rectangle(0, 0, 16, 8), "right": Rectangle(0, 8, 16, 8)}
    together = consistency_score([one, two], views)
    apart = pool([consistency_score([one], views), consistency_score([two], views)])
    assert apart.psnr_db == pytest.approx(together.psnr_db, abs=1e-9)
    assert apart.psnr_db_by_view == pytest.approx(together.psnr_db_by_view, abs=1e-9)
    assert apart.psnr_db_by_step == pytest.approx(together.psnr_db_by_step, abs=1e-9)
    assert (apart.frames, apart.frames_by_step) == (3, {1: 2, 2: 1})


def test_consistency_without_an_executed_frame_is_an_error():
    with pytest.raises(CodecError, match="no chunk"):
        consistency_score([ImaginedChunk(grey(0, 1), np.zeros((0, 16, 16, 3), np.uint8), steps=())])


def test_imagination_counts_only_while_its_own_rows_are_executed():
    predicted = np.arange(8.0).reshape(4, 2)
    assert executed_rows(predicted, predicted[:3]) == 3
    late = predicted.copy()
    late[0] += 1  # the chunk before was still running
    assert executed_rows(predicted, late) == 0
    assert executed_rows(predicted, np.concatenate([predicted[:2], late[:2]])) == 2

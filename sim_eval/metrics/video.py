"""How close a predicted video is to the recorded one: PSNR, SSIM, moving regions, action sensitivity.

Videos are uint8 [T, h, w, 3] RGB. Frame 0 is the conditioning frame: the model was given it, so it tells
nothing about prediction and raises every average. All functions leave it out unless `conditioning=0`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wamserve.action_codec.errors import CodecError

PEAK = 255.0  # uint8 range; PSNR is 10 log10(PEAK**2 / MSE)
CONDITIONING_FRAMES = 1
MOVED_LEVELS = 16  # a pixel moved when one channel left the conditioning frame by more than this many of 255


@dataclass(frozen=True)
class Rectangle:
    """Where one view lies on the canvas, pixels; rows grow downwards."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, video: np.ndarray) -> np.ndarray:
        """uint8 [T, h, w, 3] -> uint8 [T, height, width, 3]. Raises CodecError where it leaves the canvas."""
        h, w = video.shape[1:3]
        if self.top < 0 or self.left < 0 or self.top + self.height > h or self.left + self.width > w:
            raise CodecError("a view reaches outside the canvas", seen=self, expected=f"inside {h}x{w}")
        return video[:, self.top : self.top + self.height, self.left : self.left + self.width]


def decibel(mse: float | np.ndarray) -> np.ndarray:
    """PSNR [dB] of a mean squared error in squared uint8 levels; identical frames are +inf."""
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(PEAK**2 / np.asarray(mse, dtype=np.float64))


def squared_error_from_decibel(psnr_db: float) -> float:
    """The inverse of `decibel`: mean squared error in squared uint8 levels."""
    return float(PEAK**2 / 10 ** (psnr_db / 10))


def psnr_global(
    predicted: np.ndarray, recorded: np.ndarray, conditioning: int = CONDITIONING_FRAMES
) -> float:
    """PSNR [dB] of one squared error pooled over time, pixels and channels (the published FD number)."""
    return float(decibel(squared_error_per_frame(predicted, recorded)[_tail(recorded, conditioning)].mean()))


def psnr_per_frame(
    predicted: np.ndarray, recorded: np.ndarray, conditioning: int = CONDITIONING_FRAMES
) -> np.ndarray:
    """PSNR [dB] of every predicted frame, float64 [T - conditioning]; row 0 is horizon 1."""
    return decibel(squared_error_per_frame(predicted, recorded)[_tail(recorded, conditioning)])


def psnr_frame_mean(
    predicted: np.ndarray, recorded: np.ndarray, conditioning: int = CONDITIONING_FRAMES
) -> float:
    """Mean over frames of the per-frame PSNR [dB]; at least `psnr_global`, +inf if one frame is exact."""
    return float(psnr_per_frame(predicted, recorded, conditioning).mean())


def psnr_per_view(
    predicted: np.ndarray,
    recorded: np.ndarray,
    views: Mapping[str, Rectangle],
    conditioning: int = CONDITIONING_FRAMES,
) -> dict[str, float]:
    """Global PSNR [dB] inside each view's rectangle; padding of the canvas belongs to no view."""
    return {
        name: psnr_global(view.crop(predicted), view.crop(recorded), conditioning)
        for name, view in views.items()
    }


def psnr_by_horizon(
    clips: list[tuple[np.ndarray, np.ndarray]], conditioning: int = CONDITIONING_FRAMES
) -> np.ndarray:
    """PSNR [dB] by horizon over several (predicted, recorded) clips, float64 [longest T - conditioning].

    Squared errors are pooled over the clips that reach a horizon: one exact frame cannot make it infinite.
    """
    if not clips:
        raise CodecError("PSNR by horizon needs at least one clip", seen=0)
    errors = [squared_error_per_frame(p, r)[_tail(r, conditioning)] for p, r in clips]
    longest = max(len(row) for row in errors)
    pooled = [np.mean([row[h] for row in errors if len(row) > h]) for h in range(longest)]
    return decibel(np.array(pooled))


def ssim_per_frame(
    predicted: np.ndarray, recorded: np.ndarray, conditioning: int = CONDITIONING_FRAMES
) -> np.ndarray:
    """Structural similarity of every predicted frame, in [-1, 1], float64 [T - conditioning].

    Wang et al. 2004 through scikit-image: Gaussian window sigma 1.5 (11 x 11), population covariance,
    range 255, averaged over the three channels.
    """
    from skimage.metrics import structural_similarity

    _alike(predicted, recorded)
    if min(recorded.shape[1:3]) < 11:
        raise CodecError("SSIM needs frames of at least 11 x 11 pixels", seen=recorded.shape[1:3])
    return np.array(
        [
            structural_similarity(
                recorded[t],
                predicted[t],
                channel_axis=2,
                data_range=PEAK,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for t in range(len(recorded))[_tail(recorded, conditioning)]
        ],
        dtype=np.float64,
    )


@dataclass(frozen=True)
class MovingScore:
    """PSNR where the recording moved."""

    psnr_db: float | None  # None: nothing moved, so there is nothing to score
    moving_fraction: float  # share of predicted-frame pixels that moved, 0..1


def psnr_moving(
    predicted: np.ndarray,
    recorded: np.ndarray,
    threshold: int = MOVED_LEVELS,
    conditioning: int = CONDITIONING_FRAMES,
) -> MovingScore:
    """PSNR [dB] over the pixels of each frame that differ from the conditioning frame in the *recording*.

    A static background makes a model that copies frame 0 look good; here it cannot. The mask comes from the
    recording alone, so every model is scored on the same pixels. `threshold` in uint8 levels, any channel.
    """
    _alike(predicted, recorded)
    squares, count, total = 0.0, 0, 0
    start = recorded[max(conditioning, 1) - 1].astype(np.int16)
    for t in range(len(recorded))[_tail(recorded, conditioning)]:
        moved = (np.abs(recorded[t].astype(np.int16) - start) > threshold).any(axis=-1)  # [h, w]
        gap = predicted[t][moved].astype(np.float64) - recorded[t][moved]
        squares += float((gap * gap).sum())
        count += gap.size
        total += moved.size
    fraction = count / 3 / total
    return MovingScore(float(decibel(squares / count)) if count else None, fraction)


def action_sensitivity(
    with_true_actions: np.ndarray,
    with_other_actions: np.ndarray,
    recorded: np.ndarray,
    conditioning: int = CONDITIONING_FRAMES,
) -> float:
    """PSNR [dB] lost when the model is given another episode's actions: global true minus global other.

    Zero or less says that the video does not listen to the actions. A copy of frame 0 scores exactly 0.
    """
    if with_true_actions.shape == with_other_actions.shape and np.array_equal(
        with_true_actions, with_other_actions
    ):
        return 0.0  # also where both are exact and the difference would be inf - inf
    return psnr_global(with_true_actions, recorded, conditioning) - psnr_global(
        with_other_actions, recorded, conditioning
    )


def squared_error_per_frame(predicted: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """Mean squared error of each frame in squared uint8 levels, float64 [T]."""
    _alike(predicted, recorded)
    out = np.empty(len(recorded), dtype=np.float64)
    for t in range(
        len(recorded)
    ):  # frame by frame: a float64 copy of a long clip would not fit small machines
        gap = predicted[t].astype(np.float64) - recorded[t]
        out[t] = (gap * gap).mean()
    return out


def _tail(video: np.ndarray, conditioning: int) -> slice:
    if not 0 <= conditioning < len(video):
        raise CodecError(
            "no predicted frame is left to score",
            seen=f"{len(video)} frames, {conditioning} of them conditioning",
            expected="at least one frame after the conditioning frames",
        )
    return slice(conditioning, None)


def _alike(predicted: np.ndarray, recorded: np.ndarray) -> None:
    for name, video in (("predicted", predicted), ("recorded", recorded)):
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
            raise CodecError(
                f"the {name} video is not a uint8 RGB clip",
                seen=f"{video.dtype} {video.shape}",
                expected="uint8 [T, h, w, 3]",
            )
    if predicted.shape != recorded.shape:
        raise CodecError(
            "the two videos differ in shape; nothing is resized to be scored",
            seen=predicted.shape,
            expected=recorded.shape,
        )

"""Scores of a policy beyond success: the best of k samples, and PushT coverage over starts and rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wamserve.action_codec.errors import CodecError

from . import trajectory, video


def min_action_mse(samples: Sequence[np.ndarray], recorded: np.ndarray) -> float:
    """Smallest MSE of k sampled chunks [T, D] to the recorded one; say k and the space beside it."""
    if not samples:
        raise CodecError("the best of no samples was asked for", seen=0, expected="k >= 1")
    return min(trajectory.action_mse(sample, recorded) for sample in samples)


def max_psnr(samples: Sequence[np.ndarray], recorded: np.ndarray) -> float:
    """Largest global PSNR [dB] of k sampled videos uint8 [T, h, w, 3]; the minimum-error sample of the k."""
    if not samples:
        raise CodecError("the best of no samples was asked for", seen=0, expected="k >= 1")
    return max(video.psnr_global(sample, recorded) for sample in samples)


@dataclass(frozen=True)
class CoverageScore:
    """PushT coverage, shares of the goal's area 0..1, as means of the means of each start."""

    final_mean: float
    max_mean: float  # best moment of each rollout: kinder than `final_mean`, and often the published one
    final_pooled: float  # plain mean over rollouts; differs where starts have unlike numbers of rollouts
    starts: int
    rollouts: int


def coverage_score(
    starts: Sequence[str | int], final: Sequence[float], best: Sequence[float]
) -> CoverageScore:
    """Coverage of rollouts grouped by start: one row each of start id, last coverage and best coverage.

    Raises CodecError for an empty table, a coverage outside 0..1, or a best below its final.
    """
    if not len(starts) == len(final) == len(best) or not starts:
        raise CodecError(
            "coverage needs rows", seen=f"{len(starts)} starts, {len(final)} final, {len(best)} best"
        )
    final_array, best_array = np.asarray(final, dtype=np.float64), np.asarray(best, dtype=np.float64)
    if not ((final_array >= 0) & (best_array <= 1) & (best_array >= final_array)).all():
        raise CodecError("coverage is a share of the goal area with 0 <= final <= best <= 1")
    names = sorted(set(starts), key=str)
    groups = [[i for i, start in enumerate(starts) if start == name] for name in names]
    return CoverageScore(
        final_mean=float(np.mean([final_array[rows].mean() for rows in groups])),
        max_mean=float(np.mean([best_array[rows].mean() for rows in groups])),
        final_pooled=float(final_array.mean()),
        starts=len(names),
        rollouts=len(final),
    )

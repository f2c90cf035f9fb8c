"""Whether a policy's own video says what its actions did: imagined against executed frames of a chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wamserve.action_codec.errors import CodecError

from . import video
from .video import Rectangle


@dataclass(frozen=True)
class ImaginedChunk:
    """One chunk and the canvas frames that its own rows led to."""

    imagined: np.ndarray  # uint8 [H + 1, h, w, 3]; frame k is k control steps after the query, 0 was given
    executed: np.ndarray  # uint8 [K, h, w, 3], what the cameras saw
    steps: tuple[int, ...]  # [K] control steps after the query of each executed frame, 1 .. H, rising


@dataclass(frozen=True)
class ConsistencyScore:
    """Agreement of imagination and execution: PSNR [dB] of squared errors pooled over frames."""

    psnr_db: float
    psnr_db_by_view: dict[str, float]
    psnr_db_by_step: dict[int, float]  # control steps after the query -> PSNR
    frames: int
    frames_by_step: dict[int, int]


def executed_rows(predicted: np.ndarray, executed: np.ndarray, tolerance: float = 1e-5) -> int:
    """Leading rows of a predicted chunk [H, A] that were executed as predicted; `executed` [E, A] rows.

    An imagination is about its own actions: with latency charged, the robot still runs the chunk before, and
    from the first row that differs the two videos are about different futures.
    """
    rows = min(len(predicted), len(executed))
    same = np.isclose(predicted[:rows], executed[:rows], rtol=0, atol=tolerance).all(axis=-1)
    return int(rows if same.all() else np.argmin(same))


def consistency_score(
    chunks: Sequence[ImaginedChunk], views: Mapping[str, Rectangle] | None = None
) -> ConsistencyScore:
    """Scores the chunks of an episode. Raises CodecError when no chunk has an executed frame."""
    pairs = [(_imagined_at(chunk), chunk.executed) for chunk in chunks if chunk.steps]
    if not pairs:
        raise CodecError("no chunk has an executed frame to compare", seen=f"{len(chunks)} chunks")
    steps = np.array([step for chunk in chunks for step in chunk.steps])
    errors = _errors(pairs)
    frames = {int(step): int((steps == step).sum()) for step in np.unique(steps)}
    return ConsistencyScore(
        psnr_db=float(video.decibel(errors.mean())),
        psnr_db_by_view={
            name: float(video.decibel(_errors([(view.crop(p), view.crop(e)) for p, e in pairs]).mean()))
            for name, view in (views or {}).items()
        },
        psnr_db_by_step={step: float(video.decibel(errors[steps == step].mean())) for step in frames},
        frames=len(errors),
        frames_by_step=frames,
    )


def pool(scores: Sequence[ConsistencyScore]) -> ConsistencyScore:
    """One score of many episodes, as if all their frames had been scored in one go."""
    if not scores:
        raise CodecError("no consistency scores to pool", seen=0)

    def pooled(parts: Sequence[tuple[float, int]]) -> float:
        squares = sum(video.squared_error_from_decibel(db) * frames for db, frames in parts)
        return float(video.decibel(squares / sum(frames for _, frames in parts)))

    views = sorted({name for score in scores for name in score.psnr_db_by_view})
    steps = sorted({step for score in scores for step in score.psnr_db_by_step})
    return ConsistencyScore(
        psnr_db=pooled([(s.psnr_db, s.frames) for s in scores]),
        psnr_db_by_view={
            v: pooled([(s.psnr_db_by_view[v], s.frames) for s in scores if v in s.psnr_db_by_view])
            for v in views
        },
        psnr_db_by_step={
            k: pooled([(s.psnr_db_by_step[k], s.frames_by_step[k]) for s in scores if k in s.frames_by_step])
            for k in steps
        },
        frames=sum(s.frames for s in scores),
        frames_by_step={k: sum(s.frames_by_step.get(k, 0) for s in scores) for k in steps},
    )


def _errors(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    return np.concatenate([video.squared_error_per_frame(p, e) for p, e in pairs])


def _imagined_at(chunk: ImaginedChunk) -> np.ndarray:
    if len(chunk.steps) != len(chunk.executed):
        raise CodecError(
            "executed frames and their steps differ", seen=len(chunk.executed), expected=chunk.steps
        )
    if min(chunk.steps) < 1 or max(chunk.steps) >= len(chunk.imagined):
        raise CodecError(
            "an executed frame lies outside the imagined chunk",
            seen=f"steps {min(chunk.steps)}..{max(chunk.steps)} after the query",
            expected=f"1..{len(chunk.imagined) - 1}",
        )
    return chunk.imagined[list(chunk.steps)]

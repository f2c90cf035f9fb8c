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
    """One executed chunk. Frame t of both videos is the canvas t control steps after the query."""

    imagined: np.ndarray  # uint8 [H + 1, h, w, 3]; frame 0 is the observation the model was given
    executed: np.ndarray  # uint8 [E + 1, h, w, 3]; E rows of the chunk were executed, E <= H


@dataclass(frozen=True)
class ConsistencyScore:
    """Agreement of imagination and execution, pooled over chunks; only executed rows are compared."""

    psnr_db: float  # squared errors pooled over all frames of all chunks
    psnr_db_by_view: dict[str, float]
    psnr_db_by_horizon: list[float]  # entry 0 is one control step after the query
    psnr_db_by_chunk: list[float]
    frames: int


def consistency_score(
    chunks: Sequence[ImaginedChunk], views: Mapping[str, Rectangle] | None = None
) -> ConsistencyScore:
    """Scores all chunks of an episode or a run. Raises CodecError when no chunk has an executed frame."""
    pairs = [(chunk.imagined[: len(chunk.executed)], chunk.executed) for chunk in chunks]
    for chunk in chunks:
        if len(chunk.executed) > len(chunk.imagined):
            raise CodecError(
                "more frames executed than imagined", seen=len(chunk.executed), expected=len(chunk.imagined)
            )
    pairs = [pair for pair in pairs if len(pair[1]) > 1]
    if not pairs:
        raise CodecError("no chunk has an executed frame to compare", seen=f"{len(chunks)} chunks")
    by_view = {
        name: _pooled_psnr([(view.crop(p), view.crop(e)) for p, e in pairs])
        for name, view in (views or {}).items()
    }
    return ConsistencyScore(
        psnr_db=_pooled_psnr(pairs),
        psnr_db_by_view=by_view,
        psnr_db_by_horizon=[float(x) for x in video.psnr_by_horizon(pairs)],
        psnr_db_by_chunk=[video.psnr_global(p, e) for p, e in pairs],
        frames=sum(len(e) - 1 for _, e in pairs),
    )


def _pooled_psnr(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    errors = np.concatenate([video.squared_error_per_frame(p, e)[1:] for p, e in pairs])
    return float(video.decibel(errors.mean()))

"""Chunk-long clips of recorded episodes, and predicted frames brought to the recording's terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wamserve.action_codec.errors import RunError
from wamserve.embodiments.canvas import canvas_fit, compose
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval import frames
from wamserve.sim_eval.recorded import RecordedEpisode

Tick = Callable[[str], None]  # told what has just been done


@dataclass(frozen=True)
class Clip:
    """One chunk of an episode."""

    episode: RecordedEpisode
    start: int

    @property
    def raw(self) -> np.ndarray:
        return self.episode.raw[self.start : self.start + self.episode.embodiment.model.chunk]

    @property
    def canvas(self) -> np.ndarray:
        """uint8 [H + 1, h, w, 3]"""
        return self.episode.frames[self.start : self.start + self.episode.embodiment.model.chunk + 1]


def clips_of(
    episodes: Sequence[RecordedEpisode], hop: int | None = None, limit: int | None = None
) -> list[Clip]:
    """Whole chunks of the episodes, `hop` rows apart; RunError when no episode holds one."""
    clips = [Clip(episode, start) for episode in episodes for start in episode.starts(hop)]
    if not clips:
        raise RunError(
            "no episode is long enough for one chunk",
            seen=", ".join(f"{e.name}: {len(e.raw)} rows" for e in episodes),
            expected=f"{episodes[0].embodiment.model.chunk} rows" if episodes else "an episode",
        )
    if limit is not None and len(clips) > limit:
        clips = [clips[i] for i in np.linspace(0, len(clips) - 1, limit).round().astype(int)]
    return clips


def as_shown(embodiment: Embodiment, canvas: np.ndarray, like: np.ndarray) -> np.ndarray:
    return frames.canvas_like(embodiment.model.canvas, {"canvas": canvas}, (like.shape[1], like.shape[2]))


def as_canvas(embodiment: Embodiment, frame: np.ndarray) -> np.ndarray:
    """A predicted frame as the next conditioning frame: padding cropped, filled up to the content's shape."""
    canvas, fit = embodiment.model.canvas, canvas_fit(embodiment.model.canvas)
    if frame.shape[:2] == (canvas.height, canvas.width):
        return frame
    frame = frame[: fit.content_height, : fit.content_width]
    missing = fit.content_height - frame.shape[0], fit.content_width - frame.shape[1]
    frame = np.pad(frame, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="edge")
    return compose(canvas, {"canvas": frame})


# Handed every scored clip with its predicted and recorded frames, uint8 [H + 1, h, w, 3] both.
Show = Callable[[Clip, np.ndarray, np.ndarray], None]

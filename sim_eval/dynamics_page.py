"""Forward and inverse dynamics as one self-contained page, every score beside its baselines."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from wamserve.sim_eval import svg
from wamserve.sim_eval.clips import Clip
from wamserve.sim_eval.episode_view import DECIBEL_CEILING, shrink
from wamserve.sim_eval.episodes_report import EpisodesReport
from wamserve.sim_eval.metrics import video
from wamserve.sim_eval.report import render
from wamserve.sim_eval.video_file import data_uri, h264_from_frames

SHOWN = 12  # clips with video


@dataclass(frozen=True)
class ShownClip:
    """One clip of the page."""

    title: str
    instruction: str
    psnr_db: float
    copy_psnr_db: float
    video_uri: str  # recorded | predicted | difference
    rate_hz: float
    steps: tuple[int, ...]  # action row of each frame
    psnr: tuple[float | None, ...]
    chart: str


@dataclass
class Gallery:
    """Collects the first SHOWN clips while they are scored."""

    clips: list[ShownClip] = field(default_factory=list)

    def take(self, clip: Clip, predicted: np.ndarray, recorded: np.ndarray) -> None:
        if len(self.clips) < SHOWN:
            self.clips.append(_shown(clip, predicted, recorded, str(len(self.clips))))


def _shown(clip: Clip, predicted: np.ndarray, recorded: np.ndarray, identity: str) -> ShownClip:
    copy = np.repeat(recorded[:1], len(recorded), axis=0)
    curves = [_capped(video.psnr_per_frame(frames, recorded)) for frames in (predicted, copy)]
    steps = tuple(range(clip.start, clip.start + len(recorded)))
    gap = np.minimum(2 * np.abs(predicted.astype(np.int16) - recorded), 255).astype(np.uint8)
    panels = np.concatenate([shrink(part) for part in (recorded, predicted, gap)], axis=2)
    rate = float(clip.episode.embodiment.model.rate_hz)
    return ShownClip(
        title=f"{clip.episode.name}, rows {clip.start} to {steps[-1]}",
        instruction=clip.episode.instruction,
        psnr_db=min(video.psnr_global(predicted, recorded), DECIBEL_CEILING),
        copy_psnr_db=min(video.psnr_global(copy, recorded), DECIBEL_CEILING),
        video_uri=data_uri(h264_from_frames(panels, rate)),
        rate_hz=rate,
        steps=steps,
        psnr=(None, *curves[0]),
        chart=svg.lines(
            [
                svg.Series("copy of frame 0", steps[1:], curves[1], "faint"),
                svg.Series("model", steps[1:], curves[0], "imagined"),
            ],
            width=1080,
            height=130,
            x_label="action row",
            y_label="predicted vs recorded, PSNR dB",
            x_range=(steps[0], steps[-1]),
            identity=f"psnr-{identity}",
        ),
    )


def dynamics_page(report: EpisodesReport, clips: list[ShownClip]) -> str:
    """The page of one report; `clips` are those to show with video."""
    fd = report.fd
    return render(
        "dynamics.html",
        title=f"{report.policy} on {report.contract}",
        report=report,
        clips=clips,
        horizon=_against_copy(fd.model.psnr_by_horizon_db, fd.copy_first_frame.psnr_by_horizon_db)
        if fd
        else "",
        rollout=_against_copy(fd.rollout_db, fd.rollout_copy_db) if fd else "",
    )


def _against_copy(model: list[float], copy: list[float]) -> str:
    steps = range(1, len(model) + 1)
    return svg.lines(
        [
            svg.Series("copy of frame 0", steps, _capped(np.array(copy)), "faint"),
            svg.Series("model", steps, _capped(np.array(model)), "imagined"),
        ],
        width=520,
        height=190,
        x_label="steps ahead",
        y_label="PSNR dB",
    )


def _capped(values: np.ndarray) -> list[float | None]:
    return [min(float(v), DECIBEL_CEILING) for v in values]

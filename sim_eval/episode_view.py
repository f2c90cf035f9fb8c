"""What a report shows of one episode: executed beside imagined frames, PSNR over time, the action rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wamserve.embodiments.canvas import compose, resize_bilinear
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval import frames, svg
from wamserve.sim_eval.metrics import video
from wamserve.sim_eval.metrics.consistency import executed_rows
from wamserve.sim_eval.score import EpisodeScore
from wamserve.sim_eval.task import ChunkRow, Task, TaskSpec
from wamserve.sim_eval.video_file import data_uri, h264_from_frames

TALLEST = 256  # pixels; larger canvases are shrunk for the page
DECIBEL_CEILING = 60.0  # identical frames are +inf dB; the plot ends here


@dataclass(frozen=True)
class Timeline:
    """One frame per shown control step."""

    steps: tuple[int, ...]  # control step of each frame
    executed: np.ndarray  # uint8 [F, h, w, 3]
    imagined: np.ndarray | None  # uint8 [F, h, w, 3]; where nothing was imagined the executed frame, dimmed
    psnr_db: tuple[float | None, ...]  # own rows executed: imagined against executed
    psnr_other_db: tuple[float | None, ...]  # the same where other rows were executed than imagined


@dataclass(frozen=True)
class EpisodeView:
    """One episode's part of the page."""

    score: EpisodeScore
    instruction: str
    seed: int
    video_uri: str  # "" where nothing was recorded to show
    panels: tuple[str, ...]  # captions from left to right
    rate_hz: float  # frames per second of the video
    steps: tuple[int, ...]  # control step of each video frame
    psnr: tuple[float | None, ...]  # imagined against executed at each video frame, dB
    psnr_svg: str
    has_other: bool  # whether the timeline shows frames whose own rows were not executed
    progress_svg: str
    actions: tuple[tuple[str, str], ...]  # (column name, chart)
    latency_ms: float | None  # mean charged
    consistency_db: float | None


def bare_view(score: EpisodeScore, instruction: str, seed: int, questions: Sequence[ChunkRow]) -> EpisodeView:
    """An episode as a line of the table only."""
    return EpisodeView(
        *(score, instruction, seed, "", (), 1.0, (), (), "", False, "", ()),
        latency_ms=_mean_latency(questions),
        consistency_db=_consistency(score),
    )


def episode_view(
    score: EpisodeScore,
    spec: TaskSpec,
    seed: int,
    instruction: str,
    recording: Mapping[str, np.ndarray],
    questions: Sequence[ChunkRow],
    embodiment: Embodiment | None,
    task: Task | None,
    identity: str,
) -> EpisodeView:
    """Everything that can be shown of a recording; `identity` makes element ids unique on the page."""
    timeline = make_timeline(recording, embodiment, task)
    names = embodiment.wire.reply.fields if embodiment is not None else ()
    uri, psnr_svg = "", ""
    panels: tuple[str, ...] = ()
    every_step = task is not None
    if timeline is not None:
        uri = data_uri(h264_from_frames(_panels(timeline), spec.rate_hz if every_step else 2.0))
        panels = ("executed",)
        if timeline.imagined is not None:
            panels = ("executed", "imagined", "difference")
            psnr_svg = _psnr_chart(timeline, recording, identity, len(recording["actions"]))
    return EpisodeView(
        score=score,
        instruction=instruction,
        seed=seed,
        video_uri=uri,
        panels=panels,
        rate_hz=spec.rate_hz if every_step else 2.0,
        steps=timeline.steps if timeline is not None else (),
        psnr=_either(timeline) if timeline is not None else (),
        psnr_svg=psnr_svg,
        has_other=timeline is not None and any(v is not None for v in timeline.psnr_other_db),
        progress_svg=_progress_chart(recording, spec.progress),
        actions=_action_charts(recording, names),
        latency_ms=_mean_latency(questions),
        consistency_db=_consistency(score),
    )


def make_timeline(
    recording: Mapping[str, np.ndarray], embodiment: Embodiment | None, task: Task | None
) -> Timeline | None:
    """Frames of every control step where a task renders them, else of the queries; None without pictures."""
    queries = [int(step) for step in recording["chunk_step"]]
    if task is not None and "sim_states" in recording:
        steps = list(range(len(recording["sim_states"])))
        views = frames.rendered_views(task, recording, steps)
    else:
        steps, views = queries, frames.seen_views(recording)
    if not views:
        return None
    imagined = recording.get("video")
    if embodiment is None:
        return Timeline(tuple(steps), _side_by_side(views), None, (), ())
    if imagined is None:
        return Timeline(tuple(steps), compose(embodiment.model.canvas, views), None, (), ())
    executed = frames.canvas_like(embodiment.model.canvas, views, (imagined.shape[2], imagined.shape[3]))
    shown = executed // 3
    own: list[float | None] = [None] * len(steps)
    other: list[float | None] = [None] * len(steps)
    for i, step in enumerate(steps):
        chunk = int(recording["action_chunk"][step - 1]) if step else -1
        ahead = step - queries[chunk] if chunk >= 0 else 0
        if not 0 < ahead < len(imagined[chunk]):
            continue
        shown[i] = imagined[chunk][ahead]
        psnr = float(video.psnr_global(shown[i : i + 1], executed[i : i + 1], conditioning=0))
        rows = executed_rows(recording["chunk_actions"][chunk], recording["actions"][queries[chunk] : step])
        (own if rows == ahead else other)[i] = min(psnr, DECIBEL_CEILING)
    return Timeline(tuple(steps), executed, shown, tuple(own), tuple(other))


def shrink(clip: np.ndarray) -> np.ndarray:
    """Frames [F, h, w, 3] no taller than TALLEST."""
    height, width = clip.shape[1:3]
    if height <= TALLEST:
        return clip
    return resize_bilinear(clip, TALLEST, max(2, round(width * TALLEST / height)))


def _panels(timeline: Timeline) -> np.ndarray:
    executed = shrink(timeline.executed)
    if timeline.imagined is None:
        return executed
    imagined = shrink(timeline.imagined)
    gap = np.abs(executed.astype(np.int16) - imagined)
    known = np.array([value is not None for value in _either(timeline)])
    gap[~known] = 0
    difference = np.minimum(2 * gap, 255).astype(np.uint8)
    return np.concatenate([executed, imagined, difference], axis=2)


def _either(timeline: Timeline) -> tuple[float | None, ...]:
    pairs = zip(timeline.psnr_db, timeline.psnr_other_db, strict=True)
    return tuple(own if own is not None else other for own, other in pairs)


def _psnr_chart(timeline: Timeline, recording: Mapping[str, np.ndarray], identity: str, last: int) -> str:
    series = [
        svg.Series("its own rows executed", timeline.steps, timeline.psnr_db, "imagined"),
        svg.Series("other rows executed", timeline.steps, timeline.psnr_other_db, "faint"),
    ]
    return svg.lines(
        [s for s in series if any(y is not None for y in s.y)] or series[:1],
        width=1080,
        height=130,
        x_label="control step",
        y_label="imagined vs executed, PSNR dB",
        x_range=(0, max(last, 1)),
        guides=[int(step) for step in recording["chunk_step"]],
        identity=f"psnr-{identity}",
    )


def _progress_chart(recording: Mapping[str, np.ndarray], name: str | None) -> str:
    progress = recording.get("progress")
    if progress is None or np.isnan(progress).all():
        return ""
    return svg.lines(
        [
            svg.Series(
                name or "partial credit", range(len(progress)), [float(p) for p in progress], "executed"
            )
        ],
        width=1080,
        height=100,
        y_label=name or "partial credit",
        y_range=(0.0, 1.0),
        x_range=(0, max(len(progress) - 1, 1)),
    )


def _action_charts(recording: Mapping[str, np.ndarray], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    actions, chunks = recording["actions"], recording["chunk_actions"]
    queries = [int(step) for step in recording["chunk_step"]]
    out = []
    for column in range(actions.shape[1]):
        predicted = [
            svg.Series("predicted", range(q, q + len(rows)), [float(v) for v in rows[:, column]], "faint")
            for q, rows in zip(queries, chunks, strict=True)
        ]
        executed = svg.Series("executed", range(len(actions)), [float(v) for v in actions[:, column]])
        name = names[column] if column < len(names) else f"column {column}"
        out.append(
            (
                name,
                svg.lines([*predicted, executed], width=320, height=96, guides=queries,
                          x_range=(0, max(len(actions), 1))),
            )
        )  # fmt: skip
    return tuple(out)


def _side_by_side(views: Mapping[str, np.ndarray]) -> np.ndarray:
    height = min(rows.shape[1] for rows in views.values())
    return np.concatenate(
        [
            resize_bilinear(rows, height, round(rows.shape[2] * height / rows.shape[1]))
            for rows in views.values()
        ],
        axis=2,
    )


def _mean_latency(questions: Sequence[ChunkRow]) -> float | None:
    return float(np.mean([q.latency_ms for q in questions])) if questions else None


def _consistency(score: EpisodeScore) -> float | None:
    if score.consistency is None:
        return None
    return (
        min(score.consistency.psnr_db, DECIBEL_CEILING)
        if math.isfinite(score.consistency.psnr_db)
        else DECIBEL_CEILING
    )

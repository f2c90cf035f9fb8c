"""The scores of a run, computed again from its recordings: success, partial credit, consistency, latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wamserve.action_codec.errors import RunError
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval import frames, statistics
from wamserve.sim_eval.metrics import consistency
from wamserve.sim_eval.metrics.consistency import ConsistencyScore, ImaginedChunk
from wamserve.sim_eval.metrics.policy import CoverageScore, coverage_score
from wamserve.sim_eval.statistics import Interval
from wamserve.sim_eval.store import EpisodeRow, RunStore
from wamserve.sim_eval.task import ChunkRow, Task, TaskSpec

OpenTask = Callable[[TaskSpec], Task]


@dataclass(frozen=True)
class EpisodeScore:
    """One episode, from its row and its recording."""

    task: str
    init: int
    repeat: int
    success: bool
    steps: int  # control steps
    final_progress: float | None  # 0..1
    max_progress: float | None
    queries: int
    consistency: ConsistencyScore | None  # None: no video was imagined, or none of it executed
    consistency_frozen: ConsistencyScore | None  # baseline: the frame it was shown, all along


@dataclass(frozen=True)
class TaskScore:
    task: str
    instruction: str
    episodes: int
    successes: int
    success: Interval  # Wilson
    success_beta: Interval  # as RoboLab prints it
    final_progress_mean: float | None


@dataclass(frozen=True)
class LatencyScore:
    """Milliseconds of all queries of the run."""

    queries: int
    charged_ms: tuple[float, float]  # median and 95th percentile on the virtual clock
    wall_ms: tuple[float, float]  # measured around the policy call
    infer_ms: tuple[float, float]  # the policy's own ledger
    queue_ms: tuple[float, float]
    forwards_mean: float  # denoiser evaluations per query
    batch_mean: float


@dataclass(frozen=True)
class RunScore:
    """Everything a report says about one run."""

    path: str
    policy: str
    source: str
    protocol_sha256: str
    comparable_sha256: str
    status: str
    planned: int
    episodes: int
    successes: int
    success: Interval  # Wilson over episodes
    suite: Interval | None  # mean of task means, tasks resampled; None below six tasks
    success_beta: Interval
    tasks: tuple[TaskScore, ...]
    coverage: CoverageScore | None  # where every episode has partial credit
    latency: LatencyScore | None  # None: no query was recorded
    consistency: ConsistencyScore | None  # pooled over episodes
    consistency_frozen: ConsistencyScore | None  # baseline: each query's own frame, all along
    consistency_frames: str  # "rendered": every executed frame; "seen": one per query; "": nothing imagined
    episode_scores: tuple[EpisodeScore, ...]


def score_run(
    run: RunStore,
    embodiment: Embodiment | None = None,
    open_task: OpenTask | None = None,
    verify: bool = False,
    confidence: float = statistics.CONFIDENCE,
) -> RunScore:
    """Computes every score of a run from its recordings.

    `embodiment` is the run's contract, needed where video was imagined. `open_task` makes a task anew, to
    render executed frames and, with `verify`, to judge success again from the last recorded state. Raises
    RunError for a run without a finished episode and for a recording that contradicts its row.
    """
    rows = run.episodes()
    if not rows:
        raise RunError(
            f"{run.path} has no finished episode",
            expected=f"{run.info.episodes_planned} episodes",
            fix="the wam eval command that made it: it resumes",
        )
    specs = {spec.name: spec for spec in run.info.protocol.tasks}
    opened: dict[str, Task] = {}

    def task_of(name: str) -> Task | None:
        if open_task is None:
            return None
        if name not in opened:
            for other in opened.values():  # rows come task by task: one simulator at a time
                other.close()
            opened.clear()
            opened[name] = open_task(specs[name])
        return opened[name]

    chunks: list[ChunkRow] = []
    scores: list[EpisodeScore] = []
    try:
        for row in rows:
            questions = run.chunks(row.id)
            chunks += questions
            recording = run.recording(row)
            if recording:
                check_recording(row, recording, questions)
            if verify and recording:
                _verify_success(row, recording, task_of(row.task))
            imagined = (
                frames.imagined_chunks(recording, _needed(embodiment, run), task_of(row.task))
                if "video" in recording
                else []
            )
            scores.append(_episode_score(row, recording, questions, imagined, embodiment))
    finally:
        for task in opened.values():
            task.close()
    return _run_score(run, rows, scores, chunks, open_task is not None, confidence)


def check_recording(row: EpisodeRow, recording: dict[str, np.ndarray], questions: Sequence[ChunkRow]) -> None:
    """RunError when a recording and the row it belongs to tell different stories."""
    progress = recording.get("progress")
    final = None if progress is None or np.isnan(progress).all() else float(progress[-1])
    best = None if final is None or progress is None else float(np.nanmax(progress))
    played = recording["action_chunk"]
    used = [int((played == i).sum()) for i in range(len(questions))]
    facts: list[tuple[str, Any, Any]] = [
        ("steps", row.steps, len(recording["actions"])),
        ("final partial credit", row.final_progress, final),
        ("best partial credit", row.max_progress, best),
        ("query steps", [q.step for q in questions], [int(s) for s in recording["chunk_step"]]),
        ("rows used of each chunk", [q.rows_used for q in questions], used),
    ]
    for what, stored, recorded in facts:
        same = stored == recorded or (
            isinstance(stored, float)
            and isinstance(recorded, float)
            and math.isclose(stored, recorded, abs_tol=1e-9)
        )
        if not same:
            raise RunError(
                f"{row.task} init {row.init} repeat {row.repeat}: table and recording differ in {what}",
                seen=f"table {stored}, recording {recorded}",
            )


def _verify_success(row: EpisodeRow, recording: dict[str, np.ndarray], task: Task | None) -> None:
    if task is None:
        raise RunError("success can only be judged again with the task's simulator")
    task.restore(recording["sim_states"][-1])
    if task.success() != row.success:
        raise RunError(
            f"{row.task} init {row.init} repeat {row.repeat}: success judged again differs",
            seen=f"table {row.success}, last recorded state {task.success()}",
        )


def _needed(embodiment: Embodiment | None, run: RunStore) -> Embodiment:
    if embodiment is None:
        raise RunError(
            "imagined video can only be scored with the run's contract", expected=run.info.protocol.contract
        )
    return embodiment


def _episode_score(
    row: EpisodeRow,
    recording: dict[str, np.ndarray],
    questions: Sequence[ChunkRow],
    imagined: list[ImaginedChunk],
    embodiment: Embodiment | None,
) -> EpisodeScore:
    agreement = frozen = None
    if any(chunk.steps for chunk in imagined) and embodiment is not None:
        height, width = recording["video"].shape[2:4]
        views = frames.view_rectangles(embodiment.model.canvas, (height, width))
        agreement = consistency.consistency_score(imagined, views)
        still = frames.frozen_chunks(recording, embodiment, imagined)
        frozen = consistency.consistency_score(still, views)
    return EpisodeScore(
        *(row.task, row.init, row.repeat, row.success, row.steps, row.final_progress, row.max_progress),
        queries=len(questions),
        consistency=agreement,
        consistency_frozen=frozen,
    )


def _run_score(
    run: RunStore,
    rows: list[EpisodeRow],
    scores: list[EpisodeScore],
    chunks: list[ChunkRow],
    rendered: bool,
    confidence: float,
) -> RunScore:
    card = run.info.protocol
    by_task: dict[str, list[EpisodeRow]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    successes = sum(row.success for row in rows)
    agreements = [score.consistency for score in scores if score.consistency is not None]
    baselines = [score.consistency_frozen for score in scores if score.consistency_frozen is not None]
    return RunScore(
        path=str(run.path),
        policy=card.policy.name or card.policy.spec,
        source=run.info.source,
        protocol_sha256=card.sha256,
        comparable_sha256=card.comparable_sha256,
        status=run.info.status,
        planned=run.info.episodes_planned,
        episodes=len(rows),
        successes=successes,
        success=statistics.wilson(successes, len(rows), confidence),
        suite=statistics.task_bootstrap(
            {name: [float(row.success) for row in inner] for name, inner in by_task.items()}, confidence
        )
        if len(by_task) >= statistics.FEWEST_TASKS
        else None,
        success_beta=statistics.beta_interval(successes, len(rows), confidence),
        tasks=tuple(_task_score(name, inner, confidence) for name, inner in by_task.items()),
        coverage=_coverage(rows),
        latency=_latency(chunks),
        consistency=consistency.pool(agreements) if agreements else None,
        consistency_frozen=consistency.pool(baselines) if baselines else None,
        consistency_frames=("rendered" if rendered else "seen") if agreements else "",
        episode_scores=tuple(scores),
    )


def _task_score(name: str, rows: list[EpisodeRow], confidence: float) -> TaskScore:
    successes = sum(row.success for row in rows)
    finals = [row.final_progress for row in rows if row.final_progress is not None]
    return TaskScore(
        task=name,
        instruction=rows[0].instruction,
        episodes=len(rows),
        successes=successes,
        success=statistics.wilson(successes, len(rows), confidence),
        success_beta=statistics.beta_interval(successes, len(rows), confidence),
        final_progress_mean=float(np.mean(finals)) if finals else None,
    )


def _coverage(rows: list[EpisodeRow]) -> CoverageScore | None:
    finals = [row.final_progress for row in rows if row.final_progress is not None]
    bests = [row.max_progress for row in rows if row.max_progress is not None]
    if len(finals) < len(rows) or len(bests) < len(rows):
        return None
    return coverage_score([f"{row.task} {row.init}" for row in rows], finals, bests)


def _latency(chunks: list[ChunkRow]) -> LatencyScore | None:
    if not chunks:
        return None

    def middle_and_tail(name: str) -> tuple[float, float]:
        values = [getattr(chunk, name) for chunk in chunks]
        return float(np.percentile(values, 50)), float(np.percentile(values, 95))

    return LatencyScore(
        queries=len(chunks),
        charged_ms=middle_and_tail("latency_ms"),
        wall_ms=middle_and_tail("wall_ms"),
        infer_ms=middle_and_tail("infer_ms"),
        queue_ms=middle_and_tail("queue_ms"),
        forwards_mean=float(np.mean([chunk.forwards for chunk in chunks])),
        batch_mean=float(np.mean([chunk.batch for chunk in chunks])),
    )

"""One run as one self-contained HTML page: nothing is fetched, failures come first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from wamserve.action_codec.errors import RunError
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval import svg
from wamserve.sim_eval.episode_view import EpisodeView, bare_view, episode_view
from wamserve.sim_eval.score import OpenTask, RunScore
from wamserve.sim_eval.statistics import Interval
from wamserve.sim_eval.store import EpisodeRow, RunStore
from wamserve.sim_eval.task import ChunkRow, Task


@dataclass(frozen=True)
class LatencyChart:
    title: str
    explanation: str
    chart: str


def run_page(
    run: RunStore,
    score: RunScore,
    embodiment: Embodiment | None = None,
    open_task: OpenTask | None = None,
    videos: int = 24,
) -> str:
    """The page of one scored run. `videos` episodes are shown in full, failures first; the rest as lines."""
    rows = {row.key: row for row in run.episodes()}
    if not rows:
        raise RunError(f"{run.path} has no finished episode", expected=run.info.episodes_planned)
    ordered = sorted(score.episode_scores, key=lambda s: (s.success, s.task, s.init, s.repeat))
    views: list[EpisodeView] = []
    chunks: list[ChunkRow] = []
    specs = {spec.name: spec for spec in run.info.protocol.tasks}
    task: Task | None = None
    held = ""
    try:
        for index, item in enumerate(ordered):
            row: EpisodeRow = rows[item.task, item.init, item.repeat]
            questions = run.chunks(row.id)
            chunks += questions
            recording = run.recording(row) if index < videos else {}
            if not recording:
                views.append(bare_view(item, row.instruction, row.seed, questions))
                continue
            if open_task is not None and held != item.task:
                if task is not None:
                    task.close()
                task, held = open_task(specs[item.task]), item.task
            views.append(
                episode_view(
                    *(item, specs[item.task], row.seed, row.instruction, recording, questions),
                    *(embodiment, task, str(index)),
                )
            )
    finally:
        if task is not None:
            task.close()
    return render(
        "report.html",
        run=run,
        info=run.info,
        score=score,
        views=views,
        shown=sum(1 for view in views if view.video_uri or view.actions),
        failures=sum(1 for view in views if not view.score.success),
        latency=_latency_charts(chunks),
        consistency_chart=_consistency_chart(score),
        protocol=[(k, _short(v)) for k, v in sorted(run.info.protocol.flat().items())],
        title=f"{score.policy} on {run.info.protocol.suite}",
    )


def _latency_charts(chunks: Sequence[ChunkRow]) -> list[LatencyChart]:
    if not chunks:
        return []
    return [
        LatencyChart(title, explanation, svg.histogram([getattr(chunk, name) for chunk in chunks], "ms"))
        for name, title, explanation in (
            ("latency_ms", "charged", "what the virtual clock took from the robot for each query"),
            ("wall_ms", "client", "measured around the policy call, network and queue included"),
            ("infer_ms", "engine", "preprocess, encode, denoise and postprocess, by the policy's own ledger"),
        )
    ]


def _consistency_chart(score: RunScore) -> str:
    if score.consistency is None:
        return ""
    by_step = score.consistency.psnr_db_by_step
    values = [min(v, 60.0) for v in by_step.values()]
    return svg.lines(
        [svg.Series("consistency", list(by_step), values, "imagined", low=values, high=values)],
        width=420,
        height=150,
        x_label="control steps after the query",
        y_label="PSNR dB",
    )


def render(template: str, **context: Any) -> str:
    """A page from templates/, with style and script written into it."""
    return (
        _environment()
        .get_template(template)
        .render(style=_text("page.css"), script=_text("page.js"), **context)
    )


@cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda interval: interval.percent()
    environment.filters["bar"] = interval_svg
    environment.filters["db"] = decibel_text
    return environment


def _text(name: str) -> str:
    return (files("wamserve.sim_eval") / "templates" / name).read_text(encoding="utf-8")


def interval_svg(interval: Interval) -> str:
    return svg.interval_bar(interval)


def decibel_text(value: float | None) -> str:
    return "" if value is None else "exact" if value == float("inf") else f"{value:.2f} dB"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 400 else text[:400] + " …"


def write_page(path: Path, html: str) -> Path:
    path.write_text(html, encoding="utf-8")
    return path

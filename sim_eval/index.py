"""Many runs on one page: grouped by protocol, and checkpoints of one training as a curve over iterations."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wamserve.sim_eval import svg
from wamserve.sim_eval.report import render
from wamserve.sim_eval.score import RunScore
from wamserve.sim_eval.store import RunInfo

# "…/iter_000500", "step-1500", "checkpoint_2000", "500it": what trainers call their snapshots
ITERATION = re.compile(
    r"(?:iter(?:ation)?|step|checkpoint|ckpt)[_\-=]?0*(\d+)|(?<!\d)(\d+)it\b", re.IGNORECASE
)
STYLES = ("executed", "c1", "c2", "c3")


@dataclass(frozen=True)
class Line:
    """One run's line of the table."""

    family: str  # the policy without its iteration
    iteration: int | None
    score: RunScore
    link: str  # to its own page, relative to the index


@dataclass(frozen=True)
class Group:
    """Runs that may be compared with one another."""

    suite: str
    comparable_sha256: str
    lines: tuple[Line, ...]
    curve: str  # SVG; "" where no family has two iterations
    legend: str
    iterations: tuple[int, ...]  # columns of the table over iterations
    families: tuple[tuple[str, tuple[Line | None, ...]], ...]  # its rows
    imagined: bool  # whether any run imagined video


def split_iteration(spec: str) -> tuple[str, int | None]:
    """'runs/pusht/iter_000500' -> ('runs/pusht/iter_*', 500); (spec, None) where no iteration is named."""
    matches = list(ITERATION.finditer(spec))
    if not matches:
        return spec, None
    match = matches[-1]
    start, stop = match.span(1) if match.group(1) is not None else match.span(2)
    digits = re.search(r"0*$", spec[:start])
    return spec[: digits.start() if digits else start] + "*" + spec[stop:], int(spec[start:stop])


def index_page(scored: Sequence[tuple[RunInfo, RunScore, Path]], folder: Path) -> str:
    """The page over runs, each given with the path of its own report; links are relative to `folder`."""
    groups: dict[str, list[tuple[RunInfo, RunScore, Path]]] = {}
    for entry in scored:
        groups.setdefault(entry[1].comparable_sha256, []).append(entry)
    return render(
        "index.html",
        title=f"{len(scored)} runs",
        groups=[_group(entries, folder) for entries in groups.values()],
    )


def _group(entries: Sequence[tuple[RunInfo, RunScore, Path]], folder: Path) -> Group:
    lines = []
    for info, score, page in entries:
        family, iteration = split_iteration(info.protocol.policy.spec)
        lines.append(Line(family, iteration, score, Path(os.path.relpath(page, folder)).as_posix()))
    lines.sort(key=lambda line: (line.family, line.iteration or 0, line.score.path))
    trained = [line for line in lines if line.iteration is not None]
    iterations = tuple(sorted({line.iteration for line in trained if line.iteration is not None}))
    names = sorted({line.family for line in trained})
    table = tuple(
        (
            name,
            tuple(
                next((x for x in trained if x.family == name and x.iteration == i), None) for i in iterations
            ),
        )
        for name in names
    )
    drawn = len(iterations) > 1
    return Group(
        suite=entries[0][0].protocol.suite,
        comparable_sha256=entries[0][1].comparable_sha256,
        lines=tuple(lines),
        curve=_curve(table, iterations) if drawn else "",
        legend=svg.legend({name: STYLES[i % len(STYLES)] for i, name in enumerate(names)}),
        iterations=iterations,
        families=table,
        imagined=any(line.score.consistency is not None for line in lines),
    )


def _curve(table: tuple[tuple[str, tuple[Line | None, ...]], ...], iterations: tuple[int, ...]) -> str:
    series = []
    reach = max(iterations) - min(iterations)
    for index, (name, cells) in enumerate(table):
        aside = 0.006 * reach * (index - (len(table) - 1) / 2)  # bars of two families do not cover each other
        known = [
            (i, line.score.success) for i, line in zip(iterations, cells, strict=True) if line is not None
        ]
        series.append(
            svg.Series(
                name,
                [i + aside for i, _ in known],
                [interval.estimate for _, interval in known],
                STYLES[index % len(STYLES)],
                low=[interval.low for _, interval in known],
                high=[interval.high for _, interval in known],
            )
        )
    return svg.lines(
        series,
        width=720,
        height=260,
        x_label="iteration",
        y_label="success",
        y_range=(0.0, 1.0),
        x_range=(min(iterations) - 0.04 * reach, max(iterations) + 0.04 * reach),
        percent=True,
    )

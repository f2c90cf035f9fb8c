"""The table of the comparison: single-mode beside joint checkpoints, over seeds, with intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wamserve.action_codec.errors import RunError
from wamserve.clients.policy import Mode
from wamserve.sim_eval.statistics import Interval, mean_interval
from wamserve.training.modes_recipe import JOINT, Cell, Place

Value = tuple[str, tuple[str, ...]]  # a number's report, and its path in there


@dataclass(frozen=True)
class Metric:
    """One line of the table: which number of which report."""

    title: str
    mode: Mode
    value: Value
    better: Literal["higher", "lower"]
    scale: float = 1.0  # of what is shown
    digits: int = 2
    baseline: Value | None = None  # of the same checkpoint's reports, or of the baselines'
    baseline_title: str = ""


COVERAGE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("policy: coverage at its best, %", ("coverage", "max_mean")),
    ("policy: coverage at the end, %", ("coverage", "final_mean")),
    ("policy: success, %", ("success", "estimate")),
)
METRICS = (
    Metric(
        "FD: PSNR, dB", "fd", ("fd", ("model", "psnr_db")), "higher",
        baseline=("fd", ("copy_first_frame", "psnr_db")), baseline_title="copy of frame 0",
    ),
    Metric("FD: PSNR lost with other actions, dB", "fd", ("fd", ("sensitivity_db",)), "higher"),
    Metric(
        "ID: action MSE, model space, 1e-3", "id", ("id", ("model", "mse_model")), "lower", scale=1e3,
        baseline=("id", ("mean_action", "mse_model")), baseline_title="mean action",
    ),
    Metric("policy: action MSE, px², least of k", "policy", ("policy", ("mse_min",)), "lower", digits=0),
    Metric("policy: action MSE, px², mean of k", "policy", ("policy", ("mse_mean",)), "lower", digits=0),
    *(
        Metric(
            title, "policy", ("closed", path), "higher", scale=1e2, digits=1,
            baseline=("noop", path), baseline_title="never moves",
        )
        for title, path in COVERAGE
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One metric over seeds; entry i of both lists is of the same seed, and of the same start."""

    metric: Metric
    baseline: float | None  # equal for all checkpoints
    single_by_seed: tuple[float, ...]
    joint_by_seed: tuple[float, ...]
    single: Interval  # Student t over seeds
    joint: Interval
    difference: Interval  # joint minus single, seed by seed

    @property
    def verdict(self) -> str:
        low, high = self.difference.low, self.difference.high
        gaps = [joint - single for single, joint in zip(self.single_by_seed, self.joint_by_seed, strict=True)]
        # Equal gaps are those of a coarse count, one more success for each seed say, and no certainty.
        if max(gaps) - min(gaps) <= 1e-9 or low <= 0 <= high:
            return "not distinguishable"
        return "joint better" if (low > 0) == (self.metric.better == "higher") else "single better"


@dataclass(frozen=True)
class Cost:
    """Minutes of wall clock of one checkpoint, mean over seeds, and the samples that it saw."""

    kind: str
    steps: int
    samples: dict[str, float]  # mode -> mean over seeds
    train_min: float
    score_min: float


@dataclass(frozen=True)
class Table:
    title: str
    notes: tuple[str, ...]
    rows: tuple[Row, ...]
    costs: tuple[Cost, ...]
    shared_min: dict[str, float]  # stage -> minutes, spent once for all checkpoints


def compare_row(
    metric: Metric, single: Sequence[float], joint: Sequence[float], baseline: float | None = None
) -> Row:
    """Intervals of both and of their difference, which is paired: a seed's checkpoints share their start."""
    if len(single) != len(joint):
        raise RunError("every seed has both checkpoints", seen=f"{len(single)} and {len(joint)}")
    return Row(
        metric,
        baseline,
        tuple(single),
        tuple(joint),
        mean_interval(single),
        mean_interval(joint),
        mean_interval([b - a for a, b in zip(single, joint, strict=True)]),
    )


def read_rows(place: Place, seeds: Sequence[int]) -> tuple[Row, ...]:
    """Every metric from the reports of finished checkpoints."""
    rows = []
    for metric in METRICS:
        single = [_number(place, Cell(seed, metric.mode), metric.value) for seed in seeds]
        joint = [_number(place, Cell(seed, JOINT), metric.value) for seed in seeds]
        baseline = None
        if metric.baseline is not None:
            cell = None if metric.baseline[0] == "noop" else Cell(seeds[0], metric.mode)
            baseline = _number(place, cell, metric.baseline)
        rows.append(compare_row(metric, single, joint, baseline))
    return tuple(rows)


def _number(place: Place, cell: Cell | None, value: Value) -> float:
    what, path = value
    file = place.report(cell, what)
    found: Any = json.loads(file.read_text())
    for key in path:
        found = found[key]
    if found is None:
        raise RunError(f"{file} holds no {'.'.join(path)}", fix="more held_out episodes")
    return float(found)


def markdown(table: Table) -> str:
    """The table as a page."""
    out = [f"# {table.title}", "", *(f"- {note}" for note in table.notes), ""]
    out += ["| score | better | baseline | single-mode | joint | joint − single | verdict |"]
    out += ["|---|---|---|---|---|---|---|"]
    for row in table.rows:
        cells = [
            row.metric.title,
            row.metric.better,
            _baseline(row),
            _shown(row.metric, row.single),
            _shown(row.metric, row.joint),
            _shown(row.metric, row.difference, signed=True),
            row.verdict,
        ]
        out.append(f"| {' | '.join(cells)} |")
    out += ["", "| checkpoint | steps | samples fd / id / policy | training, min | scoring, min |"]
    out += ["|---|---|---|---|---|"]
    for cost in table.costs:
        samples = " / ".join(f"{cost.samples.get(mode, 0):.0f}" for mode in ("fd", "id", "policy"))
        out.append(
            f"| {cost.kind} | {cost.steps} | {samples} | {cost.train_min:.1f} | {cost.score_min:.1f} |"
        )
    once = ", ".join(f"{name} {minutes:.1f}" for name, minutes in table.shared_min.items())
    out += ["", f"Minutes spent once for all: {once}."]
    return "\n".join(out) + "\n"


def write_table(table: Table, out: Path) -> tuple[Path, Path]:
    """OUT/table.md and OUT/table.json."""
    from wamserve.sim_eval.score_text import plain

    page, data = out / "table.md", out / "table.json"
    page.write_text(markdown(table), encoding="utf-8")
    rows = [plain(row) | {"verdict": row.verdict} for row in table.rows]
    data.write_text(json.dumps(plain(table) | {"rows": rows}, indent=1, allow_nan=False) + "\n")
    return page, data


def _shown(metric: Metric, interval: Interval, signed: bool = False) -> str:
    """'25.31 [24.90, 25.72]'"""
    form = f"{'+' if signed else ''}.{metric.digits}f"
    mean, low, high = (metric.scale * v for v in (interval.estimate, interval.low, interval.high))
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def _baseline(row: Row) -> str:
    if row.baseline is None:
        return ""
    return f"{row.metric.baseline_title} {row.metric.scale * row.baseline:.{row.metric.digits}f}"

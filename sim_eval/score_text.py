"""Scores as words to print and as strict JSON to keep."""

from __future__ import annotations

import json
import math
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wamserve.sim_eval.score import RunScore


def save_scores(path: Path, score: RunScore) -> None:
    """Writes scores as strict JSON: no NaN, infinite decibels as the string "inf"."""
    path.write_text(json.dumps(plain(score), indent=1, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """A noun as JSON types. NaN becomes null and infinities the strings "inf" and "-inf"."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(inner) for inner in value]
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return number if math.isfinite(number) else None if math.isnan(number) else str(number)
    if isinstance(value, np.integer):
        return int(value)
    return value


def summary(score: RunScore) -> list[str]:
    """The scores in words, ready to print."""
    partial = "" if score.episodes >= score.planned else f", unfinished: {score.planned} planned"
    out = [f"{score.policy}: success {score.success.percent()} ({score.success.method}), "
           f"{score.successes}/{score.episodes}{partial}"]  # fmt: skip
    if score.suite is not None:
        out.append(f"  mean over tasks {score.suite.percent()} ({score.suite.method})")
    if len(score.tasks) > 1:
        width = max(len(task.task) for task in score.tasks)
        out += [
            f"  {task.task:<{width}}  {task.success.percent()}  {task.successes}/{task.episodes}"
            for task in score.tasks
        ]
    if score.coverage is not None:
        out.append(
            f"  partial credit: {100 * score.coverage.final_mean:.1f} % at the end, "
            f"{100 * score.coverage.max_mean:.1f} % at its best, over {score.coverage.starts} starts"
        )
    if score.consistency is not None:
        views = ", ".join(f"{name} {db:.2f}" for name, db in score.consistency.psnr_db_by_view.items())
        out.append(
            f"  imagined vs executed: PSNR {score.consistency.psnr_db:.2f} dB over "
            f"{score.consistency.frames} frames ({views}; {score.consistency_frames})"
        )
    if score.consistency_frozen is not None:
        out.append(f"  a frozen picture would score {score.consistency_frozen.psnr_db:.2f} dB")
    if score.latency is not None:
        late = score.latency
        out.append(
            f"  latency, median / p95 ms: charged {late.charged_ms[0]:.0f} / {late.charged_ms[1]:.0f}, "
            f"client {late.wall_ms[0]:.0f} / {late.wall_ms[1]:.0f}, "
            f"engine {late.infer_ms[0]:.0f} / {late.infer_ms[1]:.0f}; {late.forwards_mean:.1f} forwards"
        )
    return out

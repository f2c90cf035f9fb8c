"""The curve of a training run: kept as rows beside the weights it led to, and drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from wamserve.sim_eval import svg

ROWS, PICTURE = "training.jsonl", "training.svg"
WIDTH, HEIGHT = 640, 150
STYLE = (
    "svg{font:11px sans-serif;background:#fff}.grid{stroke:#ddd}text{fill:#444}"
    ".line{fill:none;stroke-width:2}.executed{stroke:#1769aa}.faint{stroke:#bbb;stroke-width:1}"
)


def keep_curve(rows: Path, folder: Path) -> None:
    """Copies a run's curve.jsonl to `folder` and draws it there."""
    shutil.copy(rows, folder / ROWS)
    (folder / PICTURE).write_text(draw([json.loads(line) for line in rows.read_text().splitlines()]))


def forget_after(step: int, rows: Path) -> None:
    """Drops what a run wrote after the state from which it goes on: it is about to write that again."""
    if rows.exists():
        lines = [line for line in rows.read_text().splitlines() if json.loads(line)["step"] <= step]
        rows.write_text("".join(f"{line}\n" for line in lines))


def draw(rows: list[dict[str, float | str]]) -> str:
    """Velocity errors by step as SVG: single training batches in grey, validation with averaged weights."""
    charts = []
    for place, part in enumerate(("action", "video")):
        series = []
        kinds = dict.fromkeys((str(row["stream"]), str(row.get("data", ""))) for row in rows)
        for stream, data in sorted(kinds):  # first frames have no video to be wrong about: 0 is left out
            style = "faint" if stream == "train" else "executed"
            same = (row for row in rows if (row["stream"], row.get("data", "")) == (stream, data))
            chosen = [row for row in same if 0 < float(row[part]) < np.inf]
            steps = [float(row["step"]) for row in chosen]
            logs = [float(np.log10(max(float(row[part]), 1e-9))) for row in chosen]
            series.append(svg.Series(f"{stream} {data}".strip(), steps, logs, style))
        chart = svg.lines(
            series, WIDTH, HEIGHT, x_label="step", y_label=f"{part}: log10 of the squared velocity error"
        )
        charts.append(
            chart.replace("<svg ", f'<svg y="{place * HEIGHT}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {2 * HEIGHT}" width="{WIDTH}">'
        f"<style>{STYLE}</style>{''.join(charts)}</svg>\n"
    )

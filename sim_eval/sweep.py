"""The success-latency surface: one run for every replan horizon and every charged latency."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from wamserve.sim_eval.clock import Latency
from wamserve.sim_eval.evaluate import Outcome, Plan
from wamserve.sim_eval.progress import evaluate_with_bar


def run_sweep(plan: Plan, run: Path | None, horizons: Sequence[int], latencies: Sequence[float]) -> int:
    """Every cell is a run of its own under RUN/h<steps>-l<ms>, resumed like any other.

    RUN/surface.json: {"target", "policy", "cells": [{"horizon", "latency_ms", "successes", "episodes",
    "low", "high", "run"}]}.
    """
    console = Console(highlight=False)
    slug = plan.policy.replace("/", "-").replace(":", "-")
    run = run or Path("runs") / f"{plan.target.replace('/', '-')}-{slug}-surface"
    console.print(
        f"wam eval: {plan.target} by {plan.policy},"
        f" horizons {list(horizons)} x latencies {list(latencies)} ms, {plan.episodes} episodes a cell",
        soft_wrap=True,
    )
    cells: dict[tuple[int, float], Outcome] = {}
    for horizon in horizons:
        for latency in latencies:
            cell = replace(plan, horizon=horizon, latency=Latency(latency))
            cells[horizon, latency] = evaluate_with_bar(cell, run / f"h{horizon}-l{latency:g}", console)
    surface = {
        "target": plan.target,
        "policy": plan.policy,
        "cells": [
            {
                "horizon": horizon,
                "latency_ms": latency,
                "successes": outcome.successes,
                "episodes": outcome.episodes,
                "low": outcome.interval.low,
                "high": outcome.interval.high,
                "run": outcome.run.name,
            }
            for (horizon, latency), outcome in cells.items()
        ],
    }
    (run / "surface.json").write_text(json.dumps(surface, indent=2))
    table = Table("horizon \\ latency ms", *(f"{latency:g}" for latency in latencies))
    for horizon in horizons:
        table.add_row(
            str(horizon),
            *(
                f"{100 * cells[horizon, ms].successes / cells[horizon, ms].episodes:.0f} %"
                for ms in latencies
            ),
        )
    console.print(table)
    console.print(f"surface: {run / 'surface.json'}", soft_wrap=True)
    return 0

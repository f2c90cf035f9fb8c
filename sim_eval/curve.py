"""The curve over iterations: one run for every checkpoint of a list, and the index page over them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from wamserve.action_codec.errors import TaskError
from wamserve.sim_eval.evaluate import Outcome, Plan
from wamserve.sim_eval.index import split_iteration
from wamserve.sim_eval.progress import evaluate_with_bar
from wamserve.sim_eval.results_cli import view


def folder_names(policies: Sequence[str]) -> list[str]:
    """One folder name per policy, from the end of what was typed; TaskError where two would share one."""
    names = [re.sub(r"[^A-Za-z0-9.]+", "-", policy).strip("-")[-80:] for policy in policies]
    twice = sorted({policy for policy, name in zip(policies, names, strict=True) if names.count(name) > 1})
    if twice:
        raise TaskError("every policy of a curve has a folder of its own", seen=", ".join(twice))
    return names


def run_curve(plan: Plan, run: Path | None, policies: Sequence[str]) -> int:
    """Scores `policies` one after another under one protocol; every run resumes like any other.

    RUN/POLICY are the run directories, each with its report; RUN/index.html is the page over them.
    """
    names = folder_names(policies)
    console = Console(highlight=False)
    family = re.sub(r"[^A-Za-z0-9]+", "-", split_iteration(policies[0])[0]).strip("-")
    run = run or Path("runs") / f"{plan.target.replace('/', '-')}-{family[:80]}-curve"
    console.print(
        f"wam eval: {plan.target}, {plan.episodes} episodes a task by each of {len(policies)} policies,"
        f" latency {plan.latency} ms, horizon {plan.horizon or 'chunk'}, seed {plan.seed}",
        soft_wrap=True,
    )
    outcomes: list[Outcome] = []
    for policy, name in zip(policies, names, strict=True):
        console.print(policy, soft_wrap=True, markup=False)
        outcomes.append(evaluate_with_bar(replace(plan, policy=policy), run / name, console))
    # Pictures of the report are those the policy saw: no simulator has to render every step again.
    view(tuple(run / name for name in names), frames="seen")
    table = Table("policy", "iteration", "success", "95 % Wilson")
    for policy, outcome in zip(policies, outcomes, strict=True):
        iteration, interval = split_iteration(policy)[1], outcome.interval
        table.add_row(
            policy,
            "-" if iteration is None else str(iteration),
            f"{outcome.successes}/{outcome.episodes} = {100 * interval.estimate:.1f} %",
            f"{100 * interval.low:.1f} .. {100 * interval.high:.1f}",
        )
    console.print(table)
    return 0

"""What a person sees while a run goes on: the first line says what will run, the last where it lies."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wamserve.sim_eval.evaluate import Outcome, Plan, evaluate
from wamserve.sim_eval.statistics import wilson


def headline(outcome: Outcome) -> str:
    interval = outcome.interval
    return (
        f"success {outcome.successes}/{outcome.episodes} = {100 * outcome.successes / outcome.episodes:.1f} %"
        f" (95 % Wilson {100 * interval.low:.1f} .. {100 * interval.high:.1f})"
    )


def run_with_progress(plan: Plan, run: Path | None) -> int:
    """Evaluates with a bar; 0 when the run is finished."""
    console = Console(highlight=False)
    console.print(
        f"wam eval: {plan.target}, {plan.episodes} episodes a task by {plan.policy},"
        f" latency {plan.latency} ms, horizon {plan.horizon or 'chunk'}, strategy {plan.strategy},"
        f" seed {plan.seed}, {plan.workers or 'no'} workers, render {plan.profile or 'as learned'}",
        soft_wrap=True,
    )
    outcome = evaluate_with_bar(plan, run, console)
    console.print(headline(outcome), soft_wrap=True)
    console.print(f"run: {outcome.run}", soft_wrap=True)
    return 0


def evaluate_with_bar(plan: Plan, run: Path | None, console: Console) -> Outcome:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[score]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        line = bar.add_task("episodes", total=None, score="")

        def watch(finished: int, planned: int, successes: int) -> None:
            interval = wilson(successes, finished)
            score = (
                f"{100 * successes / finished:.0f} % [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"
            )
            bar.update(line, completed=finished, total=planned, score=score)

        return evaluate(plan, run, watch=watch)

"""The verbs of this room's simulators: `wam eval`, `wam check task`, `wam ls instructions`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from wamserve.clients.player import Strategy
from wamserve.sim_eval.clock import Latency


def eval_verb(
    target: Annotated[str, tyro.conf.Positional],
    policy: tuple[str, ...],
    episodes: int = 50,
    repeats: int = 1,
    first_init: int = 0,
    workers: int = 2,
    seed: int = 0,
    latency: str = "0",
    replan_horizon: int | None = None,
    strategy: Strategy = "switch",
    contract: str | None = None,
    render: Literal["full", "fast"] | None = None,
    deterministic: bool = False,
    video: bool = False,
    max_steps: int | None = None,
    instruction: str | None = None,
    python: str | None = None,
    executor: Literal["local", "ray"] = "local",
    run: Path | None = None,
    sweep: bool = False,
    sweep_horizons: tuple[int, ...] = (4, 8, 16),
    sweep_latencies: tuple[float, ...] = (0.0, 100.0, 300.0, 600.0),
) -> int:
    """Score a policy on SUITE or SUITE/TASK by rolling it out.

    The same command resumes a run that was cut short; a finished run is left as it is.
    Several policies, such as the checkpoints of one training, are scored one after another under one
    protocol: RUN/POLICY for each, RUN/index.html with the curve over iterations.

    Args:
        target: robosuite, two_cubes, pusht, libero_spatial ..., gym/ENV_ID, or one task: robosuite/Lift.
        policy: oracle, noop, ws://host:port, module:function, or a checkpoint folder or Hub id; or several.
        episodes: per task, all repeats counted.
        repeats: rollouts of every initial state, with different policy seeds.
        first_init: index of the first initial state.
        workers: simulator processes; 0 runs in this one.
        latency: "measured", or milliseconds charged per answer on the virtual clock.
        replan_horizon: control steps between two questions; default: the whole chunk.
        strategy: how the player switches from chunk to chunk.
        contract: which of the suite's contracts; default: its first.
        render: "fast" leaves out shadows and antialiasing: other pixels, recorded in the protocol card;
            default: what the policy's card says it learned from, else "full".
        deterministic: identical results whatever the number of workers.
        video: also ask for the imagined video and record it.
        max_steps: policy steps until an episode counts as failed; default: the suite's own.
        instruction: what the policy is told instead of the task's own words; success stays the task's.
            "lift the green cube" on two_cubes/red shows whether it listens.
        python: interpreter of the workers, such as one made by `wam sims install libero --physics 1.4.0`.
        executor: "ray" runs the same episodes on a Ray cluster.
        run: run directory, or that of all runs; default: one named after what is asked, under runs/.
        sweep: score every cell of sweep_horizons x sweep_latencies: the success-latency surface.
    """
    from wamserve.action_codec.errors import TaskError
    from wamserve.sim_eval.curve import run_curve
    from wamserve.sim_eval.evaluate import Plan
    from wamserve.sim_eval.progress import run_with_progress
    from wamserve.sim_eval.sweep import run_sweep

    if sweep and len(policy) > 1:
        raise TaskError("a surface is of one policy", seen=", ".join(policy), fix="one command for each")
    plan = Plan(
        target=target,
        policy=policy[0],
        episodes=episodes,
        repeats=repeats,
        first_init=first_init,
        workers=workers,
        seed=seed,
        latency=Latency.parse(latency),
        horizon=replan_horizon,
        strategy=strategy,
        contract=contract,
        profile=render,
        deterministic=deterministic,
        video=video,
        executor=executor,
        max_steps=max_steps,
        instruction=instruction,
        python=str(Path(python).absolute()) if python else sys.executable,
    )
    try:
        if sweep:
            return run_sweep(plan, run, sweep_horizons, sweep_latencies)
        if len(policy) > 1:
            return run_curve(plan, run, policy)
        return run_with_progress(plan, run)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes")
        return 130


def check_task_verb(
    names: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    contract: str | None = None,
    episodes: int = 4,
    seed: int = 0,
) -> int:
    """Check simulator tasks: declared conventions, determinism, an oracle that succeeds, mistakes that show.

    Args:
        names: tasks or whole suites, such as robosuite/Lift, pusht or libero_object/3.
        contract: which of the suite's contracts; default: its first.
        episodes: for every rate that is measured.
        seed: of initial states.
    """
    from rich.console import Console

    from wamserve.action_codec.errors import TaskError
    from wamserve.sim_eval import catalog
    from wamserve.sim_eval.check_task import check_task

    if not names:
        raise TaskError("no task was named", expected=", ".join(catalog.SUITES), fix="wam check task pusht")
    console = Console(highlight=False)
    tasks = [task for name in names for task in catalog.task_names(name)]
    console.print(f"wam check task: {', '.join(tasks)}, {episodes} episodes a check", soft_wrap=True)
    failed = 0
    for task in tasks:
        console.print(task)
        for finding in check_task(task, contract, episodes, seed):
            mark = {True: "pass", False: "FAIL", None: "n/a "}[finding.passed]
            console.print(f"  {mark}  {finding.name}: {finding.detail}", soft_wrap=True, markup=False)
            failed += finding.passed is False
    console.print(f"{failed} checks failed" if failed else "every check passed")
    return 1 if failed else 0


def ls_instructions(target: Annotated[str, tyro.conf.Positional], /) -> None:
    """Print what a policy is told in the tasks of a suite, one sentence a line.

    Args:
        target: a suite, or one task: libero_spatial, robosuite/Lift.
    """
    from wamserve.sim_eval import catalog

    with contextlib.redirect_stdout(sys.stderr):  # simulators greet whoever imports them
        found = catalog.instructions(target)
    print("\n".join(found))

"""What a rollout costs: worker scaling, overhead per step, rendering share, asking in batches or singly.

Every comparison is made inside this one run, interleaved, and reported as a ratio:

    python benchmarks/rollouts.py [--episodes 6] [--rounds 3] [--out rollouts.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from wamserve.clients.policy import Prediction, Request
from wamserve.embodiments.contract import load
from wamserve.sim_eval import catalog, seeds
from wamserve.sim_eval.oracles.policy import oracle_for
from wamserve.sim_eval.policies import NoopPolicy
from wamserve.sim_eval.rollout import Loop
from wamserve.sim_eval.task import Episode, WorkItem
from wamserve.sim_eval.worker import MakeTask
from wamserve.sim_eval.workers import Crew, Here

TASK = "robosuite/Lift"


class Heavy(NoopPolicy):
    """Costs like a network on an accelerator: a fixed time per call, little more per row of the batch.

    The time is slept, not computed: it stands for a device that works beside these cores.
    """

    CALL_S, ROW_S = 0.040, 0.002

    def infer(self, request: Request) -> Prediction:
        return self.infer_batch([request])[0]

    def infer_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        time.sleep(self.CALL_S + self.ROW_S * len(requests))
        return [NoopPolicy.infer(self, request) for request in requests]


def items(count: int) -> list[WorkItem]:
    return [WorkItem(TASK, i, 0, i, seeds.init_seed(0, TASK, i)) for i in range(count)]


def timed(run: Callable[[], list[Episode]]) -> tuple[float, list[Episode]]:
    start = time.perf_counter()
    episodes = run()
    return time.perf_counter() - start, episodes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=40)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    make, work = MakeTask("panda_joint", "full", options.max_steps), items(options.episodes)
    contract = load("panda_joint")
    noop, heavy = NoopPolicy(contract), Heavy(contract)
    blind, seeing = Loop(8, images=False), Loop(8, images=True)
    eager = Loop(1, images=False)  # asked at every step: what batching is for

    print(
        f"{TASK}, {options.episodes} episodes of {options.max_steps} steps, {options.rounds} rounds",
        flush=True,
    )
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    task = catalog.make(TASK, contract, "full")
    with (
        closing(Here(make)) as here,
        closing(Crew(make, 1)) as one,
        closing(Crew(make, 2)) as two,
        closing(Crew(make, 4)) as four,
    ):
        for bench in (one, two, four):  # processes up, simulators made, caches warm
            list(bench.run(noop, seeing, items(4)))
        list(here.run(noop, seeing, items(1)))
        for _ in range(options.rounds):
            task.reset(0, 0)
            start = time.perf_counter()
            for _ in range(options.max_steps):
                task.step(task.hold())
            bare = (time.perf_counter() - start) / options.max_steps
            seconds, episodes = timed(lambda: list(here.run(noop, blind, work)))
            steps = sum(episode.steps for episode in episodes)
            note(
                "loop overhead per control step, ms (everything but physics)",
                1e3 * (seconds - sum(e.sim_s for e in episodes)) / steps,
            )
            note("loop time / bare physics time, no pictures", seconds / steps / bare)
            _, episodes = timed(lambda: list(here.run(noop, seeing, work)))
            note(
                "rendering share of an episode, asked every 8 steps, full profile",
                sum(e.render_s for e in episodes) / sum(e.wall_s for e in episodes),
            )
            base, _ = timed(lambda: list(one.run(noop, seeing, work)))
            for name, crew in (("2", two), ("4", four)):
                seconds, _ = timed(lambda crew=crew: list(crew.run(noop, seeing, work)))
                note(f"speed of {name} workers / 1 worker", base / seconds)
            apart, _ = timed(lambda: list(four.run(heavy, eager, work, one_by_one=True)))
            together, _ = timed(lambda: list(four.run(heavy, eager, work)))
            note("speed of 4 environments batched / one by one, 40 ms policy", apart / together)
    task.close()
    oracle = oracle_for(TASK, contract)
    with closing(Here(make)) as here:
        seconds, episodes = timed(
            lambda: list(here.run(oracle, Loop(8, privileged=True, images=False), work))
        )
    solved = sum(episode.success for episode in episodes)
    print(f"oracle: {solved}/{len(episodes)}, {seconds / len(episodes):.2f} s an episode")
    width = max(map(len, rows))
    for name, values in rows.items():
        print(f"{name:<{width}}  median {statistics.median(values):8.3f}   {np.round(values, 3).tolist()}")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2))
        print(f"figures: {options.out}")


if __name__ == "__main__":
    main()

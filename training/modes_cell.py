"""One checkpoint of the comparison: trained, and scored in every mode that it learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from wamserve.clients.policy import Mode, Policy
from wamserve.embodiments.contract import load
from wamserve.sim_eval.clips import Clip, clips_of
from wamserve.sim_eval.clock import Latency
from wamserve.sim_eval.evaluate import Plan, evaluate
from wamserve.sim_eval.forward_dynamics import score_fd
from wamserve.sim_eval.inverse_dynamics import score_id
from wamserve.sim_eval.open_loop import score_policy
from wamserve.sim_eval.recorded import read_episode
from wamserve.sim_eval.score import score_run
from wamserve.sim_eval.score_text import plain
from wamserve.sim_eval.store import RunStore
from wamserve.training.modes_recipe import CONTRACT, TASK, Cell, ModesRecipe, Place, train_config
from wamserve.training.stages import Log, Stages

CLOSED = "closed"  # name of the closed loop among the scores
SCORES: dict[Mode, tuple[str, ...]] = {"fd": ("fd",), "id": ("id",), "policy": ("policy", CLOSED)}


def stages_of(cell: Cell) -> tuple[str, list[str]]:
    """(the training's stage, the scores' stages)"""
    return f"{cell.name}/train", [f"{cell.name}/{what}" for mode in cell.modes for what in SCORES[mode]]


def make_cell(recipe: ModesRecipe, out: Path, cell: Cell, log: Log) -> None:
    """Trains and scores `cell`, as far as that was not done before."""
    place = Place(out)
    stages = Stages(place.stages, log)
    train_stage, _ = stages_of(cell)
    stages.run(train_stage, lambda tell: _train(recipe, place, cell, tell))
    for state in place.training(cell).glob("state-*.pt"):  # resumes nothing any more, and is large
        state.unlink()
    model = _Lazy(place.checkpoint(cell))
    for mode in cell.modes:
        for what in SCORES[mode]:
            score = partial(_score, recipe, place, cell, what, model)
            stages.run(f"{cell.name}/{what}", score)


def _train(recipe: ModesRecipe, place: Place, cell: Cell, log: Log) -> None:
    from wamserve.training.loop import train

    train(train_config(recipe, place, cell), log)


class _Lazy:
    """A checkpoint that is read when the first score needs it, and not where all were finished before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._policy: Policy | None = None

    def __call__(self) -> Policy:
        from wamserve.policy_server.load import load_policy

        if self._policy is None:
            self._policy = load_policy(self.folder, CONTRACT)
        return self._policy


def _score(
    recipe: ModesRecipe, place: Place, cell: Cell, what: str, model: Callable[[], Policy], log: Log
) -> None:
    report: Any
    if what == CLOSED:
        report = closed_loop(recipe, place.run(cell), str(place.checkpoint(cell)), model(), log)
    else:
        clips = held_out_clips(recipe, place)
        # Every checkpoint gets the same clips and the same noise: what differs is the weights.
        if what == "fd":
            report = score_fd(model(), clips, rollout_chunks=1, tick=log)
        elif what == "id":
            report = score_id(model(), clips, tick=log)
        else:
            report = score_policy(model(), clips, recipe.samples, want_video=False, tick=log)
    keep(place.report(cell, what), report)


def held_out_clips(recipe: ModesRecipe, place: Place) -> list[Clip]:
    """Chunks of the episodes that no training saw."""
    contract = load(CONTRACT)
    episodes = [read_episode(place.held_out, contract, index) for index in range(recipe.held_out)]
    return clips_of(episodes, limit=recipe.clips)


def closed_loop(recipe: ModesRecipe, run: Path, name: str, policy: Policy, log: Log) -> dict[str, Any]:
    """Coverage and success from starts that neither demonstrations nor held-out episodes began with."""
    plan = Plan(
        target=TASK,
        policy=name,
        episodes=recipe.starts,
        repeats=1,
        first_init=recipe.first_start,
        workers=0,
        seed=recipe.record_seed,  # and a start's number decide it: the recordings' seed, other numbers
        latency=Latency(0.0),
        horizon=recipe.replan,
        strategy="switch",
        contract=CONTRACT,
        profile=None,
        deterministic=True,
        video=False,
        max_steps=recipe.max_steps,
    )
    evaluate(plan, run, policy, lambda done, planned, won: log(f"episode {done}/{planned}, {won} succeeded"))
    with RunStore.open(run) as store:
        score = score_run(store)
    return {"coverage": plain(score.coverage), "success": plain(score.success)}


def keep(file: Path, report: Any) -> None:
    """Writes a report whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial_file = file.with_suffix(".partial")
    partial_file.write_text(json.dumps(plain(report), indent=1, allow_nan=False) + "\n")
    partial_file.replace(file)

"""`wam train modes`: one checkpoint per mode against one for all, from the demonstrations to the table."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from wamserve.action_codec.errors import RunError
from wamserve.embodiments.canvas import canvas_fit
from wamserve.embodiments.contract import load
from wamserve.embodiments.prompt import render
from wamserve.policy_server.world_model.config import preset
from wamserve.policy_server.world_model.vae import pixels_from_uint8, uint8_from_pixels
from wamserve.sim_eval.forward_dynamics import pooled_psnr
from wamserve.sim_eval.policies import NoopPolicy
from wamserve.training.loop import samples_by_mode
from wamserve.training.modes_cell import closed_loop, held_out_clips, keep, make_cell, stages_of
from wamserve.training.modes_recipe import (
    CONTRACT,
    JOINT,
    MODES,
    TASK,
    Cell,
    ModesRecipe,
    Place,
    cells_of,
    recipe_table,
    train_config,
)
from wamserve.training.modes_table import Cost, Table, read_rows, write_table
from wamserve.training.prepare import load_vae, prepare
from wamserve.training.prepared import HOLD_OUT
from wamserve.training.record import clips_of_dataset, instructions_of, record_demonstrations, source_episodes
from wamserve.training.small import frame_of, start_small
from wamserve.training.stages import Log, Stages
from wamserve.training.vae import VaeRecipe, train_vae


def compare_modes(recipe: ModesRecipe, out: Path, workers: int, log: Log) -> Table:
    """Does what is missing of the comparison in `out`, and writes its table there.

    `workers` processes of one thread each train and score checkpoints (0: this process does, one after
    another). Killed at any time, the same call goes on from the last saved state of what was running.
    """
    place = Place(out)
    with _alone(recipe, place):
        stages = Stages(place.stages, log)
        _make_ground(recipe, place, stages, workers)
        _make_cells(recipe, place, workers, log)
        table = make_table(recipe, place)
        write_table(table, out)
    return table


def _make_ground(recipe: ModesRecipe, place: Place, stages: Stages, workers: int) -> None:
    """What all checkpoints have in common: episodes, VAE, latents, starts and baselines."""
    contract = load(CONTRACT)

    def record(folder: Path, episodes: int, first: int, push: float | None) -> None:
        stages.run(
            folder.name,
            lambda tell: record_demonstrations(
                TASK, contract, folder, episodes, seed=recipe.record_seed, first=first, push=push, log=tell
            ),
        )

    record(place.demonstrations, recipe.demonstrations, 0, None)
    # Without pushes: an expert asked for them would have given other commands.
    record(place.held_out, recipe.held_out, recipe.first_held_out, 0.0)

    def train_on_demonstrations(folder: Path, vae: VaeRecipe) -> None:
        stages.run(
            folder.name,
            lambda tell: train_vae(vae, [clips_of_dataset(contract, place.demonstrations)], folder, tell),
        )

    train_on_demonstrations(place.encoder, recipe.vae)
    train_on_demonstrations(place.vae, recipe.decoder(place.encoder))
    stages.run(
        "prepared",
        lambda tell: prepare(
            source_episodes(place.demonstrations, contract),
            *(contract, place.vae, place.prepared),
            hop=recipe.hop,
            workers=workers,
            log=tell,
        ),
    )
    for seed in recipe.seeds:
        stages.run(f"seed-{seed}/start", partial(_start, recipe, place, seed))
    stages.run("baselines", partial(_baselines, recipe, place))


def _start(recipe: ModesRecipe, place: Place, seed: int, log: Log) -> None:
    contract = load(CONTRACT)
    fit = canvas_fit(contract.model.canvas)
    config = replace(
        preset("mid-nano"),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        vocab_size=recipe.vocabulary,
    )
    texts = instructions_of(place.demonstrations)
    prompts = [render(contract.model, text, fit=fit) for text in texts]
    start_small(place.start(seed), config, place.vae, prompts, frame_of(contract.model, fit), seed)
    log(f"{len(texts)} sentences, {config.num_hidden_layers} layers of {config.hidden_size}")


def _baselines(recipe: ModesRecipe, place: Place, log: Log) -> None:
    """The VAE's own error, which no forward dynamics can undercut, and a finger that never moves."""
    vae = load_vae(place.vae)
    recorded = [clip.canvas for clip in held_out_clips(recipe, place)]
    decoded = [vae.decode(vae.encode_video(pixels_from_uint8(frames))) for frames in recorded]
    ceiling = pooled_psnr([uint8_from_pixels(pixels)[0] for pixels in decoded], recorded)
    keep(place.report(None, "vae"), {"psnr_db": ceiling, "clips": len(recorded)})
    noop = NoopPolicy(load(CONTRACT))
    keep(place.report(None, "noop"), closed_loop(recipe, place.run(None), "noop", noop, log))


def _make_cells(recipe: ModesRecipe, place: Place, workers: int, log: Log) -> None:
    if not workers:
        for cell in cells_of(recipe):
            make_cell(recipe, place.out, cell, log)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_become_worker)
    jobs = [pool.submit(_make_cell_aloud, recipe, place.out, cell) for cell in cells_of(recipe)]
    try:
        for job in as_completed(jobs):
            job.result()
    except BrokenProcessPool:
        raise RunError(
            "a worker was killed, as when memory runs out", fix="the same command with --workers 1"
        ) from None
    finally:
        # Nobody works in the folder when it is given back to other commands; cells go on from their state.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _make_cell_aloud(recipe: ModesRecipe, out: Path, cell: Cell) -> None:
    make_cell(recipe, out, cell, say)


def say(line: str) -> None:
    print(line, flush=True)


def _become_worker() -> None:
    """One thread; and no life after the command's: two workers must not write to one folder."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise AssertionError("a worker has a parent")

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _alone(recipe: ModesRecipe, place: Place) -> Iterator[None]:
    """Holds the folder for one command and one recipe; RunError where it holds another of either."""
    place.out.mkdir(parents=True, exist_ok=True)
    with (place.out / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process, however it ends
        except BlockingIOError:
            raise RunError(f"another command is at work in {place.out}", fix="another --out") from None
        file, mine = place.out / "recipe.json", json.loads(json.dumps(recipe_table(recipe)))
        if not file.exists():
            keep(file, mine)
        found = json.loads(file.read_text())
        different = [key for key in mine if mine[key] != found.get(key)]
        if different:
            raise RunError(
                f"{place.out} holds a comparison of another recipe",
                seen=", ".join(f"{key} {found.get(key)}" for key in different),
                expected=", ".join(f"{key} {mine[key]}" for key in different),
                fix="another --out, or the recipe that began it",
            )
        yield


def make_table(recipe: ModesRecipe, place: Place) -> Table:
    """The table of a finished comparison, from its files alone."""
    stages = Stages(place.stages, lambda line: None)
    rows = read_rows(place, recipe.seeds)
    vae = json.loads(place.report(None, "vae").read_text())
    count = vae["clips"]
    shared = ("demonstrations", "held_out", "encoder", "vae", "prepared", "baselines")
    return Table(
        title="Single-mode against joint training: PushT at 64 px",
        notes=(
            f"{len(recipe.seeds)} seeds, {', '.join(map(str, recipe.seeds))}; checkpoints of one seed share"
            " their start. Means with 95 % Student t intervals over seeds; the difference is paired by seed."
            " Each row is tested by itself: of twenty that do not differ, one would seem to.",
            f"Equal samples per mode: single-mode {recipe.steps} steps of {recipe.batch} samples, joint"
            f" {recipe.steps_of(JOINT)} steps, where each step's mode is drawn with equal chances.",
            f"{recipe.demonstrations} demonstrations; failures and every {HOLD_OUT}th are not learned from."
            f" FD, ID and open loop: {count} clips of {recipe.held_out} undisturbed episodes that no training"
            f" saw; frame 0 does not count;"
            f" {recipe.dynamics_steps} denoiser steps for dynamics; k = {recipe.samples} sampled chunks.",
            f"Closed loop: {recipe.starts} further starts, {recipe.max_steps} control steps at most, a new"
            f" chunk every {recipe.replan}.",
            f"The VAE alone reproduces those clips at {vae['psnr_db']:.2f} dB, about as far as FD can get.",
        ),
        rows=rows,
        costs=tuple(_cost(recipe, place, stages, kind) for kind in (*MODES, JOINT)),
        shared_min={name: stages.minutes(name) for name in shared}
        | {"starts": stages.minutes(*(f"seed-{seed}/start" for seed in recipe.seeds))},
    )


def _cost(recipe: ModesRecipe, place: Place, stages: Stages, kind: str) -> Cost:
    cells = [Cell(seed, kind) for seed in recipe.seeds]
    counts = [samples_by_mode(train_config(recipe, place, cell)) for cell in cells]
    train = [stages.minutes(stages_of(cell)[0]) for cell in cells]
    score = [stages.minutes(*stages_of(cell)[1]) for cell in cells]
    return Cost(
        kind,
        recipe.steps_of(kind),
        {str(mode): float(np.mean([count[mode] for count in counts])) for mode in counts[0]},
        float(np.mean(train)),
        float(np.mean(score)),
    )

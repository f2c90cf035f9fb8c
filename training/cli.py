"""`wam train`, its `vae`, `start` and `modes`, `wam prepare` and `wam label`: from data to a checkpoint."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tomllib
import tyro

from wamserve.embodiments.canvas import canvas_fit
from wamserve.embodiments.contract import Embodiment, load
from wamserve.embodiments.prompt import render
from wamserve.sim_eval.render import Profile
from wamserve.training.config import build


def train(config: Annotated[Path, tyro.conf.Positional]) -> None:
    """Train or resume what a TOML file describes; under torchrun, on all its ranks.

    Args:
        config: see training/configs/ for the ones behind the shipped checkpoints.
    """
    from wamserve.training.config import load as load_config
    from wamserve.training.loop import train as run

    print(f"checkpoint: {run(load_config(config))}")


def train_vae(
    datasets: Annotated[tuple[str, ...], tyro.conf.Positional], out: Path, recipe: Path | None = None
) -> None:
    """Train a small video VAE on the pictures of data sets.

    Args:
        datasets: LeRobot folders, each as CONTRACT=FOLDER.
        out: folder of the VAE; the same command again resumes.
        recipe: TOML with fields of training.vae.VaeRecipe.
    """
    from wamserve.training.record import clips_of_dataset
    from wamserve.training.vae import VaeRecipe
    from wamserve.training.vae import train_vae as run

    table = _toml(recipe)
    clips = [clips_of_dataset(*_named(name)) for name in datasets]
    frames = sum(len(clip.frames) for clip in clips)
    print(f"wam train vae: {frames} frames of {len(datasets)} data sets -> {out}", flush=True)
    run(build(VaeRecipe, table, str(recipe)), clips, out, lambda line: print(line, flush=True))
    print(f"vae: {out}")


def train_start(
    datasets: Annotated[tuple[str, ...], tyro.conf.Positional],
    out: Path,
    vae: Path,
    hidden: int = 256,
    layers: int = 6,
    intermediate: int = 768,
    vocabulary: int = 640,
    seed: int = 0,
) -> None:
    """Write the untrained checkpoint that `wam train` starts from.

    Args:
        datasets: CONTRACT=FOLDER, whose instructions the tokenizer learns.
        out: folder of the checkpoint.
        vae: folder of `wam train vae`.
    """
    from dataclasses import replace

    from wamserve.policy_server.world_model.config import preset
    from wamserve.training.record import instructions_of
    from wamserve.training.small import frame_of, start_small

    config = replace(
        preset("mid-nano"),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
    )
    prompts: list[str] = []
    frames: list[str] = []
    for name in datasets:
        contract, folder = _named(name)
        fit = canvas_fit(contract.model.canvas)
        prompts += [render(contract.model, text, fit=fit) for text in instructions_of(folder)]
        frames += frame_of(contract.model, fit)
    start_small(out, config, vae, prompts, frames, seed)
    print(f"checkpoint: {out}")


def prepare(
    datasets: Annotated[tuple[str, ...], tyro.conf.Positional],
    out: Path,
    vae: Path,
    hop: int = 2,
    workers: int = 0,
) -> None:
    """Compute the video latents of data sets of one contract once, for every window training may draw.

    Args:
        datasets: LeRobot folders, each as CONTRACT=FOLDER, all of one contract.
        out: folder of the prepared data.
        vae: folder of the VAE that the checkpoint has.
        hop: rows between the starts of windows.
        workers: processes that encode; 0 encodes in this one.
    """
    from wamserve.action_codec.errors import WamError
    from wamserve.training.prepare import prepare as run
    from wamserve.training.record import source_episodes

    sources = [_named(dataset) for dataset in datasets]
    names = sorted({contract.name for contract, _ in sources})
    if len(names) != 1:
        raise WamError("one prepared folder holds one contract", seen=names, fix="wam prepare once for each")
    contract = sources[0][0]
    meta = run(
        itertools.chain.from_iterable(source_episodes(folder, contract) for _, folder in sources),
        contract,
        vae,
        out,
        hop=hop,
        workers=workers,
        log=lambda line: print(line, flush=True),
    )
    print(f"{meta.windows} windows: {out}")


def label(
    tasks: Annotated[tuple[str, ...], tyro.conf.Positional],
    out: Path,
    vae: Path,
    scenes: int = 1000,
    moments: int = 3,
    every: int = 8,
    askew: float | None = None,
    policy: Path | None = None,
    seed: int = 11,
    profile: Profile = "fast",
    contract: str | None = None,
    workers: int = 0,
) -> None:
    """Ask the oracle what to do in many scenes and prepare its answers: a policy learns to look from them.

    Args:
        tasks: tasks of one contract that have an oracle, e.g. robosuite/Lift two_cubes/red.
        out: folder of the prepared data, of first frames only.
        vae: folder of the VAE that the checkpoint has.
        scenes: initial states of each task.
        moments: how often the oracle is asked in a scene.
        every: control steps between two moments; best the replan horizon that the policy will have.
        askew: deviation of what the oracle does in between from its own plan, in units of the rows (rad, px);
            default: that of a recorder's push.
        policy: checkpoint that acts in between instead, to show its own mistakes.
        seed: of initial states and of what happens in them; not that of demonstrations or evaluations.
        profile: render profile; a policy should be scored under the one it learned from.
        contract: which of the suites' contracts; default: their first.
        workers: processes; 0 works in this one.
    """
    from wamserve.action_codec.errors import ContractError
    from wamserve.sim_eval import catalog
    from wamserve.training.label import Scene, Visits
    from wamserve.training.label import label as run

    tasks = tuple(name for task in tasks for name in catalog.task_names(task))
    found = [catalog.contract_of(task, contract) for task in tasks]
    names = sorted({each.name if each is not None else "none" for each in found})
    if len(names) != 1 or names == ["none"]:
        raise ContractError(
            "one prepared folder holds one contract", seen=names, fix="wam label once for each"
        )
    places = [Scene(task, names[0], profile, vae, policy) for task in tasks]
    visits = Visits(seed, moments, every, askew)
    meta = run(places, scenes, out, visits, workers, lambda line: print(line, flush=True))
    print(f"{meta.windows} moments: {out}")


def train_modes(
    out: Path = Path("runs/modes"), recipe: Path | None = None, quick: bool = False, workers: int = 2
) -> None:
    """Train and score forward dynamics, inverse dynamics and policy apart and jointly, on PushT at 64 px.

    Prints single-mode beside joint checkpoints with intervals over seeds. The same command again resumes.

    Args:
        out: folder of everything that is made; the table is table.md and table.json in it.
        recipe: TOML with fields of training.modes_recipe.ModesRecipe, in place of its defaults.
        quick: sizes of minutes, whose numbers mean nothing: to see that every stage works.
        workers: checkpoints at work at a time, a core each; 0: one after another, on all cores.
    """
    from wamserve.action_codec.errors import WamError
    from wamserve.training.modes import compare_modes, say
    from wamserve.training.modes_recipe import QUICK, ModesRecipe, cells_of
    from wamserve.training.modes_table import markdown

    if quick and recipe is not None:
        raise WamError("quick is a recipe of its own", seen=recipe, fix="--quick or --recipe")
    table = _toml(recipe)
    if isinstance(table.get("vae"), dict):
        table["vae"] = asdict(ModesRecipe().vae) | table["vae"]
    sizes = QUICK if quick else build(ModesRecipe, table, str(recipe))
    say(f"wam train modes: {len(cells_of(sizes))} checkpoints, {workers} at a time, into {out}")
    print(markdown(compare_modes(sizes, out, workers, say)))
    print(f"table: {out / 'table.md'}")


def _toml(recipe: Path | None) -> dict[str, Any]:
    from wamserve.action_codec.errors import WamError

    if recipe is None:
        return {}
    try:
        return tomllib.loads(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WamError(f"no recipe can be read from {recipe}", seen=str(error)) from None


def _named(dataset: str) -> tuple[Embodiment, Path]:
    from wamserve.action_codec.errors import WamError

    contract, equals, folder = dataset.partition("=")
    if not equals or not Path(folder).is_dir():
        raise WamError(
            "not a data set", seen=dataset, expected="CONTRACT=FOLDER, e.g. panda_joint=data/panda"
        )
    return load(contract), Path(folder)

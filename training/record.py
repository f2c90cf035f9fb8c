"""`wam record`: scripted demonstrations of simulator tasks as a LeRobot v3 data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from wamserve.action_codec.errors import ContractError, WamError
from wamserve.embodiments.canvas import fit_frame
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval.lerobot import DatasetWriter
from wamserve.sim_eval.recorded import read_episode
from wamserve.sim_eval.render import Profile
from wamserve.training.columns import columns_from_rows
from wamserve.training.demonstrate import Demonstration, demonstrate, disturbance_for
from wamserve.training.language import paraphrase
from wamserve.training.prepare import SourceEpisode
from wamserve.training.vae import Clips

DISTURBED = "disturbed"  # column: the command is a push, not the oracle's wish


def record(
    task: Annotated[str, tyro.conf.Positional],
    out: Path,
    episodes: int = 100,
    seed: int = 1,
    first: int = 0,
    push: float | None = None,
    profile: Profile = "fast",
    contract: str | None = None,
) -> None:
    """Record an oracle's demonstrations. The same command again goes on where it stopped.

    Args:
        task: a task with an oracle, e.g. robosuite/Lift.
        out: folder of the data set; several tasks of one robot may share it, one after the other.
        episodes: how many of this task.
        seed: of initial states and pushes.
        first: initial state of the first episode.
        push: share of episodes in which the robot is pushed off its path and recovers, if not its usual one.
        profile: render profile; a policy should be scored under the one it learned from.
        contract: which of the suite's contracts; default: its first.
    """
    from wamserve.sim_eval import catalog

    embodiment = catalog.contract_of(task, contract)
    if embodiment is None:
        raise ContractError(f"{task} has no contract to record under")
    record_demonstrations(
        task, embodiment, out, episodes, seed=seed, first=first, push=push, profile=profile,
        log=lambda line: print(line, flush=True),
    )  # fmt: skip
    print(f"data set: {out}")


def record_demonstrations(
    task: str,
    contract: Embodiment,
    out: Path,
    episodes: int,
    *,
    seed: int,
    first: int = 0,
    push: float | None = None,
    profile: Profile = "fast",
    log: Callable[[str], None] = print,
) -> None:
    """What is missing of `episodes` demonstrations of a task, behind those that `out` already has."""
    from wamserve.sim_eval import catalog
    from wamserve.sim_eval.oracles.policy import oracle_for

    scene = catalog.make(task, contract, profile)
    oracle = oracle_for(task, contract)
    writer = DatasetWriter(out, contract.wire.rate_hz, contract.wire.robot)
    done = sum(1 for row in writer.episodes if row["source_task"] == task)
    log(f"wam record: {task}, episodes {done}..{episodes - 1}, seed {seed}, {profile} render, into {out}")
    for number in range(done, episodes):
        demo = demonstrate(
            scene,
            oracle,
            contract,
            instruction=paraphrase(scene.spec.instruction, seed, number),
            init=first + number,
            seed=seed,
            disturbance=disturbance_for(contract, push),
        )
        add_demonstration(writer, contract, demo, first + number, profile)
        log(f"episode {number}: {len(demo)} steps, {'success' if demo.success else 'failure'}")
    scene.close()
    won = sum(bool(row["success"]) for row in writer.episodes if row["source_task"] == task)
    log(f"{won}/{episodes} succeeded")


def add_demonstration(
    writer: DatasetWriter, contract: Embodiment, demo: Demonstration, init: int, profile: str
) -> None:
    writer.add(
        {**columns_from_rows(contract, demo.actions, demo.states), DISTURBED: demo.disturbed},
        {
            key: demo.images[view]
            for view, key in zip(contract.model.canvas.views, contract.model.canvas.videos, strict=True)
        },
        demo.instruction,
        success=demo.success,
        source_task=demo.task,
        init=init,
        seed=demo.seed,
        render_profile=profile,
        wire_hash=contract.wire_hash,
    )


def source_episodes(folder: Path, contract: Embodiment) -> Iterator[SourceEpisode]:
    """Successful episodes of a LeRobot folder, for preparing and for training the VAE."""
    import pyarrow.parquet as pq

    files = sorted((folder / "meta" / "episodes").rglob("*.parquet"))
    if not files:
        raise WamError(f"{folder} has no meta/episodes", fix="wam record --help")
    for row in (row for file in files for row in pq.read_table(file).to_pylist()):
        if not row.get("success", True):
            continue
        episode = read_episode(folder, contract, row["episode_index"])
        disturbed = np.asarray(episode.columns.get(DISTURBED, np.zeros(len(episode.frames)))) > 0.5
        columns = {name: values for name, values in episode.columns.items() if name != DISTURBED}
        profile = str(row.get("render_profile") or "")
        yield SourceEpisode(columns, episode.frames, episode.instruction, disturbed.reshape(-1), profile)


def instructions_of(folder: Path) -> list[str]:
    """Every sentence that a LeRobot folder's robot was told."""
    import pyarrow.parquet as pq

    return [str(text) for text in pq.read_table(folder / "meta" / "tasks.parquet")["task"].to_pylist()]


def clips_of_dataset(contract: Embodiment, folder: Path) -> Clips:
    """A LeRobot folder's pictures as the VAE learns from them."""
    frames = [
        fit_frame(episode.canvas, contract.model.canvas.tier).pixels
        for episode in source_episodes(folder, contract)
    ]
    lengths = np.array([len(frame) for frame in frames])
    return Clips(np.concatenate(frames), np.cumsum(lengths) - lengths, lengths)

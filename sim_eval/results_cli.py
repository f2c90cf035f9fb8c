"""The verbs on recordings: `wam score`, `score episodes`, `compare`, `view`, `export`, `import robolab`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from wamserve.sim_eval.reopened import FrameSource, contract_of, opener

if TYPE_CHECKING:
    from wamserve.clients.policy import Policy
    from wamserve.embodiments.contract import Embodiment
    from wamserve.sim_eval.score import RunScore
    from wamserve.sim_eval.store import RunStore


def score(
    run: Annotated[Path, tyro.conf.Positional],
    frames: FrameSource = "rendered",
    verify: bool = False,
    python: str | None = None,
) -> int:
    """Compute every score of RUN again from its recordings, and write RUN/scores.json.

    Args:
        run: run directory.
        frames: rendered: executed frames from the recorded simulator states, every control step.
            seen: only what the policy saw at its queries; needs no simulator.
        verify: also judge success again from the last recorded state of every episode.
        python: interpreter of the simulators, where `wam eval --python` recorded under another.
    """
    from wamserve.sim_eval.score_text import save_scores, summary
    from wamserve.sim_eval.store import RunStore

    with RunStore.open(run) as store:
        print(f"scoring {run}: {store.info.protocol.suite}, {store.info.status}")
        result = score_store(store, frames, verify, python)
    save_scores(run / "scores.json", result)
    print("\n".join(summary(result)))
    print(f"scores: {run / 'scores.json'}")
    return 0


def score_episodes(
    path: Annotated[Path, tyro.conf.Positional],
    policy: str,
    contract: str,
    modes: tuple[Literal["fd", "id", "policy"], ...] = ("fd", "id"),
    episodes: tuple[int, ...] = (),
    rows: int | None = None,
    hop: int | None = None,
    clips: int | None = None,
    samples: int = 4,
    rollout_chunks: int = 3,
    seed: int = 0,
    out: Path | None = None,
    page: Path | None = None,
) -> int:
    """Score forward and inverse dynamics of a model on the recorded episodes of a LeRobot folder.

    Every score is printed beside the same score of a model that copies frame 0, stays, or averages.

    Args:
        path: LeRobot data set (v2 or v3); `wam export RUN` makes one of a simulator run.
        policy: identity, ws://host:port, module:function, or a checkpoint folder or Hub id.
        contract: embodiment of the data set; its rate, columns and cameras are checked.
        modes: fd: actions to video. id: video to actions. policy: open-loop actions, best of `samples`.
        episodes: episode numbers; default: the first.
        rows: read only so many action rows of each episode.
        hop: rows between the starts of two clips; default: one chunk, so that none overlap.
        clips: score at most this many, spread evenly.
        rollout_chunks: chunks of the autoregressive rollout.
        out: also write the report there as JSON.
        page: also write it there as one self-contained HTML page, predicted beside recorded video.
    """
    from wamserve.embodiments.contract import load
    from wamserve.sim_eval.dynamics_page import Gallery, dynamics_page
    from wamserve.sim_eval.episodes_report import lines
    from wamserve.sim_eval.episodes_report import score_episodes as run_score
    from wamserve.sim_eval.recorded import read_episode
    from wamserve.sim_eval.score_text import plain

    embodiment = load(contract)
    recorded = [read_episode(path, embodiment, index, rows) for index in (episodes or (None,))]
    print(f"scoring {policy} on {path}: {', '.join(modes)} as {contract}")
    gallery = Gallery()
    report = run_score(
        *(dynamics_model(policy, embodiment), policy, recorded, modes, hop, clips),
        *(samples, rollout_chunks, seed),
        tick=lambda what: print(f"  {what:<60}", end="\r", flush=True) if sys.stdout.isatty() else None,
        show=gallery.take if page is not None else lambda clip, predicted, truth: None,
    )
    print("\n".join(lines(report)))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(plain(report), indent=1, allow_nan=False) + "\n")
        print(f"scores: {out}")
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(dynamics_page(report, gallery.clips), encoding="utf-8")
        print(f"report: {page}")
    return 0


def dynamics_model(spec: str, embodiment: Embodiment) -> Policy:
    """The model that `spec` names, made for this contract; ContractError when it was made for another."""
    from importlib import import_module

    from wamserve.action_codec.errors import ContractError
    from wamserve.sim_eval import policies
    from wamserve.sim_eval.identity import IdentityModel

    if spec == "identity":
        return IdentityModel(embodiment)
    if ":" in spec and not Path(spec).exists():
        policy = policies.resolve(spec, embodiment, "")
    else:
        module, _, function = policies.CHECKPOINT_FACTORY.partition(":")
        policy = getattr(import_module(module), function)(spec, embodiment.name)
    facts = policies.facts_of(policy)
    if facts.contract and facts.contract != embodiment.name:
        raise ContractError(
            "the model was made for another contract", seen=facts.contract, expected=embodiment.name
        )
    return policy


def compare(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    across: tuple[str, ...] = (),
    confidence: float = 0.95,
    json_file: Path | None = None,
) -> int:
    """Compare RUN_A RUN_B ... start by start; refused when their protocols differ.

    Args:
        runs: two or more run directories.
        across: protocol fields (or dotted prefixes) whose effect is the question, and that may differ.
        confidence: of the intervals; 1 - confidence is the level of the tests.
        json_file: also write the comparison there.
    """
    from contextlib import ExitStack

    from wamserve.sim_eval import compare as compare_module
    from wamserve.sim_eval.score_text import plain
    from wamserve.sim_eval.store import RunStore

    with ExitStack() as stack:
        stores = [stack.enter_context(RunStore.open(path)) for path in runs]
        result = compare_module.compare(stores, across, confidence)
    print("\n".join(compare_module.lines(result)))
    if json_file is not None:
        json_file.write_text(json.dumps(plain(result), indent=1, allow_nan=False) + "\n")
        print(f"comparison: {json_file}")
    return 0


def view(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    frames: FrameSource = "rendered",
    videos: int = 24,
    out: Path | None = None,
    python: str | None = None,
) -> int:
    """Write RUN/report.html, one self-contained page; of several runs, an index page over them as well.

    Args:
        runs: run directories, or a folder of them.
        frames: rendered: videos of every control step. seen: one frame per query; needs no simulator.
        videos: episodes shown in full, failures first.
        out: where the page goes; default: report.html in the run, index.html beside several runs.
        python: interpreter of the simulators, where `wam eval --python` recorded under another.
    """
    from wamserve.action_codec.errors import RunError
    from wamserve.sim_eval.index import index_page
    from wamserve.sim_eval.report import run_page, write_page
    from wamserve.sim_eval.store import RunStore

    folders = [path for given in runs for path in find_runs(given)]
    if not folders:
        raise RunError("no run directory was given", seen=", ".join(map(str, runs)) or "nothing")
    single = len(folders) == 1
    scored = []
    for folder in folders:
        with RunStore.open(folder) as store:
            result = score_store(store, frames, python=python)
            page = run_page(store, result, contract_of(store), opener(store, frames, python), videos)
            target = out if out is not None and single else folder / "report.html"
            print(f"report: {write_page(target, page)}")
            scored.append((store.info, result, target))
    if not single:
        index = out or folders[0].parent / "index.html"
        print(f"index: {write_page(index, index_page(scored, index.parent))}")
    return 0


def find_runs(path: Path) -> list[Path]:
    """`path` itself if it is a run, else the runs directly inside it, sorted."""
    if (path / "run.json").is_file() or not path.is_dir():
        return [path]
    return sorted(inner.parent for inner in path.glob("*/run.json"))


def score_store(
    store: RunStore, frames: FrameSource, verify: bool = False, python: str | None = None
) -> RunScore:
    """Scores of an open run; the simulator is started only where something must be rendered."""
    from wamserve.sim_eval.score import score_run

    return score_run(store, contract_of(store), opener(store, frames, python), verify)


def export(run: Annotated[Path, tyro.conf.Positional], out: Path, python: str | None = None) -> int:
    """Write RUN's recorded episodes as a LeRobot v3 data set.

    Args:
        run: run directory with recordings.
        out: folder of the data set; must be absent or empty.
        python: interpreter of the simulators, where `wam eval --python` recorded under another.
    """
    from wamserve.action_codec.errors import RunError
    from wamserve.sim_eval.lerobot_export import export_run
    from wamserve.sim_eval.store import RunStore

    with RunStore.open(run) as store:
        contract, open_task = contract_of(store), opener(store, "rendered", python)
        if contract is None or open_task is None:
            raise RunError(f"{run} has no contract that names its columns", seen=store.info.protocol.contract)
        print(f"exporting {run} as LeRobot v3, frames rendered again")
        count = export_run(store, out, contract, open_task)
    print(f"data set: {out}, {count} episodes")
    return 0


def import_robolab(
    results: Annotated[Path, tyro.conf.Positional],
    out: Path,
    replan_horizon: int = 0,
    simulator: str = "unrecorded",
) -> int:
    """Read RoboLab's episode_results.jsonl into a run directory, for score, compare and view.

    Args:
        results: output/<timestamp>_<policy>/episode_results.jsonl, or the older .json array.
        out: run directory to make.
        replan_horizon: open-loop horizon of the client that made them (0: unknown).
        simulator: "Isaac Sim 5.1.0, Isaac Lab 2.3.2" and the like; it goes into the protocol card.
    """
    from wamserve.sim_eval.robolab_import import import_robolab as read
    from wamserve.sim_eval.score_text import summary

    with read(results, out, replan_horizon, simulator) as store:
        print("\n".join(summary(score_store(store, "seen"))))
    print(f"run: {out}")
    return 0

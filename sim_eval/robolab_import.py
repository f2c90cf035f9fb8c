"""RoboLab's episode_results.jsonl (or its older .json array) as a run of ours, for the same statistics.

RoboLab writes no protocol card, so what it does not say is stored as "unrecorded" and stays so: its episodes
are never paired start by start, and a comparison with a run made elsewhere names every field that is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wamserve.action_codec.errors import RunError
from wamserve.sim_eval.protocol import LoopProtocol, PolicyIdentity, ProtocolCard
from wamserve.sim_eval.store import RunStore
from wamserve.sim_eval.task import Episode, TaskSpec, WorkItem

UNRECORDED = "unrecorded"
NEEDED = ("env_name", "episode", "policy", "success", "episode_step")


def import_robolab(
    source: Path, folder: Path, replan_horizon: int = 0, simulator: str = UNRECORDED
) -> RunStore:
    """Reads one results file into a finished run directory.

    `replan_horizon` and `simulator` are what the user knows and the file does not say. Raises RunError for an
    empty or broken file, for a missing field (naming line and field), for two policies, and for an episode
    that is there twice.
    """
    rows = read_results(source)
    policies = sorted({str(row["policy"]) for row in rows})
    if len(policies) != 1:
        raise RunError(f"{source} mixes policies", seen=", ".join(policies), expected="one")
    kinds = {str(row.get("instruction_type") or "default") for row in rows}
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kind = str(row.get("instruction_type") or "default")
        name = f"robolab/{row['env_name']}" + (f":{kind}" if len(kinds) > 1 else "")
        by_task.setdefault(name, []).append(row)
    for name, inner in by_task.items():
        numbers = [int(row["episode"]) for row in inner]
        twice = sorted({number for number in numbers if numbers.count(number) > 1})
        if twice:
            raise RunError(f"{source}: {name} has episodes twice", seen=twice)
    card = ProtocolCard(
        suite="robolab",
        tasks=tuple(_spec(name, inner[0], simulator) for name, inner in sorted(by_task.items())),
        init_states=tuple(sorted({int(row["episode"]) for row in rows})),
        repeats=1,
        seed=0,
        seed_rule=UNRECORDED,
        contract="droid_lerobot",
        contract_model_sha256="",
        contract_wire_sha256="",
        policy=PolicyIdentity(spec=policies[0], name=policies[0], prompt_form=UNRECORDED),
        loop=LoopProtocol(
            replan_horizon, strategy=UNRECORDED, latency="0"
        ),  # RoboLab stops the world to think
        versions={},
    )
    config = {"source": str(source), "instruction_types": sorted(kinds)}
    run = RunStore.create(folder, card, config, len(rows), source="RoboLab")
    done = run.done()
    for name, inner in sorted(by_task.items()):
        for row in inner:
            episode = _episode(name, row)
            if (name, episode.item.init, 0) not in done:
                run.add(episode)
    if not run.finished:
        run.finish()
    return run


def read_results(source: Path) -> list[dict[str, Any]]:
    """The episodes of a results file, one dict each; RunError with the line where it is broken."""
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"no results can be read from {source}", seen=str(error)) from None
    if text.lstrip().startswith("["):
        entries = list(enumerate(_parsed(text, source, 1), 1))
    else:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        entries = [(number, _parsed(line, source, number)) for number, line in lines]
    if not entries:
        raise RunError(f"{source} holds no episode")
    for number, row in entries:
        missing = [key for key in NEEDED if not isinstance(row, dict) or row.get(key) is None]
        if missing:
            raise RunError(f"{source}, entry {number}: no {', '.join(missing)}", expected=", ".join(NEEDED))
    return [row for _, row in entries]


def _parsed(text: str, source: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(
            f"{source}, line {line} is not JSON: {error.msg}", fix="remove a cut-off last line"
        ) from None


def _spec(name: str, row: Mapping[str, Any], simulator: str) -> TaskSpec:
    dt = float(row.get("dt") or 1 / 15)
    return TaskSpec(
        name=name,
        instruction=str(row.get("instruction") or ""),
        contract="droid_lerobot",
        rate_hz=round(1 / dt, 6),
        max_steps=0,
        settle_steps=0,
        views=(),
        image_orientation=UNRECORDED,
        states=(),
        action_width=8,
        init_states=UNRECORDED,
        init_count=None,
        simulator=simulator,
        progress="subtask score",
    )


def _episode(name: str, row: Mapping[str, Any]) -> Episode:
    score = row.get("score")
    timing = row.get("timing") or {}
    return Episode(
        item=WorkItem(task=name, init=int(row["episode"])),
        instruction=str(row.get("instruction") or ""),
        success=bool(row["success"]),
        steps=int(row["episode_step"]),
        final_progress=None if score is None else float(score),
        max_progress=None if score is None else float(score),
        wall_s=float(timing.get("wall_total_s") or 0.0),
        sim_s=0.0,
        render_s=0.0,
        policy_s=float(timing.get("policy_inference_s") or 0.0),
    )

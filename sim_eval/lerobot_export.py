"""A run as a LeRobot v3 data set: what the robot saw, sensed and did, one row per control step.

Columns carry the names and the meaning that the run's contract reads a data set by, so that the export can be
trained on, and scored again with `wam score episodes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from wamserve.action_codec.errors import RunError
from wamserve.action_codec.gripper import gripper_from_gripper
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval import frames
from wamserve.sim_eval.lerobot import DatasetWriter
from wamserve.sim_eval.score import OpenTask
from wamserve.sim_eval.store import EpisodeRow, RunStore
from wamserve.sim_eval.task import Task


def export_run(run: RunStore, folder: Path, embodiment: Embodiment, open_task: OpenTask) -> int:
    """Writes every recorded episode into an absent or empty folder; returns how many.

    Frames are rendered again from the recorded simulator states. Row t holds the frame and state before
    action t; the state after the last action has no row. Raises RunError for a run without recordings, for a
    folder in use and for a rate that is no whole number.
    """
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty", fix="another --out folder")
    recorded = [row for row in run.episodes() if row.recording]
    if not recorded:
        raise RunError(f"{run.path} has no recording to export", seen=f"{len(run.episodes())} episodes")
    specs = {spec.name: spec for spec in run.info.protocol.tasks}
    rates = {specs[row.task].rate_hz for row in recorded}
    if len(rates) != 1 or any(rate != int(rate) for rate in rates):
        raise RunError("a LeRobot data set has one whole rate", seen=sorted(rates))
    writer = DatasetWriter(folder, int(rates.pop()), embodiment.wire.robot)
    keys = dict(zip(embodiment.model.canvas.views, embodiment.model.canvas.videos, strict=True))
    task: Task | None = None
    held = ""
    try:
        for row in recorded:
            if task is None or row.task != held:
                if task is not None:
                    task.close()
                task, held = open_task(specs[row.task]), row.task
            recording = run.recording(row)
            pictures = frames.rendered_views(task, recording, range(row.steps))
            writer.add(
                columns_of(recording, row, embodiment),
                {keys.get(name, f"observation.images.{name}"): rows for name, rows in pictures.items()},
                row.instruction,
                success=row.success,
                wam_task=row.task,
                wam_init=row.init,
                wam_repeat=row.repeat,
                wam_seed=row.seed,
            )
    finally:
        if task is not None:
            task.close()
    return len(recorded)


def columns_of(
    recording: Mapping[str, np.ndarray], row: EpisodeRow, embodiment: Embodiment
) -> dict[str, np.ndarray]:
    """A recording's numbers under the names that the contract reads, [T] or [T, D] each.

    Gripper columns change from the reply's polarity and unit to those of the contract's data sets.
    """
    steps = len(recording["actions"])
    model, reply = embodiment.model, embodiment.wire.reply
    actions = np.array(recording["actions"], dtype=np.float64)
    sources = [block.gripper_source for block in model.blocks if block.gripper_source is not None]
    for source, target in zip(sources, reply.grippers, strict=True):
        column = actions[:, target.index]
        actions[:, target.index] = gripper_from_gripper(column, target.meaning, source.meaning)
    out = {"action": actions.astype(np.float32)}
    if reply.width == model.width:  # the reply's columns are the blocks': joints and gripper, positions
        for block in model.blocks:
            name = block.gripper_source.column if block.gripper_source else block.column
            if name.startswith("action.") and "[" not in name:
                out[name] = _thin(out["action"][:, block.start : block.stop])
    states = {
        name[len("state/") :]: np.asarray(rows[:steps], np.float32).reshape(steps, -1)
        for name, rows in recording.items()
        if name.startswith("state/")
    }
    if states:
        out["observation.state"] = np.concatenate(list(states.values()), axis=1)
        out |= {f"observation.state.{name}": _thin(rows) for name, rows in states.items()}
    last = np.arange(steps) == steps - 1
    progress = recording.get("progress", np.full(steps + 1, np.nan))
    out |= {
        "next.done": last,
        "next.success": last & row.success,
        "wam.progress": np.nan_to_num(progress[1 : steps + 1], nan=-1.0).astype(np.float32),
        "wam.chunk_index": np.asarray(recording["action_chunk"], np.int64),
    }
    return out


def _thin(rows: np.ndarray) -> np.ndarray:
    """[T, 1] as [T]: LeRobot stores a single number as a plain column."""
    return rows[:, 0] if rows.shape[1] == 1 else rows

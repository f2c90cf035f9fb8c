"""A run as a LeRobot v3 data set of one episode: what was measured, what was told, and what was asked for.

Columns carry the names and the meaning the contract reads a data set by. Pictures are not among them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wamserve.action_codec.errors import RunError
from wamserve.action_codec.gripper import FRACTION_ONE_IS_OPEN, gripper_from_gripper
from wamserve.embodiments.contract import Embodiment

DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
INDEX_COLUMNS = (
    ("timestamp", "float32"),
    ("frame_index", "int64"),
    ("episode_index", "int64"),
    ("index", "int64"),
    ("task_index", "int64"),
)


def columns_of(steps: Mapping[str, np.ndarray], contract: Embodiment) -> dict[str, np.ndarray]:
    """Recorded steps -> data set columns, [T] or [T, D], one row per control period of the contract.

    `action.*` is what the arm was told, after every bound; `wam.raw.*` what the policy asked for at that
    time, NaN where nothing was. Grippers are in the polarity and unit of the contract's data sets.
    """
    if not steps or "time" not in steps:
        raise RunError("a run without control steps has nothing to export")
    joints, gripper = (contract.model.block(name) for name in ("joints", "gripper"))
    assert gripper.gripper_source is not None and gripper.state_gripper_source is not None
    times = steps["time"]
    due = np.arange(times[0], times[-1] + 1e-9, 1.0 / contract.wire.rate_hz)
    rows = np.clip(np.searchsorted(times, due - 1e-3), 0, len(times) - 1)
    reply = contract.wire.reply.grippers[0].meaning
    wish = _held(steps["gripper_wish"])[rows]
    told = gripper_from_gripper(np.nan_to_num(wish, nan=reply.opened), reply, gripper.gripper_source.meaning)
    measured = gripper_from_gripper(
        steps["gripper"][rows], FRACTION_ONE_IS_OPEN, gripper.state_gripper_source.meaning
    )
    return {
        joints.state_column: steps["q"][rows].astype(np.float32),
        gripper.state_gripper_source.column: measured.astype(np.float32),
        joints.column: steps["command"][rows].astype(np.float32),
        gripper.gripper_source.column: told.astype(np.float32),
        "wam.raw.joint_position": steps["wanted"][rows].astype(np.float32),
        "wam.raw.gripper": steps["gripper_wish"][rows].astype(np.float32),
        "wam.chunk_index": steps["chunk"][rows].astype(np.int64),
    }


def write_lerobot(
    folder: Path, columns: Mapping[str, np.ndarray], rate_hz: int, robot: str, instruction: str
) -> None:
    """Writes the data set into an absent folder. Needs pyarrow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if folder.exists():
        raise RunError(f"{folder} exists", fix="another folder")
    length = len(next(iter(columns.values())))
    frame = np.arange(length)
    zero = np.zeros(length, np.int64)
    index: dict[str, np.ndarray] = {
        "timestamp": (frame / rate_hz).astype(np.float32),
        "frame_index": frame,
        "episode_index": zero,
        "index": frame,
        "task_index": zero,
    }
    everything: dict[str, np.ndarray] = {**columns, **index}
    table = {name: pa.array(values if values.ndim == 1 else [*values]) for name, values in everything.items()}
    meta = folder / "meta"
    (meta / "episodes" / "chunk-000").mkdir(parents=True)
    (folder / "data" / "chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(table), folder / DATA.format(chunk_index=0, file_index=0))
    episode = {
        "episode_index": 0,
        "tasks": [instruction],
        "length": length,
        "dataset_from_index": 0,
        "dataset_to_index": length,
        "data/chunk_index": 0,
        "data/file_index": 0,
    }
    pq.write_table(pa.Table.from_pylist([episode]), meta / "episodes" / "chunk-000" / "file-000.parquet")
    pq.write_table(_tasks(instruction), meta / "tasks.parquet")
    features: dict[str, Any] = {
        name: {"dtype": str(values.dtype), "shape": list(values.shape[1:]) or [1], "names": None}
        for name, values in columns.items()
    }
    features |= {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in INDEX_COLUMNS}
    info = {
        "codebase_version": "v3.0",
        "robot_type": robot,
        "total_episodes": 1,
        "total_frames": length,
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": rate_hz,
        "splits": {"train": "0:1"},
        "data_path": DATA,
        "video_path": None,
        "features": features,
    }
    (meta / "info.json").write_text(json.dumps(info, indent=2))
    stats = {name: _stats(values) for name, values in columns.items()}
    (meta / "stats.json").write_text(json.dumps(stats, indent=2))


def _tasks(instruction: str) -> Any:
    """LeRobot reads tasks.parquet with pandas and takes the text from the index."""
    import pyarrow as pa

    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
            for name, kind, dtype in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
        ],
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": [0], "task": [instruction]})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _held(values: np.ndarray) -> np.ndarray:
    """[T] with every NaN replaced by the number before it."""
    last = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(len(values)), 0))
    return np.asarray(values[last])


def _stats(values: np.ndarray) -> dict[str, list[float]]:
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not len(rows):
        return {"count": [0]}
    return {
        "min": rows.min(0).tolist(),
        "max": rows.max(0).tolist(),
        "mean": rows.mean(0).tolist(),
        "std": rows.std(0).tolist(),
        "count": [len(rows)],
    }

"""Recorded episodes of LeRobot folders (v2, v3), thinned to the contract's rate and cut into whole chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from wamserve.action_codec.actions import RawActions
from wamserve.action_codec.arrays import Array
from wamserve.action_codec.errors import ContractError
from wamserve.embodiments.adapters import chunk_starts, encode_chunk
from wamserve.embodiments.contract import Embodiment

BOOKKEEPING = ("episode_index", "frame_index", "index", "task_index", "subtask_index", "timestamp")


@dataclass(frozen=True, eq=False)
class Recording:
    """One episode as stored, every row."""

    path: Path
    index: int  # episode_index in the data set
    rate_hz: int  # what meta/info.json claims
    columns: dict[str, Array]  # [T, ...] float64, named as stored
    timestamps: Array  # [T] seconds
    episode_of_row: Array  # [T] episode_index of each row: one value, unless the caller mixed episodes
    frame_index: Array  # [T]
    declared_rows: int | None  # the length that meta/episodes gives; None where it gives none
    videos: tuple[str, ...]  # video keys of the data set
    task: str = ""  # the data set's own words for what is done; "" where it has none

    def __len__(self) -> int:
        return len(self.timestamps)


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode at the contract's rate."""

    columns: dict[str, Array]  # [T, ...]
    timestamps: Array  # [T] seconds
    rows: Array  # [T] native row of each: where its video frame lies

    def __len__(self) -> int:
        return len(self.timestamps)


def read(path: Path | str, index: int | None = None) -> Recording:
    """The episode `index` (default: the first) of a LeRobot folder; a parquet file inside one works too.

    ContractError for a folder without meta/info.json, a rate that is no whole number, an absent episode.
    """
    root = _root(Path(path))
    try:
        info = json.loads((root / "meta" / "info.json").read_text())
    except json.JSONDecodeError as error:
        raise ContractError(f"{root / 'meta' / 'info.json'} is not JSON: {error}") from None
    rate = whole_rate(info.get("fps"), str(root))
    files = [Path(path)] if Path(path).is_file() else sorted((root / "data").rglob("*.parquet"))
    table, chosen = _rows_of_episode(root, files, index)
    columns: dict[str, Array] = {}
    for name in table.column_names:
        values = _numbers(name, table[name].combine_chunks())
        if values is not None:
            columns[name] = values
    if "timestamp" not in columns:
        raise ContractError(f"{root} has no column 'timestamp'", seen=", ".join(columns))
    videos = tuple(
        key for key, feature in info.get("features", {}).items() if feature.get("dtype") == "video"
    )
    return Recording(
        path=root,
        index=chosen,
        rate_hz=rate,
        columns={name: values for name, values in columns.items() if name not in BOOKKEEPING},
        timestamps=columns["timestamp"].reshape(-1),
        episode_of_row=columns["episode_index"].reshape(-1),
        frame_index=columns.get(
            "frame_index", np.arange(len(columns["timestamp"]), dtype=np.float64)
        ).reshape(-1),
        declared_rows=_declared_rows(root, chosen),
        videos=videos,
        task=_task(root, chosen, columns.get("task_index")),
    )


def whole_rate(rate: Any, where: str) -> int:
    """Rows per second as a whole number; ContractError for 29.97 and for nothing at all."""
    number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
    if not number or rate <= 0 or not float(rate).is_integer():
        raise ContractError(
            f"{where}: the rate is no whole number of rows per second",
            seen="no fps" if rate is None else rate,
            expected="an integer fps in meta/info.json",
            fix="resample the data set; a model is told its rate as an integer",
        )
    return int(rate)


def at_control_rate(recording: Recording, embodiment: Embodiment) -> Episode:
    """Every stride-th row; ContractError unless the data set runs at the contract's native rate."""
    model = embodiment.model
    if recording.rate_hz != model.native_rate_hz:
        raise ContractError(
            f"{recording.path} runs at another rate than {embodiment.name} expects",
            seen=f"{recording.rate_hz} Hz",
            expected=f"{model.native_rate_hz} Hz (every {model.stride}. row makes {model.rate_hz} Hz)",
            fix="another embodiment, or resample: deltas scale with the rate",
        )
    if len(np.unique(recording.episode_of_row)) > 1:
        raise ContractError(
            f"{recording.path}: rows of several episodes in one stretch",
            seen=np.unique(recording.episode_of_row),
        )
    rows = np.arange(0, len(recording), model.stride)
    columns = {name: values[rows] for name, values in recording.columns.items()}
    return Episode(columns, recording.timestamps[rows], rows.astype(np.float64))


def chunks(episode: Episode, embodiment: Embodiment, hop: int = 1) -> Iterator[tuple[int, RawActions]]:
    """(row, chunk that begins there) for every whole chunk of the episode, `hop` rows apart."""
    for start in chunk_starts(embodiment, len(episode), hop):
        yield start, encode_chunk(embodiment, episode.columns, start)


def _root(path: Path) -> Path:
    for folder in (path, *path.parents):
        if (folder / "meta" / "info.json").is_file():
            return folder
    raise ContractError(
        f"{path} is no LeRobot data set", expected="a folder with meta/info.json and data/**/*.parquet"
    )


def _rows_of_episode(root: Path, files: list[Path], index: int | None) -> tuple[Any, int]:
    """The rows of one episode and its number, from whichever files hold them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    known: list[int] = []
    parts = []
    for file in files:
        present = _episodes_in(file, file.stat().st_mtime_ns)
        known += present
        if index is None and present:
            index = min(present)
        if index in present:
            parts.append(pq.read_table(file, filters=[("episode_index", "=", index)]))
    if not known:
        raise ContractError(f"{root} holds no rows", seen=f"{len(files)} files data/**/*.parquet")
    if not parts or index is None:
        raise ContractError(f"no episode {index}", seen=f"episodes {min(known)} .. {max(known)}")
    return pa.concat_tables(parts), index


@lru_cache(maxsize=100_000)
def _episodes_in(file: Path, modified_ns: int) -> tuple[int, ...]:
    """The numbers of the episodes that have rows in a parquet file."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(file).names
    except pa.ArrowInvalid as error:
        raise ContractError(f"{file} is not parquet: {error}") from None
    if "episode_index" not in columns:
        raise ContractError(f"{file} has no column 'episode_index'", seen=", ".join(columns))
    return tuple(pc.unique(pq.read_table(file, columns=["episode_index"])["episode_index"]).to_pylist())


def _declared_rows(root: Path, index: int) -> int | None:
    """The episode's length by meta/episodes (v3 parquet, v2 jsonl)."""
    import pyarrow.parquet as pq

    for file in sorted((root / "meta" / "episodes").rglob("*.parquet")):
        table = pq.read_table(file, columns=["episode_index", "length"]).to_pydict()
        if index in table["episode_index"]:
            return int(table["length"][table["episode_index"].index(index)])
    lines = root / "meta" / "episodes.jsonl"
    for line in lines.read_text().splitlines() if lines.is_file() else ():
        entry = json.loads(line)
        if entry["episode_index"] == index:
            return int(entry["length"])
    return None


def _task(root: Path, index: int, task_index: Array | None) -> str:
    """The text of the episode's first task: meta/episodes' own description, or meta/tasks by task_index."""
    import pyarrow.parquet as pq

    for file in sorted((root / "meta" / "episodes").rglob("*.parquet")):
        if "task_description" in pq.read_schema(file).names:
            table = pq.read_table(file, columns=["episode_index", "task_description"]).to_pydict()
            if index in table["episode_index"]:
                return str(table["task_description"][table["episode_index"].index(index)] or "")
    parquet, lines = root / "meta" / "tasks.parquet", root / "meta" / "tasks.jsonl"
    tasks: list[dict[str, Any]] = []
    if parquet.is_file():
        tasks = pq.read_table(parquet).to_pylist()
    elif lines.is_file():
        tasks = [json.loads(line) for line in lines.read_text().splitlines()]
    wanted = None if task_index is None else int(task_index.reshape(-1)[0])
    for row in tasks:
        if row.get("task_index") == wanted or len(tasks) == 1:
            text = str(row.get("task") or row.get("__index_level_0__") or "")  # pandas keeps it in the index
            return text if any(map(str.isalnum, text)) else ""
    return ""


def _numbers(name: str, column: Any) -> Array | None:
    """A parquet column as float64 [T, ...]; None for text."""
    import pyarrow as pa

    kind, rows, width = column.type, len(column), []
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        column, kind = column.flatten(), kind.value_type
        width.append(-1)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return None
    values = np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)
    if not width:
        return values
    if rows == 0 or len(values) % rows:
        raise ContractError(
            f"column {name!r} has rows of different lengths, or empty ones",
            seen=f"{len(values)} numbers in {rows} rows",
        )
    return values.reshape(rows, -1)

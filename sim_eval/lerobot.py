"""Writes LeRobot v3 data sets: episodes of columns and camera videos, readable as they grow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wamserve.action_codec.errors import RunError
from wamserve.sim_eval.video_file import h264_from_frames

VERSION = "v3.0"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNK = 1000  # files per folder
# LeRobot reads tasks.parquet with pandas and takes the text from the index.
TASKS_PANDAS = {
    "index_columns": ["task"],
    "column_indexes": [],
    "columns": [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
        for name, kind, dtype in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ],
    "pandas_version": "2.0.0",
}


@dataclass
class DatasetWriter:
    """One folder. An episode is on disk when `add` returns; `meta/` is rewritten after each.

    Every episode is a data file and a video file per camera of its own: a killed recording keeps all
    finished episodes, and opening the folder again goes on behind them.
    """

    folder: Path
    rate_hz: int
    robot: str
    crf: int = 14  # x264 quality of the videos; 14 is beyond what eyes can tell
    _episodes: list[dict[str, Any]] = field(default_factory=list)
    _tasks: dict[str, int] = field(default_factory=dict)
    _features: dict[str, Any] = field(default_factory=dict)
    _sums: dict[str, list[np.ndarray]] = field(default_factory=dict)  # count, sum, sum of squares, min, max

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        book = self.folder / "meta" / "writer.json"
        if book.exists():
            saved = json.loads(book.read_text())
            if saved["rate_hz"] != self.rate_hz or saved["robot"] != self.robot:
                raise RunError(
                    f"{self.folder} holds another data set", seen=saved["robot"], expected=self.robot
                )
            self._episodes, self._tasks = saved["episodes"], saved["tasks"]
            self._features = saved["features"]
            self._sums = {k: [np.array(x) for x in v] for k, v in saved["sums"].items()}

    @property
    def episodes(self) -> list[dict[str, Any]]:
        """One row per finished episode, as in meta/episodes."""
        return list(self._episodes)

    def add(
        self,
        columns: Mapping[str, np.ndarray],
        videos: Mapping[str, np.ndarray],
        task: str,
        **about: bool | int | float | str,
    ) -> int:
        """One episode; returns its index.

        columns: name -> [T] or [T, D]; videos: key -> uint8 [T, H, W, 3]. `about` goes into
        meta/episodes, e.g. success=True.
        """
        lengths = {len(v) for v in [*columns.values(), *videos.values()]}
        if len(lengths) != 1 or not min(lengths):
            raise RunError("columns and videos differ in length", seen=sorted(lengths))
        features = _features(columns, videos, self.rate_hz)
        if self._features and features != self._features:
            raise RunError(
                "this episode has other columns than the data set",
                seen=", ".join(features), expected=", ".join(self._features),
            )  # fmt: skip
        self._features = features
        index, length = len(self._episodes), lengths.pop()
        start = self._episodes[-1]["dataset_to_index"] if self._episodes else 0
        place = {"chunk_index": index // CHUNK, "file_index": index % CHUNK}
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": [task],
            "length": length,
            "dataset_from_index": start,
            "dataset_to_index": start + length,
            "data/chunk_index": place["chunk_index"],
            "data/file_index": place["file_index"],
        }
        for key, frames in videos.items():
            file = self.folder / VIDEO.format(video_key=key, **place)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(h264_from_frames(frames, self.rate_hz, self.crf))
            row |= {f"videos/{key}/{name}": value for name, value in place.items()}
            row[f"videos/{key}/from_timestamp"] = 0.0
            row[f"videos/{key}/to_timestamp"] = length / self.rate_hz
        task_index = self._tasks.setdefault(task, len(self._tasks))
        self._write_rows(columns, place, index, start, task_index)
        self._episodes.append({**row, **about})
        for name, values in columns.items():
            self._add_to_sums(name, np.asarray(values, np.float64).reshape(length, -1))
        self._write_meta()
        return index

    def _write_rows(
        self, columns: Mapping[str, np.ndarray], place: dict[str, int], index: int, start: int, task: int
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        length = len(next(iter(columns.values())))
        frame = np.arange(length)
        table: dict[str, Any] = {}
        for name, values in columns.items():
            values = np.asarray(values)
            table[name] = pa.array(values if values.ndim == 1 else list(values))
        table["timestamp"] = pa.array((frame / self.rate_hz).astype(np.float32))
        table["frame_index"] = pa.array(frame)
        table["episode_index"] = pa.array(np.full(length, index))
        table["index"] = pa.array(start + frame)
        table["task_index"] = pa.array(np.full(length, task))
        file = self.folder / DATA.format(**place)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), file)

    def _add_to_sums(self, name: str, values: np.ndarray) -> None:
        new = [np.array([len(values)]), values.sum(0), (values**2).sum(0), values.min(0), values.max(0)]
        if name not in self._sums:
            self._sums[name] = new
            return
        old = self._sums[name]
        self._sums[name] = [
            *(a + b for a, b in zip(old[:3], new[:3], strict=True)),
            np.minimum(old[3], new[3]),
            np.maximum(old[4], new[4]),
        ]

    def _write_meta(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        meta = self.folder / "meta"
        (meta / "episodes" / "chunk-000").mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.Table.from_pylist(self._episodes), meta / "episodes" / "chunk-000" / "file-000.parquet"
        )
        tasks = {"task_index": list(self._tasks.values()), "task": list(self._tasks)}
        table = pa.table(tasks).replace_schema_metadata({"pandas": json.dumps(TASKS_PANDAS)})
        pq.write_table(table, meta / "tasks.parquet")
        frames = self._episodes[-1]["dataset_to_index"]
        info = {
            "codebase_version": VERSION,
            "robot_type": self.robot,
            "total_episodes": len(self._episodes),
            "total_frames": frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self.rate_hz,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": DATA,
            "video_path": VIDEO,
            "features": self._features,
        }
        _replace(meta / "info.json", info)
        _replace(meta / "stats.json", {name: _stats(sums) for name, sums in self._sums.items()})
        book = {
            "rate_hz": self.rate_hz,
            "robot": self.robot,
            "episodes": self._episodes,
            "tasks": self._tasks,
            "features": self._features,
            "sums": {k: [x.tolist() for x in v] for k, v in self._sums.items()},
        }
        _replace(meta / "writer.json", book)


def _features(
    columns: Mapping[str, np.ndarray], videos: Mapping[str, np.ndarray], rate_hz: int
) -> dict[str, Any]:
    features: dict[str, Any] = {}
    for key, frames in videos.items():
        height, width = frames.shape[1:3]
        features[key] = {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": rate_hz,
                "video.channels": 3,
                "has_audio": False,
            },
        }
    for name, values in columns.items():
        values = np.asarray(values)
        shape = list(values.shape[1:]) or [1]
        features[name] = {"dtype": str(values.dtype), "shape": shape, "names": None}
    for name, dtype in (
        ("timestamp", "float32"), ("frame_index", "int64"), ("episode_index", "int64"),
        ("index", "int64"), ("task_index", "int64"),
    ):  # fmt: skip
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def _stats(sums: list[np.ndarray]) -> dict[str, list[float]]:
    count, total, squares, low, high = sums
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return {
        "min": low.tolist(),
        "max": high.tolist(),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "count": count.tolist(),
    }


def _replace(file: Path, table: dict[str, Any]) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(table, indent=2))
    partial.replace(file)

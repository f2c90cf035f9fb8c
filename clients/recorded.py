"""A recorded episode as the robot saw it: frames from mp4, states from parquet, row by row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from wamserve.action_codec.errors import RequestError
from wamserve.clients.policy import Observation
from wamserve.embodiments.episodes import Recording, read


@dataclass(frozen=True)
class RecordedMap:
    """What of a LeRobot folder is what to a policy."""

    images: Mapping[str, str]  # view name -> video key
    states: Mapping[str, str]  # state name -> column
    actions: Sequence[str] = ()  # columns that stand side by side in a reply row; () compares nothing


@dataclass(frozen=True)
class Moment:
    """One row of an episode."""

    row: int
    observation: Observation  # time: seconds since the episode began
    action: np.ndarray | None  # [D] what was done then, in the order of the reply row


class RecordedEpisode:
    """Episode `index` of a LeRobot folder (v2, v3), read through a declared map."""

    def __init__(self, folder: Path, index: int | None, mapping: RecordedMap, instruction: str = "") -> None:
        """`instruction` "" takes the recorded task. RequestError for unknown keys or a blank instruction."""
        needed("pyarrow", "recorded episodes")
        self.recording: Recording = read(folder, index)
        self.mapping = mapping
        self.rate_hz = self.recording.rate_hz
        self.instruction = instruction or _task(self.recording.path, self.recording.index)
        if not self.instruction.strip(" |"):
            raise RequestError("the episode records no task", fix="--instruction 'put the cup on the plate'")
        known = ", ".join(sorted(self.recording.columns))
        for column in (*mapping.states.values(), *mapping.actions):
            if column not in self.recording.columns:
                raise RequestError(f"the episode has no column {column!r}", expected=known)
        for key in mapping.images.values():
            if key not in self.recording.videos:
                raise RequestError(
                    f"the episode has no video {key!r}", expected=", ".join(self.recording.videos) or "none"
                )

    def __len__(self) -> int:
        return len(self.recording)

    def moments(self) -> Iterator[Moment]:
        """The rows in order. RequestError where a video ends before the episode does."""
        streams = {view: self._frames(key) for view, key in self.mapping.images.items()}
        columns, begin = self.recording.columns, float(self.recording.timestamps[0])
        for row in range(len(self)):
            images = {}
            for view, frames in streams.items():
                frame = next(frames, None)
                if frame is None:
                    raise RequestError(
                        f"the video of {view!r} is shorter than its episode", seen=f"{row} frames"
                    )
                images[view] = frame
            states = {
                name: np.atleast_1d(columns[column][row]).astype(np.float32)
                for name, column in self.mapping.states.items()
            }
            told = [np.atleast_1d(columns[column][row]) for column in self.mapping.actions]
            time = float(self.recording.timestamps[row]) - begin
            yield Moment(
                row,
                Observation(images, states, self.instruction, time),
                np.concatenate(told) if told else None,
            )

    def _frames(self, key: str) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3] RGB frames of this episode, one per row."""
        av = needed("av", "recorded videos")
        path, begin = _video(self.recording.path, self.recording.index, key)
        half = 0.5 / self.rate_hz
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                # Several episodes share a file; this one's frames start at `begin` seconds.
                if frame.time is not None and frame.time > begin - half:
                    yield frame.to_ndarray(format="rgb24")


def needed(module: str, what: str) -> Any:
    """A module that the robot-side install leaves out. RequestError where it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise RequestError(f"{what} need {module}", fix=f"pip install {module}") from error


class RecordedEnv:
    """The recording as a gymnasium-style environment that no action moves; it waits as a simulator does.

    Observations are {view: image, state: vector}; the reward is minus the mean |action - recorded|.
    """

    def __init__(self, episode: RecordedEpisode, stride: int = 1) -> None:
        """`stride`: recorded rows per control step."""
        self.episode = episode
        self.stride = stride

    def reset(self, *, seed: int | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        self._moments = (m for m in self.episode.moments() if m.row % self.stride == 0)
        self._now = next(self._moments)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        done = self._now.action
        reward = 0.0 if done is None else -float(np.abs(action - done).mean())
        following = next(self._moments, None)
        self._now = following or self._now
        return self._observation(), reward, False, following is None, {}

    def _observation(self) -> dict[str, np.ndarray]:
        return {**self._now.observation.images, **self._now.observation.state}

    def __str__(self) -> str:
        return f"{self.episode.recording.path.name}, episode {self.episode.recording.index}"


def _video(root: Path, index: int, key: str) -> tuple[Path, float]:
    """The file that holds an episode's video, and the second at which the episode begins in it."""
    info = json.loads((root / "meta" / "info.json").read_text())
    row = _episode_row(root, index)
    chunk = int(row.get(f"videos/{key}/chunk_index", index // int(info.get("chunks_size", 1000))))
    file = int(row.get(f"videos/{key}/file_index", index))
    names = {"chunk_index": chunk, "file_index": file, "episode_chunk": chunk, "episode_file": file}
    path = root / str(info["video_path"]).format(video_key=key, episode_index=index, **names)
    if not path.is_file():
        raise RequestError("the episode's video is missing", seen=path.relative_to(root))
    return path, float(row.get(f"videos/{key}/from_timestamp", 0.0))


def _episode_row(root: Path, index: int) -> dict[str, Any]:
    """What meta/episodes (v3) says of an episode; {} in older folders, whose files hold one episode each."""
    import pyarrow.parquet as pq

    for file in sorted((root / "meta" / "episodes").rglob("*.parquet")):
        names = [name for name in pq.read_schema(file).names if not name.startswith("stats/")]
        for row in pq.read_table(file, columns=names).to_pylist():
            if row["episode_index"] == index:
                return row
    return {}


def _task(root: Path, index: int) -> str:
    """The recorded instruction; "" where there is none."""
    tasks = _episode_row(root, index).get("tasks")
    lines = root / "meta" / "episodes.jsonl"
    if tasks is None and lines.is_file():
        entries = (json.loads(line) for line in lines.read_text().splitlines() if line.strip())
        tasks = next((entry.get("tasks") for entry in entries if entry.get("episode_index") == index), None)
    if isinstance(tasks, (list, tuple)):
        tasks = tasks[0] if tasks else ""
    return str(tasks or "").strip()

"""A recorded episode as a world-action model sees it: canvas frames, raw action rows, the robot's sensing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wamserve.action_codec import rotations, se3
from wamserve.action_codec.errors import ContractError, RunError
from wamserve.action_codec.gripper import gripper_from_gripper
from wamserve.embodiments import adapters, episodes
from wamserve.embodiments.canvas import compose
from wamserve.embodiments.contract import Embodiment, State


@dataclass(frozen=True, eq=False)
class RecordedEpisode:
    """One episode at the contract's rate."""

    name: str  # data set folder and episode number
    embodiment: Embodiment
    instruction: str
    frames: np.ndarray  # uint8 [T, h, w, 3] composed canvas
    raw: np.ndarray  # float64 [N, D] raw action rows; row i leads from frame i to frame i + 1
    columns: Mapping[str, np.ndarray]  # the data set's own, [T, ...]

    def starts(self, hop: int | None = None) -> list[int]:
        """First rows of whole chunks, `hop` rows apart (default: one chunk: none overlap)."""
        chunk = self.embodiment.model.chunk
        last = min(len(self.raw), len(self.frames) - 1) - chunk
        return list(range(self.embodiment.model.history, last + 1, hop or chunk))

    def states(self, row: int) -> dict[str, np.ndarray]:
        """What the robot would send with a request at `row`: wire state name -> float32 [D].

        ContractError where the data set does not hold the measured value of a state.
        """
        values = adapters.state_row(self.embodiment, self.columns, row)
        return {
            state.name: _wire_state(self.embodiment, state, values).astype(np.float32)
            for state in self.embodiment.wire.states
            if state.measures
        }


def read_episode(
    path: Path | str, embodiment: Embodiment, index: int | None = None, rows: int | None = None
) -> RecordedEpisode:
    """Episode `index` (default: the first) of a LeRobot folder under a contract; `rows`: only that many.

    Raises ContractError where rate, columns or cameras are not the contract's, RunError for a broken video.
    """
    recording = episodes.read(path, index)
    thinned = episodes.at_control_rate(recording, embodiment)
    canvas = embodiment.model.canvas
    missing = [key for key in canvas.videos if key not in recording.videos]
    if missing:
        raise ContractError(
            f"{recording.path} has no camera {missing[0]!r}",
            seen=", ".join(recording.videos) or "no cameras",
            expected=", ".join(canvas.videos),
        )
    native = thinned.rows.astype(int)[:rows]
    columns = {name: values[:rows] for name, values in thinned.columns.items()}
    views = {
        view: _video_rows(recording.path, key, recording.index, native)
        for view, key in zip(canvas.views, canvas.videos, strict=True)
    }
    encoded = adapters.encode(embodiment, columns)
    return RecordedEpisode(
        name=f"{recording.path.name}/{recording.index}",
        embodiment=embodiment,
        instruction=recording.task,
        frames=compose(canvas, views),
        raw=np.asarray(encoded.raw.values),
        columns=columns,
    )


def _wire_state(embodiment: Embodiment, state: State, values: np.ndarray) -> np.ndarray:
    model = embodiment.model
    track, _, part = state.measures.partition(".")
    if part:
        block = next(block for block in model.blocks if block.track == track)
        pose = se3.pose_from_pose9(values[block.start : block.stop])
        pose = adapters.robot_from_codec_pose(model.track(track), pose)
        if part == "position":
            return np.asarray(pose[:3, 3])
        return np.asarray(
            rotations.rotation_form(state.rotation_format or "matrix").from_matrix(pose[:3, :3])
        )
    block = model.block(state.measures)
    number = values[block.start : block.stop]
    if block.gripper is not None and state.gripper is not None:
        return np.asarray(gripper_from_gripper(number, block.gripper.meaning, state.gripper.meaning))
    return number


def _video_rows(root: Path, key: str, episode: int, rows: np.ndarray) -> np.ndarray:
    """uint8 [len(rows), h, w, 3]: the frames at native rows `rows` of one episode's camera."""
    import av

    info = json.loads((root / "meta" / "info.json").read_text())
    about = _episode_meta(root, episode)
    chunk, number = (int(about.get(f"videos/{key}/{name}_index", 0)) for name in ("chunk", "file"))
    path = root / info["video_path"].format(
        video_key=key, chunk_index=chunk, file_index=number, episode_chunk=chunk, episode_file=number,
        episode_index=episode,
    )  # fmt: skip
    first = round(float(about.get(f"videos/{key}/from_timestamp", 0.0)) * float(info["fps"]))
    wanted = {int(row) + first: place for place, row in enumerate(rows)}
    out: list[np.ndarray | None] = [None] * len(rows)
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for count, picture in enumerate(container.decode(stream)):
                if count in wanted:
                    out[wanted[count]] = picture.to_ndarray(format="rgb24")
                if count >= max(wanted):
                    break
    except (av.FFmpegError, OSError, IndexError) as error:
        raise RunError(f"no video can be read from {path}", seen=str(error)) from error
    found = [frame for frame in out if frame is not None]
    if len(found) < len(out):
        raise RunError(f"{path} is too short", seen=f"{len(found)} of {len(out)} frames of episode {episode}")
    return np.stack(found)


def _episode_meta(root: Path, episode: int) -> dict[str, Any]:
    import pyarrow.parquet as pq

    for file in sorted((root / "meta" / "episodes").rglob("*.parquet")):
        found = pq.read_table(file, filters=[("episode_index", "=", episode)])
        if len(found):
            return dict(found.to_pylist()[0])
    return {}

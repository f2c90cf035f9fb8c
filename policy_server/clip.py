"""A stretch of a recorded episode as a request sees it: canvas frames, raw action rows, measured states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wamserve.action_codec import rotations
from wamserve.action_codec.errors import RequestError
from wamserve.action_codec.gripper import gripper_from_gripper
from wamserve.clients.policy import Observation
from wamserve.embodiments import episodes
from wamserve.embodiments.adapters import column_of, encode_chunk, robot_from_codec_pose, track_poses
from wamserve.embodiments.canvas import compose
from wamserve.embodiments.contract import Embodiment, State
from wamserve.policy_server.media import camera_keys, episode_video, read_video


@dataclass(frozen=True, eq=False)
class Clip:
    """`chunk` actions and the `chunk + 1` frames around them, at the contract's rate."""

    frames: np.ndarray  # uint8 [chunk + 1, H, W, 3] RGB, views composed
    actions: np.ndarray  # [chunk, width] raw rows of the contract's model half
    observation: Observation  # of the first frame, in the contract's wire half

    @property
    def rows(self) -> int:
        return len(self.actions)


def clip_from_episode(
    contract: Embodiment,
    root: Path,
    *,
    episode: int | None = None,
    start: int = 0,
    cameras: Mapping[str, str] | None = None,
    instruction: str = "",
) -> Clip:
    """The chunk of a LeRobot v2 or v3 episode that begins at control row `start`.

    cameras: contract view -> camera key of the dataset; needed unless both have exactly one. instruction: by
    default the dataset's own. Raises ContractError, CodecError or RequestError for an episode the contract
    does not fit.
    """
    recording = episodes.read(root, episode)
    thinned = episodes.at_control_rate(recording, contract)
    chunk = encode_chunk(contract, thinned.columns, start)
    first = int(thinned.rows[start])
    views = {
        view: _view_frames(recording.path, key, recording.index, first, contract)
        for view, key in pair_cameras(contract, camera_keys(recording.path), cameras).items()
    }
    frames = compose(contract.model.canvas, views)
    columns = {name: values[start : start + 1] for name, values in thinned.columns.items()}
    states = {
        state.name: value
        for state in contract.wire.states
        if (value := measured_state(contract, state, columns)) is not None
    }
    words = instruction or recording.task
    observation = Observation({"canvas": frames[0]}, states, words, float(thinned.timestamps[start]))
    return Clip(frames, chunk.values[chunk.state_rows :], observation)


def pair_cameras(
    contract: Embodiment, keys: list[str], cameras: Mapping[str, str] | None
) -> Mapping[str, str]:
    """Contract view -> dataset camera. Raises RequestError rather than guess."""
    views = contract.model.canvas.views
    if cameras is None and len(views) == len(keys) == 1:
        return {views[0]: keys[0]}
    chosen = dict(cameras or {})
    if set(chosen) != set(views) or not set(chosen.values()) <= set(keys):
        raise RequestError(
            f"which camera is which view of {contract.name} is not known",
            seen=f"cameras {', '.join(keys)}",
            expected=f"one for each of {', '.join(views)}",
            fix=" ".join(["--camera", *(f"{view}=KEY" for view in views)]),
        )
    return chosen


def measured_state(
    contract: Embodiment, state: State, columns: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    """One wire state [dim] from dataset columns of one row; None where the dataset does not hold it."""
    name, _, part = state.measures.partition(".")
    try:
        if part:
            track = contract.model.track(name)
            pose = robot_from_codec_pose(track, track_poses(contract, columns)[name])[0]
            if part == "position":
                return pose[:3, 3].astype(np.float32)
            assert state.rotation_format is not None
            form = rotations.rotation_form(state.rotation_format)
            return form.from_matrix(pose[:3, :3]).astype(np.float32)
        if not name:
            return None
        block = contract.model.block(name)
        if state.gripper is not None:
            source = block.state_gripper_source
            if source is None:
                return None
            value = column_of(columns, source.column)
            value = gripper_from_gripper(value, source.meaning, state.gripper.meaning, source.beyond)
            return value[0].astype(np.float32)
        return column_of(columns, block.state_column)[0].astype(np.float32) if block.state_column else None
    except KeyError:
        return None


def clip_from_video(contract: Embodiment, file: Path, start: int = 0) -> np.ndarray:
    """uint8 [chunk + 1, H, W, 3] frames of a composed video at the contract's rate, from frame `start` on.

    Raises RequestError when the file's rate is no multiple of the contract's.
    """
    rate, count = contract.model.rate_hz, contract.model.chunk + 1
    _, rate_hz = read_video(file, 0, 1)
    stride = rate_hz / rate
    if abs(stride - round(stride)) > 1e-3 or stride < 0.5:
        raise RequestError(
            f"{file.name} runs at a rate that {contract.name} cannot be thinned to",
            seen=f"{rate_hz:g} frames per second",
            expected=f"a multiple of {rate}",
            fix=f"ffmpeg -i {file} -vf fps={rate} {file.stem}_{rate}hz.mp4",
        )
    return read_video(file, start, count, round(stride))[0]


def _view_frames(root: Path, key: str, episode: int, first: int, contract: Embodiment) -> np.ndarray:
    """chunk + 1 frames of one camera from native row `first` on. An episode may end one frame early."""
    where = episode_video(root, key, episode)
    model = contract.model
    return read_video(where.file, where.start + first, model.chunk + 1, model.stride)[0]

"""Pictures, videos and recorded episodes from disk, and videos and actions to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from wamserve.action_codec.errors import RequestError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def read_image(path: Path) -> np.ndarray:
    """uint8 [H, W, 3] RGB. Raises RequestError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise RequestError(f"no picture can be read from {path}", seen=str(error)) from error


def read_video(
    path: Path, start: int = 0, count: int | None = None, stride: int = 1
) -> tuple[np.ndarray, float]:
    """Frames start, start + stride, ... as uint8 [T, H, W, 3] RGB, and the file's own frames per second.

    Raises RequestError when the file is no video or ends before `count` frames.
    """
    import av

    frames: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate_hz = float(stream.average_rate or 0)
            for number, frame in enumerate(container.decode(stream)):
                if number >= start and (number - start) % stride == 0:
                    frames.append(frame.to_ndarray(format="rgb24"))
                if count is not None and len(frames) == count:
                    break
    except (av.FFmpegError, OSError, IndexError) as error:
        raise RequestError(f"no video can be read from {path}", seen=str(error)) from error
    if not frames or (count is not None and len(frames) < count):
        raise RequestError(
            f"{path} is too short",
            seen=f"{len(frames)} frames from frame {start} at stride {stride}",
            expected=f"{count or 1} frames",
        )
    return np.stack(frames), rate_hz


def write_video(path: Path, frames: np.ndarray, rate_hz: float) -> Path:
    """uint8 [T, H, W, 3] RGB to an H.264 MP4 that plays anywhere; an odd last row or column is dropped."""
    import av

    height, width = (side - side % 2 for side in frames.shape[1:3])
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate_hz).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "16"}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def write_actions(
    folder: Path, actions: np.ndarray, names: Sequence[str], rate_hz: float, **about: Any
) -> list[Path]:
    """actions [H, D] to actions.json (for people) and actions.npz (exact), with their column names."""
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"columns": list(names), "rate_hz": rate_hz, **about}
    files = [folder / "actions.json", folder / "actions.npz"]
    files[0].write_text(json.dumps({**meta, "actions": np.asarray(actions).tolist()}, indent=1))
    arrays: dict[str, Any] = {key: np.asarray(value) for key, value in meta.items()}
    np.savez(files[1], actions=actions, **arrays)
    return files


def read_actions(path: Path) -> np.ndarray:
    """float64 [H, D] from .json (a list of rows, or {"actions": rows}), .npz (`actions`) or .npy."""
    try:
        if path.suffix == ".json":
            raw = json.loads(path.read_text())
            rows = np.asarray(raw["actions"] if isinstance(raw, dict) else raw, dtype=np.float64)
        else:
            loaded = np.load(path, allow_pickle=False)
            rows = np.asarray(loaded["actions"] if path.suffix == ".npz" else loaded, dtype=np.float64)
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"no actions can be read from {path}", seen=str(error)) from error
    if rows.ndim != 2:
        raise RequestError(f"{path} holds no action rows", seen=list(rows.shape), expected="[rows, columns]")
    return rows


def read_states(path: Path) -> dict[str, np.ndarray]:
    """State name -> float32 vector, from a JSON object of lists."""
    try:
        raw = json.loads(path.read_text())
        return {name: np.asarray(value, dtype=np.float32) for name, value in raw.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise RequestError(f"no states can be read from {path}", seen=str(error)) from error


@dataclass(frozen=True)
class EpisodeVideo:
    """Where one camera of one LeRobot episode lies."""

    file: Path
    start: int  # first frame of the episode in the file
    rate_hz: float


def episode_video(root: Path, key: str, episode: int = 0) -> EpisodeVideo:
    """The file and first frame of camera `key` in a LeRobot v2 or v3 dataset. Raises RequestError."""
    info = _info(root)
    keys = camera_keys(root)
    if key not in keys:
        raise RequestError(
            f"{root.name} has no camera {key!r}", expected=", ".join(keys) or "no camera at all"
        )
    rate_hz = float(info["fps"])
    if str(info.get("codebase_version", "")).startswith("v2"):
        chunk = episode // int(info.get("chunks_size", 1000))
        name = info["video_path"].format(episode_chunk=chunk, video_key=key, episode_index=episode)
        return EpisodeVideo(_existing(root / name), 0, rate_hz)
    row = _episode_row(root, episode)
    chunk, number = int(row.get(f"videos/{key}/chunk_index", 0)), int(row.get(f"videos/{key}/file_index", 0))
    names = {"video_key": key, "chunk_index": chunk, "file_index": number}
    name = info["video_path"].format(**names, episode_chunk=chunk, episode_file=number)
    start = round(float(row.get(f"videos/{key}/from_timestamp", 0.0)) * rate_hz)
    return EpisodeVideo(_existing(root / name), start, rate_hz)


def camera_keys(root: Path) -> list[str]:
    """Cameras of a LeRobot dataset whose files are here."""
    features = _info(root)["features"]
    return [
        key for key, f in features.items() if f["dtype"] == "video" and (root / "videos" / key).is_dir()
    ] or [key for key, f in features.items() if f["dtype"] == "video"]


def _info(root: Path) -> dict[str, Any]:
    file = root / "meta" / "info.json"
    if not file.is_file():
        raise RequestError(f"{root} is no LeRobot dataset", expected="meta/info.json, data/, videos/")
    return json.loads(file.read_text())


def _episode_row(root: Path, episode: int) -> dict[str, Any]:
    known: list[int] = []
    for row in _episode_rows(root):
        if row["episode_index"] == episode:
            return row
        known.append(row["episode_index"])
    raise RequestError(f"{root.name} has no episode {episode}", expected=f"one of {known[:20]}")


def _episode_rows(root: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as parquet

    for file in sorted((root / "meta" / "episodes").rglob("*.parquet")):
        yield from parquet.read_table(file).to_pylist()


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise RequestError(f"the video {file} is missing", fix="fetch the dataset with its videos")
    return file

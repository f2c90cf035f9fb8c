"""What is suspicious about a recorded episode, told by its contract before a model or a robot tells it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wamserve.action_codec.arrays import Array, checked
from wamserve.action_codec.errors import CodecError, ContractError
from wamserve.action_codec.gripper import open_fraction_from_gripper
from wamserve.embodiments import episodes
from wamserve.embodiments.adapters import Encoded, chunk_starts, column_of, columns_read, encode
from wamserve.embodiments.contract import Block, Embodiment, GripperValue, ModelHalf, load, names
from wamserve.embodiments.episodes import Episode, Recording
from wamserve.embodiments.units import chunk_normalizer

QUANTILES = ("quantile", "quantile_rot")
FEWEST_ROWS = 8  # of which a percentile says something


@dataclass(frozen=True)
class Finding:
    """One suspicion, and what would settle it."""

    # rate, crossing, short, poses, scale, approach, gripper_range, gripper_polarity, joints, model_space
    name: str
    what: str
    seen: str
    expected: str
    fix: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}; seen: {self.seen}; expected: {self.expected}; try: {self.fix}"


def check_recording(recording: Recording, embodiment: Embodiment) -> list[Finding]:
    """Every finding about one stored episode. CodecError or ContractError where it cannot be read at all."""
    found = [*_rows_of_one_episode(recording), *_rate(recording, embodiment.model)]
    if any(finding.name == "crossing" for finding in found):
        return found
    model = embodiment.model
    # A wrong rate is reported above and must not hide what else is wrong, so thinning ignores it here.
    rows = np.arange(0, len(recording), model.stride)
    columns = {name: values[rows] for name, values in recording.columns.items()}
    episode = Episode(columns, recording.timestamps[rows], rows.astype(np.float64))
    if not chunk_starts(embodiment, len(episode)):
        found.append(
            Finding(
                "short",
                "not one whole chunk fits into the episode",
                f"{len(episode)} rows at {model.rate_hz} Hz",
                f"more than {model.chunk}",
                "a longer episode; chunks are never padded or continued into the next",
            )
        )
    absent = _absent_columns(recording, embodiment)
    for block in model.blocks:
        if block.gripper is not None:
            found += _gripper(block, episode)
    if absent:
        found.append(
            Finding(
                "poses",
                f"{', '.join(absent)}: poses that the data set does not hold; motion was not checked",
                ", ".join(recording.columns),
                "[T, 4, 4], from forward kinematics or a tracker of your own",
                "add them as columns of 16 numbers, row by row, or call embodiments.adapters.encode",
            )
        )
        return found
    encoded = encode(embodiment, episode.columns)
    if len(encoded.raw) >= FEWEST_ROWS:
        found += _scale(encoded, model)
    found += _approach(encoded, model)
    return found + list(_joints(embodiment, encoded))


def check_model_actions(rows: Array, embodiment: Embodiment) -> list[Finding]:
    """Findings about rows [N, D] that claim to be in model space already."""
    model = embodiment.model
    values = model.layout.check(rows, "model actions")
    if model.normalizer.method not in QUANTILES:
        return []
    found: list[Finding] = []
    for block in model.layout.blocks:
        columns = block.rotation_columns
        if columns is None:
            continue
        norms = np.linalg.norm(values[:, columns].reshape(len(values), 2, 3), axis=-1)
        if (np.abs(norms - 1.0) < 1e-3).all():
            found.append(
                Finding(
                    "model_space",
                    f"rot6d columns of block {block.name!r} have unit length: these are raw actions",
                    "norm 1.000",
                    f"{model.normalizer.method}-normalized columns, which have not",
                    "normalize first (ModelActions from RawActions)",
                )
            )
    return found


def check_path(path: Path, embodiment: Embodiment, episode: int | None = None) -> list[Finding]:
    """A LeRobot folder or parquet file, or a .json list of model-space action rows."""
    if path.suffix == ".json":
        try:
            rows = checked(path.name, json.loads(path.read_text()))
        except (OSError, json.JSONDecodeError) as error:
            raise ContractError(f"{path} is no list of action rows: {error}") from None
        return check_model_actions(rows, embodiment)
    return check_recording(episodes.read(path, episode), embodiment)


def _absent_columns(recording: Recording, embodiment: Embodiment) -> list[str]:
    """Pose columns the recording lacks; CodecError where numbers lack, naming contracts that would fit."""
    read = columns_read(embodiment)
    absent = [name for name in read if name not in recording.columns]
    for name in absent:
        if read[name] == "poses":
            continue
        fitting = [
            other
            for other in names()
            if load(other).model.native_rate_hz == recording.rate_hz
            and all(column in recording.columns for column in columns_read(load(other)))
        ]
        raise CodecError(
            f"column {name!r} is missing",
            seen=", ".join(recording.columns),
            expected=", ".join(read),
            fix=" or ".join(f"--embodiment {other}" for other in fitting) or None,
        )
    return absent


def _rows_of_one_episode(recording: Recording) -> Iterator[Finding]:
    numbers = np.unique(recording.episode_of_row)
    if len(numbers) > 1:
        yield Finding(
            "crossing",
            "windows over these rows would cross from one episode into another",
            f"episodes {numbers.astype(int).tolist()} in one stretch",
            "rows of one episode",
            "cut by episode_index before cutting chunks",
        )
    jumps = np.flatnonzero(np.diff(recording.frame_index) != 1)
    if len(jumps):
        yield Finding(
            "crossing",
            "frame_index jumps inside the episode: windows over it would join what does not follow",
            f"{recording.frame_index[jumps[0]]:.0f} then {recording.frame_index[jumps[0] + 1]:.0f}"
            f" at row {jumps[0]}",
            "each frame one after the other",
            "sort or cut the rows",
        )
    if recording.declared_rows is not None and recording.declared_rows != len(recording):
        yield Finding(
            "crossing",
            "readers that slice by the episode's declared length would leave it, or lose its end",
            f"{len(recording)} rows with episode_index {recording.index}",
            f"{recording.declared_rows} rows by meta/episodes",
            "rebuild meta/episodes",
        )


def _rate(recording: Recording, model: ModelHalf) -> Iterator[Finding]:
    if recording.rate_hz != model.native_rate_hz:
        yield Finding(
            "rate",
            "the data set's rate is not the contract's native rate",
            f"{recording.rate_hz} Hz",
            f"{model.native_rate_hz} Hz, stride {model.stride}, {model.rate_hz} Hz after it",
            "another embodiment or a resampled copy: deltas scale with the rate",
        )
    steps = np.diff(recording.timestamps)
    if not len(steps):
        return
    period = 1.0 / recording.rate_hz
    if abs(float(np.median(steps)) - period) > 0.05 * period:
        yield Finding(
            "rate",
            "timestamps do not run at the rate that the data set claims",
            f"{1.0 / max(float(np.median(steps)), 1e-9):.2f} Hz by timestamps",
            f"{recording.rate_hz} Hz",
            "correct meta/info.json, or the timestamps",
        )
    odd = np.abs(steps - np.median(steps)) > 0.5 * period
    if odd.any():
        yield Finding(
            "rate",
            f"{int(odd.sum())} rows follow at another interval",
            f"{steps[odd][0]:.4f} s after row {int(np.flatnonzero(odd)[0])}",
            f"{period:.4f} s",
            "drop the episode, or resample it by timestamp",
        )


def _scale(encoded: Encoded, model: ModelHalf) -> Iterator[Finding]:
    if model.normalizer.method not in QUANTILES:
        return
    unclamped = dataclasses.replace(chunk_normalizer(model).actions, clamp=False)
    values = np.abs(unclamped.model_from_raw(encoded.raw.values))
    moves: list[int] = []
    turns: list[int] = []
    for block in model.layout.blocks:
        if block.of_kind.position:
            moves += range(block.start, block.start + 3)
        elif block.kind == "osc_position":
            moves += range(block.start, block.stop)
        if (columns := block.rotation_columns) is not None:
            # Diagonals sit at their upper quantile whenever nothing turns, so they tell nothing of the scale.
            turns += [columns.start + i for i in (1, 2, 3, 5)]
    for what, dims in (("translations", moves), ("rotations", turns)):
        if not dims:
            continue
        p99 = float(np.percentile(values[:, dims], 99.0))
        if not 0.5 <= p99 <= 1.5:
            yield Finding(
                "scale",
                f"{what} are {'small' if p99 < 0.5 else 'large'} for this normalizer",
                f"p99 of |normalized| {p99:.2f}",
                "0.5 .. 1.5",
                "check stride and rate first (deltas scale with 1 / rate), then units, then the stats file",
            )


def _approach(encoded: Encoded, model: ModelHalf) -> Iterator[Finding]:
    for track in model.tracks:
        down = float(encoded.poses[track.name][:, 2, 2].mean())
        if track.approach_down and down > -0.5:
            yield Finding(
                "approach",
                f"the approach axis of {track.name!r} does not point down",
                f"mean z of the z axis {down:+.2f} in the {track.frame}",
                "-1.0 .. -0.5",
                "check frame_transform (forgotten or transposed), quaternion order and tool_offset",
            )


def _gripper(block: Block, episode: Episode) -> Iterator[Finding]:
    source = block.gripper_source
    assert source is not None  # a gripper block has a source: contract.check
    values = column_of(episode.columns, source.column)[:, 0]
    slack = 0.05 * (source.high - source.low)
    if values.min() < source.low - slack or values.max() > source.high + slack:
        yield Finding(
            "gripper_range",
            f"{source.column} leaves its declared range",
            f"{values.min():.3g} .. {values.max():.3g}",
            f"{source.low:g} .. {source.high:g} ({source.unit})",
            "the unit is another one: declare it in the contract, never guess it per batch",
        )
        return
    command = _open(source, values)
    if command[0] < 0.25 and command.max() > 0.75:
        yield Finding(
            "gripper_polarity",
            f"{source.column} begins closed and opens later, which a task rarely does",
            f"open fraction {command[0]:.2f} at the first row",
            f"an open hand, if {source.polarity.replace('_', ' ')} is true",
            "look at a frame: if the hand is open there, the polarity is the other one",
        )
    measured = block.state_gripper_source
    if (
        measured is None
        or measured.column == source.column
        or measured.column.split("[")[0] not in episode.columns
    ):
        return
    follows = _open(measured, column_of(episode.columns, measured.column)[:, 0])
    if command.std() > 0.05 and follows.std() > 0.05:
        together = max(
            float(np.corrcoef(command[: len(command) - lag], follows[lag:])[0, 1]) for lag in range(4)
        )
        if together < 0.0:
            yield Finding(
                "gripper_polarity",
                f"{measured.column} opens when {source.column} closes",
                f"correlation {together:+.2f}",
                "above 0",
                "one of the two polarities is the wrong way round",
            )


def _joints(embodiment: Embodiment, encoded: Encoded) -> Iterator[Finding]:
    limits = embodiment.wire.joints
    for block in embodiment.model.layout.blocks:
        if block.kind != "joint_abs" or limits is None:
            continue
        values = encoded.raw.values[:, block.columns]
        beyond = np.maximum(np.asarray(limits.low) - values, values - np.asarray(limits.high)).max(axis=0)
        if (beyond > 0.1).any():
            joint = int(beyond.argmax())
            yield Finding(
                "joints",
                f"joint {joint + 1} leaves its limits",
                f"{values[:, joint].min():.2f} .. {values[:, joint].max():.2f} rad",
                f"{limits.low[joint]:.2f} .. {limits.high[joint]:.2f} rad",
                "degrees, another joint order, or another robot",
            )


def _open(value: GripperValue, numbers: Array) -> Array:
    return open_fraction_from_gripper(numbers, value.meaning)

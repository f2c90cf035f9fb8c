"""Dataset columns to unified action rows and back, as a contract declares: one path for every robot.

A dataset row i becomes action row i: poses turn into deltas from row i to row i + 1, other numbers are read
`time_offset` rows ahead. All arrays here are at the control rate (`episodes.Episode.columns` is).

>>> bridge = load("bridge_orig_lerobot")
>>> encoded = encode(bridge, {"observation.state": state, "action": action})   # [T, 7] each
>>> encoded.raw.values.shape, encoded.model.values.shape, encoded.poses["eef"].shape
((T - 1, 10), (T - 1, 10), (T, 4, 4))
>>> decode_poses(bridge, encoded.raw, start={"eef": encoded.poses["eef"][0]})["eef"]   # [T, 4, 4] again
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from wamserve.action_codec import rotations, se3
from wamserve.action_codec.actions import ModelActions, RawActions
from wamserve.action_codec.arrays import Array, checked
from wamserve.action_codec.errors import CodecError, ContractError
from wamserve.action_codec.gripper import gripper_from_gripper
from wamserve.embodiments.contract import Block, Embodiment, GripperValue, PoseTrack
from wamserve.embodiments.model_half import column_range
from wamserve.embodiments.units import chunk_normalizer

Columns = Mapping[str, ArrayLike]


@dataclass(frozen=True, eq=False)
class Encoded:
    """An episode, or a stretch of one, in the model's language."""

    raw: RawActions  # [N, D] the embodiment's units
    model: ModelActions  # [N, D] normalized (and clamped where the contract says so)
    poses: dict[str, Array]  # track -> [T, 4, 4] in the codec's frame


def encode(embodiment: Embodiment, columns: Columns) -> Encoded:
    """Columns of T rows -> N = T - reach(embodiment) action rows, without state rows.

    A column is the dataset's own: [T], [T, D], or body poses [T, 4, 4]. CodecError names a missing column, a
    wrong width, a NaN, or a matrix that is no rotation.
    """
    tracks = track_poses(embodiment, columns)
    raw = RawActions(_rows(embodiment, columns, tracks))
    return Encoded(raw, chunk_normalizer(embodiment.model).actions.to_model(raw), tracks)


def encode_chunk(embodiment: Embodiment, columns: Columns, start: int) -> RawActions:
    """The chunk that begins at row `start`: state row first where the contract has one, then `chunk` rows."""
    model = embodiment.model
    lead = model.history
    first, stop = start - lead, start + model.chunk + reach(embodiment)
    length = _length(columns)
    if first < 0 or stop > length:
        raise CodecError("the chunk leaves the episode", seen=f"rows {first}:{stop}", expected=f"0:{length}")
    rows = encode(
        embodiment, {name: np.asarray(column)[first:stop] for name, column in columns.items()}
    ).raw.values
    if not model.state_row:
        return RawActions(rows, lead)
    state = state_row(embodiment, columns, start)[None]
    return RawActions(np.concatenate([rows[:lead], state, rows[lead:]]), lead + 1)


def chunk_starts(embodiment: Embodiment, length: int, hop: int = 1) -> range:
    """Rows at which a whole chunk fits into an episode of `length` rows."""
    model = embodiment.model
    return range(model.history, length - model.chunk - reach(embodiment) + 1, hop)


def columns_read(embodiment: Embodiment) -> dict[str, str]:
    """Dataset columns that action rows are made of: name -> what each gives, "poses" or "numbers"."""
    model = embodiment.model
    read = {"poses": [t.rotation for t in model.tracks if t.rotation_format == "matrix"]}
    read["numbers"] = [spec for t in model.tracks for spec in (t.position, t.rotation)]
    read["numbers"] += [b.gripper_source.column if b.gripper_source else b.column for b in model.blocks]
    return {column_range(spec)[0]: kind for kind in ("numbers", "poses") for spec in read[kind] if spec}


def reach(embodiment: Embodiment) -> int:
    """Rows past a chunk's last that its numbers are read from: 1 for deltas and for states at t + 1."""
    layout = embodiment.model.layout
    return max(
        max(block.time_offset, int(block.of_kind.reference in ("framewise", "anchored")))
        for block in layout.blocks
    )


def track_poses(embodiment: Embodiment, columns: Columns) -> dict[str, Array]:
    """Every track of the contract as [T, 4, 4] in the codec's frame: parent · T_source · F · C."""
    tracks: dict[str, Array] = {}
    for track in embodiment.model.tracks:
        pose = _source_pose(track, columns)
        if track.inverse:
            pose = se3.inverse(pose)
        if track.from_start:
            pose = se3.inverse(pose[:1]) @ pose
        if track.parent:
            pose = tracks[track.parent] @ pose
        tracks[track.name] = codec_from_robot_pose(track, pose)
    return tracks


def codec_from_robot_pose(track: PoseTrack, poses: ArrayLike) -> Array:
    """A pose as the robot tells it [..., 4, 4] -> the codec's frame: T · tool_offset · frame_transform."""
    return se3.rotate_body_frame(se3.reframe_poses(poses, track.tool_offset), track.frame_transform)


def robot_from_codec_pose(track: PoseTrack, poses: ArrayLike) -> Array:
    """The codec's frame [..., 4, 4] -> the pose as the robot tells it."""
    undone = se3.rotate_body_frame(poses, np.transpose(track.frame_transform))
    return se3.reframe_poses(undone, se3.inverse(np.asarray(track.tool_offset)))


def state_row(embodiment: Embodiment, columns: Columns, row: int) -> Array:
    """What the robot measures at `row`, in the columns of an action row [D].

    Pose blocks hold the absolute pose in the codec's frame, [xyz, rot6d].
    """
    model, length = embodiment.model, _length(columns)
    if not 0 <= row < length:
        raise CodecError("the state row leaves the episode", seen=f"row {row}", expected=f"0:{length}")
    here = {name: np.asarray(column)[row : row + 1] for name, column in columns.items()}
    tracks = track_poses(embodiment, here)
    values = np.empty(model.width)
    for block in model.blocks:
        if block.track:
            part = se3.pose9_from_pose(tracks[block.track])
        elif block.gripper is not None:
            part = _gripper(block, block.state_gripper_source, here)
        elif block.state_column:
            part = column_of(here, block.state_column)
        else:
            raise ContractError(f"{embodiment.name}: block {block.name!r} has no measured counterpart")
        values[block.start : block.stop] = checked(
            f"state of block {block.name!r}", part[0], block.stop - block.start
        )
    return values


def decode_poses(embodiment: Embodiment, raw: RawActions, start: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """Integrates pose blocks: track -> poses [..., N + 1, 4, 4] in the codec's frame, start included.

    start: track -> pose [..., 4, 4] in the codec's frame (`codec_from_robot_pose`). State rows are skipped.
    """
    rows = embodiment.model.layout.check(_typed(raw).values[..., raw.state_rows :, :])
    poses: dict[str, Array] = {}
    for block in embodiment.model.layout.blocks:
        track = embodiment.model.block(block.name).track
        if not track:
            continue
        if track not in start:
            raise CodecError(f"no start pose for track {track!r}", seen=", ".join(start), expected=track)
        deltas = se3.pose_from_pose9(rows[..., block.columns])
        chain = se3.poses_from_deltas_framewise
        if block.of_kind.reference == "anchored":
            chain = se3.poses_from_deltas_anchored
        poses[track] = chain(se3.require_pose(start[track], f"start pose of track {track!r}"), deltas)
    return poses


def commands(embodiment: Embodiment, raw: RawActions, start: Mapping[str, ArrayLike] | None = None) -> Array:
    """Action rows -> the rows a robot executes [..., N, reply.width], in the wire half's units and polarity.

    start: track -> the pose the robot reports [..., 4, 4], needed where the reply is pose targets.
    """
    reply, model = embodiment.wire.reply, embodiment.model
    rows = model.layout.check(_typed(raw).values[..., raw.state_rows :, :])
    poses: dict[str, Array] = {}
    if reply.form == "pose_targets":
        if start is None:
            raise CodecError("pose targets need the pose the robot is at", expected="start={track: pose}")
        begun = {name: codec_from_robot_pose(model.track(name), pose) for name, pose in start.items()}
        poses = decode_poses(embodiment, raw, begun)
    grippers = iter(reply.grippers)
    parts: list[Array] = []
    for block in model.blocks:
        part = rows[..., block.start : block.stop]
        if block.gripper is not None:
            target = next(grippers)
            # The model's number may overshoot its range; `beyond` of the reply says what the robot gets.
            part = gripper_from_gripper(part, block.gripper.meaning, target.meaning, target.beyond)
        elif block.track and reply.form == "pose_targets":
            targets = robot_from_codec_pose(model.track(block.track), poses[block.track][..., 1:, :, :])
            part = se3.pose_vector_from_pose(targets, reply.rotation_format)
        elif block.kind == "osc_rot6d":
            part = rotations.axis_angle_from_matrix(rotations.matrix_from_rot6d(part))
            # robosuite keeps its goal for an exactly zero rotation only, and rot6d turns zeros into 1e-8.
            part = rotations.snap_tiny_axis_angle(part)
        parts.append(part)
    return np.concatenate(parts, axis=-1)


def column_of(columns: Columns, spec: str) -> Array:
    """The column "name", "name[i]" or "name[i:j]" as finite float64 [T, ...]; a single number is [T, 1]."""
    name, start, stop = column_range(spec)
    if name not in columns:
        raise CodecError(f"column {name!r} is missing", seen=", ".join(columns) or "nothing", expected=spec)
    values = checked(f"column {name!r}", columns[name], *np.shape(columns[name])[1:])
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim == 0 or values.ndim > 3 or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise CodecError(
            f"column {name!r} is not one episode's",
            seen=list(values.shape),
            expected="[T], [T, D], points [T, K, 3], quaternions [T, K, 4] or poses [T, 4, 4]",
        )
    if stop is None:
        return values
    values = values.reshape(len(values), math.prod(values.shape[1:]))
    if values.shape[1] < stop:
        raise CodecError(
            f"column {name!r} has the wrong width", seen=values.shape[1], expected=f"at least {stop}"
        )
    return values[:, start:stop]


def _rows(embodiment: Embodiment, columns: Columns, tracks: dict[str, Array]) -> Array:
    model, ahead = embodiment.model, reach(embodiment)
    lengths = _lengths(columns)
    if len(set(lengths.values())) > 1:
        raise CodecError("columns differ in length", seen=", ".join(f"{k} {v}" for k, v in lengths.items()))
    count = _length(columns) - ahead
    if count < 1:
        raise CodecError(
            "the episode is too short", seen=f"{_length(columns)} rows", expected=f"at least {1 + ahead}"
        )
    rows = np.empty((count, model.width))
    for block in model.blocks:
        if block.track:
            deltas = se3.deltas_framewise_from_poses(tracks[block.track])
            if model.layout[block.name].of_kind.reference == "anchored":
                deltas = se3.deltas_anchored_from_poses(tracks[block.track])
            part = se3.pose9_from_pose(deltas)[:count]
        else:
            part = _block_column(block, columns, tracks)[block.time_offset : block.time_offset + count]
        rows[:, block.start : block.stop] = checked(f"block {block.name!r}", part, block.stop - block.start)
    return rows


def _block_column(block: Block, columns: Columns, tracks: dict[str, Array]) -> Array:
    """A block's numbers at every row [T, width], before the time offset."""
    if block.gripper is not None:
        return _gripper(block, block.gripper_source, columns)
    values = column_of(columns, block.column)
    if block.keypoints:
        points = values.reshape(len(values), -1, 3)
        if points.shape[1] <= max(block.keypoints):
            raise CodecError(
                f"column {block.column!r} has too few points",
                seen=points.shape[1],
                expected=max(block.keypoints) + 1,
            )
        # Both tracks live in one world, so the way from one body to the other is inverse(to) · from.
        way = se3.inverse(tracks[block.frame]) @ tracks[block.given_in]
        chosen = points[:, list(block.keypoints)]
        seen = np.einsum("tij,tkj->tki", way[:, :3, :3], chosen) + way[:, None, :3, 3]
        return seen.reshape(len(values), -1)
    if block.column_rotation is not None:
        return rotations.rot6d_from_matrix(rotations.rotation_form(block.column_rotation).to_matrix(values))
    return values


def _gripper(block: Block, source: GripperValue | None, columns: Columns) -> Array:
    if source is None or block.gripper is None:
        raise ContractError(f"block {block.name!r} declares no gripper source")
    return gripper_from_gripper(
        column_of(columns, source.column), source.meaning, block.gripper.meaning, source.beyond
    )


def _source_pose(track: PoseTrack, columns: Columns) -> Array:
    values = column_of(columns, track.rotation)
    if track.rotation_format == "matrix":
        if values.ndim == 2 and values.shape[1] == 16:  # parquet keeps a matrix as one row of numbers
            values = values.reshape(-1, 4, 4)
        return se3.require_pose(values, f"column {track.rotation!r}")
    form = rotations.rotation_form(track.rotation_format)
    values = checked(f"column {track.rotation!r} ({track.rotation_format})", values, form.width)
    if track.zero_rotation == "identity":
        unit = form.from_matrix(np.eye(3))
        values = np.where((values == 0.0).all(axis=-1, keepdims=True), unit, values)
    position = checked(f"column {track.position!r}", column_of(columns, track.position), 3)
    return se3.pose_from_matrix(form.to_matrix(values), position)


def _typed(raw: RawActions) -> RawActions:
    if not isinstance(raw, RawActions):
        raise CodecError(
            f"{type(raw).__name__} were given where RawActions belong", expected="RawActions(values)"
        )
    return raw


def _length(columns: Columns) -> int:
    return min(_lengths(columns).values(), default=0)


def _lengths(columns: Columns) -> dict[str, int]:
    """Rows of each column; what has none is left for `column_of` to refuse."""
    shapes = {name: np.shape(column) for name, column in columns.items()}
    return {name: shape[0] for name, shape in shapes.items() if shape}

"""The model half of a contract: what must equal the checkpoint's training."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from wamserve.action_codec.errors import ContractError
from wamserve.action_codec.gripper import Gripper
from wamserve.action_codec.gripper import Polarity as Polarities
from wamserve.action_codec.layout import Block as LayoutBlock
from wamserve.action_codec.layout import Layout

Row3 = tuple[float, float, float]
Row4 = tuple[float, float, float, float]
Rotation = tuple[Row3, Row3, Row3]  # row-major
Transform = tuple[Row4, Row4, Row4, Row4]  # row-major, metres
RotationFormat = Literal["euler_xyz", "quat_xyzw", "quat_wxyz", "axis_angle", "rot6d", "matrix"]
Polarity = Literal["one_is_open", "one_is_closed"]  # what the upper end of a gripper number shows
GripperUnit = Literal["fraction", "m", "sign", "count"]  # m: opening; sign: -1 .. 1; count: the device's own

EYE3: Rotation = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
EYE4: Transform = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


@dataclass(frozen=True)
class PoseTrack:
    """How dataset columns become one moving frame: parent · T_source · tool_offset · frame_transform.

    A column is named "column", "column[i]" or "column[i:j]".
    """

    name: str
    position: str  # column of xyz, metres; "" when rotation is a [T, 4, 4] column
    rotation: str  # column of the rotation, or of [T, 4, 4] poses with rotation_format = "matrix"
    rotation_format: RotationFormat  # euler_xyz is extrinsic, radians: R = Rz(y) Ry(p) Rx(r)
    frame: str  # the frame the column's poses are expressed in, in words
    inverse: bool = False  # the column holds the inverse (world -> camera); it is inverted first
    zero_rotation: Literal["refuse", "identity"] = "refuse"  # what an all-zero quaternion means here
    from_start: bool = False  # poses are taken relative to the episode's first: inv(T_0) T_t
    parent: str = ""  # earlier track whose codec pose stands on the left
    tool_offset: Transform = EYE4  # constant F on the right: the point and axes the model speaks of
    approach_down: bool = False  # the codec frame's z points at the table on average: fingers down
    frame_transform: Rotation = EYE3  # C on the right of F: axes renamed to the codec's (OpenCV) frame


@dataclass(frozen=True)
class GripperValue:
    """One gripper number: where it is read (dataset column) and what it means."""

    polarity: Polarity  # which end of travel `high` is
    unit: GripperUnit
    low: float
    high: float
    column: str = ""  # dataset column; "" for the model's own number
    beyond: Literal["pass", "clip"] = "pass"  # values outside [low, high] while reading the column

    @property
    def meaning(self) -> Gripper:
        return Gripper(Polarities(self.polarity), self.unit, self.low, self.high)


@dataclass(frozen=True)
class Block:
    """A named slice of the action row, and what fills it."""

    name: str
    start: int
    stop: int
    kind: str  # a key of action_codec.layout.KINDS: pose9_rel, joint_abs, gripper, ...
    frame: str  # frame the numbers are expressed in; a track's name where it is that track's
    unit: str
    time_offset: int  # rows ahead of the row's own time at which the source is read (0: command at t)
    track: str = ""  # pose9_*: the track it follows
    column: str = ""  # joints, positions, points, osc_*: the dataset column
    column_rotation: RotationFormat | None = None  # osc_rot6d: how the column writes its rotation
    state_column: str = ""  # measured counterpart of `column`, for the state row
    keypoints: tuple[int, ...] = ()  # points: which xyz triples of the column
    given_in: str = ""  # points: the track whose frame the column is given in
    gripper: GripperValue | None = None  # gripper: the number in the action row
    gripper_source: GripperValue | None = None  # gripper: the dataset's number
    state_gripper_source: GripperValue | None = None  # gripper: its measured counterpart, for the state row


@dataclass(frozen=True)
class Normalizer:
    """Raw units to model space, per dimension."""

    method: Literal["none", "scale", "quantile", "quantile_rot", "minmax", "meanstd"]
    stats: str = ""  # file in embodiments/stats
    key: str = ""  # block of that file; "" when the file is flat
    sha256: str = ""  # of the stats file
    columns: tuple[int, int] | None = None  # slice of a wider stats vector (UMI holds right | left)
    constant: tuple[int, ...] = ()  # dimensions that never move
    clamp: bool = False  # model space is clamped to [-1, 1] when encoding: lossy


@dataclass(frozen=True)
class Canvas:
    """How camera views become the one frame the model sees."""

    layout: Literal["single", "over_pair", "side_by_side"]
    # over_pair: views[0] above [views[1] | views[2]], each at half its height and width
    views: tuple[str, ...]
    videos: tuple[str, ...]  # the dataset's video key of each view
    height: int  # pixels of the composed frame, before the tier
    width: int
    tier: Literal["64", "128", "256", "480", "704", "720"]
    resize: Literal["bilinear_truncate"] = (
        "bilinear_truncate"  # no antialias, align_corners=False, floor to uint8
    )
    snap: Literal["bicubic_antialias"] = "bicubic_antialias"  # shrink to the tier; never enlarged
    pad: Literal["reflect"] = "reflect"  # right and bottom; edge where the pad reaches the content's size


@dataclass(frozen=True)
class ModelHalf:
    """What must equal the checkpoint's training."""

    domain: str  # name in the registry
    domain_id: int
    registry: Literal["framework", "diffusers", "wamserve"]
    action_space: str
    blocks: tuple[Block, ...]
    tracks: tuple[PoseTrack, ...]
    rate_hz: int  # rows per second of the action chunk
    native_rate_hz: int  # rows per second of the dataset
    stride: int  # native rows per action row
    chunk: int  # rows per chunk, state row not counted
    state_row: bool  # one clean row of measured state precedes the chunk
    history: int  # clean rows of past actions before the state row
    normalizer: Normalizer
    state_normalizer: Normalizer
    translation_scale: float  # model-space metres per metre
    canvas: Canvas
    viewpoint: Literal["ego_view", "third_person_view", "wrist_view", "concat_view", "top_down_2d_view"]
    view_text: str  # sentence after the viewpoint's own; "" for none
    prompt_format: Literal["json", "plain"]
    instruction: str  # the prompt of every request; "" where the task is the prompt
    modes: tuple[Literal["policy", "fd", "id"], ...]

    @property
    def width(self) -> int:
        """Numbers per action row."""
        return self.blocks[-1].stop

    @cached_property
    def layout(self) -> Layout:
        """The action row as the codec cuts it."""
        return Layout(
            tuple(
                LayoutBlock(b.name, b.start, b.stop, b.kind, b.frame, b.unit, b.time_offset)
                for b in self.blocks
            )
        )

    def block(self, name: str) -> Block:
        return _named(self.blocks, name, "block")

    def track(self, name: str) -> PoseTrack:
        return _named(self.tracks, name, "track")


def column_range(spec: str) -> tuple[str, int, int | None]:
    """The name and numbers that a column spec means: "name" (0, None: all), "name[i]", "name[i:j]"."""
    match = re.fullmatch(r"([^\[\]]+)(?:\[(\d+)(?::(\d+))?\])?", spec)
    if match is None:
        raise ContractError(f"column {spec!r} is not understood", expected="name, name[i] or name[i:j]")
    name, first, last = match.groups()
    if first is None:
        return name, 0, None
    start, stop = int(first), int(first) + 1 if last is None else int(last)
    if stop <= start:
        raise ContractError(f"column {spec!r} is empty", expected="name[i:j] with i < j")
    return name, start, stop


def _named(items: tuple[Any, ...], name: str, noun: str) -> Any:
    for item in items:
        if item.name == name:
            return item
    raise ContractError(f"no {noun} {name!r}", expected=", ".join(item.name for item in items))

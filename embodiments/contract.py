"""The embodiment contract: a model half the checkpoint was trained with, a wire half the robot speaks.

>>> droid = load("droid_lerobot")
>>> droid.model.chunk, droid.wire.reply.form
(32, 'joint_targets')
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from hashlib import sha256 as digest
from pathlib import Path
from typing import Any, Literal

from wamserve.action_codec.errors import CodecError, ContractError
from wamserve.action_codec.gripper import Gripper
from wamserve.action_codec.gripper import Polarity as Polarities
from wamserve.action_codec.layout import Block as LayoutBlock
from wamserve.action_codec.layout import Layout
from wamserve.embodiments import tables
from wamserve.embodiments.registry import check_domain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent

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
    tier: Literal["128", "256", "480", "704", "720"]
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


@dataclass(frozen=True)
class Image:
    """One camera picture as sent: uint8 RGB [height, width, 3]."""

    name: str
    height: int
    width: int
    orientation: Literal[
        "upright", "rotated_180", "flipped_rows"
    ]  # what the sender did to the renderer's rows


@dataclass(frozen=True)
class State:
    """One measured vector as sent."""

    name: str
    dim: int
    dtype: Literal["float32"]
    unit: str
    order: str  # what the numbers are, in order
    low: tuple[float, ...]  # a value below is refused
    high: tuple[float, ...]
    # What of the action row it is the measured value of: a block's name, or "track.position" or
    # "track.rotation" of a pose; "" for what the model never sees.
    measures: str = ""
    gripper: GripperValue | None = None  # what a gripper's number means
    rotation_format: RotationFormat | None = None  # how a rotation is written


@dataclass(frozen=True)
class ReplyGripper:
    """A gripper column of the reply."""

    index: int
    polarity: Polarity
    unit: GripperUnit
    low: float
    high: float
    beyond: Literal["pass", "clip"]  # what happens to model numbers outside the range

    @property
    def meaning(self) -> Gripper:
        return Gripper(Polarities(self.polarity), self.unit, self.low, self.high)


@dataclass(frozen=True)
class Reply:
    """Rows that the robot executes."""

    form: Literal["joint_targets", "pose_targets", "pose_deltas", "osc_deltas", "position_targets", "points"]
    width: int
    fields: tuple[str, ...]  # one name per column
    unit: str
    frame: str
    rotation_format: Literal["none", "quat_xyzw", "axis_angle", "rot6d"]
    grippers: tuple[ReplyGripper, ...] = ()


@dataclass(frozen=True)
class JointLimits:
    """What the arm may be asked for, in the order of the reply's joints."""

    low: tuple[float, ...]  # rad
    high: tuple[float, ...]
    velocity: tuple[float, ...]  # rad/s


@dataclass(frozen=True)
class Kinematics:
    """Modified Denavit-Hartenberg chain from the base to the flange, one entry per joint."""

    a: tuple[float, ...]  # m
    d: tuple[float, ...]  # m
    alpha: tuple[float, ...]  # rad
    flange: float  # m along the last joint's z


@dataclass(frozen=True)
class WireHalf:
    """What must equal what the robot sends and executes. Dialects spell these names in their own way."""

    robot: str
    images: tuple[Image, ...]
    states: tuple[State, ...]
    reply: Reply
    rate_hz: int  # rows of the reply executed per second
    chunk: int  # rows per reply
    joints: JointLimits | None = None
    kinematics: Kinematics | None = None


@dataclass(frozen=True)
class Embodiment:
    """One robot (or camera, or pair of hands) as model and wire see it."""

    name: str
    title: str  # for people; not hashed
    source: str  # where the numbers come from; not hashed
    model: ModelHalf
    wire: WireHalf

    @cached_property
    def model_hash(self) -> str:
        return tables.sha256(self.model)

    @cached_property
    def wire_hash(self) -> str:
        return tables.sha256(self.wire)


def names() -> list[str]:
    """Every contract that ships, sorted."""
    return sorted(path.stem for path in (HERE / "contracts").glob("*.toml"))


@cache
def load(name: str) -> Embodiment:
    """The contract of that name; ContractError with the known and nearest names otherwise."""
    if name not in names():
        near = get_close_matches(name, names(), n=3, cutoff=0.4)
        raise ContractError(
            f"no embodiment {name!r}",
            expected=", ".join(names()),
            fix=" or ".join(f"wam ls embodiment {n}" for n in near) or "wam ls embodiments",
        )
    return load_file(HERE / "contracts" / f"{name}.toml")


def load_file(path: Path | str) -> Embodiment:
    """A contract from a TOML file, checked in itself and against its stats file."""
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ContractError(f"no contract file {path}", fix="wam ls embodiments") from None
    except tomllib.TOMLDecodeError as error:
        raise ContractError(f"{path.name} is not TOML: {error}") from None
    return check(tables.build(Embodiment, table, path.stem), path.stem)


def check(embodiment: Embodiment, file_name: str) -> Embodiment:
    """The same contract, or ContractError naming the first thing in it that cannot be true."""
    name, model, wire = embodiment.name, embodiment.model, embodiment.wire

    def refuse_unless(true: bool, what: str, seen: object, expected: object) -> None:
        if not true:
            raise ContractError(f"{name}: {what}", seen=seen, expected=expected)

    refuse_unless(name == file_name, "the name is not the file's", name, file_name)
    check_domain(model.registry, model.domain, model.domain_id, name)
    try:
        layout = model.layout
    except CodecError as error:  # gaps, overlaps, unknown kinds, wrong widths
        raise ContractError(f"{name}: {error}") from None
    known = [track.name for track in model.tracks]
    for i, track in enumerate(model.tracks):
        refuse_unless(
            not track.parent or track.parent in known[:i], "parent comes later", track.parent, known[:i]
        )
    for block in model.blocks:
        where, kind = f"block {block.name!r}", layout[block.name].of_kind
        refuse_unless(
            kind.blend != "pose" or bool(block.track), f"{where} follows no track", block.track, known
        )
        for used in filter(None, (block.track, block.given_in)):
            refuse_unless(used in known, f"{where} follows an unknown track", used, known)
        given = block.gripper is not None and block.gripper_source is not None
        refuse_unless((block.kind == "gripper") == given, f"{where} gripper and source", given, not given)
        if block.keypoints:
            refuse_unless(block.frame in known, f"{where} frame is no track", block.frame, known)
            width = 3 * len(block.keypoints)
            refuse_unless(
                layout[block.name].width == width, f"{where} width", layout[block.name].width, width
            )
    refuse_unless(
        model.native_rate_hz == model.rate_hz * model.stride,
        "the stride does not lead from the native rate to the control rate",
        f"{model.native_rate_hz} Hz / {model.stride}",
        f"{model.rate_hz} Hz",
    )
    refuse_unless(
        len(wire.reply.fields) == wire.reply.width, "reply fields", len(wire.reply.fields), wire.reply.width
    )
    refuse_unless(wire.rate_hz == model.rate_hz, "wire and model rates differ", wire.rate_hz, model.rate_hz)
    refuse_unless(wire.chunk == model.chunk, "wire and model chunks differ", wire.chunk, model.chunk)
    refuse_unless(
        len(model.canvas.videos) == len(model.canvas.views),
        "videos and views",
        model.canvas.videos,
        model.canvas.views,
    )
    scaled = model.normalizer.method == "scale"
    refuse_unless(
        scaled or model.translation_scale == 1.0,
        "translation scale needs normalizer scale",
        model.normalizer.method,
        "scale",
    )
    grippers = [block for block in model.blocks if block.kind == "gripper"]
    refuse_unless(
        len(wire.reply.grippers) == len(grippers), "reply grippers", len(wire.reply.grippers), len(grippers)
    )
    views = {image.name for image in wire.images}
    refuse_unless(
        set(model.canvas.views) == views, "canvas views are not the wire's", model.canvas.views, views
    )
    for state in wire.states:
        refuse_unless(
            len(state.low) == len(state.high) == state.dim, f"{state.name} limits", state.low, state.dim
        )
    measured = [state.measures for state in wire.states]
    for block in model.blocks:
        wanted = [f"{block.track}.position", f"{block.track}.rotation"] if block.track else [block.name]
        # Pose targets start at the measured pose, whether or not the model is told it.
        needed = model.state_row or (wire.reply.form == "pose_targets" and bool(block.track))
        refuse_unless(
            not needed or all(name in measured for name in wanted),
            f"block {block.name!r} is not measured by any state",
            measured,
            wanted,
        )
    for normalizer in (model.normalizer, model.state_normalizer):
        read_stats(normalizer, name)
    return embodiment


def read_stats(normalizer: Normalizer, name: str) -> dict[str, list[float]]:
    """The normalizer's figures: quantity -> one number per dimension. ContractError if the file changed."""
    if not normalizer.stats:
        return {}
    raw = (HERE / "stats" / normalizer.stats).read_bytes()
    seen = digest(raw).hexdigest()
    if seen != normalizer.sha256:
        raise ContractError(
            f"{name}: stats file {normalizer.stats} is not the declared one",
            seen=seen,
            expected=normalizer.sha256,
        )
    stats: dict[str, Any] = json.loads(raw)
    if normalizer.key:
        if normalizer.key not in stats:
            raise ContractError(f"{name}: no stats key", seen=normalizer.key, expected=", ".join(stats))
        stats = stats[normalizer.key]
    start, stop = normalizer.columns or (0, None)
    return {key: values[start:stop] for key, values in stats.items() if isinstance(values, list)}


def diff(a: Embodiment, b: Embodiment) -> dict[Literal["model", "wire"], dict[str, tuple[Any, Any]]]:
    """Differing fields of each half: dotted name -> (a's value, b's value); None where one side lacks it."""
    return {
        "model": _diff(tables.flat(a.model), tables.flat(b.model)),
        "wire": _diff(tables.flat(a.wire), tables.flat(b.wire)),
    }


def _diff(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        key: (a.get(key), b.get(key))
        for key in [*a, *(k for k in b if k not in a)]
        if a.get(key) != b.get(key)
    }


def _named(items: tuple[Any, ...], name: str, noun: str) -> Any:
    for item in items:
        if item.name == name:
            return item
    raise ContractError(f"no {noun} {name!r}", expected=", ".join(item.name for item in items))

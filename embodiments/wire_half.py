"""The wire half of a contract: what must equal what the robot sends and executes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wamserve.action_codec.gripper import Gripper
from wamserve.action_codec.gripper import Polarity as Polarities
from wamserve.embodiments.model_half import GripperUnit, GripperValue, Polarity, RotationFormat


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

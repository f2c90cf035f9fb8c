"""How an action row is cut into blocks: what every number is, in which frame and unit, and at which time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from wamserve.action_codec.arrays import Array, checked
from wamserve.action_codec.errors import CodecError

Blend = Literal["linear", "rotation", "pose", "gripper"]
Reference = Literal["absolute", "framewise", "anchored", "command"]


@dataclass(frozen=True)
class Kind:
    """What a block's numbers are and how two opinions about them may be mixed."""

    width: int | None  # None: any
    blend: Blend
    # absolute: a target in `frame`. framewise: relative to the target of the row before.
    # anchored: relative to the pose at the chunk's start. command: a controller input, spent in its own step.
    reference: Reference
    rotation: str | None = None  # rotations.FORMS name of the rotation part
    position: bool = False  # whether the first three numbers are a position


KINDS: dict[str, Kind] = {
    "pose9_rel": Kind(9, "pose", "framewise", "rot6d", position=True),
    "pose9_anchored": Kind(9, "pose", "anchored", "rot6d", position=True),
    "pose9_abs": Kind(9, "pose", "absolute", "rot6d", position=True),
    "pose7_xyzw_abs": Kind(7, "pose", "absolute", "quat_xyzw", position=True),
    "pose7_wxyz_abs": Kind(7, "pose", "absolute", "quat_wxyz", position=True),
    "pose6_euler_abs": Kind(6, "pose", "absolute", "euler_xyz", position=True),
    "rot6d_abs": Kind(6, "rotation", "absolute", "rot6d"),
    "quat_xyzw_abs": Kind(4, "rotation", "absolute", "quat_xyzw"),
    "quat_wxyz_abs": Kind(4, "rotation", "absolute", "quat_wxyz"),
    "euler_xyz_abs": Kind(3, "rotation", "absolute", "euler_xyz"),
    "axis_angle_abs": Kind(3, "rotation", "absolute", "axis_angle"),
    "joint_abs": Kind(None, "linear", "absolute"),
    "joint_velocity": Kind(None, "linear", "command"),
    "position_abs": Kind(None, "linear", "absolute"),
    # [dx, dy, dz, axis_angle], controller units
    "osc_delta": Kind(6, "pose", "command", "axis_angle", position=True),
    "osc_position": Kind(3, "linear", "command"),  # the position half of an OSC command
    "osc_rot6d": Kind(6, "rotation", "command", "rot6d"),  # Exp of the rotation half of an OSC command
    "gripper": Kind(1, "gripper", "absolute"),
}


@dataclass(frozen=True)
class Block:
    """A run of numbers in an action row."""

    name: str
    start: int  # first column
    stop: int  # one past the last column
    kind: str  # a key of KINDS
    frame: str = ""  # what the numbers are seen from, e.g. "earlier eef pose, OpenCV axes"
    unit: str = ""  # "m", "rad", "px", "m, rot6d", "fraction, one_is_open" ...
    time_offset: int = 0  # row i holds the value of step i + time_offset (command at t: 0; state at t + 1: 1)

    def __post_init__(self) -> None:
        width = self.of_kind.width
        if self.start < 0 or self.stop <= self.start:
            raise CodecError(f"block {self.name!r} is empty", seen=f"columns {self.start}:{self.stop}")
        if width is not None and self.width != width:
            raise CodecError(
                f"block {self.name!r} has the wrong width for kind {self.kind!r}",
                seen=self.width,
                expected=width,
            )

    @property
    def width(self) -> int:
        return self.stop - self.start

    @property
    def columns(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def of_kind(self) -> Kind:
        if self.kind not in KINDS:
            raise CodecError(
                f"kind {self.kind!r} of block {self.name!r} is unknown", expected=", ".join(sorted(KINDS))
            )
        return KINDS[self.kind]

    @property
    def rotation_columns(self) -> slice | None:
        """Columns of the row that hold the block's rotation; None where it has none."""
        kind = self.of_kind
        if kind.rotation is None:
            return None
        return slice(self.start + (3 if kind.position else 0), self.stop)


@dataclass(frozen=True)
class Layout:
    """Blocks that cover an action row exactly, in column order."""

    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if not self.blocks:
            raise CodecError("layout has no blocks")
        column = 0
        for block in self.blocks:
            if block.start != column:
                what = "overlaps the block before it" if block.start < column else "leaves a gap before it"
                raise CodecError(
                    f"block {block.name!r} {what}",
                    seen=f"columns {block.start}:{block.stop}",
                    expected=f"start {column}",
                )
            column = block.stop
        names = [block.name for block in self.blocks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise CodecError("block names repeat", seen=", ".join(twice))

    @property
    def width(self) -> int:
        return self.blocks[-1].stop

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(block.name for block in self.blocks)

    def __getitem__(self, name: str) -> Block:
        for block in self.blocks:
            if block.name == name:
                return block
        raise CodecError(f"block {name!r} is not in this layout", expected=", ".join(self.names))

    def of_blend(self, *blends: Blend) -> tuple[Block, ...]:
        """Blocks mixed in one of these ways, in column order."""
        return tuple(block for block in self.blocks if block.of_kind.blend in blends)

    def check(self, rows: ArrayLike, what: str = "actions") -> Array:
        """rows [..., width] as float64; CodecError on another width or a NaN, naming the row."""
        array = np.asarray(rows)
        if array.ndim == 0 or array.shape[-1] != self.width:
            raise CodecError(
                f"{what} have the wrong width",
                seen=list(array.shape),
                expected=f"[..., {self.width}] = " + " | ".join(f"{b.name} {b.width}" for b in self.blocks),
            )
        return checked(what, rows, self.width)

    def split(self, rows: ArrayLike) -> dict[str, Array]:
        """Block name -> its columns [..., width of block], as views."""
        array = self.check(rows)
        return {block.name: array[..., block.columns] for block in self.blocks}

    def join(self, parts: Mapping[str, ArrayLike]) -> Array:
        """The inverse of `split`: every block exactly once, leading shapes broadcast together."""
        odd = sorted(set(parts) ^ set(self.names))
        if odd:
            raise CodecError(
                "parts do not match the layout", seen=", ".join(odd), expected=", ".join(self.names)
            )
        arrays = [checked(f"block {b.name!r}", parts[b.name], b.width) for b in self.blocks]
        shape = np.broadcast_shapes(*(a.shape[:-1] for a in arrays))
        rows = np.empty((*shape, self.width))
        for block, array in zip(self.blocks, arrays, strict=True):
            rows[..., block.columns] = array
        return rows

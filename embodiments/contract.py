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
from wamserve.embodiments import tables
from wamserve.embodiments.model_half import Block, Canvas, GripperValue, ModelHalf, Normalizer, PoseTrack
from wamserve.embodiments.registry import check_domain
from wamserve.embodiments.wire_half import (
    Image,
    JointLimits,
    Kinematics,
    Reply,
    ReplyGripper,
    State,
    WireHalf,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Block",
    "Canvas",
    "Embodiment",
    "GripperValue",
    "Image",
    "JointLimits",
    "Kinematics",
    "ModelHalf",
    "Normalizer",
    "PoseTrack",
    "Reply",
    "ReplyGripper",
    "State",
    "WireHalf",
    "check",
    "diff",
    "load",
    "load_file",
    "names",
    "read_stats",
]

HERE = Path(__file__).parent


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
    from wamserve.embodiments.units import chunk_normalizer  # which reads contracts itself

    try:
        chunk_normalizer(model)
    except CodecError as error:  # another width, or statistics that leave rotations un-scaled
        raise ContractError(f"{name}: {error}") from None
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

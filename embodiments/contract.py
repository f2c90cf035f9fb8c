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
from wamserve.embodiments.consistency import require_consistent
from wamserve.embodiments.model_half import Block, Canvas, GripperValue, ModelHalf, Normalizer, PoseTrack
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
        begun = [known for known in names() if name and known.startswith(name)]
        near = begun or get_close_matches(name.strip().lower(), names(), n=1, cutoff=0.4)
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
    from wamserve.embodiments.units import chunk_normalizer  # which reads contracts itself

    name = embodiment.name
    if name != file_name:
        raise ContractError(f"{name}: the name is not the file's", seen=name, expected=file_name)
    require_consistent(name, embodiment.model, embodiment.wire)
    try:
        chunk_normalizer(embodiment.model)
    except CodecError as error:  # another width, or statistics that leave rotations un-scaled
        raise ContractError(f"{name}: {error}") from None
    return embodiment


def read_stats(normalizer: Normalizer, name: str) -> dict[str, list[float]]:
    """The normalizer's figures: quantity -> one number per dimension. ContractError if the file changed."""
    if not normalizer.stats:
        return {}
    path = HERE / "stats" / normalizer.stats
    if not path.is_file():
        raise ContractError(
            f"{name}: no stats file {normalizer.stats}",
            expected=", ".join(sorted(file.name for file in path.parent.glob("*.json"))),
            fix=f"put it into {path.parent}",
        )
    raw = path.read_bytes()
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

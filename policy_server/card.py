"""The policy card: what a checkpoint was trained for and how it is sampled. Lives beside the weights.

policy_card.toml in the checkpoint's folder comes first; the public NVIDIA checkpoints have theirs in cards/.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from wamserve.action_codec.errors import CheckpointError, ContractError, RequestError
from wamserve.clients.policy import Mode, Request
from wamserve.embodiments import tables
from wamserve.embodiments.contract import Embodiment

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CARD_FILE = "policy_card.toml"
SHIPPED = Path(__file__).parent / "cards"
ANY = "*"  # as an embodiment: weights that were trained for nothing, so that nothing is refused


@dataclass(frozen=True)
class Sampling:
    """How one mode is sampled. Every choice changes the numbers that come out."""

    steps: int  # network evaluations, times two where guided
    guidance: float  # 1: the prompt as it is, no unconditional branch
    shift: float
    schedule: Literal["framework", "diffusers", "karras"]
    noise: Literal["framework", "diffusers", "torch"]
    # Steps whose integer timestep lies strictly inside are guided; absent: every step.
    interval: tuple[float, float] | None = None
    video_guidance: float | None = None  # absent: the same as `guidance`

    def line(self) -> str:
        """As a person says it, e.g. "unipc 4 steps, shift 5, guidance 3"."""
        where = f" in {self.interval[0]:g} .. {self.interval[1]:g}" if self.interval else ""
        return (
            f"unipc {self.steps} steps, shift {self.shift:g} ({self.schedule}), "
            f"guidance {self.guidance:g}{where}, {self.noise} noise"
        )


@dataclass(frozen=True)
class Bounds:
    """What a request may override, ends included."""

    steps: tuple[int, int]
    guidance: tuple[float, float]
    # Mean |change| of any action dimension that quantized weights may cost, in model units; absent: refused.
    quantized_error: float | None = None


@dataclass(frozen=True)
class Trained:
    """One embodiment whose action head was trained."""

    embodiment: str  # contract name, or "*"
    modes: tuple[Mode, ...]
    model_sha256: str = ""  # hash of the contract's model half at training; "" where it is not known


@dataclass(frozen=True)
class PolicyCard:
    """What a checkpoint is."""

    name: str
    source: str  # where the numbers come from
    prompt_format: Literal["json", "plain"]
    trained: tuple[Trained, ...]
    policy: Sampling
    fd: Sampling
    id: Sampling
    bounds: Bounds
    weights_sha256: str = ""  # as `weights_hash` computes it; "" accepts any
    render_profile: str = ""  # the simulator pictures it learned from, e.g. "fast"; "" for cameras
    untrained: str = ""  # why the other embodiments and modes are refused, one sentence

    def sampling(self, mode: Mode) -> Sampling:
        return {"policy": self.policy, "fd": self.fd, "id": self.id}[mode]

    def modes(self, contract: Embodiment) -> tuple[Mode, ...]:
        """Modes that both the checkpoint was trained for and the contract can express."""
        trained = self._entry(contract.name)
        return tuple(mode for mode in contract.model.modes if trained is not None and mode in trained.modes)

    def requested(self, request: Request) -> Sampling:
        """The mode's sampling with the request's overrides. Raises RequestError outside the bounds."""
        changes: dict[str, Any] = {}
        for name, value, (low, high) in (
            ("steps", request.steps, self.bounds.steps),
            ("guidance", request.guidance, self.bounds.guidance),
        ):
            if value is None:
                continue
            if not low <= value <= high or (name == "steps" and value != int(value)):
                raise RequestError(
                    f"{name} {value} is outside what this checkpoint's card allows",
                    seen=value,
                    expected=f"{low:g} .. {high:g}",
                )
            changes[name] = value
        return dataclasses.replace(self.sampling(request.mode), **changes)

    def check_use(self, contract: Embodiment, mode: Mode) -> None:
        """Raises CheckpointError when these weights were never trained for this, or for another contract."""
        entry = self._entry(contract.name)
        if entry is None or mode not in entry.modes:
            what = "as a policy" if mode == "policy" else f"in mode {mode!r}"
            known = "; ".join(f"{t.embodiment} ({', '.join(t.modes)})" for t in self.trained)
            raise CheckpointError(
                f"{self.name} was never trained for {contract.name} {what}. {self.untrained}".rstrip(),
                expected=known,
            )
        if entry.model_sha256 and entry.model_sha256 != contract.model_hash:
            raise CheckpointError(
                f"{self.name} was trained with another model half of {contract.name}",
                seen=contract.model_hash,
                expected=entry.model_sha256,
                fix=f"wam check contract {contract.name} THE_CONTRACT_IT_WAS_TRAINED_WITH",
            )
        if contract.model.prompt_format != self.prompt_format:
            raise CheckpointError(
                f"{self.name} and {contract.name} word prompts differently",
                seen=contract.model.prompt_format,
                expected=self.prompt_format,
            )

    def default_embodiment(self) -> str:
        """The one embodiment this was trained for. Raises CheckpointError when there is a choice."""
        names = [entry.embodiment for entry in self.trained if entry.embodiment != ANY]
        if len(names) != 1:
            raise CheckpointError(
                f"{self.name} serves more than one embodiment",
                seen="no --embodiment",
                expected=", ".join(names) or "any contract's name",
                fix=f"--embodiment {names[0] if names else 'droid_lerobot'}",
            )
        return names[0]

    def _entry(self, embodiment: str) -> Trained | None:
        for entry in self.trained:
            if entry.embodiment in (embodiment, ANY):
                return entry
        return None


def shipped_cards() -> dict[str, PolicyCard]:
    """Cards that come with the project, by checkpoint name."""
    return {card.name: card for card in map(read_card, sorted(SHIPPED.glob("*.toml")))}


def read_card(file: Path) -> PolicyCard:
    """Raises CheckpointError naming the wrong key."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise CheckpointError(f"no policy card can be read from {file}", seen=str(error)) from error
    return card_from_table(table, file.name)


def card_from_table(table: Mapping[str, Any], where: str = "card") -> PolicyCard:
    """Raises CheckpointError naming the wrong key, or the number that nothing can be sampled with."""
    try:
        card = tables.build(PolicyCard, table, where)
    except ContractError as error:
        raise CheckpointError(f"policy card: {error}") from error
    for mode in get_args(Mode):
        one = card.sampling(mode)
        low, high = one.interval or (0.0, 1.0)
        scales = (one.guidance, one.guidance if one.video_guidance is None else one.video_guidance)
        fine = one.steps >= 1 and 0 < one.shift < math.inf and low < high and all(map(math.isfinite, scales))
        if not fine:
            raise CheckpointError(
                f"policy card: {where}.{mode} cannot be sampled",
                seen=one.line(),
                expected="steps >= 1, shift > 0, finite guidance, interval [low, high] with low < high",
            )
    for name, (low, high) in (("steps", card.bounds.steps), ("guidance", card.bounds.guidance)):
        if not (low <= high and (name != "steps" or low >= 1)):
            raise CheckpointError(
                f"policy card: {where}.bounds.{name} are no bounds",
                seen=[low, high],
                expected="[low, high], low <= high, at least one step",
            )
    return card


def find_card(folder: Path, source: str, card: str | Path | None = None) -> PolicyCard:
    """The card of a checkpoint: `card` (a file or a shipped name) if given, its own, or a shipped one.

    source: what the user typed; `org/name[@revision]` finds the shipped card of that name.
    """
    if card is None and (folder / CARD_FILE).is_file():
        return read_card(folder / CARD_FILE)
    shipped = shipped_cards()
    if card is not None:
        if str(card) in shipped:
            return shipped[str(card)]
        if Path(card).is_file():
            return read_card(Path(card))
        raise CheckpointError(f"no policy card {card}", expected=f"a file, or one of {', '.join(shipped)}")
    name = source.split("@")[0]
    if name in shipped:
        return shipped[name]
    raise CheckpointError(
        f"{source} has no {CARD_FILE}: what it was trained for is not known, and is not guessed",
        expected=f"{folder / CARD_FILE}",
        fix=f"--card with a file or one of: {', '.join(shipped)}",
    )


def write_card(card: PolicyCard, file: Path) -> Path:
    """The card as TOML, which `read_card` reads back equal."""
    lines: list[str] = []
    plain = {f.name: getattr(card, f.name) for f in dataclasses.fields(card)}
    for name, value in plain.items():
        if isinstance(value, str):
            lines.append(f"{name} = {_toml(value)}")
    for name, value in plain.items():
        if isinstance(value, (Sampling, Bounds)):
            lines += ["", f"[{name}]", *_pairs(value)]
    for entry in card.trained:
        lines += ["", "[[trained]]", *_pairs(entry)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _pairs(noun: Any) -> list[str]:
    values = ((f.name, getattr(noun, f.name)) for f in dataclasses.fields(noun))
    return [f"{name} = {_toml(value)}" for name, value in values if value is not None]


def _toml(value: Any) -> str:
    if isinstance(value, str):
        import json

        return json.dumps(value, ensure_ascii=False)  # a TOML basic string escapes as JSON does
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)

"""What a training run is: one TOML file, read into frozen dataclasses; unknown keys are refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tomllib

from wamserve.action_codec.errors import WamError
from wamserve.clients.policy import Mode
from wamserve.training.objective import Objective, check_modes

T = TypeVar("T")


@dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: float = 3e-4
    action_head_factor: float = 5.0  # action projections learn this many times faster
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: int = 200  # steps
    floor: float = 0.05  # of the peak, at the last step
    clip_norm: float = 1.0
    ema_decay: float = 0.999


@dataclass(frozen=True)
class Data:
    """One prepared folder (see prepared.py) and how often it is drawn from."""

    prepared: str  # folder
    weight: float = 1.0
    batch: int = 0  # samples per step in place of the run's; 0: as many
    reach: float = math.inf  # windows with an action value beyond it, in model space, are left out
    # In place of the objective's. An entry of its own for forward dynamics keeps its small gradients out of
    # batches that errors of actions dominate.
    modes: Mapping[Mode, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, good in (
            ("weight", math.isfinite(self.weight)),
            ("batch", self.batch >= 0),
            ("reach", self.reach > 0),
        ):
            if not good:
                raise WamError(f"bad {name} of the data in {self.prepared}", seen=getattr(self, name))
        if self.modes:
            check_modes(self.modes)

    @property
    def label(self) -> str:
        """What curves and cards call it."""
        return " ".join([Path(self.prepared).name, "+".join(self.modes)]).strip()


@dataclass(frozen=True)
class Trainable:
    """Which weights move."""

    text_tower: bool = False  # False: frozen, as in post-training a public checkpoint
    lora_rank: int = 0  # 0: full weights; otherwise low-rank deltas on the generation tower's linears
    lora_alpha: float = 16.0


@dataclass(frozen=True)
class Card:
    """How the finished checkpoint is to be sampled; written into its policy card."""

    name: str = "untitled"
    guidance: float = 3.0  # of the policy mode
    dynamics_steps: int = 50  # of forward and inverse dynamics


@dataclass(frozen=True)
class TrainConfig:
    """`wam train CONFIG.toml`."""

    start: str  # diffusers-format checkpoint folder to train from
    out: str  # folder of the run: state, curve, finished checkpoint
    steps: int
    batch: int  # samples per step over all ranks
    data: tuple[Data, ...]
    objective: Objective = field(default_factory=Objective)
    optimizer: Optimizer = field(default_factory=Optimizer)
    trainable: Trainable = field(default_factory=Trainable)
    card: Card = field(default_factory=Card)
    vae: str = ""  # folder of a VAE for the finished checkpoint, of the same encoder; "": that of `start`
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "bf16"  # of the forward pass; weights and optimizer stay fp32
    gradient_checkpointing: bool = False
    stored: Literal["as_started", "fp32", "bf16", "fp16"] = "as_started"  # of the finished checkpoint
    shard: bool = False  # FSDP2 over the ranks of torchrun; otherwise every rank holds all weights
    save_every: int = 200  # steps between resumable states
    log_every: int = 20
    validate_every: int = 200
    validation_batches: int = 4

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every", "log_every", "validate_every", "validation_batches"):
            if getattr(self, name) < 1:
                raise WamError(f"{name} must be 1 or more", seen=getattr(self, name))
        if not self.data or any(data.weight <= 0 for data in self.data):
            raise WamError(
                "a run needs data of positive weight",
                seen=[data.weight for data in self.data],
                expected="[[data]] with prepared and weight",
            )

    def modes(self, which: int) -> Mapping[Mode, float]:
        """Weights of the modes that samples of data set `which` are drawn in."""
        return self.data[which].modes or self.objective.modes

    def samples(self, which: int) -> int:
        """Per step on data set `which`, over all ranks."""
        return self.data[which].batch or self.batch

    def fingerprint(self) -> str:
        """What must be equal for a state to be resumed."""
        table = dataclasses.asdict(self)
        for free in ("out", "card", "stored", "vae", "save_every", "log_every", "validate_every"):
            table.pop(free)
        return json.dumps(table, sort_keys=True)


def load(path: Path | str) -> TrainConfig:
    """Reads a TOML file; relative paths in it are relative to the file's folder."""
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WamError(f"no training configuration {path}", fix="wam train --help") from None
    except tomllib.TOMLDecodeError as error:
        raise WamError(f"{path} is not TOML: {error}") from None
    config = build(TrainConfig, table, path.name)
    here = path.parent

    def near(name: str) -> str:
        return str(here / name)

    return dataclasses.replace(
        config,
        start=near(config.start),
        out=near(config.out),
        vae=near(config.vae) if config.vae else "",
        data=tuple(dataclasses.replace(d, prepared=near(d.prepared)) for d in config.data),
    )


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """`table` as the dataclass `cls`, nested ones included. WamError names an unknown or missing key."""
    hints = get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise WamError(f"{where}: unknown keys", seen=", ".join(unknown), expected=", ".join(known))
    missing = [
        name
        for name, f in known.items()
        if name not in table and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise WamError(f"{where}: missing keys", seen=", ".join(table), expected=", ".join(missing))
    return cls(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in table.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise WamError(f"{where}: wrong type", seen=repr(value), expected="a table")
        return build(hint, value, where)  # type: ignore[arg-type]
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple:
        inner = args[0]
        if not isinstance(value, list | tuple):
            raise WamError(f"{where}: wrong type", seen=repr(value), expected="a list")
        return tuple(_value(inner, item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in args:
            raise WamError(f"{where}: not one of the choices", seen=value, expected=", ".join(map(str, args)))
        return value
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise WamError(f"{where}: wrong type", seen=repr(value), expected="a table")
        return {key: _value(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise WamError(f"{where}: wrong type", seen=repr(value), expected=hint.__name__)
    return value

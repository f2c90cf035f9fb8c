"""Sizes of the comparison of single-mode with joint training, and where everything of it lies."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from wamserve.action_codec.errors import WamError
from wamserve.clients.policy import Mode
from wamserve.embodiments.contract import load
from wamserve.training.config import Card, Data, Optimizer, Trainable, TrainConfig
from wamserve.training.objective import Objective
from wamserve.training.prepared import HOLD_OUT
from wamserve.training.vae import VaeRecipe

MODES: tuple[Mode, ...] = ("fd", "id", "policy")
JOINT = "joint"
TASK, CONTRACT = "pusht/PushT", "pusht_64"


def modes_of(kind: str) -> tuple[Mode, ...]:
    """The modes that a kind of checkpoint learns."""
    return MODES if kind == JOINT else tuple(mode for mode in MODES if mode == kind)


@dataclass(frozen=True)
class ModesRecipe:
    """What is compared, and how thoroughly. The defaults are a matter of two hours on two CPU cores."""

    demonstrations: int = 240  # episodes to learn from; every 20th only draws the validation curve
    held_out: int = 16  # undisturbed episodes of other starts, to score dynamics and open-loop actions on
    starts: int = 40  # of the closed loop, other ones again
    vae: VaeRecipe = field(default_factory=lambda: VaeRecipe(steps=3000, clip_frames=(1, 5, 9, 17), full=0.0))
    decoder_steps: int = 3000  # of its decoder alone afterwards, on what PSNR measures
    hop: int = 2  # rows between the starts of training windows
    hidden: int = 192  # network's width
    layers: int = 4
    intermediate: int = 576
    vocabulary: int = 512
    steps: int = 3200  # of a single-mode checkpoint; the joint one takes as many for each mode
    batch: int = 16  # samples per step
    learning_rate: float = 5e-4
    seeds: tuple[int, ...] = (0, 1, 2)  # of weights, batches and noise
    clips: int = 64  # scored, spread evenly over the held-out episodes
    samples: int = 4  # chunks per clip, of which the nearest counts
    dynamics_steps: int = 10  # denoiser steps of forward and inverse dynamics
    replan: int = 8  # control steps between two questions of the closed loop
    max_steps: int = 300  # control steps of a closed-loop episode
    record_seed: int = 1  # of the simulator's starts and pushes

    def __post_init__(self) -> None:
        if len(self.seeds) < 2 or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise WamError(
                "an interval needs two or more different seeds", seen=self.seeds, expected="e.g. [0, 1, 2]"
            )
        if not 0 < self.learning_rate < math.inf:
            raise WamError("learning_rate must be positive", seen=self.learning_rate)
        chunk = load(CONTRACT).wire.chunk
        if self.replan > chunk:
            raise WamError("replan is longer than a chunk", seen=self.replan, expected=f"<= {chunk}")
        if self.demonstrations < HOLD_OUT:
            raise WamError("too few demonstrations", seen=self.demonstrations, expected=f">= {HOLD_OUT}")
        counts = [f.name for f in fields(self) if f.type == "int" and f.name != "record_seed"]
        for name in counts:
            if getattr(self, name) < 1:
                raise WamError(f"{name} must be 1 or more", seen=getattr(self, name))

    @property
    def first_held_out(self) -> int:
        """Starts are numbered: first those of the demonstrations, then the held-out episodes' ..."""
        return self.demonstrations

    @property
    def first_start(self) -> int:
        """... then the closed loop's."""
        return self.demonstrations + self.held_out

    def decoder(self, vae: Path) -> VaeRecipe:
        """Of the VAE's second stage. The first weighs small objects, for the sake of the latents; this one
        every pixel alike, on clips of more than one frame."""
        clips = tuple(frames for frames in self.vae.clip_frames if frames > 1) or self.vae.clip_frames
        return replace(
            self.vae, start=str(vae), decoder_only=True, steps=self.decoder_steps, clip_frames=clips,
            rare=0.4, rarest=1.0, square_weight=20.0,
        )  # fmt: skip

    def objective(self, kind: str) -> Objective:
        """What a checkpoint learns."""
        return Objective(modes=dict.fromkeys(modes_of(kind), 1.0), text_dropout=0.0)

    def steps_of(self, kind: str) -> int:
        return self.steps * len(modes_of(kind))


# Every stage and every number, none of them worth believing: to see that all of it works here.
QUICK = ModesRecipe(
    demonstrations=24,
    held_out=2,
    starts=2,
    vae=VaeRecipe(base_dim=8, steps=20, batch=4, clip_frames=(1, 5, 9), full=0.0),
    decoder_steps=10,
    hop=16,
    hidden=64,
    layers=2,
    intermediate=160,
    steps=10,
    batch=4,
    seeds=(0, 1),
    clips=4,
    samples=2,
    dynamics_steps=2,
    replan=16,
    max_steps=48,
)


@dataclass(frozen=True)
class Cell:
    """One checkpoint of the comparison."""

    seed: int
    kind: str  # "fd", "id", "policy" or "joint"

    @property
    def name(self) -> str:
        return f"seed-{self.seed}/{self.kind}"

    @property
    def modes(self) -> tuple[Mode, ...]:
        return modes_of(self.kind)


@dataclass(frozen=True)
class Place:
    """The folder of one comparison."""

    out: Path

    @property
    def demonstrations(self) -> Path:
        return self.out / "demonstrations"

    @property
    def held_out(self) -> Path:
        return self.out / "held_out"

    @property
    def encoder(self) -> Path:
        """The VAE after its first stage."""
        return self.out / "encoder"

    @property
    def vae(self) -> Path:
        return self.out / "vae"

    @property
    def prepared(self) -> Path:
        return self.out / "prepared"

    @property
    def stages(self) -> Path:
        return self.out / "stages"

    def start(self, seed: int) -> Path:
        """The checkpoint that all trainings of a seed start from."""
        return self.out / "start" / f"seed-{seed}"

    def training(self, cell: Cell) -> Path:
        return self.out / "training" / cell.name

    def checkpoint(self, cell: Cell) -> Path:
        return self.training(cell) / "checkpoint"

    def report(self, cell: Cell | None, what: str) -> Path:
        """Scores of a checkpoint as JSON, or of what needs none: the baselines."""
        return self.out / "scores" / (cell.name if cell else "baseline") / f"{what}.json"

    def run(self, cell: Cell | None) -> Path:
        """Closed-loop run directory."""
        return self.out / "runs" / (cell.name if cell else "noop")


def cells_of(recipe: ModesRecipe) -> list[Cell]:
    """Every checkpoint, the long joint ones first in their seed, so that workers end together."""
    return [Cell(seed, kind) for seed in recipe.seeds for kind in (JOINT, *MODES)]


def train_config(recipe: ModesRecipe, place: Place, cell: Cell) -> TrainConfig:
    """`wam train`'s configuration of one checkpoint. Only modes and steps differ within a seed.

    Each step learns one mode, drawn with equal chances: in a batch of all three the errors of actions would
    swamp the gradient of the video. `loop.samples_by_mode` counts what the draws came to.
    """
    steps = recipe.steps_of(cell.kind)
    prepared = str(place.prepared)
    return TrainConfig(
        start=str(place.start(cell.seed)),
        out=str(place.training(cell)),
        steps=steps,
        batch=recipe.batch,
        data=tuple(Data(prepared, modes={mode: 1.0}) for mode in cell.modes),
        objective=recipe.objective(cell.kind),
        optimizer=Optimizer(
            learning_rate=recipe.learning_rate, warmup=min(200, max(1, recipe.steps // 10)), ema_decay=0.998
        ),
        trainable=Trainable(text_tower=True),
        card=Card(f"pusht-{cell.kind}-{cell.seed}", guidance=1.0, dynamics_steps=recipe.dynamics_steps),
        seed=cell.seed,
        precision="bf16",
        save_every=200,
        log_every=50,
        validate_every=500,
    )


def recipe_table(recipe: ModesRecipe) -> dict[str, object]:
    """The recipe in JSON's types."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items()}

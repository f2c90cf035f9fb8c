"""The nouns of an evaluation: what a task declares, how it is driven, and what one episode leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from wamserve.embodiments.contract import WireHalf


@dataclass(frozen=True)
class TaskSpec:
    """Everything about a task that could change a score. It goes into the protocol card whole."""

    name: str  # "robosuite/Lift", "libero_object/3"
    instruction: str
    contract: str  # embodiment contract whose wire half the task speaks
    rate_hz: float  # control steps per second
    max_steps: int  # policy steps after settling; settle steps are not counted
    settle_steps: int  # hold steps after reset, before the first observation
    views: tuple[tuple[str, int, int], ...]  # (view name, height px, width px) in camera order
    image_orientation: str  # what is done to the renderer's bottom-up rows; as in contract.Image
    states: tuple[tuple[str, int], ...]  # (state name, width) delivered with every observation
    action_width: int  # columns of one raw action row
    init_states: str  # where initial states come from: "seeded", "libero pruned_init", ...
    init_count: int | None  # how many there are; None: unbounded
    simulator: str  # "robosuite 1.5.2, mujoco 3.8.1": the physics the score belongs to
    render_profile: str = "full"  # "full" or "fast" (no shadows, no antialiasing: other pixels)
    progress: str | None = None  # name of the task's partial credit in [0, 1], where it has one


@runtime_checkable
class Task(Protocol):
    """One simulated task, driven in the wire units of its contract.

    The order of calls is reset, then any of step / render / state / success. An episode depends on the
    arguments of reset and on the actions only: not on earlier episodes, not on the process.
    """

    spec: TaskSpec
    wire: WireHalf  # what the task sends and executes: its contract's wire half

    def reset(self, init: int, seed: int) -> None:
        """Initial state `init` of the suite's list (seeded suites draw it from `seed`), after settling."""
        ...

    def step(self, action: np.ndarray) -> None:
        """One control step with one raw action row [action_width]."""
        ...

    def render(self) -> dict[str, np.ndarray]:
        """View name -> uint8 [H, W, 3] RGB, as the policy is meant to see it."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """State name -> float64 [D], the robot's own sensing."""
        ...

    def privileged(self) -> dict[str, np.ndarray]:
        """Name -> float64 [D] that only a simulator knows; for scripted oracles, {} where there is none."""
        ...

    def hold(self) -> np.ndarray:
        """The raw action row [action_width] that keeps the robot where it is."""
        ...

    def success(self) -> bool: ...

    def progress(self) -> float:
        """Partial credit in [0, 1]; NaN where the task has none."""
        ...

    def sim_state(self) -> np.ndarray:
        """float64 [S] from which `restore` brings back what the cameras see."""
        ...

    def restore(self, sim_state: np.ndarray) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, order=True)
class WorkItem:
    """One episode to run."""

    task: str
    init: int
    repeat: int = 0  # several rollouts of one initial state differ in `seed` only
    seed: int = 0  # of every policy request in the episode
    init_seed: int = 0  # of the initial state, equal for all its repeats


@dataclass(frozen=True)
class ChunkRow:
    """One question to the policy, as it is stored."""

    step: int  # control step at which the observation was taken
    ready: int  # first control step at which the answer could be used
    seed: int  # of the request
    latency_ms: float  # charged on the virtual clock
    wall_ms: float  # measured around the policy call
    infer_ms: float  # engine time by the policy's own ledger
    queue_ms: float
    forwards: int  # denoiser evaluations
    batch: int  # requests answered together
    rows_used: int  # rows of this chunk that reached the robot


@dataclass(frozen=True)
class Episode:
    """One finished episode: its outcome, and the recording from which every metric is computed again."""

    item: WorkItem
    instruction: str
    success: bool
    steps: int  # control steps taken; success ends an episode
    final_progress: float | None
    max_progress: float | None
    wall_s: float
    sim_s: float  # spent in physics
    render_s: float
    policy_s: float  # spent waiting for the policy
    chunks: tuple[ChunkRow, ...] = ()
    recording: Mapping[str, np.ndarray] = field(default_factory=dict)  # arrays named in store.py

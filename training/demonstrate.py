"""Demonstrations from scripted oracles: clean, or thrown off the path and recovering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from wamserve.clients.policy import Observation, Policy, Request
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval.oracles.policy import PRIVILEGED
from wamserve.sim_eval.seeds import derive
from wamserve.sim_eval.task import Task


@dataclass(frozen=True)
class Disturbance:
    """Pushes off the path: the arm follows the oracle for a while, is jerked, and recovers."""

    share: float = 0.6  # of the episodes
    count: int = 1  # pushes in such an episode
    latest: int = 24  # control steps before a push, drawn uniformly
    length: tuple[int, int] = (3, 9)  # control steps of a push
    size: float = 0.12  # standard deviation of its end, in units of the reply's rows (rad for joints)


# By the unit of the reply. A finger crosses its field many times where an arm reaches once.
DISTURBANCES = {"px": Disturbance(share=1.0, count=3, latest=130, size=40.0)}


def disturbance_for(contract: Embodiment, share: float | None = None) -> Disturbance:
    """Pushes that a robot notices and recovers from; `share` in place of its own."""
    found = DISTURBANCES.get(contract.wire.reply.unit, Disturbance())
    return found if share is None else replace(found, share=share)


@dataclass(frozen=True)
class Demonstration:
    """One recorded episode; row t holds what was seen at t and the command then given."""

    task: str
    instruction: str
    seed: int
    images: Mapping[str, np.ndarray]  # view name -> uint8 [T, H, W, 3]
    states: Mapping[str, np.ndarray]  # state name -> float32 [T, D]
    actions: np.ndarray  # float32 [T, A] raw units of the contract's reply
    disturbed: np.ndarray  # bool [T]: rows whose command is the push, not the oracle's wish
    success: bool

    def __len__(self) -> int:
        return len(self.actions)


def demonstrate(
    task: Task,
    oracle: Policy,
    contract: Embodiment,
    *,
    instruction: str,
    init: int,
    seed: int,
    replan: int = 4,
    after: int = 10,
    disturbance: Disturbance | None = None,
) -> Demonstration:
    """Rolls the oracle out, replanning every `replan` steps, and `after` steps past success.

    The same arguments give the same episode. Raises TaskError as the task or the oracle does.
    """
    rng = np.random.default_rng(derive(seed, task.spec.name, init, "demonstration"))
    pushes = _draw_pushes(rng, contract, disturbance)
    task.reset(init, derive(seed, task.spec.name, init))
    views: dict[str, list[np.ndarray]] = {}
    states: dict[str, list[np.ndarray]] = {}
    actions: list[np.ndarray] = []
    flags: list[bool] = []
    plan: np.ndarray = np.empty((0, 0))
    age, left = replan, None
    for step in range(task.spec.max_steps):
        for name, picture in task.render().items():
            views.setdefault(name, []).append(picture)
        state = task.state()
        for name, value in state.items():
            states.setdefault(name, []).append(value.astype(np.float32))
        pushed = step in pushes
        amid = pushed and step - 1 in pushes  # a push is off the plan it interrupts and does not add up
        if age >= len(plan) or (age >= replan and not amid):
            known = {PRIVILEGED + name: value for name, value in task.privileged().items()}
            request = Request(Observation({}, {**state, **known}, instruction), seed=derive(seed, init, step))
            chunk = oracle.infer(request).chunk
            if chunk is None:
                raise AssertionError("an oracle answers with actions")
            plan, age = chunk.actions, 0
        action = plan[age].copy()
        age += 1
        if pushed:
            action = _within(contract, action + pushes[step])
        if pushed and step + 1 not in pushes:
            age = len(plan)  # the oracle looks again at once: it knows nothing of the push
        task.step(action)
        actions.append(action.astype(np.float32))
        flags.append(pushed)
        if left is None and task.success():
            left = after
        if left is not None:
            left -= 1
            if left <= 0:
                break
    return Demonstration(
        task=task.spec.name,
        instruction=instruction,
        seed=seed,
        images={name: np.stack(pictures) for name, pictures in views.items()},
        states={name: np.stack(values) for name, values in states.items()},
        actions=np.stack(actions),
        disturbed=np.array(flags),
        success=left is not None,
    )


def _draw_pushes(
    rng: np.random.Generator, contract: Embodiment, disturbance: Disturbance | None
) -> dict[int, np.ndarray]:
    """Control step -> [A] added to the command."""
    pushes: dict[int, np.ndarray] = {}
    if disturbance is None or rng.random() >= disturbance.share:
        return pushes
    for _ in range(disturbance.count):
        length = int(rng.integers(disturbance.length[0], disturbance.length[1] + 1))
        end = rng.normal(0.0, disturbance.size, contract.wire.reply.width)
        for gripper in contract.wire.reply.grippers:
            end[gripper.index] = 0.0
        first = int(rng.integers(0, disturbance.latest + 1))
        for i in range(length):
            pushes[first + i] = (1 + i) / length * end
    return pushes


def _within(contract: Embodiment, action: np.ndarray) -> np.ndarray:
    """A position [A] kept where positions are measured: a field's edge stops what would leave it."""
    if contract.wire.reply.form != "position_targets":
        return action
    (state,) = (state for state in contract.wire.states if state.measures)
    return np.clip(action, state.low, state.high)

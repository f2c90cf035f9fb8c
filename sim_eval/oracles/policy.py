"""Oracles as policies: in this process, or behind the real websocket like any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from wamserve.action_codec.errors import TaskError
from wamserve.clients.policy import ActionChunk, Policy, Prediction, Request
from wamserve.embodiments.contract import Embodiment, load
from wamserve.sim_eval.oracles import pick_place
from wamserve.sim_eval.policies import declare

PRIVILEGED = "privileged/"  # prefix of the states that only a simulator knows


class Planner(Protocol):
    """Plans from one observation: states -> raw rows [chunk, A]. It remembers nothing."""

    def __call__(
        self, state: dict[str, np.ndarray], contract: Embodiment, rng: np.random.Generator
    ) -> np.ndarray: ...


class OraclePolicy:
    """A planner as a Policy. `noise` disturbs its rows, so that demonstrations leave the ideal path.

    Noise is drawn from the request's seed: the same question has the same answer.
    """

    privileged = True
    sighted = False

    def __init__(self, planner: Planner, contract: Embodiment, noise: float = 0.0) -> None:
        self.contract, self._planner, self._noise = contract, planner, noise

    def infer(self, request: Request) -> Prediction:
        rng = np.random.default_rng(request.seed)
        rows = self._planner(dict(request.observation.state), self.contract, rng)
        if self._noise:
            rows = disturbed(rows, self.contract, self._noise, rng)
        period = 1.0 / self.contract.wire.rate_hz
        return Prediction(ActionChunk(rows, request.observation.time, period), seed=request.seed or 0)

    def infer_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        return [self.infer(request) for request in requests]

    def reset(self, session: str = "") -> None: ...

    def describe(self) -> dict[str, Any]:
        """What a server tells of it."""
        return declare(self.contract, "oracle", privileged=True, noise=self._noise)


def disturbed(rows: np.ndarray, contract: Embodiment, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Rows with smooth noise on everything but grippers: `noise` in units of the reply's rows."""
    grippers = [gripper.index for gripper in contract.wire.reply.grippers]
    moving = [i for i in range(rows.shape[1]) if i not in grippers]
    draws = rng.normal(0.0, noise, (len(rows) + 4, len(moving)))
    smooth = np.stack(
        [np.convolve(column, np.full(5, 1 / np.sqrt(5)), "valid") for column in draws.T], axis=1
    )
    out = rows.copy()
    out[:, moving] += smooth
    return out


def pick_place_planner(
    state: dict[str, np.ndarray], contract: Embodiment, rng: np.random.Generator
) -> np.ndarray:
    scene = pick_place.Scene.from_state(state, PRIVILEGED)
    return pick_place.plan(scene, contract, contract.wire.chunk)


def oracle_for(task: str, contract: Embodiment | None, noise: float = 0.0) -> Policy:
    """The oracle of a task, for the contract the task was made with."""
    suite, _, name = task.partition("/")
    if contract is None or (suite == "robosuite" and name == "Door"):
        raise TaskError(
            f"no oracle knows {task}", expected="Lift, Stack, PickPlaceCan, two_cubes, pusht, libero_*"
        )
    if suite == "pusht":
        from wamserve.sim_eval.oracles.pusht import pusht_block, pusht_planner

        asks_where = contract.model.domain == "pusht_block"
        return OraclePolicy(pusht_block if asks_where else pusht_planner, contract, noise)
    if suite in ("robosuite", "two_cubes") or suite.startswith("libero"):
        return OraclePolicy(pick_place_planner, contract, noise)
    raise TaskError(f"no oracle knows {task}")


# Factories for servers: "wamserve.sim_eval.oracles.policy:panda_joint_oracle".
def panda_joint_oracle() -> Policy:
    return oracle_for("robosuite/Lift", load("panda_joint"))


def panda_osc_oracle() -> Policy:
    return oracle_for("robosuite/Lift", load("panda_osc"))


def pusht_oracle() -> Policy:
    return oracle_for("pusht/PushT", load("pusht"))

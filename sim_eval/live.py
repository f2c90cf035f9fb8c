"""`wam run task`: a policy server driving one simulator task, shown live in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from wamserve.action_codec.errors import ContractError
from wamserve.clients.adapters.gym import GymMap, Pace
from wamserve.clients.client import PolicyClient
from wamserve.clients.player import Strategy
from wamserve.clients.run import in_gym, joint_state_of_row
from wamserve.clients.wam_v1 import Hello
from wamserve.sim_eval import catalog
from wamserve.sim_eval.oracles.policy import PRIVILEGED
from wamserve.sim_eval.render import Profile
from wamserve.sim_eval.seeds import init_seed
from wamserve.sim_eval.task import Task


class TaskEnv:
    """A Task behind gymnasium's reset and step: pictures and states under their contract names."""

    def __init__(self, task: Task, init: int, privileged: bool = False) -> None:
        self.task, self.init, self.privileged = task, init, privileged
        self.steps = 0

    def __str__(self) -> str:
        return self.task.spec.name

    def reset(self, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        self.task.reset(self.init, init_seed(seed, self.task.spec.name, self.init))
        self.steps = 0
        return self._seen(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """The reward is 1 at the step that succeeds, which ends the episode."""
        self.task.step(action)
        self.steps += 1
        success = self.task.success()
        truncated = self.steps >= self.task.spec.max_steps
        return self._seen(), float(success), success, truncated, {"is_success": success}

    def state_names(self) -> list[str]:
        names = [name for name, _ in self.task.spec.states]
        return names + [PRIVILEGED + name for name in self.task.privileged()] if self.privileged else names

    def _seen(self) -> dict[str, Any]:
        # "privileged/name" is a path to whoever reads the mapping, so those states lie one level down.
        seen: dict[str, Any] = {**self.task.render(), **self.task.state()}
        if self.privileged:
            seen[PRIVILEGED.rstrip("/")] = {
                name: np.atleast_1d(value) for name, value in self.task.privileged().items()
            }
        return seen


def run_task(
    task: Annotated[str, tyro.conf.Positional],
    policy: str,
    *,
    init: int = 0,
    seed: int = 0,
    replan: int = 8,
    strategy: Strategy = "switch",
    charge_ms: float = 0.0,
    render: Profile = "full",
    contract: str | None = None,
    token_file: Path | None = None,
) -> int:
    """Drive one episode of a simulator task by a policy server: live rate, latency, chunk age, a report.

    Args:
        task: as in robosuite/Lift; `wam eval` runs many and keeps score.
        policy: the server, ws://HOST:PORT or wss://...
        init: initial state of the task.
        replan: rows played before the next question.
        strategy: how a chunk follows the one before.
        charge_ms: simulated time an answer takes.
        render: render profile.
        contract: which of the suite's contracts (default: its first).
        token_file: file with the server's token.
    """
    (name,) = catalog.task_names(task)
    robot = catalog.contract_of(name, contract)
    if robot is None:
        raise ContractError(f"{name} has no contract", fix="wam run ws://... --gym ID")
    token = token_file.read_text().strip() if token_file else ""
    with PolicyClient(policy, contract=robot, token=token) as client:
        hello = client.connect()
        card = hello.card if isinstance(hello, Hello) else {}
        print(f"wam run: {name}, initial state {init}, by {card.get('name', policy)} at {policy}", flush=True)
        scene = catalog.make(name, robot, render)
        env = TaskEnv(scene, init, privileged=bool(card.get("privileged", False)))
        scene.reset(init, init_seed(seed, name, init))  # so that privileged names are known
        views, states = [view for view, _, _ in scene.spec.views], env.state_names()
        mapping = GymMap(
            {view: view for view in views},
            {s: s for s in states},
            scene.spec.instruction,
            1 / robot.wire.rate_hz,
        )
        player: dict[str, Any] = (
            {"max_prefix_rows": hello.max_prefix_rows} if isinstance(hello, Hello) else {}
        )
        if strategy == "roll_forward":
            player["state_of_row"] = joint_state_of_row(robot)
        pace = Pace(replan, charge_ms / 1e3, strategy, player)
        report = in_gym(client, env, mapping, robot, pace, seed=seed, steps=scene.spec.max_steps)
        scene.close()
    print("\n" + "\n".join(report.lines()))
    return 0

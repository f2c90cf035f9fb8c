"""PushT: a round finger pushes a T-shaped block onto its outline (gym-pusht)."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

import numpy as np

from wamserve.action_codec.errors import ContractError, TaskError
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval.render import Profile
from wamserve.sim_eval.task import TaskSpec

os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
from gym_pusht.envs.pusht import PushTEnv, pymunk_to_shapely

CONTRACTS = ("pusht", "pusht_64", "pusht_block")
INSTRUCTION = "push the T-shaped block onto the T-shaped target"
MAX_STEPS = 300
FIELD = 512.0  # px


def task_names(suite: str) -> list[str]:
    return ["pusht/PushT"]


def instruction(name: str) -> str:
    return INSTRUCTION


def make(name: str, contract: Embodiment, profile: Profile) -> PushTask:
    return PushTask(name, contract, profile)


class PushTask:
    """gym-pusht as a Task. Success is a coverage above 0.95; coverage itself is the partial credit."""

    def __init__(self, name: str, contract: Embodiment, profile: Profile) -> None:
        self.wire = wire = contract.wire
        if len(wire.images) != 1 or [state.name for state in wire.states] != ["agent_pos"]:
            raise ContractError(
                f"{contract.name} does not fit PushT",
                seen=f"{[i.name for i in wire.images]}, {[s.name for s in wire.states]}",
                expected="one image and the state agent_pos",
            )
        self._env: Any = PushTEnv(obs_type="state")
        self._image = wire.images[0]
        if self._image.orientation != "upright":
            raise ContractError("PushT is drawn upright", seen=self._image.orientation)
        self.spec = TaskSpec(
            name=name,
            instruction=INSTRUCTION,
            contract=contract.name,
            rate_hz=wire.rate_hz,
            max_steps=MAX_STEPS,
            settle_steps=0,
            views=((self._image.name, self._image.height, self._image.width),),
            image_orientation="upright",
            states=(("agent_pos", 2),),
            action_width=2,
            init_states="seeded",
            init_count=None,
            simulator=f"gym-pusht {version('gym-pusht')}, pymunk {version('pymunk')}",
            render_profile="full",  # there is no other way to draw it
            progress="coverage",
        )
        if wire.rate_hz != self._env.control_hz:
            raise TaskError("PushT runs at its own rate", seen=wire.rate_hz, expected=self._env.control_hz)

    def reset(self, init: int, seed: int) -> None:
        self._env.reset(seed=seed)

    def step(self, action: np.ndarray) -> None:
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ContractError("not an action row", seen=action, expected="[2] px")
        self._env.step(np.clip(action, 0.0, FIELD))

    def render(self) -> dict[str, np.ndarray]:
        frame = self._env._get_img(self._env._draw(), self._image.width, self._image.height)
        return {self._image.name: np.ascontiguousarray(frame, dtype=np.uint8)}

    def state(self) -> dict[str, np.ndarray]:
        return {"agent_pos": np.array(self._env.agent.position, dtype=np.float64)}

    def privileged(self) -> dict[str, np.ndarray]:
        return {"bodies": self.sim_state()}

    def hold(self) -> np.ndarray:
        return np.array(self._env.agent.position, dtype=np.float64)

    def success(self) -> bool:
        return self.progress() > self._env.success_threshold

    def progress(self) -> float:
        return coverage(self._env)

    def sim_state(self) -> np.ndarray:
        """[10]: finger position and velocity, block position, velocity, angle, angular velocity."""
        finger, block = self._env.agent, self._env.block
        return np.array(
            [
                *(*finger.position, *finger.velocity, *block.position, *block.velocity),
                *(block.angle, block.angular_velocity),
            ]
        )

    def restore(self, sim_state: np.ndarray) -> None:
        place(self._env, sim_state)

    def close(self) -> None:
        self._env.close()


def bars(env: Any) -> list[Any]:
    """The block's two shapes, long bar first. pymunk keeps them in a set, in the order of their addresses."""
    return sorted(env.block.shapes, key=lambda shape: sorted(tuple(v) for v in shape.get_vertices()))


def coverage(env: Any) -> float:
    """Share of the target that the block covers, as gym-pusht defines it, and the same to the last bit."""
    target = pymunk_to_shapely(env.get_goal_pose_body(env.goal_pose), bars(env))
    covered = target.intersection(pymunk_to_shapely(env.block, bars(env))).area
    return float(min(max(covered / target.area, 0.0), 1.0))


def place(env: Any, bodies: np.ndarray) -> None:
    """Puts finger and block where `bodies` [10] says."""
    b = [float(x) for x in bodies]
    finger, block = env.agent, env.block
    finger.position, finger.velocity = (b[0], b[1]), (b[2], b[3])
    block.angle = b[8]  # before the position: the block turns about its centre of gravity
    block.position, block.velocity, block.angular_velocity = (b[4], b[5]), (b[6], b[7]), b[9]
    env.space.reindex_shapes_for_body(finger)
    env.space.reindex_shapes_for_body(block)

"""Any `gymnasium.make` id: gym/ENV_ID, for example gym/Pendulum-v1.

Without a contract the task declares one of its own from the environment's spaces; a policy must then declare
the same. With `--contract NAME`, images and states are looked up by their contract names in a Dict
observation, or a single image and a single vector are taken for the contract's only ones.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from wamserve.action_codec.errors import ContractError, TaskError
from wamserve.embodiments.contract import Embodiment, Image, Reply, State, WireHalf
from wamserve.sim_eval.render import Profile
from wamserve.sim_eval.task import TaskSpec

CONTRACTS: tuple[str, ...] = ()  # any
CHUNK = 1  # rows of a task's own contract
RATE_HZ = 10  # where the environment does not say
MAX_STEPS = 1000  # likewise


def task_names(suite: str) -> list[str]:
    return []


def instruction(name: str) -> str:
    """Gymnasium's environments have none: a policy is told the environment's name."""
    return name.partition("/")[2]


def make(name: str, contract: Embodiment | None, profile: Profile) -> GymTask:
    return GymTask(name, contract)


class GymTask:
    """A gymnasium environment with a Box action as a Task. Success is info["is_success"] or ["success"].

    It must be deterministic under reset(seed=...). Its state is not recorded, since gymnasium has no way to
    put one back: frames cannot be rendered again.
    """

    def __init__(self, name: str, contract: Embodiment | None) -> None:
        env_id = name.partition("/")[2]
        try:
            self._env: Any = gymnasium.make(env_id, render_mode="rgb_array")
        except gymnasium.error.Error as error:
            raise TaskError(f"gymnasium cannot make {env_id!r}", seen=str(error)[:200]) from None
        if (
            not isinstance(self._env.action_space, gymnasium.spaces.Box)
            or len(self._env.action_space.shape) != 1
        ):
            raise TaskError(
                f"{env_id} has no vector action", seen=self._env.action_space, expected="a Box of one axis"
            )
        self.wire = contract.wire if contract else declared(env_id, self._env)
        limit = self._env.spec.max_episode_steps if self._env.spec else None
        self.spec = TaskSpec(
            name=name,
            instruction=env_id,
            contract=contract.name if contract else name,
            rate_hz=self.wire.rate_hz,
            max_steps=limit or MAX_STEPS,
            settle_steps=0,
            views=tuple((image.name, image.height, image.width) for image in self.wire.images),
            image_orientation=self.wire.images[0].orientation if self.wire.images else "",
            states=tuple((state.name, state.dim) for state in self.wire.states),
            action_width=self.wire.reply.width,
            init_states="seeded",
            init_count=None,
            simulator=f"gymnasium {gymnasium.__version__}, {env_id}",
        )
        if self._env.action_space.shape[0] != self.wire.reply.width:
            raise ContractError(
                f"{env_id} takes another action",
                seen=f"{self._env.action_space.shape[0]} numbers",
                expected=f"{self.wire.reply.width} of {self.spec.contract}",
            )
        self._observation: Any = None
        self._info: dict[str, Any] = {}
        self._over = False

    def reset(self, init: int, seed: int) -> None:
        self._observation, self._info = self._env.reset(seed=seed)
        self._over = False

    def step(self, action: np.ndarray) -> None:
        if self._over:
            return  # ended without success: nothing more can happen
        space = self._env.action_space
        row = np.clip(np.asarray(action), space.low, space.high).astype(space.dtype)
        self._observation, _, ended, cut, self._info = self._env.step(row)
        self._over = bool(ended or cut)

    def render(self) -> dict[str, np.ndarray]:
        out = {}
        for image in self.wire.images:
            seen = self._named(image.name)
            frame = seen if seen is not None and np.ndim(seen) == 3 else self._env.render()
            out[image.name] = np.ascontiguousarray(frame, dtype=np.uint8)
        return out

    def state(self) -> dict[str, np.ndarray]:
        out = {}
        for state in self.wire.states:
            seen = self._named(state.name)
            if seen is None:
                raise ContractError(
                    f"{self.spec.name} has no state {state.name!r}", seen=self._env.observation_space
                )
            out[state.name] = np.asarray(seen, dtype=np.float64).reshape(-1)
        return out

    def privileged(self) -> dict[str, np.ndarray]:
        return {}

    def hold(self) -> np.ndarray:
        space = self._env.action_space
        return np.clip(np.zeros(space.shape), space.low, space.high)

    def success(self) -> bool:
        return bool(self._info.get("is_success", self._info.get("success", False)))

    def progress(self) -> float:
        return float("nan")

    def sim_state(self) -> np.ndarray:
        return np.zeros(0)

    def restore(self, sim_state: np.ndarray) -> None:
        raise TaskError(f"{self.spec.name}: a gymnasium environment cannot be put back into a state")

    def close(self) -> None:
        self._env.close()

    def _named(self, name: str) -> Any:
        """The part of the observation a contract name means."""
        if isinstance(self._observation, dict):
            return self._observation.get(name)
        return self._observation


def declared(env_id: str, env: Any) -> WireHalf:
    """A wire half that says what the environment's spaces say."""
    spaces = env.observation_space
    parts = spaces.spaces if isinstance(spaces, gymnasium.spaces.Dict) else {"observation": spaces}
    images, states = [], []
    for name, space in parts.items():
        if not isinstance(space, gymnasium.spaces.Box):
            raise TaskError(f"{env_id}: observation {name!r} is no Box", seen=space)
        if space.dtype == np.uint8 and len(space.shape) == 3:
            images.append(Image(name, space.shape[0], space.shape[1], "upright"))
        else:
            low, high = (tuple(float(x) for x in np.ravel(edge)) for edge in (space.low, space.high))
            states.append(State(name, int(np.prod(space.shape)), "float32", "", name, low, high))
    width = env.action_space.shape[0]
    reply = Reply(
        form="position_targets",
        width=width,
        fields=tuple(f"action{i}" for i in range(width)),
        unit="",
        frame="",
        rotation_format="none",
    )
    rate = env.metadata.get("render_fps") or RATE_HZ
    return WireHalf(env_id, tuple(images), tuple(states), reply, int(rate), CHUNK)

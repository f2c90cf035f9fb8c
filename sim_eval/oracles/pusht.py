"""The PushT oracle: a fixed rule for the finger's next target, played forward on a copy of the physics.

The same state has the same plan, and a plan asked for later is the rest of the one before: it draws nothing
and remembers nothing, so that a small policy can imitate it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from wamserve.action_codec.errors import RequestError
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval.oracles.pusht_pushes import next_target, ways_between_places

BAR_AND_STEM = (0.0, 15.0), (0.0, 120.0)  # px from the block's origin: the middle of its bar, its stem's end


@cache
def physics() -> Physics:
    return Physics()


class Physics:
    """A PushT world that can be put into any state and steered from there."""

    def __init__(self) -> None:
        from wamserve.sim_eval.suites.pusht import PushTEnv

        self.env: Any = PushTEnv(obs_type="state")
        self.env.reset(seed=0)
        self.goal = self.centred(*self.env.goal_pose)
        self.between = ways_between_places()

    def put(self, bodies: np.ndarray) -> None:
        """Into the state `bodies` [10]; in a fresh space, since pymunk carries contacts over."""
        from wamserve.sim_eval.suites.pusht import place

        self.env._setup()
        place(self.env, bodies)

    def centred(self, x: float, y: float, angle: float) -> np.ndarray:
        """[3] px, px, rad: a pose of the block's origin as one of its centre of gravity."""
        cog = self.env.block.center_of_gravity.rotated(angle)
        return np.array([x + cog.x, y + cog.y, angle])

    def target(self) -> np.ndarray:
        """[2] px: where the finger should go now."""
        finger, block = self.env.agent, self.env.block
        pose = self.centred(block.position.x, block.position.y, block.angle)
        return next_target(np.array(finger.position), pose, self.goal, self.between)

    def step(self, target: np.ndarray) -> None:
        """One control step, as gym-pusht steps."""
        env, (x, y) = self.env, (float(v) for v in target)
        for _ in range(round(1 / (env.dt * env.control_hz))):
            at, speed = env.agent.position, env.agent.velocity
            env.agent.velocity = (
                speed.x + (env.k_p * (x - at.x) - env.k_v * speed.x) * env.dt,
                speed.y + (env.k_p * (y - at.y) - env.k_v * speed.y) * env.dt,
            )
            env.space.step(env.dt)


def pusht_planner(state: dict[str, np.ndarray], contract: Embodiment, rng: np.random.Generator) -> np.ndarray:
    """Rows [chunk, 2] px; `rng` is not used."""
    world = physics()
    world.put(_bodies(state))
    rows = []
    for _ in range(contract.wire.chunk):
        rows.append(world.target())
        world.step(rows[-1])
    return np.array(rows)


def pusht_block(state: dict[str, np.ndarray], contract: Embodiment, rng: np.random.Generator) -> np.ndarray:
    """Where the block lies, in every row alike [chunk, 4] px: the middle of its bar, the end of its stem."""
    world = physics()
    world.put(_bodies(state))
    bar, stem = (world.env.block.local_to_world(point) for point in BAR_AND_STEM)
    return np.tile([*bar, *stem], (contract.wire.chunk, 1))


def _bodies(state: dict[str, np.ndarray]) -> np.ndarray:
    if "privileged/bodies" not in state:
        raise RequestError("the oracle needs privileged state", seen=", ".join(state), expected="bodies")
    return np.asarray(state["privileged/bodies"], dtype=np.float64)

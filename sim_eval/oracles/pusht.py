"""The PushT oracle: tries pushes on a private copy of the physics and plays the one that helps most.

A push goes round the block to a point on one of its edges and then along a line. Candidates are drawn from
the request's seed; the planner remembers nothing, so it may be asked again at any step.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from wamserve.action_codec.errors import RequestError
from wamserve.embodiments.contract import Embodiment

CANDIDATES = 64
ROUND = 130.0  # px from the block's centre when going round it
MARGIN = 20.0  # px kept from the field's walls
FINGER = 15.0  # px, radius of the finger
STEP_COST = 0.02  # px of mean corner error that one control step is worth


@cache
def physics() -> Physics:
    return Physics()


class Physics:
    """A PushT world that can be put into any state and rolled forward."""

    def __init__(self) -> None:
        from wamserve.sim_eval.suites.pusht import PushTEnv, bars

        self.env: Any = PushTEnv(obs_type="state")
        self.env.reset(seed=0)
        self.local = np.array([v for bar in bars(self.env) for v in bar.get_vertices()])  # [8, 2]
        x, y, angle = self.env.goal_pose
        self.goal = self.corners(x, y, angle)

    def forget(self) -> None:
        """A fresh space: pymunk carries contacts over, and an answer must not know the one before."""
        self.env._setup()

    def corners(self, x: float, y: float, angle: float) -> np.ndarray:
        """[8, 2] px: the corners of the T's two bars."""
        c, s = np.cos(angle), np.sin(angle)
        return self.local @ np.array([[c, s], [-s, c]]) + [x, y]

    def bodies(self) -> np.ndarray:
        finger, block = self.env.agent, self.env.block
        return np.array(
            [
                *(*finger.position, *finger.velocity, *block.position, *block.velocity),
                *(block.angle, block.angular_velocity),
            ]
        )

    def roll(self, bodies: np.ndarray, targets: list[np.ndarray]) -> np.ndarray:
        """The bodies [10] after one control step per target [2] px."""
        from wamserve.sim_eval.suites.pusht import place

        env = self.env
        place(env, bodies)
        for target in targets:
            for _ in range(10):
                finger = env.agent
                pull = env.k_p * (target - np.array(finger.position)) - env.k_v * np.array(finger.velocity)
                finger.velocity = tuple(np.array(finger.velocity) + pull * env.dt)
                env.space.step(env.dt)
        return self.bodies()

    def error(self, bodies: np.ndarray) -> float:
        """Mean distance [px] of the block's corners from where they should be."""
        corners = self.corners(bodies[4], bodies[5], bodies[8])
        return float(np.linalg.norm(corners - self.goal, axis=1).mean())


def pusht_planner(state: dict[str, np.ndarray], contract: Embodiment, rng: np.random.Generator) -> np.ndarray:
    """Rows [chunk, 2] px: one push after another until the chunk is full."""
    if "privileged/bodies" not in state:
        raise RequestError("the oracle needs privileged state", seen=", ".join(state), expected="bodies")
    world, rows = physics(), contract.wire.chunk
    bodies = np.asarray(state["privileged/bodies"], dtype=np.float64)
    world.forget()
    targets: list[np.ndarray] = []
    while len(targets) < rows:
        push = best_push(world, bodies, rng)
        targets += push
        if len(targets) < rows:
            bodies = world.roll(bodies, push)
    return np.array(targets[:rows])


def best_push(world: Physics, bodies: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Targets [2] of the candidate that brings the block closest; a step aside where none helps."""
    now = world.error(bodies)
    best, best_error = None, now - 0.05
    for _ in range(CANDIDATES):
        push = drawn_push(world, bodies, now < 40, rng)
        if push is None:
            continue
        error = world.error(world.roll(bodies, push)) + STEP_COST * len(push)
        if error < best_error:
            best, best_error = push, error
    if best is not None:
        return best
    angle = rng.uniform(-np.pi, np.pi)
    aside = bodies[4:6] + 1.1 * ROUND * np.array([np.cos(angle), np.sin(angle)])
    return [np.clip(aside, MARGIN, 512 - MARGIN)]


def drawn_push(
    world: Physics, bodies: np.ndarray, fine: bool, rng: np.random.Generator
) -> list[np.ndarray] | None:
    """A random push; one in four goes on from where the finger is, which carries an unfinished one over."""
    corners = world.corners(bodies[4], bodies[5], bodies[8])
    length = rng.uniform(12, 40) if fine else rng.uniform(20, 140)
    bar = corners[:4] if rng.integers(2) == 0 else corners[4:]
    i, along = int(rng.integers(4)), rng.uniform(0.05, 0.95)
    a, b = bar[i], bar[(i + 1) % 4]
    point, edge = a * (1 - along) + b * along, b - a
    if rng.random() < 0.25:
        start, way = bodies[:2], []
        direction = point - start
        direction = direction / (np.linalg.norm(direction) + 1e-9)
    else:
        normal = np.array([edge[1], -edge[0]]) / (np.linalg.norm(edge) + 1e-9)
        if normal @ (point - bar.mean(0)) < 0:
            normal = -normal
        start = point + normal * (2 * FINGER - 1)
        if (start < MARGIN).any() or (start > 512 - MARGIN).any():
            return None
        turn = rng.normal(0, 0.3)
        c, s = np.cos(turn), np.sin(turn)
        direction = -np.array([c * normal[0] - s * normal[1], s * normal[0] + c * normal[1]])
        way = way_round(bodies[:2], corners.mean(0), start)
    count = max(2, int(np.ceil(length / 12)) + 1)
    line = [start + direction * (length + FINGER - 1) * (j + 1) / count for j in range(count)]
    line = [np.clip(p, FINGER + 1, 511 - FINGER) for p in line]
    return [*way, *line, line[-1]]


def way_round(finger: np.ndarray, block: np.ndarray, start: np.ndarray) -> list[np.ndarray]:
    """Targets that bring the finger to `start` without pushing the block on the way."""
    if np.linalg.norm(start - finger) < 40:
        return [start]
    here = np.arctan2(*(finger - block)[::-1])
    turn = (np.arctan2(*(start - block)[::-1]) - here + np.pi) % (2 * np.pi) - np.pi
    count = max(1, int(abs(turn) / 0.5))
    angles = here + turn * np.arange(count + 1) / count
    arc = block + ROUND * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return [*np.clip(arc, MARGIN, 512 - MARGIN), start, start]

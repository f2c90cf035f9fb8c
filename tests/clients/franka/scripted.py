"""A scripted policy for `wam serve --factory`: a smooth joint path, and the misbehaviour its prompt asks for.

The instruction is JSON: {"nan": [5.0], "outlier": [9.0], "stall": [13.0], "die": [20.0]}, in seconds since
the session's first question; each happens to the first question at or after its time.
"""

from __future__ import annotations

import json
import os
import time

import numpy as np

from wamserve.clients.policy import ActionChunk, Ledger, Prediction
from wamserve.embodiments.contract import load
from wamserve.policy_server.serving.served import Served

HOME = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])
AMPLITUDE = np.array([0.20, 0.08, 0.15, 0.10, 0.20, 0.15, 0.40])  # rad
SECONDS = np.array([8.0, 6.0, 9.0, 7.0, 5.0, 6.5, 4.0])  # period of each joint's sine


def path(t):
    """Seconds since the first question [...] -> joints [..., 7]; at rest at HOME for t <= 0."""
    t = np.maximum(np.asarray(t, float), 0.0)[..., None]
    fade = np.minimum(t / 4.0, 1.0)
    return HOME + (3 * fade**2 - 2 * fade**3) * AMPLITUDE * np.sin(2 * np.pi * t / SECONDS)


class Scripted:
    """Absolute joint targets along `path`, each chunk off by up to `jump` rad, the gripper every 4 s.

    anchored: from the measured joints on, as a policy that sees them does; which follows the path in shape.
    """

    def __init__(
        self,
        jump: float = 0.005,
        delay_s: float = 0.05,
        embodiment: str = "droid_lerobot",
        anchored: bool = False,
    ) -> None:
        self.anchored = anchored
        self.contract = load(embodiment)
        self.jump, self.delay_s = jump, delay_s
        self._first: dict[str, float] = {}
        self._done: set[tuple[str, str, float]] = set()

    def describe(self) -> dict:
        return Served.of(self.contract) | {"device": "cpu", "sampler": "scripted", "weights_sha256": "s" * 64}

    def reset(self, session: str = "") -> None:
        self._first.pop(session, None)

    def infer_batch(self, requests):
        return [self.infer(request) for request in requests]

    def infer(self, request) -> Prediction:
        now = request.observation.time
        first = self._first.setdefault(request.session, now)
        time.sleep(self.delay_s)
        faults = self._faults(request, now - first)
        if "stall" in faults:
            time.sleep(0.8)
        if "long" in faults:
            time.sleep(3.5)
        if "die" in faults:
            os.kill(os.getpid(), 9)
        rng = np.random.default_rng(request.seed)
        t = now - first + np.arange(32) / 15
        joints = path(t) + rng.uniform(-self.jump, self.jump, 7)
        if self.anchored:
            joints += np.asarray(request.observation.state["joint_position"]).ravel() - path(t[0])
        if "outlier" in faults:
            joints = joints + 0.35
        if "nan" in faults:
            joints[7, 3] = np.nan
        closed = (np.floor(t / 4.0) % 2 == 1).astype(float)
        rows = np.concatenate([joints, closed[:, None]], axis=1).astype(np.float32)
        return Prediction(
            ActionChunk(rows, now, 1 / 15), seed=request.seed or 0, ledger=Ledger(denoise_ms=50.0)
        )

    def _faults(self, request, t) -> set[str]:
        out = set()
        try:
            plan = json.loads(request.observation.instruction)
        except ValueError:
            return out
        for kind, times in plan.items():
            for due in times:
                key = (request.session, kind, due)
                if t >= due and key not in self._done:
                    self._done.add(key)
                    out.add(kind)
        return out


def red_centre(image: np.ndarray) -> np.ndarray | None:
    """uint8 [H, W, 3] -> centre (x, y) of what is red, -1 .. 1 across the picture; None where nothing is."""
    red, green = image[..., 0].astype(int), image[..., 1].astype(int)
    rows, columns = np.nonzero((red > 90) & (red > 3 * green))
    if len(rows) < 12:
        return None
    height, width = image.shape[:2]
    return np.array([2 * columns.mean() / (width - 1) - 1, 2 * rows.mean() / (height - 1) - 1])


class PixelServo(Scripted):
    """Turns the arm's base until the red cube is in the middle of the wrist picture; closes the hand there.

    It sees nothing but that picture and the joints: a test of the whole way round, not of a skill.
    """

    def infer(self, request) -> Prediction:
        joints = np.asarray(request.observation.state["joint_position"], float).ravel()
        centre = red_centre(request.observation.images["wrist"])
        turn = 0.0 if centre is None else 1.2 * float(centre[0])  # rad; the picture moves 0.69 per rad
        ramp = np.clip(np.arange(32) / 15 * 0.3 / max(abs(turn), 1e-6), 0.0, 1.0)
        rows = np.tile(HOME, (32, 1))
        rows[:, 0] = joints[0] + turn * ramp
        closed = np.full((32, 1), float(centre is not None and abs(centre[0]) < 0.04))
        actions = np.concatenate([rows, closed], axis=1).astype(np.float32)
        return Prediction(ActionChunk(actions, request.observation.time, 1 / 15), seed=request.seed or 0)

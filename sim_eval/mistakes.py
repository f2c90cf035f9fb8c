"""Conventions broken on purpose, between a policy and its task: rows and pictures changed on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from wamserve.clients.policy import ActionChunk, Observation, Policy, Prediction, Request
from wamserve.embodiments.contract import Embodiment

RATE_ERROR = 6  # 10 Hz for 60 Hz, the field's own mistake

Rows = Callable[[np.ndarray], np.ndarray]
Images = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class Broken:
    """A policy behind a mistake: rows or pictures are changed on the way."""

    def __init__(self, policy: Policy, rows: Rows | None = None, images: Images | None = None) -> None:
        self._policy, self._rows, self._images = policy, rows, images

    def infer(self, request: Request) -> Prediction:
        if self._images is not None:
            seen: Observation = replace(
                request.observation, images=self._images(dict(request.observation.images))
            )
            request = replace(request, observation=seen)
        said = self._policy.infer(request)
        if self._rows is None or said.chunk is None:
            return said
        chunk: ActionChunk = replace(said.chunk, actions=self._rows(said.chunk.actions))
        return replace(said, chunk=chunk)

    def reset(self, session: str = "") -> None:
        self._policy.reset(session)


def action_mistakes(contract: Embodiment) -> dict[str, Rows]:
    """Name -> what it does to raw rows [H, A]."""
    reply = contract.wire.reply
    out: dict[str, Rows] = {}

    def changed(edit: Callable[[np.ndarray], None]) -> Rows:
        def rows(actions: np.ndarray) -> np.ndarray:
            actions = actions.copy()
            edit(actions)
            return actions

        return rows

    for gripper in reply.grippers:

        def flip(a: np.ndarray, i: int = gripper.index, ends: float = gripper.low + gripper.high) -> None:
            a[:, i] = ends - a[:, i]

        out["gripper flipped"] = changed(flip)
    if reply.form == "osc_deltas":

        def reverse_rotation(a: np.ndarray) -> None:
            a[:, 3:6] = a[:, 5:2:-1]

        def swap_xy(a: np.ndarray) -> None:
            a[:, [0, 1]] = a[:, [1, 0]]

        out["rotation order reversed"] = changed(reverse_rotation)
        out["x and y swapped"] = changed(swap_xy)
    if reply.form == "joint_targets":

        def reverse_joints(a: np.ndarray) -> None:
            a[:, :7] = a[:, 6::-1]

        def degrees(a: np.ndarray) -> None:
            a[:, :7] = np.degrees(a[:, :7])

        out["joint order reversed"] = changed(reverse_joints)
        out["degrees for radians"] = changed(degrees)
    if reply.form == "position_targets":

        def swap(a: np.ndarray) -> None:
            a[:, [0, 1]] = a[:, [1, 0]]

        out["x and y swapped"] = changed(swap)
    out[f"rate wrong by {RATE_ERROR}"] = lambda a: np.repeat(a, RATE_ERROR, axis=0)[: len(a)]
    return out


def image_mistakes() -> dict[str, Images]:
    """Name -> what it does to the pictures."""

    def swap(images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = list(images)
        return dict(zip(names, (images[name] for name in reversed(names)), strict=True))

    def each(edit: Callable[[np.ndarray], np.ndarray]) -> Images:
        return lambda images: {name: np.ascontiguousarray(edit(i)) for name, i in images.items()}

    return {
        "pictures rotated by 180 degrees": each(lambda i: i[::-1, ::-1]),
        "pictures upside down": each(lambda i: i[::-1]),
        "cameras swapped": swap,
        "channels reversed (BGR)": each(lambda i: i[..., ::-1]),
    }

"""Do a task and a policy mean the same robot? Asked before the first step; a difference is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from wamserve.action_codec.errors import ContractError, TaskError
from wamserve.embodiments import tables
from wamserve.embodiments.contract import WireHalf, load
from wamserve.sim_eval.policies import Facts
from wamserve.sim_eval.task import Task, TaskSpec


def check_fit(spec: TaskSpec, wire: WireHalf, facts: Facts) -> None:
    """Compares what the task delivers with its declaration, and its declaration with the policy's."""
    _keeps_its_word(spec, wire)
    seen = tables.sha256(wire)
    if not facts.wire_sha256:
        raise ContractError(
            f"the policy does not say which robot it is for, {spec.name} is for {spec.contract}",
            fix="serve it with `wam serve`, or give the policy object a `contract`",
        )
    if facts.wire_sha256 == seen:
        return
    different = f"wire half {facts.wire_sha256[:12]} against {seen[:12]}"
    with contextlib.suppress(ContractError):  # a contract that only the other end knows
        different = " | ".join(differences(load(facts.contract).wire, wire)) or different
    raise ContractError(
        f"the policy is for {facts.contract or 'another robot'}, {spec.name} for {spec.contract}",
        seen=different,
        fix=f"wam check contract {facts.contract or 'NAME'} {spec.contract}",
    )


def differences(policy: WireHalf, task: WireHalf) -> list[str]:
    """Fields in which two wire halves differ, as "field: policy's, task's"."""
    a, b = tables.flat(policy), tables.flat(task)
    return [
        f"{k}: policy {a.get(k)!r}, task {b.get(k)!r}"
        for k in sorted(a.keys() | b.keys())
        if a.get(k) != b.get(k)
    ]


def _keeps_its_word(spec: TaskSpec, wire: WireHalf) -> None:
    """The task's spec is its wire half, said again: views, states, rate, orientation, width."""
    said: dict[str, Any] = {
        "views": spec.views,
        "states": spec.states,
        "rate_hz": float(spec.rate_hz),
        "action_width": spec.action_width,
        "image_orientation": spec.image_orientation if wire.images else "",
    }
    meant: dict[str, Any] = {
        "views": tuple((image.name, image.height, image.width) for image in wire.images),
        "states": tuple((state.name, state.dim) for state in wire.states),
        "rate_hz": float(wire.rate_hz),
        "action_width": wire.reply.width,
        "image_orientation": "/".join(sorted({image.orientation for image in wire.images})),
    }
    for name, value in said.items():
        if value != meant[name]:
            raise TaskError(
                f"{spec.name}: {name} differs from the contract", seen=value, expected=meant[name]
            )


def check_observation(task: Task, images: bool = True) -> None:
    """The first observation itself: every declared view and state, of the declared shape and range."""
    for state in task.wire.states:
        value = task.state().get(state.name)
        if value is None or np.shape(value) != (state.dim,) or not np.isfinite(value).all():
            raise TaskError(
                f"{task.spec.name}: state {state.name!r}", seen=value, expected=f"{state.dim} numbers"
            )
    if not images:
        return
    frames = task.render()
    for image in task.wire.images:
        frame = frames.get(image.name)
        shape = (image.height, image.width, 3)
        if frame is None or frame.shape != shape or frame.dtype != np.uint8:
            raise TaskError(
                f"{task.spec.name}: view {image.name!r}",
                seen=None if frame is None else (frame.shape, str(frame.dtype)),
                expected=f"{shape} uint8",
            )

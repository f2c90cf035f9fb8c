"""A run's contract and tasks, made anew and only as they were when it was recorded."""

from __future__ import annotations

import sys
from typing import Literal

from wamserve.action_codec.errors import RunError
from wamserve.embodiments.contract import Embodiment, load, names
from wamserve.sim_eval.remote_task import RemoteTask
from wamserve.sim_eval.score import OpenTask
from wamserve.sim_eval.store import RunStore
from wamserve.sim_eval.task import Task, TaskSpec
from wamserve.sim_eval.worker import MakeTask

FrameSource = Literal["rendered", "seen"]


def contract_of(store: RunStore) -> Embodiment | None:
    """The run's contract; None where it had none. RunError when it has changed since."""
    card = store.info.protocol
    if card.contract not in names():
        return None
    embodiment = load(card.contract)
    if card.contract_wire_sha256 and embodiment.wire_hash != card.contract_wire_sha256:
        raise RunError(
            f"the contract {card.contract} has changed since {store.path} was recorded",
            seen=f"wire half {embodiment.wire_hash[:12]}",
            expected=card.contract_wire_sha256[:12],
            fix="the version of wamserve that recorded it (see versions in run.json)",
        )
    return embodiment


def opener(store: RunStore, frames: FrameSource, python: str | None = None) -> OpenTask | None:
    """Makes the run's tasks, in processes of `python` where one is named; None where nothing is rendered."""
    if frames == "seen":
        return None
    contract = contract_of(store)

    def open_task(spec: TaskSpec) -> Task:
        profile: Literal["full", "fast"] = "fast" if spec.render_profile == "fast" else "full"
        make = MakeTask(contract.name if contract else None, profile, spec.max_steps, spec.instruction)
        task = RemoteTask(python, make, spec.name) if python else make(spec.name)
        if task.spec != spec:
            recorded, here = ({**vars(s)} for s in (spec, task.spec))
            fields = [
                f"{k}: {recorded[k]!r} recorded, {here[k]!r} here" for k in here if recorded[k] != here[k]
            ]
            task.close()
            recorder = str(store.info.config.get("python", ""))
            elsewhere = recorder not in ("", python or sys.executable)
            raise RunError(
                f"{spec.name} is not the task that was recorded",
                seen="; ".join(fields),
                fix=f"--python {recorder}" if elsewhere else "--frames seen, which needs no simulator",
            )
        task.reset(0, 0)  # the order of calls is reset first; every recorded state is restored on top
        return task

    return open_task

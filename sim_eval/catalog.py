"""Which tasks exist and how one is made. A simulator is imported when a task of it is made, not before."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from types import ModuleType

from wamserve.action_codec.errors import ContractError, TaskError
from wamserve.embodiments.contract import Embodiment, load
from wamserve.sim_eval.render import Profile
from wamserve.sim_eval.task import Task

_HERE = "wamserve.sim_eval.suites"
LIBERO = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
SUITES: dict[str, str] = {
    "robosuite": f"{_HERE}.robosuite",
    "two_cubes": f"{_HERE}.robosuite",
    "pusht": f"{_HERE}.pusht",
    **{name: f"{_HERE}.libero" for name in LIBERO},
    "gym": f"{_HERE}.gym",
}
INSTALL = {"robosuite": "robosuite", "two_cubes": "robosuite", "pusht": "pusht", "gym": "robosuite"}


def suite_module(suite: str) -> ModuleType:
    if suite not in SUITES:
        near = get_close_matches(suite, SUITES, n=2, cutoff=0.4)
        raise TaskError(
            f"no suite {suite!r}",
            expected=", ".join(SUITES),
            fix=" or ".join(f"wam eval {n}" for n in near) or None,
        )
    try:
        return import_module(SUITES[suite])
    except ModuleNotFoundError as error:
        what = INSTALL.get(suite, "libero")
        raise TaskError(
            f"{suite} needs a simulator that is not installed",
            seen=str(error),
            fix=f"wam sims install {what}",
        ) from None


def task_names(target: str) -> list[str]:
    """ "robosuite" -> all its tasks; "robosuite/Lift" -> itself, if it exists."""
    suite, _, task = target.partition("/")
    names: list[str] = suite_module(suite).task_names(suite)
    if not task:
        if not names:
            raise TaskError(f"{suite} has no list of tasks", fix=f"wam eval {suite}/ENV_ID")
        return names
    if suite == "gym":
        return [target]
    if target not in names:
        near = get_close_matches(target, names, n=3, cutoff=0.5)
        raise TaskError(f"no task {target!r}", expected=", ".join(near or names))
    return [target]


def instructions(target: str) -> list[str]:
    """What a policy is told in the tasks of a suite, or in one task; each sentence once."""
    module = suite_module(target.partition("/")[0])
    return list(dict.fromkeys(module.instruction(name) for name in task_names(target)))


def contract_of(target: str, name: str | None = None) -> Embodiment | None:
    """The contract a task is made with: the suite's first, or the one asked for if the suite speaks it."""
    suite = target.partition("/")[0]
    known: tuple[str, ...] = suite_module(suite).CONTRACTS
    if suite == "gym":
        return load(name) if name else None
    if name is None:
        return load(known[0]) if known else None
    if name not in known:
        raise ContractError(f"{suite} does not speak this contract", seen=name, expected=", ".join(known))
    return load(name)


def make(name: str, contract: Embodiment | None, profile: Profile = "full") -> Task:
    """One task, ready for reset."""
    task: Task = suite_module(name.partition("/")[0]).make(name, contract, profile)
    return task

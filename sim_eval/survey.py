"""What an interpreter's simulators are: the tasks of a target, and the versions that a score belongs to.

Run as `INTERPRETER -m wamserve.sim_eval.survey TARGET`, it says so as one line of JSON: the workers may run
under another interpreter than the command, with simulators of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from wamserve.action_codec import errors
from wamserve.action_codec.errors import TaskError, WamError

COMMON = ("wamserve", "numpy")
ROBOSUITE = ("mujoco", "robosuite")
PHYSICS = {  # suite -> what else its scores depend on; the rest are LIBERO's
    "robosuite": ROBOSUITE,
    "two_cubes": ROBOSUITE,
    "pusht": ("gymnasium", "gym-pusht", "pymunk"),
    "gym": ("gymnasium", "mujoco"),
}
LIBERO = (*ROBOSUITE, "hf-libero")


@dataclass(frozen=True)
class Survey:
    """What is found under one interpreter."""

    tasks: tuple[str, ...]  # names of the target's tasks, in order
    versions: dict[str, str]  # package -> version, of those the target's scores depend on


def here(target: str) -> Survey:
    """Under this interpreter."""
    from wamserve.sim_eval import catalog

    tasks = tuple(catalog.task_names(target))
    versions = {}
    for package in (*COMMON, *PHYSICS.get(target.partition("/")[0], LIBERO)):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return Survey(tasks, versions)


def of(python: str, target: str) -> Survey:
    """Under `python`; its own refusals, and TaskError where it is none that has wamserve."""
    if python == sys.executable:
        return here(target)
    command = [python, "-P", "-m", "wamserve.sim_eval.survey", target]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        kind, said = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, IndexError, ValueError) as error:
        seen = str(error) if isinstance(error, OSError) else done.stderr.strip()[-300:]
        raise TaskError(
            f"{python} cannot run simulators",
            seen=seen,
            expected="an interpreter with wamserve and a simulator",
            fix="wam sims install libero --physics 1.4.0",
        ) from None
    if kind != "survey":
        raise getattr(errors, kind)(said)
    return Survey(tuple(said["tasks"]), said["versions"])


def main() -> None:
    try:
        words = ["survey", asdict(here(sys.argv[1]))]
    except WamError as error:
        words = [type(error).__name__, str(error)]
    print(json.dumps(words))


if __name__ == "__main__":
    main()

"""The same episodes on a Ray cluster: every actor holds a simulator and its own line to the policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from wamserve.action_codec.errors import PolicyError
from wamserve.sim_eval.rollout import Loop
from wamserve.sim_eval.task import Episode, WorkItem
from wamserve.sim_eval.worker import MakeTask
from wamserve.sim_eval.workers import THREADS, Here


class Runner:
    """What one actor does: a bench of its own, a policy resolved where it runs."""

    def __init__(self, make: MakeTask, loop: Loop, policy: str, task: str) -> None:
        from wamserve.sim_eval import catalog, policies

        self._here, self._loop = Here(make), loop
        self._policy = policies.resolve(policy, catalog.contract_of(task, make.contract), task)

    def run(self, item: WorkItem) -> Episode:
        (episode,) = self._here.run(self._policy, self._loop, [item])
        return episode


def run_on_ray(
    make: MakeTask, loop: Loop, policy: str, items: Sequence[WorkItem], actors: int
) -> Iterator[Episode]:
    """Episodes as they finish. A cluster that is already initialised is used; else RAY_ADDRESS, else here.

    A checkpoint would be loaded once per actor: serve it and give its ws:// address instead.
    """
    import ray

    if policy not in ("oracle", "noop") and not policy.startswith(("ws://", "wss://")):
        raise PolicyError(
            "on Ray the policy is served", seen=policy, expected="ws://HOST:PORT", fix=f"wam serve {policy}"
        )
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    remote: Any = ray.remote(num_cpus=1, runtime_env={"env_vars": THREADS})(Runner)
    idle = [remote.remote(make, loop, policy, items[0].task) for _ in range(min(actors, len(items)))]
    left: list[WorkItem] = list(items)
    running: dict[Any, Any] = {}
    while left or running:
        while left and idle:
            actor = idle.pop()
            running[actor.run.remote(left.pop(0))] = actor
        (done,), _ = ray.wait(list(running))
        idle.append(running.pop(done))
        yield ray.get(done)

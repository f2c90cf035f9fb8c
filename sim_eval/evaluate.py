"""`wam eval`: roll a policy out on a suite, resumably, under a protocol that is written down first."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wamserve.action_codec.errors import ContractError, RunError, TaskError
from wamserve.clients.player import Strategy
from wamserve.clients.policy import Policy
from wamserve.embodiments import tables
from wamserve.embodiments.contract import WireHalf
from wamserve.sim_eval import catalog, policies, seeds, survey
from wamserve.sim_eval.check_fit import check_fit
from wamserve.sim_eval.clock import Latency
from wamserve.sim_eval.interrupt import noticed
from wamserve.sim_eval.policies import Facts
from wamserve.sim_eval.protocol import LoopProtocol, PolicyIdentity, ProtocolCard
from wamserve.sim_eval.render import Profile
from wamserve.sim_eval.rollout import Loop
from wamserve.sim_eval.statistics import Interval, wilson
from wamserve.sim_eval.store import RunStore
from wamserve.sim_eval.task import Episode, TaskSpec, WorkItem
from wamserve.sim_eval.worker import MakeTask
from wamserve.sim_eval.workers import Crew, Here


@dataclass(frozen=True)
class Plan:
    """A resolved evaluation: nothing in it is a default any more."""

    target: str  # suite or suite/task
    policy: str  # as typed
    episodes: int  # per task
    repeats: int  # rollouts of each initial state; `episodes` counts them all
    first_init: int
    workers: int  # 0: in this process
    seed: int
    latency: Latency
    horizon: int | None  # None: the whole chunk of the contract
    strategy: Strategy
    contract: str | None  # None: the suite's own
    profile: Profile | None  # None: what the policy's card says it learned from, else full
    deterministic: bool
    video: bool
    executor: str = "local"
    max_steps: int | None = None  # None: the suite's own
    instruction: str | None = None  # None: each task's own
    python: str = sys.executable  # interpreter of the workers

    def check(self) -> None:
        if self.episodes < 1 or self.repeats < 1 or self.episodes % self.repeats:
            raise TaskError(
                "a run needs episodes",
                seen=f"--episodes {self.episodes} --repeats {self.repeats}",
                expected="at least one episode, a multiple of the repeats",
            )
        if self.deterministic and self.latency.fixed_ms is None:
            raise TaskError(
                "measured latency is never the same twice",
                seen="--deterministic --latency measured",
                fix="--latency 0, or a number of milliseconds",
            )
        if self.horizon is not None and self.horizon < 1:
            raise TaskError("the replan horizon is at least one control step", seen=self.horizon)
        if self.python != sys.executable and (self.workers < 1 or self.executor != "local"):
            raise TaskError(
                "another interpreter runs worker processes of its own",
                seen=f"--python {self.python} --workers {self.workers} --executor {self.executor}",
                expected="at least one worker, executor local",
            )


@dataclass(frozen=True)
class Outcome:
    """The headline of a run."""

    run: Path
    successes: int
    episodes: int
    interval: Interval  # Wilson, of the success rate


def work_items(plan: Plan, tasks: Sequence[TaskSpec]) -> list[WorkItem]:
    inits = range(plan.first_init, plan.first_init + plan.episodes // plan.repeats)
    for task in tasks:
        if task.init_count is not None and inits.stop > task.init_count:
            raise TaskError(
                f"{task.name} has {task.init_count} initial states",
                seen=f"states {inits.start} .. {inits.stop - 1} asked for",
                fix=f"--episodes {task.init_count}, or --repeats for several rollouts of one state",
            )
    return [
        WorkItem(
            task.name,
            init,
            repeat,
            seeds.episode_seed(plan.seed, task.name, init, repeat),
            seeds.init_seed(plan.seed, task.name, init),
        )
        for task in tasks
        for init in inits
        for repeat in range(plan.repeats)
    ]


def protocol_card(
    plan: Plan,
    tasks: Sequence[TaskSpec],
    facts: Facts,
    horizon: int,
    wire_sha256: str,
    versions: Mapping[str, str],
) -> ProtocolCard:
    card = facts.card
    return ProtocolCard(
        suite=plan.target.partition("/")[0],
        tasks=tuple(tasks),
        init_states=tuple(range(plan.first_init, plan.first_init + plan.episodes // plan.repeats)),
        repeats=plan.repeats,
        seed=plan.seed,
        seed_rule=seeds.RULE,
        contract=tasks[0].contract,
        contract_model_sha256=facts.model_sha256,
        contract_wire_sha256=wire_sha256,
        policy=PolicyIdentity(
            spec=plan.policy,
            name=str(card.get("name", "")),
            weights_sha256=str(card.get("weights_sha256", "")),
            sampler={k: card[k] for k in sorted(card) if k not in ("name", "weights_sha256", "prompt_form")},
            prompt_form=str(card.get("prompt_form", "")),
        ),
        loop=LoopProtocol(horizon, plan.strategy, str(plan.latency), plan.deterministic),
        versions=versions,
    )


def default_run(card: ProtocolCard, target: str) -> Path:
    """The same evaluation gets the same folder, which is what lets it resume."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{target}-{card.policy.spec}").strip("-")
    return Path("runs") / f"{words[:80]}-{card.sha256[:8]}"


def evaluate(
    plan: Plan,
    run: Path | None = None,
    policy: Policy | None = None,
    watch: Callable[[int, int, int], None] | None = None,
) -> Outcome:
    """Runs what is missing of `plan`.

    `watch` is told (finished, planned, successes) after every episode, those of an earlier attempt included.
    """
    plan.check()
    found = survey.of(plan.python, plan.target)
    names = found.tasks
    contract = catalog.contract_of(plan.target, plan.contract)
    policy = policy or policies.resolve(plan.policy, contract, names[0])
    facts = policies.facts_of(policy)
    plan = replace(plan, profile=plan.profile or facts.render_profile or "full")
    with contextlib.closing(_bench(plan)) as bench:
        described = bench.describe(names, facts.sighted)
        for spec, wire in described:
            check_fit(spec, wire, facts)
        specs, wire = [spec for spec, _ in described], described[0][1]
        return _run(plan, run, policy, facts, specs, wire, found.versions, bench, watch)


def _bench(plan: Plan) -> Here | Crew:
    return Crew(_make(plan), plan.workers, plan.python) if plan.workers else Here(_make(plan))


def _make(plan: Plan) -> MakeTask:
    return MakeTask(plan.contract, plan.profile or "full", plan.max_steps, plan.instruction)


def _run(
    plan: Plan,
    run: Path | None,
    policy: Policy,
    facts: Facts,
    specs: Sequence[TaskSpec],
    wire: WireHalf,
    versions: Mapping[str, str],
    bench: Here | Crew,
    watch: Callable[[int, int, int], None] | None,
) -> Outcome:
    horizon = plan.horizon or wire.chunk
    if horizon > wire.chunk:
        raise ContractError(
            "the replan horizon is longer than a chunk", seen=horizon, expected=f"1 .. {wire.chunk}"
        )
    card = protocol_card(plan, specs, facts, horizon, tables.sha256(wire), versions)
    items = work_items(plan, specs)
    run = run or default_run(card, plan.target)
    loop = Loop(
        horizon,
        plan.strategy,
        plan.latency,
        facts.max_prefix_rows,
        privileged=facts.privileged,
        images=facts.sighted,
        video=plan.video,
    )
    with RunStore.create(run, card, _config(plan), len(items)) as store, noticed() as check_interrupt:
        done = store.done()
        left = [item for item in items if (item.task, item.init, item.repeat) not in done]
        if not store.finished:
            for episode in _episodes(plan, bench, loop, policy, facts, left):
                store.add(episode)
                check_interrupt()
                if watch:
                    rows = store.episodes()
                    watch(len(rows), len(items), sum(row.success for row in rows))
            store.finish()
        rows = store.episodes()
        if not rows:
            raise RunError(f"{run} has no finished episode")
        successes = sum(row.success for row in rows)
    return Outcome(run, successes, len(rows), wilson(successes, len(rows)))


def _episodes(
    plan: Plan, bench: Here | Crew, loop: Loop, policy: Policy, facts: Facts, items: Sequence[WorkItem]
) -> Iterator[Episode]:
    if plan.executor == "ray":
        from wamserve.sim_eval.on_ray import run_on_ray

        return run_on_ray(_make(plan), loop, plan.policy, items, max(plan.workers, 1))
    if isinstance(bench, Here):
        return bench.run(policy, loop, items)
    return bench.run(policy, loop, items, one_by_one=plan.deterministic and not facts.batch_invariant)


def _config(plan: Plan) -> dict[str, object]:
    """What run.json keeps of the command: all of it, in plain types."""
    return {
        **{k: getattr(plan, k) for k in Plan.__dataclass_fields__},
        "latency": str(plan.latency),
        "argv": sys.argv[1:],
    }

"""Two or more runs side by side: refused when their protocols differ, paired by initial state otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from wamserve.action_codec.errors import RunError
from wamserve.sim_eval import statistics
from wamserve.sim_eval.statistics import Interval, PairedCounts
from wamserve.sim_eval.store import EpisodeRow, RunStore

TEN_POINTS = 0.10
Key = tuple[str, int, int]  # task, initial state, repeat


@dataclass(frozen=True)
class RunSummary:
    """One compared run by itself."""

    path: str
    policy: str
    successes: int
    episodes: int
    planned: int
    success: Interval


@dataclass(frozen=True)
class PairVerdict:
    """What can be said about run `b` against run `a`."""

    a: int  # indices into Comparison.runs
    b: int
    paired: bool  # False: the runs share no initial state, rates are compared as unrelated samples
    counts: PairedCounts | None  # where paired
    unmatched: int  # episodes of either run that have no partner and were left out
    difference: Interval  # success of b minus success of a
    over_tasks: Interval | None  # the same, tasks resampled; None below six tasks
    progress: Interval | None  # difference of final partial credit, paired
    p: float  # exact McNemar where paired, Fisher otherwise
    confidence: float
    p_holm: float = 1.0  # over all pairs of the comparison
    more: int | None = None  # further pairs that would settle a difference like the observed one
    more_for_ten: int | None = None  # further pairs that would find a difference of ten points

    @property
    def distinguishable(self) -> bool:
        return self.p_holm <= 1 - self.confidence + 1e-12


@dataclass(frozen=True)
class Comparison:
    """All pairs of the runs given, under one protocol."""

    runs: tuple[RunSummary, ...]
    pairs: tuple[PairVerdict, ...]
    across: dict[str, list[Any]]  # field allowed to differ -> its value in each run


def compare(
    runs: Sequence[RunStore], across: Sequence[str] = (), confidence: float = statistics.CONFIDENCE
) -> Comparison:
    """Compares every pair of runs.

    Raises RunError for fewer than two runs, for protocols that differ outside `across` (naming every field
    and both values), for a run without a finished episode, and for runs that share no task.
    """
    if len(runs) < 2:
        raise RunError("a comparison needs two or more runs", seen=len(runs), fix="wam compare RUN_A RUN_B")
    _same_protocol(runs, tuple(across))
    episodes = [run.episodes() for run in runs]
    summaries = tuple(_summary(run, rows, confidence) for run, rows in zip(runs, episodes, strict=True))
    verdicts = [_verdict(a, b, runs, episodes, confidence) for a, b in combinations(range(len(runs)), 2)]
    adjusted = statistics.holm([verdict.p for verdict in verdicts])
    return Comparison(
        runs=summaries,
        pairs=tuple(
            _plan(replace(verdict, p_holm=p), len(verdicts))
            for verdict, p in zip(verdicts, adjusted, strict=True)
        ),
        across=_across_values(runs, tuple(across)),
    )


def _same_protocol(runs: Sequence[RunStore], across: tuple[str, ...]) -> None:
    first = runs[0]
    lines = []
    for other in runs[1:]:
        differences = first.info.protocol.differences(other.info.protocol, across=across)
        names = [{spec.name for spec in run.info.protocol.tasks} for run in (first, other)]
        for run, missing in ((first, names[1] - names[0]), (other, names[0] - names[1])):
            if missing:
                lines.append(f"\n  tasks: {run.path} does not have {', '.join(sorted(missing))}")
        alone = tuple(f"tasks.{name}." for name in names[0] ^ names[1])
        lines += [
            f"\n  {field}: {mine!r} in {first.path}, {theirs!r} in {other.path}"
            for field, (mine, theirs) in differences.items()
            if not (alone and field.startswith(alone))
        ]
    if lines:
        raise RunError(
            f"the runs were made under unlike protocols:{''.join(lines)}\n ",
            fix="--across FIELD for a field whose effect is the question",
        )


def _summary(run: RunStore, rows: Sequence[EpisodeRow], confidence: float) -> RunSummary:
    if not rows:
        raise RunError(f"{run.path} has no finished episode", expected=run.info.episodes_planned)
    successes = sum(row.success for row in rows)
    identity = run.info.protocol.policy
    return RunSummary(
        path=str(run.path),
        policy=identity.name or identity.spec,
        successes=successes,
        episodes=len(rows),
        planned=run.info.episodes_planned,
        success=statistics.wilson(successes, len(rows), confidence),
    )


def _verdict(
    a: int,
    b: int,
    runs: Sequence[RunStore],
    episodes: Sequence[Sequence[EpisodeRow]],
    confidence: float,
) -> PairVerdict:
    rows_a, rows_b = ({row.key: row for row in episodes[i]} for i in (a, b))
    tasks = sorted({key[0] for key in rows_a} & {key[0] for key in rows_b})
    if not tasks:
        raise RunError(f"{runs[a].path} and {runs[b].path} share no task")
    starts = {spec.name: spec.init_states for spec in runs[a].info.protocol.tasks}
    keys = [
        key
        for key in sorted(rows_a.keys() & rows_b.keys())
        if _same_start(starts[key[0]], rows_a[key].seed, rows_b[key].seed)
    ]
    if keys:
        pairs = [(rows_a[key], rows_b[key]) for key in keys]
        counts = PairedCounts.of([x.success for x, _ in pairs], [y.success for _, y in pairs])
        return PairVerdict(
            a=a,
            b=b,
            paired=True,
            counts=counts,
            unmatched=len(rows_a) + len(rows_b) - 2 * len(keys),
            difference=statistics.paired_difference(counts, confidence),
            over_tasks=_over_tasks(pairs, confidence),
            progress=_progress_difference(pairs, confidence),
            p=statistics.mcnemar_exact(counts),
            confidence=confidence,
        )
    outcomes = [[row.success for key, row in rows.items() if key[0] in tasks] for rows in (rows_a, rows_b)]
    numbers = (sum(outcomes[0]), len(outcomes[0]), sum(outcomes[1]), len(outcomes[1]))
    return PairVerdict(
        a=a,
        b=b,
        paired=False,
        counts=None,
        unmatched=len(rows_a) + len(rows_b) - numbers[1] - numbers[3],
        difference=statistics.unpaired_difference(*numbers, confidence),
        over_tasks=_over_task_means(rows_a, rows_b, tasks, confidence),
        progress=None,
        p=statistics.fisher_exact(*numbers),
        confidence=confidence,
    )


def _same_start(init_states: str, seed_a: int, seed_b: int) -> bool:
    """Whether initial state i of both runs is one scene: drawn from equal seeds, or from a stored list."""
    if init_states == "unrecorded":
        return False
    return seed_a == seed_b or "seed" not in init_states


def _over_task_means(
    rows_a: Mapping[Key, EpisodeRow],
    rows_b: Mapping[Key, EpisodeRow],
    tasks: Sequence[str],
    confidence: float,
) -> Interval | None:
    """Difference of task means: the tasks are shared even where their starts are not."""
    if len(tasks) < statistics.FEWEST_TASKS:
        return None

    def mean(rows: Mapping[Key, EpisodeRow], task: str) -> float:
        outcomes = [row.success for key, row in rows.items() if key[0] == task]
        return sum(outcomes) / len(outcomes)

    return statistics.task_bootstrap({t: [mean(rows_b, t) - mean(rows_a, t)] for t in tasks}, confidence)


def _over_tasks(pairs: Sequence[tuple[EpisodeRow, EpisodeRow]], confidence: float) -> Interval | None:
    per_task: dict[str, list[float]] = {}
    for x, y in pairs:
        per_task.setdefault(x.task, []).append(float(y.success) - float(x.success))
    enough = len(per_task) >= statistics.FEWEST_TASKS
    return statistics.task_bootstrap(per_task, confidence) if enough else None


def _progress_difference(
    pairs: Sequence[tuple[EpisodeRow, EpisodeRow]], confidence: float
) -> Interval | None:
    gaps = [
        y.final_progress - x.final_progress
        for x, y in pairs
        if x.final_progress is not None and y.final_progress is not None
    ]
    return statistics.mean_interval(gaps, confidence) if len(gaps) > 1 else None


def _plan(verdict: PairVerdict, tests: int) -> PairVerdict:
    """Adds how many more pairs would settle an open question; Holm's strictest level is assumed."""
    if verdict.distinguishable or verdict.counts is None:
        return verdict
    counts, alpha = verdict.counts, (1 - verdict.confidence) / tests
    needed = statistics.pairs_to_settle(counts, alpha)
    discordance = max((counts.only_a + counts.only_b) / counts.pairs, TEN_POINTS)
    for_ten = statistics.pairs_for((discordance - TEN_POINTS) / 2, (discordance + TEN_POINTS) / 2, alpha)
    return replace(
        verdict,
        more=max(needed - counts.pairs, 1) if needed else None,
        more_for_ten=max((for_ten or 0) - counts.pairs, 0),
    )


def _across_values(runs: Sequence[RunStore], across: tuple[str, ...]) -> dict[str, list[Any]]:
    cards = [run.info.protocol.flat() for run in runs]
    fields = sorted(
        {
            key
            for card in cards
            for key in card
            if any(key == name or key.startswith(name.rstrip(".") + ".") for name in across)
        }
    )
    values = {field: [card.get(field) for card in cards] for field in fields}
    return {field: seen for field, seen in values.items() if any(v != seen[0] for v in seen)}


def lines(comparison: Comparison) -> list[str]:
    """The comparison in words, ready to print."""
    out = []
    for index, run in enumerate(comparison.runs):
        partial = "" if run.episodes >= run.planned else f", unfinished: {run.planned} planned"
        out.append(
            f"[{index}] {run.policy}: {run.success.percent()}  "
            f"{run.successes}/{run.episodes}{partial}  {run.path}"
        )
    for field, values in comparison.across.items():
        out.append(f"across {field}: " + ", ".join(f"[{i}] {v!r}" for i, v in enumerate(values)))
    for pair in comparison.pairs:
        out += ["", *_pair_lines(pair, comparison)]
    return out


def _pair_lines(pair: PairVerdict, comparison: Comparison) -> list[str]:
    a, b = comparison.runs[pair.a], comparison.runs[pair.b]
    out = [f"[{pair.b}] {b.policy} against [{pair.a}] {a.policy}: {pair.difference.points()}"]
    if pair.counts is not None:
        c = pair.counts
        out.append(
            f"  {c.pairs} starts: both {c.both}, only [{pair.a}] {c.only_a}, only [{pair.b}] {c.only_b}, "
            f"neither {c.neither}; exact McNemar p = {pair.p:.3g}" + _holm_words(pair, comparison)
        )
    else:
        out.append(f"  no shared starts: Fisher's exact p = {pair.p:.3g}" + _holm_words(pair, comparison))
    if pair.unmatched:
        out.append(f"  {pair.unmatched} episodes without a partner were left out")
    if pair.over_tasks is not None:
        out.append(f"  mean over tasks: {pair.over_tasks.points()} ({pair.over_tasks.method})")
    if pair.progress is not None:
        out.append(f"  final partial credit: {pair.progress.points()} (paired t)")
    if pair.distinguishable:
        better = b if pair.difference.estimate > 0 else a
        out.append(f"  {better.policy} is better on these starts")
    else:
        out.append(f"  not distinguishable; {_settle_words(pair)}")
    return out


def _holm_words(pair: PairVerdict, comparison: Comparison) -> str:
    count = len(comparison.pairs)
    return f", Holm over {count} pairs {pair.p_holm:.3g}" if count > 1 else ""


def _settle_words(pair: PairVerdict) -> str:
    if pair.counts is None:
        return "run both on the same initial states to compare them start by start"
    power = f"with power {statistics.POWER:.0%}"
    if pair.more is not None:
        return f"about {pair.more} more rollouts of each would settle a difference of this size {power}"
    if pair.more_for_ten:
        return f"about {pair.more_for_ten} more rollouts of each would find a difference of 10 points {power}"
    return f"these {pair.counts.pairs} starts would have found a difference of 10 points {power}"

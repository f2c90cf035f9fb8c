"""What a number of rollouts allows one to say: intervals for one run, tests and intervals for two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from wamserve.action_codec.errors import RunError

CONFIDENCE = 0.95
RESAMPLES = 10_000
POWER = 0.8
FEWEST_TASKS = 6  # of fewer, resampling cannot reach beyond the extremes that it drew


@dataclass(frozen=True)
class Interval:
    """An estimate with the interval that covers the truth at `confidence`."""

    estimate: float
    low: float
    high: float
    method: str
    confidence: float = CONFIDENCE

    def percent(self) -> str:
        """'62.0 % [48.2, 74.1]'"""
        return f"{100 * self.estimate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def points(self) -> str:
        """'+12.0 points [-1.3, +24.8]', for a difference of two rates."""
        return f"{100 * self.estimate:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def wilson(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of a success rate (Wilson 1927), for rollouts that are independent of one another."""
    _counts(successes, trials)
    low, high = _wilson_bounds(successes, trials, confidence)
    return Interval(successes / trials, low, high, "Wilson", confidence)


def beta_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Equal-tailed Beta(k + 1, n - k + 1) interval under a flat prior: what RoboLab prints.

    The estimate is k / n, as RoboLab shows it, not the posterior mean.
    """
    _counts(successes, trials)
    tail = (1 - confidence) / 2
    posterior = stats.beta(successes + 1, trials - successes + 1)
    return Interval(
        successes / trials, float(posterior.ppf(tail)), float(posterior.ppf(1 - tail)), "Beta", confidence
    )


def task_bootstrap(
    per_task: Mapping[str, Sequence[float]],
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of a suite's mean of task means, resampling whole tasks: the tasks are the sample.

    `per_task` maps a task to its rollouts' scores (or paired differences). The percentile interval is widened
    by Hesterberg's factor (2015, section 5.3: t quantile and n / (n - 1)), without which ten tasks
    cover about 90 % instead of 95 %. Raises RunError for fewer than six tasks.
    """
    if len(per_task) < FEWEST_TASKS:
        raise RunError(
            "too few tasks to resample", seen=f"{len(per_task)} tasks", expected=f"{FEWEST_TASKS} or more"
        )
    if not all(len(scores) for scores in per_task.values()):
        raise RunError(
            "a task has no rollouts", seen=[name for name, rows in per_task.items() if not len(rows)]
        )
    means = np.array([np.mean(per_task[name]) for name in sorted(per_task)], dtype=np.float64)
    tasks = len(means)
    drawn = np.random.default_rng(seed).integers(0, tasks, (resamples, tasks))
    reach = np.sqrt(tasks / (tasks - 1)) * stats.t.ppf((1 + confidence) / 2, tasks - 1)
    tail = float(stats.norm.cdf(-reach))
    low, high = np.quantile(means[drawn].mean(axis=1), [tail, 1 - tail])
    return Interval(float(means.mean()), float(low), float(high), f"bootstrap over {tasks} tasks", confidence)


def mean_interval(scores: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Student t interval of a mean (partial credit, decibels, milliseconds). Raises RunError for n < 2."""
    values = np.asarray(scores, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise RunError("a mean needs two or more finite scores", seen=f"{len(values)} scores")
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = float(values.mean())
    return Interval(mean, mean - float(half), mean + float(half), "Student t", confidence)


@dataclass(frozen=True)
class PairedCounts:
    """The same initial states under two policies A and B."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def pairs(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @classmethod
    def of(cls, a: Sequence[bool], b: Sequence[bool]) -> PairedCounts:
        first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
        if first.shape != second.shape or first.size == 0:
            raise RunError("pairs need as many outcomes of A as of B", seen=f"{first.size} and {second.size}")
        return cls(
            int((first & second).sum()),
            int((first & ~second).sum()),
            int((~first & second).sum()),
            int((~first & ~second).sum()),
        )


def mcnemar_exact(counts: PairedCounts) -> float:
    """Two-sided exact p of 'A and B succeed equally often': a fair coin on the discordant pairs."""
    discordant = counts.only_a + counts.only_b
    if discordant == 0:
        return 1.0
    return float(stats.binomtest(counts.only_a, discordant, 0.5).pvalue)


def paired_difference(counts: PairedCounts, confidence: float = CONFIDENCE) -> Interval:
    """Success of B minus success of A on the same starts; Newcombe 1998 (paired), method 10."""
    e, f, g, h, n = counts.both, counts.only_a, counts.only_b, counts.neither, counts.pairs
    p_a, p_b = (e + f) / n, (e + g) / n
    low_a, high_a = _wilson_bounds(e + f, n, confidence)
    low_b, high_b = _wilson_bounds(e + g, n, confidence)
    product = (e + f) * (g + h) * (e + g) * (f + h)
    cross: float = e * h - f * g
    cross = max(cross - n / 2, 0.0) if cross > 0 else cross  # the method's continuity correction of phi
    phi = cross / np.sqrt(product) if product else 0.0
    down, up = p_b - low_b, high_a - p_a
    low = (p_b - p_a) - np.sqrt(max(down**2 - 2 * phi * down * up + up**2, 0.0))
    down, up = p_a - low_a, high_b - p_b
    high = (p_b - p_a) + np.sqrt(max(down**2 - 2 * phi * down * up + up**2, 0.0))
    return Interval(p_b - p_a, float(low), float(high), "Newcombe paired", confidence)


def fisher_exact(successes_a: int, trials_a: int, successes_b: int, trials_b: int) -> float:
    """Two-sided exact p of equal rates for starts that cannot be paired."""
    _counts(successes_a, trials_a)
    _counts(successes_b, trials_b)
    table = [[successes_a, trials_a - successes_a], [successes_b, trials_b - successes_b]]
    return float(stats.fisher_exact(table)[1])


def unpaired_difference(
    successes_a: int, trials_a: int, successes_b: int, trials_b: int, confidence: float = CONFIDENCE
) -> Interval:
    """Success of B minus success of A on unrelated starts; Newcombe 1998 (independent), method 10."""
    a, b = wilson(successes_a, trials_a, confidence), wilson(successes_b, trials_b, confidence)
    gap = b.estimate - a.estimate
    low = gap - np.hypot(b.estimate - b.low, a.high - a.estimate)
    high = gap + np.hypot(b.high - b.estimate, a.estimate - a.low)
    return Interval(gap, float(low), float(high), "Newcombe", confidence)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))), 1.0)
    return [float(x) for x in adjusted]


def mcnemar_power(pairs: int, rate_only_a: float, rate_only_b: float, alpha: float = 1 - CONFIDENCE) -> float:
    """Chance that the exact McNemar test on `pairs` starts falls below `alpha`, for true discordant rates."""
    discordance = rate_only_a + rate_only_b
    if discordance <= 0:
        return 0.0
    spread = stats.binom(pairs, discordance)
    counts = np.arange(int(spread.ppf(1e-9)), int(spread.ppf(1 - 1e-9)) + 1)
    # Largest k whose two-sided p is within alpha; -1 where even 0 of `counts` is not enough.
    critical = stats.binom.ppf(alpha / 2, counts, 0.5).astype(int)
    critical -= stats.binom.cdf(critical, counts, 0.5) > alpha / 2
    share = rate_only_a / discordance
    reject = stats.binom.cdf(critical, counts, share) + stats.binom.cdf(critical, counts, 1 - share)
    return float((spread.pmf(counts) * np.minimum(reject, 1.0)).sum())


def pairs_for(
    rate_only_a: float,
    rate_only_b: float,
    alpha: float = 1 - CONFIDENCE,
    power: float = POWER,
    limit: int = 50_000,
) -> int | None:
    """Pairs at which the exact McNemar test finds these discordant rates with the stated power.

    None where `limit` pairs would not do, as for equal rates.
    """
    if rate_only_a == rate_only_b or mcnemar_power(limit, rate_only_a, rate_only_b, alpha) < power:
        return None
    low, high = 1, limit
    while low < high:
        middle = (low + high) // 2
        enough = mcnemar_power(middle, rate_only_a, rate_only_b, alpha) >= power
        low, high = (low, middle) if enough else (middle + 1, high)
    return low


def pairs_to_settle(counts: PairedCounts, alpha: float = 1 - CONFIDENCE, power: float = POWER) -> int | None:
    """Pairs in all at which the exact test would find the observed difference with the stated power.

    The observed rates are taken for the true ones, so this is a plan and not a promise; test a fresh run of
    that size by itself. None: the observed difference is zero or next to it.
    """
    return pairs_for(counts.only_a / counts.pairs, counts.only_b / counts.pairs, alpha, power)


def detectable_difference(
    pairs: int, discordance: float = 0.3, alpha: float = 1 - CONFIDENCE, power: float = POWER
) -> float | None:
    """Smallest difference of success rates (0..1) that `pairs` starts would find with the stated power.

    `discordance` is the share of starts on which the two policies disagree; at this share no difference
    exceeds it. None: not even a difference of the whole discordance would be found.
    """
    if mcnemar_power(pairs, 0.0, discordance, alpha) < power:
        return None
    low, high = 0.0, discordance
    while high - low > 1e-4:
        middle = (low + high) / 2
        found = mcnemar_power(pairs, (discordance - middle) / 2, (discordance + middle) / 2, alpha) >= power
        low, high = (low, middle) if found else (middle, high)
    return high


def _wilson_bounds(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    z = float(stats.norm.ppf((1 + confidence) / 2))
    rate, weight = successes / trials, z * z / trials
    centre = (rate + weight / 2) / (1 + weight)
    half = z * np.sqrt(rate * (1 - rate) / trials + weight / (4 * trials)) / (1 + weight)
    low, high = float(centre - half), float(centre + half)
    return (0.0 if successes == 0 else max(low, 0.0)), (1.0 if successes == trials else min(high, 1.0))


def _counts(successes: int, trials: int) -> None:
    if trials < 1:
        raise RunError("a rate of no rollouts was asked for", seen=f"{successes} of {trials}")
    if not 0 <= successes <= trials:
        raise RunError("more successes than rollouts", seen=f"{successes} of {trials}")

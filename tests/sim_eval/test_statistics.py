"""Intervals and tests against scipy, statsmodels and published examples; coverage by simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from wamserve.action_codec.errors import RunError
from wamserve.sim_eval import statistics
from wamserve.sim_eval.statistics import PairedCounts


@pytest.mark.parametrize(("k", "n"), [(0, 50), (1, 50), (31, 50), (50, 50), (1, 1), (487, 500)])
def test_wilson_equals_statsmodels_and_scipy(k, n):
    ours = statistics.wilson(k, n)
    assert (ours.low, ours.high) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-12)
    scipy = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((scipy.low, scipy.high), abs=1e-12)
    assert ours.estimate == k / n


def test_wilson_hand_number():
    # 5 of 10 at z = 1.959964: centre 0.5, half width z / sqrt(4 n (1 + z^2 / n))
    z = 1.959963984540054
    half = z / math.sqrt(4 * 10 * (1 + z * z / 10))
    ours = statistics.wilson(5, 10)
    assert (ours.low, ours.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-12)


def test_beta_interval_is_the_one_robolab_prints():
    ours = statistics.beta_interval(3, 10)
    assert (ours.low, ours.high) == pytest.approx(stats.beta.interval(0.95, 4, 8), abs=1e-12)
    assert ours.estimate == 0.3


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("n", [20, 50, 500])
def test_wilson_covers_at_the_stated_rate(rate, n):
    # exact coverage: every outcome weighted by its probability, no simulation needed
    weights = stats.binom(n, rate).pmf(np.arange(n + 1))
    covered = np.array([statistics.wilson(k, n) for k in range(n + 1)], dtype=object)
    inside = np.array([c.low <= rate <= c.high for c in covered])
    assert weights[inside].sum() == pytest.approx(0.95, abs=0.035)


def suite(rng, tasks, rollouts, spread):
    rates = np.clip(rng.normal(0.6, spread, tasks), 0.02, 0.98)
    return {str(i): (rng.random(rollouts) < rate).astype(float) for i, rate in enumerate(rates)}


@pytest.mark.parametrize("tasks", [6, 10, 40])
def test_task_bootstrap_covers_at_the_stated_rate_where_wilson_does_not(tasks):
    rng = np.random.default_rng(3)
    truth = np.clip(rng.normal(0.6, 0.25, 400_000), 0.02, 0.98).mean()
    hits = pooled_hits = 0
    trials = 600
    for trial in range(trials):
        scores = suite(rng, tasks, 20, spread=0.25)
        interval = statistics.task_bootstrap(scores, resamples=1000, seed=trial)
        hits += interval.low <= truth <= interval.high
        successes = int(sum(rows.sum() for rows in scores.values()))
        pooled = statistics.wilson(successes, tasks * 20)
        pooled_hits += pooled.low <= truth <= pooled.high
    assert 0.92 <= hits / trials <= 0.975  # binomial error of 600 trials: 0.009
    assert pooled_hits / trials < 0.85  # rollouts of one task are not independent draws of the suite


def test_task_bootstrap_is_repeatable_and_centres_on_the_mean_of_task_means():
    per_task = {"a": [1.0, 1.0, 1.0, 1.0], "b": [0.0], "c": [0.5, 0.5], "d": [0.3], "e": [0.7], "f": [0.5]}
    first, second = statistics.task_bootstrap(per_task), statistics.task_bootstrap(per_task)
    assert first == second and first.estimate == pytest.approx(0.5)
    with pytest.raises(RunError, match="too few tasks"):
        statistics.task_bootstrap({"a": [1.0]})
    with pytest.raises(RunError, match="no rollouts"):
        statistics.task_bootstrap({"a": [1.0], "b": [], "c": [0.0], "d": [1.0], "e": [1.0], "f": [0.0]})


def test_mean_interval_equals_scipy():
    values = [0.1, 0.4, 0.35, 0.9]
    theirs = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    ours = statistics.mean_interval(values)
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 3), (2, 11), (40, 17)])
def test_mcnemar_equals_statsmodels(b, c):
    ours = statistics.mcnemar_exact(PairedCounts(10, b, c, 7))
    assert ours == pytest.approx(min(mcnemar([[10, b], [c, 7]], exact=True).pvalue, 1.0), abs=1e-12)


def test_mcnemar_hand_number():
    # 1 of 6 discordant pairs: 2 * (1 + 6) / 64
    assert statistics.mcnemar_exact(PairedCounts(0, 1, 5, 0)) == pytest.approx(14 / 64)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((14, 0, 5, 22), 0.011, 0.226),  # Altman et al. 2000, table 6.2
        ((1, 1, 7, 12), 0.026, 0.507),  # Bentur et al. 2009 in Fagerland et al., chapter 8
    ],
)
def test_paired_interval_equals_published_examples(table, low, high):
    ours = statistics.paired_difference(PairedCounts(*table))
    assert (round(ours.low, 3), round(ours.high, 3)) == (low, high)


def test_paired_interval_turns_sign_with_its_arguments():
    one = statistics.paired_difference(PairedCounts(20, 4, 11, 15))
    other = statistics.paired_difference(PairedCounts(20, 11, 4, 15))
    assert (one.estimate, one.low, one.high) == pytest.approx((-other.estimate, -other.high, -other.low))


@pytest.mark.parametrize("rates", [(0.4, 0.1, 0.2, 0.3), (0.7, 0.05, 0.05, 0.2), (0.05, 0.02, 0.1, 0.83)])
def test_paired_interval_covers_at_the_stated_rate(rates):
    rng = np.random.default_rng(5)
    truth = rates[2] - rates[1]
    tables = rng.multinomial(50, rates, size=4000)
    hits = [
        (i := statistics.paired_difference(PairedCounts(*map(int, t)))).low <= truth <= i.high for t in tables
    ]
    assert 0.93 <= np.mean(hits) <= 0.985  # method 10 is slightly conservative


def test_pairing_outcomes_counts_each_kind():
    counts = PairedCounts.of([1, 1, 0, 0, 1], [1, 0, 1, 0, 1])
    assert counts == PairedCounts(2, 1, 1, 1) and counts.pairs == 5
    with pytest.raises(RunError, match="as many outcomes"):
        PairedCounts.of([True], [True, False])


def test_unpaired_interval_equals_statsmodels_and_fisher_equals_scipy():
    ours = statistics.unpaired_difference(12, 50, 25, 60)
    theirs = confint_proportions_2indep(25, 60, 12, 50, method="newcomb", compare="diff")
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=1e-9)
    assert statistics.fisher_exact(12, 50, 25, 60) == pytest.approx(
        stats.fisher_exact([[12, 38], [25, 35]])[1], abs=1e-12
    )


def test_holm_equals_statsmodels():
    p = [0.04, 0.001, 0.2, 0.013, 0.013, 0.9]
    assert statistics.holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)
    assert statistics.holm([0.03]) == [0.03]


def test_mcnemar_power_equals_simulation():
    rng = np.random.default_rng(11)
    rates = (0.5, 0.05, 0.2, 0.25)
    tables = rng.multinomial(80, rates, size=3000)
    rejected = [statistics.mcnemar_exact(PairedCounts(*map(int, t))) <= 0.05 for t in tables]
    assert statistics.mcnemar_power(80, 0.05, 0.2) == pytest.approx(np.mean(rejected), abs=0.03)
    # under equal rates the exact test keeps its level
    assert statistics.mcnemar_power(80, 0.15, 0.15) <= 0.05


def test_rollouts_to_settle_reach_the_power_and_one_fewer_hundred_do_not():
    counts = PairedCounts(20, 5, 10, 15)
    needed = statistics.pairs_to_settle(counts)
    assert needed is not None and needed > counts.pairs
    assert statistics.mcnemar_power(needed, 0.1, 0.2) >= 0.8
    assert statistics.mcnemar_power(needed - 20, 0.1, 0.2) < 0.8
    assert statistics.pairs_to_settle(PairedCounts(20, 7, 7, 15)) is None


def test_detectable_difference_shrinks_with_more_rollouts():
    few, many = statistics.detectable_difference(50), statistics.detectable_difference(500)
    assert few is not None and many is not None and 0 < many < few < 0.3
    assert statistics.mcnemar_power(50, (0.3 - few) / 2, (0.3 + few) / 2) == pytest.approx(0.8, abs=0.01)
    assert statistics.detectable_difference(5) is None


def test_a_rate_of_nothing_is_an_error():
    with pytest.raises(RunError, match="no rollouts"):
        statistics.wilson(0, 0)
    with pytest.raises(RunError, match="more successes"):
        statistics.beta_interval(5, 4)

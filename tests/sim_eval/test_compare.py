"""Comparisons: unlike protocols refused, pairs by initial state, honest words when nothing can be said."""

import pytest

from wamserve.action_codec.errors import RunError
from wamserve.sim_eval import compare, statistics
from wamserve.sim_eval.store import RunStore


def runs_of(toys, tmp_path, *outcomes, **card):
    return [
        toys.toy_run(tmp_path / f"run{i}", {"toy/Push": rows}, policy=f"policy{i}", imagine=False, **card)
        for i, rows in enumerate(outcomes)
    ]


def test_pairs_are_formed_by_initial_state_not_by_order(toys, tmp_path):
    a, b = runs_of(toys, tmp_path, [1, 1, 0, 0, 1, 0], [1, 0, 1, 1, 1, 0])
    pair = compare.compare([a, b]).pairs[0]
    assert pair.paired and pair.unmatched == 0
    assert pair.counts == statistics.PairedCounts(both=2, only_a=1, only_b=2, neither=1)
    assert pair.p == statistics.mcnemar_exact(pair.counts)
    assert pair.difference.estimate == pytest.approx(1 / 6)


def test_a_clear_difference_is_called_and_a_small_one_is_not(toys, tmp_path):
    good, bad, near = runs_of(toys, tmp_path, [1] * 19 + [0], [0] * 18 + [1, 1], [1] * 18 + [0, 0])
    result = compare.compare([bad, good, near])
    text = "\n".join(compare.lines(result))
    assert [pair.distinguishable for pair in result.pairs] == [True, True, False]
    assert "policy0 is better on these starts" in text
    assert "not distinguishable; about" in text and "more rollouts of each would settle" in text
    # Holm: the smallest of three p values is tripled
    smallest = min(result.pairs, key=lambda pair: pair.p)
    assert smallest.p_holm == pytest.approx(min(1.0, 3 * smallest.p))


def test_equal_runs_are_not_distinguishable_and_say_what_ten_points_would_take(toys, tmp_path):
    a, b = runs_of(toys, tmp_path, [1, 0] * 10, [1, 0] * 10)
    pair = compare.compare([a, b]).pairs[0]
    assert not pair.distinguishable and pair.more is None and pair.p == 1.0
    assert pair.more_for_ten == statistics.pairs_for(0.0, 0.1) - 20
    assert "a difference of 10 points" in "\n".join(compare.lines(compare.compare([a, b])))


def test_unlike_protocols_are_refused_with_every_differing_field(toys, tmp_path):
    a = toys.toy_run(tmp_path / "a", {"toy/Push": [1, 0, 1]}, imagine=False)
    b = toys.toy_run(tmp_path / "b", {"toy/Push": [1, 0, 1]}, imagine=False, horizon=2, latency="180")
    with pytest.raises(RunError) as refusal:
        compare.compare([a, b])
    assert "loop.replan_horizon: 4 in" in str(refusal.value) and "2 in" in str(refusal.value)
    assert "loop.latency: '0' in" in str(refusal.value) and "--across FIELD" in str(refusal.value)
    with pytest.raises(RunError, match=r"loop\.latency"):
        compare.compare([a, b], across=["loop.replan_horizon"])
    result = compare.compare([a, b], across=["loop"])
    assert result.across == {"loop.replan_horizon": [4, 2], "loop.latency": ["0", "180"]}


def test_a_task_that_one_run_lacks_is_named_once(toys, tmp_path):
    a = toys.toy_run(tmp_path / "a", {"toy/A": [1, 0]}, imagine=False)
    b = toys.toy_run(tmp_path / "b", {"toy/A": [1, 0], "toy/B": [1, 0]}, imagine=False)
    with pytest.raises(RunError) as refusal:
        compare.compare([a, b])
    assert "does not have toy/B" in str(refusal.value) and "rate_hz" not in str(refusal.value)


def test_policies_may_differ_without_asking(toys, tmp_path):
    a, b = runs_of(toys, tmp_path, [1, 0], [0, 1])
    assert a.info.protocol.policy != b.info.protocol.policy
    assert len(compare.compare([a, b]).pairs) == 1


def test_other_seeds_are_other_starts_and_are_never_paired(toys, tmp_path):
    a = toys.toy_run(tmp_path / "a", {"toy/Push": [1, 1, 1, 0]}, imagine=False)
    b = toys.toy_run(tmp_path / "b", {"toy/Push": [1, 0, 0, 0]}, imagine=False, seed=7)
    pair = compare.compare([a, b], across=["seed"]).pairs[0]
    assert not pair.paired and pair.counts is None
    assert pair.p == statistics.fisher_exact(3, 4, 1, 4)
    assert "no shared starts" in "\n".join(compare.lines(compare.compare([a, b], across=["seed"])))


def test_several_tasks_add_an_interval_over_tasks(toys, tmp_path):
    tasks = {f"toy/{name}": [1, 0, 1] for name in "ABCDEF"}
    better = {name: [1, 1, 1] for name in tasks}
    a = toys.toy_run(tmp_path / "a", tasks, imagine=False)
    b = toys.toy_run(tmp_path / "b", better, policy="beta", imagine=False)
    pair = compare.compare([a, b]).pairs[0]
    assert pair.over_tasks.estimate == pytest.approx(1 / 3) and pair.over_tasks.method == (
        "bootstrap over 6 tasks"
    )
    assert pair.progress is not None and pair.progress.estimate > 0


def test_an_unfinished_run_is_compared_on_what_it_has_and_says_so(toys, tmp_path):
    a = toys.toy_run(tmp_path / "a", {"toy/Push": [1, 0, 1, 1]}, imagine=False)
    card = toys.toy_card("beta", inits=4)
    b = RunStore.create(tmp_path / "b", card, {}, 4)
    b.add(toys.toy_episode(toys.WorkItem("toy/Push", 2, 0, seed=2000), True, imagine=False))
    result = compare.compare([a, b])
    assert result.pairs[0].counts.pairs == 1 and result.pairs[0].unmatched == 3
    assert "unfinished: 4 planned" in "\n".join(compare.lines(result))


def test_a_run_without_an_episode_is_an_error(toys, tmp_path):
    a = toys.toy_run(tmp_path / "a", {"toy/Push": [1]}, imagine=False)
    empty = RunStore.create(tmp_path / "b", toys.toy_card(inits=1), {}, 1)
    with pytest.raises(RunError, match="no finished episode"):
        compare.compare([a, empty])
    with pytest.raises(RunError, match="two or more"):
        compare.compare([a])

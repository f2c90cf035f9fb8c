"""RoboLab results become runs that are scored and compared by the same statistics."""

import json

import pytest

from wamserve.action_codec.errors import RunError
from wamserve.sim_eval import compare, score, statistics
from wamserve.sim_eval.robolab_import import import_robolab


def results(path, outcomes, policy="cosmos3", **changes):
    """One line per episode in the form that RoboLab 0.2 appends."""
    with open(path, "w") as file:
        for task, rows in outcomes.items():
            for episode, success in enumerate(rows):
                row = {
                    "env_name": task, "task_name": task, "run_name": "r", "run": episode, "episode": episode,
                    "env_id": 0, "policy": policy, "instruction": f"do {task}", "instruction_type": "default",
                    "attributes": ["color"], "success": success, "episode_step": 120 + episode,
                    "duration": 8.0, "dt": 1 / 15, "metrics": {}, "timing": {"wall_total_s": 30.5},
                    "score": 1.0 if success else 0.25, **changes,
                }  # fmt: skip
                file.write(json.dumps(row) + "\n")
    return path


TASKS = {f"Task{i}": [i % 2 == 0, True, False] for i in range(6)}


def test_every_episode_arrives_and_is_scored_with_robolabs_own_interval(tmp_path):
    run = import_robolab(results(tmp_path / "r.jsonl", TASKS), tmp_path / "run", replan_horizon=32)
    got = score.score_run(run)
    assert run.finished and run.info.source == "RoboLab"
    assert (got.successes, got.episodes) == (9, 18)
    assert got.success_beta == statistics.beta_interval(9, 18)
    assert got.suite is not None and got.coverage.final_mean == pytest.approx((9 * 1.0 + 9 * 0.25) / 18)
    card = run.info.protocol
    assert card.tasks[0].rate_hz == 15.0 and card.loop.replan_horizon == 32
    assert card.seed_rule == "unrecorded" and run.episodes()[0].instruction == "do Task0"


def test_score_and_reason_may_be_missing(tmp_path):
    path = results(tmp_path / "r.jsonl", {"A": [True, False]}, score=None)
    assert score.score_run(import_robolab(path, tmp_path / "run")).coverage is None


def test_older_json_array_is_read_too(tmp_path):
    lines = results(tmp_path / "r.jsonl", {"A": [True, False]}).read_text().splitlines()
    (tmp_path / "r.json").write_text("[" + ",".join(lines) + "]")
    assert len(import_robolab(tmp_path / "r.json", tmp_path / "run").episodes()) == 2


def test_unrecorded_starts_are_never_paired(tmp_path):
    better = {task: [True, True, True] for task in TASKS}
    a = import_robolab(results(tmp_path / "a.jsonl", TASKS), tmp_path / "a")
    b = import_robolab(results(tmp_path / "b.jsonl", better, policy="pi05"), tmp_path / "b")
    pair = compare.compare([a, b]).pairs[0]
    assert not pair.paired and pair.p == statistics.fisher_exact(9, 18, 18, 18)
    assert pair.over_tasks.estimate == pytest.approx(0.5)


def test_another_horizon_is_another_protocol(tmp_path):
    path = results(tmp_path / "a.jsonl", TASKS)
    runs = [import_robolab(path, tmp_path / str(h), replan_horizon=h) for h in (16, 32)]
    with pytest.raises(RunError, match=r"loop\.replan_horizon"):
        compare.compare(runs)


def test_broken_results_are_refused_by_line(tmp_path):
    path = results(tmp_path / "r.jsonl", {"A": [True]})
    path.write_text(path.read_text() + '{"env_name": "A", "epi')
    with pytest.raises(RunError, match="line 2 is not JSON"):
        import_robolab(path, tmp_path / "run")
    results(path, {"A": [True, None]})
    with pytest.raises(RunError, match="entry 2: no success"):
        import_robolab(path, tmp_path / "run")
    path.write_text("")
    with pytest.raises(RunError, match="no episode"):
        import_robolab(path, tmp_path / "run")
    results(path, {"A": [True]})
    path.write_text(path.read_text() * 2)
    with pytest.raises(RunError, match="twice"):
        import_robolab(path, tmp_path / "run")

"""One command, many runs: the curve over checkpoints and the success-latency surface."""

import json

import pytest

import wam
from wamserve.action_codec.errors import TaskError
from wamserve.sim_eval.curve import folder_names
from wamserve.sim_eval.store import RunStore

pytest.importorskip("robosuite")

# Some 30 steps are what Lift takes its oracle.
SMALL = ("robosuite/Lift", "--episodes", "2", "--workers", "0", "--max-steps", "45", "--render", "fast")


def iter_000500():
    from wamserve.embodiments.contract import load
    from wamserve.sim_eval.policies import NoopPolicy

    return NoopPolicy(load("panda_joint"))


def iter_002000():
    from wamserve.sim_eval.oracles.policy import panda_joint_oracle

    return panda_joint_oracle()


@pytest.fixture
def factories(monkeypatch):
    """Two policies at a path each, named as a trainer names its snapshots."""
    import sys
    import types

    module = types.ModuleType("trained")
    module.iter_000500, module.iter_002000 = iter_000500, iter_002000
    monkeypatch.setitem(sys.modules, "trained", module)
    return ["trained:iter_000500", "trained:iter_002000"]


def test_a_list_of_checkpoints_makes_the_curve_over_iterations(tmp_path, capsys, factories):
    run = tmp_path / "curve"
    words = ["eval", *SMALL, "--run", str(run), "--policy", *factories]
    assert wam.main(words) == 0
    said = capsys.readouterr().out
    assert "0/2 = 0.0 %" in said
    assert "2/2 = 100.0 %" in said
    index = (run / "index.html").read_text()
    assert "trained:iter_*" in index
    for iteration in ("500", "2000"):
        assert f">{iteration}<" in index
    for factory in factories:
        assert (run / factory.replace(":", "-").replace("_", "-") / "report.html").is_file()
    with RunStore.open(run / "trained-iter-002000") as store:
        assert store.finished
        before = [row.finished_at for row in store.episodes()]
    assert wam.main(words) == 0  # told again, not run again
    with RunStore.open(run / "trained-iter-002000") as store:
        assert [row.finished_at for row in store.episodes()] == before


def test_two_policies_never_share_a_folder():
    assert folder_names(["a/iter_1", "a/iter_2"]) == ["a-iter-1", "a-iter-2"]
    with pytest.raises(TaskError, match="folder of its own"):
        folder_names(["a/b", "a_b"])


def test_the_surface_has_a_run_for_every_cell_and_falls_with_latency(tmp_path, capsys):
    run = tmp_path / "surface"
    words = ["eval", *SMALL, "--policy", "oracle", "--run", str(run), "--sweep"]
    assert wam.main([*words, "--sweep-horizons", "4", "8", "--sweep-latencies", "0", "1600"]) == 0
    table = capsys.readouterr().out
    surface = json.loads((run / "surface.json").read_text())
    cells = {(c["horizon"], c["latency_ms"]): c for c in surface["cells"]}
    assert set(cells) == {(4, 0), (4, 1600), (8, 0), (8, 1600)}
    for cell in cells.values():
        with RunStore.open(run / cell["run"]) as store:
            assert store.finished
            assert store.info.protocol.loop.replan_horizon == cell["horizon"]
            assert store.info.protocol.loop.latency == f"{cell['latency_ms']:g}"
            assert sum(row.success for row in store.episodes()) == cell["successes"]
    assert cells[4, 0]["successes"] == cells[8, 0]["successes"] == 2
    assert cells[4, 1600]["successes"] + cells[8, 1600]["successes"] < 4
    assert "100 %" in table
    assert "1600" in table


def test_a_surface_of_several_policies_is_refused(tmp_path, capsys):
    words = ["eval", *SMALL, "--sweep", "--run", str(tmp_path / "r"), "--policy", "oracle", "noop"]
    assert wam.main(words) == 1
    assert "one policy" in capsys.readouterr().err

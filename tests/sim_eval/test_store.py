"""A run directory loses nothing, repeats nothing and is never overwritten."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wamserve.action_codec.errors import RunError
from wamserve.sim_eval import store
from wamserve.sim_eval.protocol import LoopProtocol, PolicyIdentity, ProtocolCard
from wamserve.sim_eval.store import RunStore
from wamserve.sim_eval.task import ChunkRow, Episode, TaskSpec, WorkItem

SPEC = TaskSpec(
    name="toy/Push",
    instruction="push",
    contract="pusht",
    rate_hz=10,
    max_steps=20,
    settle_steps=0,
    views=(("top", 8, 8),),
    image_orientation="upright",
    states=(("agent_pos", 2),),
    action_width=2,
    init_states="seeded",
    init_count=None,
    simulator="toy 1",
)
CARD = ProtocolCard(
    suite="toy",
    tasks=(SPEC,),
    init_states=(0, 1, 2),
    repeats=1,
    seed=0,
    seed_rule="r",
    contract="pusht",
    contract_model_sha256="m",
    contract_wire_sha256="w",
    policy=PolicyIdentity("oracle", "oracle", "abc", {"steps": 4}),
    loop=LoopProtocol(8, "switch", "0"),
    versions={"numpy": "2"},
)


def episode(init, success=True):
    return Episode(
        item=WorkItem("toy/Push", init, 0, 7, 8),
        instruction="push",
        success=success,
        steps=3,
        final_progress=0.5,
        max_progress=0.75,
        wall_s=1.0,
        sim_s=0.5,
        render_s=0.2,
        policy_s=0.1,
        chunks=(ChunkRow(0, 2, 11, 180.0, 12.0, 10.0, 1.0, 8, 2, 1),),
        recording={"actions": np.arange(6.0).reshape(3, 2), "view/top": np.zeros((1, 8, 8, 3), np.uint8)},
    )


def test_an_episode_comes_back_as_it_was_stored(tmp_path):
    with RunStore.create(tmp_path / "run", CARD, {"a": 1}, 3) as run:
        run.add(episode(1))
    with RunStore.open(tmp_path / "run") as run:
        (row,) = run.episodes()
        assert (row.task, row.init, row.success, row.max_progress) == ("toy/Push", 1, True, 0.75)
        assert run.chunks(row.id) == list(episode(1).chunks)
        arrays = run.recording(row)
        np.testing.assert_array_equal(arrays["actions"], [[0, 1], [2, 3], [4, 5]])
        assert arrays["view/top"].dtype == np.uint8
        assert run.info.protocol == CARD


def test_an_episode_is_stored_once(tmp_path):
    with RunStore.create(tmp_path / "run", CARD, {}, 3) as run:
        run.add(episode(1))
        with pytest.raises(Exception, match="UNIQUE"):
            run.add(episode(1, success=False))
        assert [row.success for row in run.episodes()] == [True]
        assert len(run.chunks(1)) == 1


@pytest.mark.parametrize("where", ["COMMIT", "INSERT"])
def test_ctrl_c_leaves_an_episode_whole_or_absent(tmp_path, where):
    """Python raises KeyboardInterrupt after the statement it fell into, so also after a commit."""

    class Interrupted:
        def __init__(self, db):
            self._db = db

        def __getattr__(self, name):
            return getattr(self._db, name)

        def execute(self, statement, *values):
            result = self._db.execute(statement, *values)
            if statement.startswith(where):
                raise KeyboardInterrupt
            return result

    with RunStore.create(tmp_path / "run", CARD, {}, 3) as run:
        run._db = Interrupted(run._db)
        with pytest.raises(KeyboardInterrupt):
            run.add(episode(1))
    with RunStore.open(tmp_path / "run") as run:
        assert len(run.done()) == (where == "COMMIT")
        assert len(run.chunks(1)) == (where == "COMMIT")


def test_the_same_protocol_resumes_and_another_is_refused_by_its_fields(tmp_path):
    RunStore.create(tmp_path / "run", CARD, {}, 3).add(episode(0))
    with RunStore.create(tmp_path / "run", CARD, {}, 3) as run:
        assert run.done() == {("toy/Push", 0, 0)}
    other = replace(CARD, loop=LoopProtocol(4, "switch", "0"))
    with pytest.raises(RunError, match=r"loop\.replan_horizon: 8 there, 4 asked"):
        RunStore.create(tmp_path / "run", other, {}, 3)
    policy = replace(CARD, policy=replace(CARD.policy, weights_sha256="def"))
    with pytest.raises(RunError, match=r"policy\.weights_sha256"):
        RunStore.create(tmp_path / "run", policy, {}, 3)


def test_a_run_is_finished_only_when_whole_and_then_stays_as_it_is(tmp_path):
    with RunStore.create(tmp_path / "run", CARD, {}, 2) as run:
        with pytest.raises(RunError, match="no finished episode"):
            run.finish()
        run.add(episode(0))
        with pytest.raises(RunError, match="unfinished"):
            run.finish()
        run.add(episode(1))
        run.finish()
    with RunStore.create(tmp_path / "run", CARD, {}, 2) as run:
        assert run.finished
        with pytest.raises(RunError, match="never written again"):
            run.add(episode(2))


@pytest.mark.parametrize("death", range(5))
def test_a_process_may_die_at_any_step_of_making_a_run(tmp_path, monkeypatch, death):
    """The folder, run.json's temporary file, run.json, episodes/ and the tables come one after another."""

    class Died(BaseException): ...

    steps = []

    def mortal(call):
        def step(*args, **options):
            steps.append(call.__name__)
            if len(steps) == death + 1:
                raise Died
            return call(*args, **options)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", mortal(Path.mkdir))
        patch.setattr(store.os, "fsync", mortal(store.os.fsync))
        patch.setattr(store.os, "replace", mortal(store.os.replace))
        patch.setattr(store.sqlite3, "connect", mortal(store.sqlite3.connect))
        with pytest.raises(Died):
            RunStore.create(tmp_path / "run", CARD, {}, 1)
    assert steps == ["mkdir", "fsync", "replace", "mkdir", "connect"][: death + 1]
    with RunStore.create(tmp_path / "run", CARD, {}, 1) as run:
        run.add(episode(0))
        run.finish()


def test_a_strange_folder_is_not_written_into(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="not empty"):
        RunStore.create(tmp_path, CARD, {}, 1)
    with pytest.raises(RunError, match="not a run directory"):
        RunStore.open(tmp_path)


def test_cards_differ_by_field_and_policies_may_differ():
    other = replace(
        CARD,
        tasks=(replace(SPEC, max_steps=30),),
        policy=PolicyIdentity("noop"),
        versions={"numpy": "3"},
    )
    assert CARD.differences(other) == {"tasks.toy/Push.max_steps": (20, 30), "versions.numpy": ("2", "3")}
    assert CARD.differences(other, across=("versions",)) == {"tasks.toy/Push.max_steps": (20, 30)}
    assert CARD.comparable_sha256 != other.comparable_sha256
    assert replace(CARD, policy=PolicyIdentity("noop")).comparable_sha256 == CARD.comparable_sha256
    assert ProtocolCard.from_json(other.to_json()) == other

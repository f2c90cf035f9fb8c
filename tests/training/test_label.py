"""Labels: an oracle's own chunks for what is seen, also where somebody else's mistakes have led."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="needs the extra pusht")

from wamserve.action_codec.errors import WamError
from wamserve.clients.policy import ActionChunk, Observation, Prediction, Request
from wamserve.embodiments.adapters import state_row
from wamserve.embodiments.contract import load
from wamserve.embodiments.units import chunk_normalizer
from wamserve.policy_server.world_model.checkpoint import open_checkpoint
from wamserve.sim_eval import catalog
from wamserve.sim_eval.oracles.policy import PRIVILEGED, oracle_for
from wamserve.training.columns import columns_from_rows
from wamserve.training.label import Scene, Visits, label, moments
from wamserve.training.prepared import open_prepared

CONTRACT = load("pusht")
TASK = "pusht/PushT"


@pytest.fixture
def task():
    scene = catalog.make(TASK, CONTRACT, "full")
    yield scene
    scene.close()


class Corner:
    """Goes to one corner whatever it sees."""

    def infer(self, request: Request) -> Prediction:
        rows = np.full((CONTRACT.wire.chunk, 2), 500.0)
        return Prediction(ActionChunk(rows, 0.0, 1.0 / CONTRACT.wire.rate_hz))


def test_a_moments_plan_is_what_the_oracle_answers_there(task):
    oracle = oracle_for(TASK, CONTRACT)
    found = list(moments(task, oracle, CONTRACT, 3, Visits(seed=1, moments=2), None))
    task.reset(3, _seed(1, 3))
    known = {PRIVILEGED + name: value for name, value in task.privileged().items()}
    seen = Observation({}, {**task.state(), **known}, found[0].instruction)
    np.testing.assert_array_equal(found[0].plan, oracle.infer(Request(seen)).chunk.actions)
    assert np.abs(found[1].frame.pixels.astype(int) - found[0].frame.pixels).max() > 0


def test_a_leaders_mistakes_are_what_the_oracle_is_asked_about(task):
    visits = Visits(seed=1, moments=3)
    led = list(moments(task, oracle_for(TASK, CONTRACT), CONTRACT, 0, visits, Corner()))
    (name,) = led[0].states
    assert np.linalg.norm(led[2].states[name] - 500.0) < 40.0 < np.linalg.norm(led[0].states[name] - 500.0)


def test_labels_are_the_same_for_any_number_of_workers_and_open_as_first_frames(start, tmp_path):
    scene = Scene(TASK, "pusht", "full", start / "vae", None)
    for workers in (0, 1):
        label([scene], 20, tmp_path / f"{workers}", Visits(1, moments=1), workers, lambda line: None)
    first, second = (np.load(tmp_path / f"{workers}" / "windows.npz") for workers in (0, 1))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert (tmp_path / "0" / "latents.f16").read_bytes() == (tmp_path / "1" / "latents.f16").read_bytes()
    opened = open_prepared(tmp_path / "0", CONTRACT, open_checkpoint(start))
    assert opened.still
    assert opened.plan_arguments["frames"] == 1


def test_a_label_begins_with_the_measured_state(task):
    (moment,) = moments(task, oracle_for(TASK, CONTRACT), CONTRACT, 0, Visits(1, moments=1), None)
    states = {name: np.repeat(value[None], 2, axis=0) for name, value in moment.states.items()}
    columns = columns_from_rows(CONTRACT, moment.plan[:2], states)
    assert chunk_normalizer(CONTRACT.model).state is not None
    np.testing.assert_allclose(state_row(CONTRACT, columns, 0), *moment.states.values(), rtol=1e-6)


def test_a_folder_that_holds_a_set_is_left_as_it_is(start, prepared):
    before = (prepared / "latents.f16").read_bytes()
    with pytest.raises(WamError, match="holds prepared data already; seen: pusht"):
        label([Scene(TASK, "pusht", "full", start / "vae", None)], 20, prepared, Visits(1))
    assert (prepared / "latents.f16").read_bytes() == before


@pytest.mark.parametrize("wrong", [{"moments": 0}, {"every": 0}, {"askew": -1.0}])
def test_nonsense_visits_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(WamError, match=f"{name}.*try: --{name}"):
        Visits(1, **wrong)


@pytest.mark.parametrize(("every", "workers", "option"), [(99, 0, "every"), (8, -1, "workers")])
def test_more_steps_than_a_chunk_and_fewer_workers_than_none_are_refused(
    start, tmp_path, every, workers, option
):
    scene = Scene(TASK, "pusht", "full", start / "vae", None)
    with pytest.raises(WamError, match=f"try: --{option}"):
        label([scene], 20, tmp_path / "x", Visits(1, every=every), workers)
    assert not (tmp_path / "x").exists()


def test_a_task_without_an_oracle_is_refused_before_anything_is_written(start, tmp_path):
    with pytest.raises(WamError, match="no oracle"):
        label(
            [Scene("robosuite/Door", "panda_joint", "fast", start / "vae", None)],
            20,
            tmp_path / "x",
            Visits(1),
        )
    assert not (tmp_path / "x").exists()


def _seed(seed: int, scene: int) -> int:
    from wamserve.sim_eval.seeds import derive

    return derive(seed, TASK, scene)

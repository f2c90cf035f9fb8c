"""Single-mode against joint training: equal samples, honest intervals, and a command that goes on."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tomllib
from scipy import stats

import wam
from wamserve.action_codec.errors import RunError, WamError
from wamserve.training import modes, modes_cell, modes_table
from wamserve.training.config import Data, Trainable, TrainConfig, build
from wamserve.training.loop import samples_by_mode, train
from wamserve.training.modes_recipe import QUICK, Cell, ModesRecipe, Place, cells_of, train_config
from wamserve.training.objective import Objective
from wamserve.training.stages import Stages

TINY = """
demonstrations = 2
held_out = 2
starts = 2
hop = 12
hidden = 64
layers = 2
intermediate = 128
steps = 2
batch = 2
seeds = [3, 5]
clips = 2
samples = 1
dynamics_steps = 1
replan = 16
max_steps = 4
decoder_steps = 2
[vae]
base_dim = 4
steps = 2
batch = 1
clip_frames = [1, 5]
full = 0.0
"""


def test_equal_chances_give_each_mode_a_third_of_the_joint_steps():
    recipe, place = ModesRecipe(), Place(Path("nowhere"))
    alone = samples_by_mode(train_config(recipe, place, Cell(0, "fd")))
    together = samples_by_mode(train_config(recipe, place, Cell(0, "joint")))
    assert alone == {"fd": recipe.steps * recipe.batch}
    assert sum(together.values()) == 3 * alone["fd"]
    spread = recipe.batch * np.sqrt(recipe.steps_of("joint") * (1 / 3) * (2 / 3))
    assert all(abs(count - alone["fd"]) < 4 * spread for count in together.values())


def test_counted_samples_are_those_that_a_training_draws(start, prepared, tmp_path, monkeypatch):
    drawn: Counter[str] = Counter()
    plan = Objective.draw_plan

    def counting(objective, rng, mode, **embodiment):
        drawn[mode] += 1
        return plan(objective, rng, mode, **embodiment)

    monkeypatch.setattr(Objective, "draw_plan", counting)
    monkeypatch.setattr("wamserve.training.loop.Trainer._validate", lambda trainer, which: _no_losses())
    config = TrainConfig(
        start=str(start), out=str(tmp_path), steps=3, batch=5, data=(Data(str(prepared)),), precision="fp32",
        objective=Objective(modes={"fd": 1.0, "id": 1.0, "policy": 1.0}), trainable=Trainable(),
    )  # fmt: skip
    train(config, lambda line: None)
    assert dict(drawn) == samples_by_mode(config)


def _fails_at_once(recipe, out, cell):
    if cell == cells_of(recipe)[0]:
        raise ValueError("as a full disk does")
    time.sleep(0.5)
    (Path(out) / f"done-{cell.seed}-{cell.kind}").touch()


def test_when_a_checkpoint_fails_no_other_is_begun_behind_the_commands_back(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # workers import this file to find the function
    monkeypatch.setattr(modes, "_make_cell_aloud", _fails_at_once)
    with pytest.raises(ValueError, match="full disk"):
        modes._make_cells(ModesRecipe(), Place(tmp_path), 2, lambda line: None)
    done = len(list(tmp_path.iterdir()))
    time.sleep(1.5)
    assert len(list(tmp_path.iterdir())) == done < len(cells_of(ModesRecipe())) - 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"seeds": (1, 1, 2)},
        {"seeds": (-1, 2)},
        {"hop": 0},
        {"layers": 0},
        {"learning_rate": -1.0},
        {"replan": 99},
    ],
)
def test_nonsense_sizes_are_refused_before_anything_is_made(wrong):
    with pytest.raises(WamError):
        ModesRecipe(**wrong)


def test_equal_gaps_of_all_seeds_are_no_certainty():
    row = modes_table.compare_row(modes_table.METRICS[0], [0.0, 0.025, 0.05], [0.025, 0.05, 0.075])
    assert row.verdict == "not distinguishable"


def _no_losses():
    import torch

    from wamserve.training.objective import Losses

    return Losses(*(torch.zeros(()) for _ in range(3)))


def test_within_a_seed_only_modes_and_steps_of_the_trainings_differ():
    recipe, place = ModesRecipe(), Place(Path("nowhere"))
    plain = [dataclasses.asdict(train_config(recipe, place, Cell(1, k))) for k in ("fd", "policy", "joint")]
    for config in plain:
        assert config["objective"].pop("modes")
        assert all(data.pop("modes") for data in config["data"])
        config["data"] = [data for i, data in enumerate(config["data"]) if data not in config["data"][:i]]
        for free in ("steps", "out", "card"):
            config.pop(free)
    assert plain[0] == plain[1] == plain[2]


def test_demonstrations_held_out_episodes_and_closed_loop_share_no_start():
    recipe = ModesRecipe()
    assert recipe.demonstrations <= recipe.first_held_out
    assert recipe.first_held_out + recipe.held_out <= recipe.first_start


def test_intervals_are_those_of_scipy():
    metric = modes_table.METRICS[0]
    single, joint = [24.1, 25.3, 24.4], [25.0, 26.9, 25.2]
    row = modes_table.compare_row(metric, single, joint)
    for interval, values in ((row.single, single), (row.joint, joint)):
        low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
        assert (interval.estimate, interval.low, interval.high) == pytest.approx((np.mean(values), low, high))
    paired = stats.ttest_rel(joint, single).confidence_interval(0.95)
    assert (row.difference.low, row.difference.high) == pytest.approx((paired.low, paired.high))
    # by hand: differences 0.9, 1.6, 0.8, standard deviation 0.4359, t(2) = 4.3027
    assert row.difference.estimate == pytest.approx(1.1)
    assert row.difference.high == pytest.approx(1.1 + 4.3027 * 0.43589 / np.sqrt(3), abs=1e-4)


@pytest.mark.parametrize(
    ("title", "joint", "verdict"),
    [("FD: PSNR", 30.0, "joint better"), ("ID: action", 30.0, "single better"), ("FD: PSNR", 20.4, "not ")],
)
def test_a_verdict_needs_an_interval_without_zero_and_knows_which_way_is_better(title, joint, verdict):
    metric = next(metric for metric in modes_table.METRICS if metric.title.startswith(title))
    row = modes_table.compare_row(metric, [20.0, 20.5, 20.2], [joint, joint + 0.6, joint - 0.6])
    assert row.verdict.startswith(verdict)


def test_a_row_needs_both_checkpoints_of_every_seed():
    with pytest.raises(RunError, match="every seed has both"):
        modes_table.compare_row(modes_table.METRICS[0], [1.0, 2.0], [1.0, 2.0, 3.0])


def test_one_seed_is_refused():
    with pytest.raises(WamError, match="two or more different seeds"):
        ModesRecipe(seeds=(4, 4))


def test_a_finished_stage_is_not_done_again_and_an_interrupted_one_keeps_its_time(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("wamserve.training.stages.time.monotonic", lambda: clock[0])
    stages, done = Stages(tmp_path, lambda line: None), []

    def work(tell):
        clock[0] += 60.0
        tell("half")
        clock[0] += 60.0
        if not done:
            done.append("killed")
            raise KeyboardInterrupt
        done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        stages.run("a/b", work)
    assert stages.minutes("a/b") == 1.0 and not stages.progress("a/b").finished
    stages.run("a/b", work)
    stages.run("a/b", work)
    assert done == ["killed", "whole"]
    assert stages.minutes("a/b") == 3.0 and stages.progress("a/b").finished


def test_a_folder_in_use_and_a_folder_of_another_recipe_are_refused(tmp_path):
    with modes._alone(QUICK, Place(tmp_path)), pytest.raises(RunError, match="another command"):
        modes.compare_modes(QUICK, tmp_path, 0, print)
    longer = dataclasses.replace(QUICK, steps=11)
    with pytest.raises(RunError, match="another recipe; seen: steps 10; expected: steps 11"):
        modes.compare_modes(longer, tmp_path, 0, print)
    with (tmp_path / "lock").open("w") as lock:  # both gave the folder back
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.timeout(600)
def test_the_command_goes_from_demonstrations_to_the_table_and_goes_on_where_it_was_killed(
    tmp_path, monkeypatch, capsys
):
    for module in ("prepared", "modes_recipe"):
        monkeypatch.setattr(f"wamserve.training.{module}.HOLD_OUT", 2)
    (tmp_path / "tiny.toml").write_text(TINY)
    out = tmp_path / "modes"
    command = ["train", "modes", "--out", str(out), "--recipe", str(tmp_path / "tiny.toml"), "--workers", "0"]
    place, cells = Place(out), cells_of(build(ModesRecipe, tomllib.loads(TINY), "tiny"))
    inverse = modes_cell.score_id

    def killed(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(modes_cell, "score_id", killed)
    assert wam.main(command) == 130
    assert cells[0].kind == "joint" and place.report(cells[0], "fd").exists()
    assert not place.report(cells[0], "id").exists()
    first = place.checkpoint(cells[0]) / "transformer" / "diffusion_pytorch_model.safetensors"
    made = first.stat().st_mtime_ns

    monkeypatch.setattr(modes_cell, "score_id", inverse)
    assert wam.main(command) == 0
    assert first.stat().st_mtime_ns == made
    page = capsys.readouterr().out
    assert "| FD: PSNR, dB | higher | copy of frame 0 " in page and "coverage at its best" in page
    assert (out / "table.md").read_text() in page
    table = json.loads((out / "table.json").read_text())
    for row in table["rows"]:
        pairs = zip(row["single_by_seed"], row["joint_by_seed"], strict=True)
        assert row["difference"]["estimate"] == pytest.approx(np.mean([b - a for a, b in pairs]))
    assert [cost["steps"] for cost in table["costs"]] == [2, 2, 2, 6]
    assert not list(out.rglob("state-*.pt"))

    starts = [
        {row["init"] for row in json.loads((folder / "meta" / "writer.json").read_text())["episodes"]}
        for folder in (place.demonstrations, place.held_out)
    ]
    run = json.loads((place.run(cells[0]) / "run.json").read_text())["protocol"]
    assert starts == [{0, 1}, {2, 3}] and run["init_states"] == [4, 5]

    for module, name in ((modes, "record_demonstrations"), (modes, "prepare"), (modes, "train_vae")):
        monkeypatch.setattr(module, name, killed)
    for name in ("_train", "_score"):
        monkeypatch.setattr(modes_cell, name, killed)
    before = (out / "table.json").read_text()
    assert wam.main(command) == 0
    assert (out / "table.json").read_text() == before

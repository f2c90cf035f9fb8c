"""Scores of whole runs, computed from recordings of known numbers."""

import json
import math

import numpy as np
import pytest

from wamserve.action_codec.errors import RunError
from wamserve.embodiments.contract import load
from wamserve.sim_eval import frames, score, score_text, statistics
from wamserve.sim_eval.metrics.video import Rectangle
from wamserve.sim_eval.store import RunStore

# One lagging square: of 128 x 128 pixels, 4 columns x 32 rows are background instead of square on each side.
GAP = np.array([230, 90, 40], float) - 60
LAG_MSE = 2 * 4 * 32 * (GAP**2).sum() / (128 * 128 * 3)
LAG_DB = 10 * math.log10(255**2 / LAG_MSE)


def test_headline_is_wilson_and_the_suite_is_a_mean_over_tasks(toys, tmp_path):
    tasks = {"toy/A": [1, 1, 1, 1], "toy/B": [0, 1], "toy/C": [1], "toy/D": [0], "toy/E": [0], "toy/F": [1]}
    run = toys.toy_run(tmp_path / "r", tasks, imagine=False)
    result = score.score_run(run)
    assert (result.successes, result.episodes, result.planned) == (7, 10, 10)
    assert result.success == statistics.wilson(7, 10)
    assert result.suite.estimate == pytest.approx((1.0 + 0.5 + 1.0 + 1.0) / 6)
    assert [task.successes for task in result.tasks] == [4, 1, 1, 0, 0, 1]
    assert result.coverage.starts == 10 and result.coverage.max_mean > result.coverage.final_mean - 1e-12
    assert result.latency.queries == 30 and result.latency.charged_ms == (80.0, 80.0)
    assert result.latency.forwards_mean == 8 and result.consistency is None


def test_consistency_from_rendered_frames_is_the_hand_number(toys, tmp_path):
    run = toys.toy_run(tmp_path / "r", {"toy/Push": [1, 0, 1]})
    result = score.score_run(run, load("pusht"), lambda spec: toys.ToyTask(spec))
    # 3 episodes x 3 chunks x 4 executed rows; the imagined square lags one step behind at every one of them
    assert result.consistency_frames == "rendered" and result.consistency.frames == 36
    assert result.consistency.psnr_db == pytest.approx(LAG_DB, abs=1e-9)
    assert result.consistency.psnr_db_by_step == pytest.approx(dict.fromkeys((1, 2, 3, 4), LAG_DB), abs=1e-9)
    assert result.consistency.psnr_db_by_view == {"top": pytest.approx(LAG_DB, abs=1e-9)}
    # the frozen picture lags by 1, 2, 3 and 4 steps
    frozen = 10 * math.log10(255**2 / (LAG_MSE * (1 + 2 + 3 + 4) / 4))
    assert result.consistency_frozen.psnr_db == pytest.approx(frozen, abs=1e-9)


def test_without_a_simulator_one_frame_per_query_is_compared(toys, tmp_path):
    run = toys.toy_run(tmp_path / "r", {"toy/Push": [1, 0, 1]})
    result = score.score_run(run, load("pusht"))
    assert result.consistency_frames == "seen"
    assert result.consistency.frames_by_step == {4: 6}  # the last chunk of an episode has no next query
    assert result.consistency.psnr_db == pytest.approx(LAG_DB, abs=1e-9)


def test_rows_that_were_not_executed_as_imagined_are_not_scored(toys, tmp_path):
    run = toys.toy_run(tmp_path / "r", {"toy/Push": [1]})
    recording = run.recording(run.episodes()[0])
    recording["chunk_actions"][1] += 1.0  # what was executed is not what this chunk said
    recording["chunk_actions"][2, 2:] += 1.0
    chunks = frames.imagined_chunks(recording, load("pusht"), toys.ToyTask(toys.toy_spec()))
    assert [chunk.steps for chunk in chunks] == [(1, 2, 3, 4), (), (1, 2)]


def test_success_is_judged_again_from_the_last_state(toys, tmp_path):
    run = toys.toy_run(tmp_path / "r", {"toy/Push": [1, 1]}, imagine=False)
    made = []

    def open_task(spec, shift=0.0):
        made.append(toys.ToyTask(spec, shift))
        return made[-1]

    assert score.score_run(run, open_task=open_task, verify=True).successes == 2
    assert len(made) == 1 and made[0].closed
    with pytest.raises(RunError, match="success judged again differs"):
        score.score_run(run, open_task=lambda spec: open_task(spec, shift=-20.0), verify=True)


def test_a_recording_that_contradicts_its_row_is_an_error(toys, tmp_path):
    run = toys.toy_run(tmp_path / "r", {"toy/Push": [1]}, imagine=False)
    row = run.episodes()[0]
    recording = run.recording(row)
    recording["progress"] = recording["progress"] * 0.5
    np.savez(tmp_path / "r" / row.recording, **recording)
    with pytest.raises(RunError, match="differ in final partial credit"):
        score.score_run(run)


def test_zero_finished_episodes_is_an_error(toys, tmp_path):
    run = RunStore.create(tmp_path / "r", toys.toy_card(inits=4), {}, 4)
    with pytest.raises(RunError, match="no finished episode"):
        score.score_run(run)


def test_scores_are_strict_json(toys, tmp_path):
    run = toys.toy_run(tmp_path / "r", {"toy/Push": [1, 0]}, imagine=False)
    score_text.save_scores(tmp_path / "scores.json", score.score_run(run))
    data = json.loads((tmp_path / "scores.json").read_text())
    assert data["success"]["estimate"] == 0.5 and data["protocol_sha256"] == run.info.protocol_sha256
    assert score_text.plain({"a": math.inf, "b": math.nan, 3: (np.float32(1), np.int64(2))}) == {
        "a": "inf", "b": None, "3": [1.0, 2],
    }  # fmt: skip


def test_predicted_sizes_meet_the_recording_by_the_same_operation():
    canvas = load("droid_lerobot").model.canvas  # 540 x 640 in a frame of 544 x 736
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (2, 360, 640, 3), dtype=np.uint8) for name in canvas.views}
    padded = frames.canvas_like(canvas, images, (544, 736))
    content = frames.canvas_like(canvas, images, (540, 640))
    assert padded.shape == (2, 544, 736, 3) and np.array_equal(padded[:, :540, :640], content)
    decoded = frames.canvas_like(canvas, images, (528, 640))  # what 33 rows of latents decode to
    assert np.array_equal(decoded, content[:, :528])
    for size, rows in (((544, 736), 180), ((540, 640), 180), ((528, 640), 168)):
        views = frames.view_rectangles(canvas, size)
        assert views["wrist"] == Rectangle(0, 0, 360, 640)
        assert views["exterior_2"] == Rectangle(360, 320, rows, 320)
    assert np.array_equal(views["wrist"].crop(content), images["wrist"])
    with pytest.raises(RunError, match="size that its contract's canvas never has"):
        frames.canvas_like(canvas, images, (100, 100))

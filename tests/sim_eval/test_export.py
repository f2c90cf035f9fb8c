"""An exported run is a LeRobot data set under the contract's own names, and is scored like any other."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from wamserve.action_codec.errors import RunError
from wamserve.embodiments.contract import load
from wamserve.sim_eval import lerobot_export
from wamserve.sim_eval.recorded import read_episode


@pytest.fixture
def exported(toys, tmp_path):
    run = toys.toy_run(tmp_path / "run", {"toy/A": [1, 0], "toy/B": [1]}, imagine=False, horizon=6)
    folder = tmp_path / "set"
    count = lerobot_export.export_run(run, folder, load("pusht"), lambda spec: toys.ToyTask(spec))
    assert count == 3
    return run, folder


def test_rows_and_frames_are_those_of_the_recording(toys, exported):
    run, folder = exported
    row, recording = next(iter(run.recordings()))
    back = read_episode(folder, load("pusht"), 0)
    np.testing.assert_allclose(back.raw, recording["actions"], atol=1e-6)
    np.testing.assert_allclose(back.columns["observation.state"], recording["sim_states"][:-1], atol=1e-5)
    assert back.instruction == row.instruction and len(back.frames) == row.steps
    frame = toys.toy_frame(recording["sim_states"][5])
    assert np.abs(back.frames[5].astype(int) - frame).mean() < 2


def test_outcome_and_chunk_of_every_row_are_kept(exported):
    _, folder = exported
    table = pq.read_table(folder / "data/chunk-000/file-001.parquet").to_pydict()
    assert table["next.done"] == [False] * 11 + [True] and not any(table["next.success"])
    assert table["wam.chunk_index"] == [0] * 6 + [1] * 6
    about = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(e["wam_task"], e["wam_init"], e["success"]) for e in about] == [
        ("toy/A", 0, True), ("toy/A", 1, False), ("toy/B", 0, True),
    ]  # fmt: skip
    assert json.loads((folder / "meta/info.json").read_text())["fps"] == 10


def test_gripper_columns_turn_to_the_polarity_of_the_contracts_data_sets(toys, exported):
    run, _ = exported
    row = run.episodes()[0]
    robot = load("panda_joint")  # robot and data set agree: 1 closed
    rows = np.tile(np.arange(8.0) / 8, (4, 1))
    recording = {"actions": rows, "action_chunk": np.zeros(4, int)}
    columns = lerobot_export.columns_of(recording, row, robot)
    np.testing.assert_allclose(columns["action.gripper_position"], rows[:, 7])
    np.testing.assert_allclose(columns["action.joint_position"], rows[:, :7])
    libero = load("libero")  # robot: -1 open, +1 closed; data set: 1 open, 0 closed
    recording = {"actions": np.tile([0, 0, 0, 0, 0, 0, -1.0], (4, 1)), "action_chunk": np.zeros(4, int)}
    assert lerobot_export.columns_of(recording, row, libero)["action"][0, 6] == 1.0


def test_a_folder_in_use_is_not_touched(toys, exported):
    run, folder = exported
    with pytest.raises(RunError, match="not empty"):
        lerobot_export.export_run(run, folder, load("pusht"), lambda spec: toys.ToyTask(spec))


def test_lerobot_loads_the_export(exported):
    datasets = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="lerobot is not installed")
    run, folder = exported
    loaded = datasets.LeRobotDataset("local/export", root=folder)
    assert loaded.num_episodes == 3 and loaded.num_frames == 36 and loaded.fps == 10
    first = loaded.hf_dataset[13]
    assert int(first["episode_index"]) == 1 and int(first["frame_index"]) == 1
    assert loaded.meta.tasks.iloc[int(first["task_index"])].name == run.episodes()[1].instruction
    assert loaded.meta.video_keys == ["observation.images.top"]
    assert loaded.meta.get_video_file_path(1, "observation.images.top").name == "file-001.mp4"

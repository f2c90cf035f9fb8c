"""A recorded data set is read back as it was written, also after the writer was killed and reopened."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from wamserve.action_codec.errors import RunError
from wamserve.embodiments.contract import load
from wamserve.sim_eval.lerobot import DatasetWriter
from wamserve.sim_eval.recorded import read_episode


def episode(seed: int, length: int = 24):
    rng = np.random.default_rng(seed)
    target = rng.uniform(0, 512, (length, 2)).astype(np.float32)
    frames = np.full((length, 128, 128, 3), 40 * seed + 20, np.uint8)
    frames[:, :, 64:] += (np.arange(length, dtype=np.uint8) * 3)[:, None, None, None]
    columns = {"action": target, "observation.state": np.roll(target, 1, 0), "disturbed": target[:, 0] > 256}
    return columns, {"observation.images.top": frames}


@pytest.fixture
def written(tmp_path):
    folder = tmp_path / "set"
    for seed in range(3):
        writer = DatasetWriter(folder, 10, "gym-pusht finger")  # reopened each time
        columns, videos = episode(seed)
        assert writer.add(columns, videos, f"task {seed % 2}", success=seed != 1) == seed
    return folder


def test_rows_and_frames_come_back(written):
    for seed in range(3):
        columns, videos = episode(seed)
        back = read_episode(written, load("pusht"), seed)
        np.testing.assert_array_equal(back.columns["action"], columns["action"])
        assert back.instruction == f"task {seed % 2}"
        error = back.frames.astype(int) - videos["observation.images.top"].astype(int)
        assert np.abs(error).mean() < 1.5  # h264 at crf 14


def test_meta_says_what_lies_where(written):
    info = json.loads((written / "meta/info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"]) == ("v3.0", 3, 72)
    rows = pq.read_table(written / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(r["dataset_from_index"], r["dataset_to_index"]) for r in rows] == [(0, 24), (24, 48), (48, 72)]
    assert [r["success"] for r in rows] == [True, False, True]
    stats = json.loads((written / "meta/stats.json").read_text())["action"]
    values = np.concatenate([episode(seed)[0]["action"] for seed in range(3)])
    np.testing.assert_allclose(stats["mean"], values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats["std"], values.std(0), rtol=1e-5)
    assert stats["count"] == [72]


def test_another_shape_or_robot_is_refused(written):
    columns, videos = episode(0)
    with pytest.raises(RunError, match="another data set"):
        DatasetWriter(written, 10, "another robot")
    columns.pop("disturbed")
    with pytest.raises(RunError, match="other columns"):
        DatasetWriter(written, 10, "gym-pusht finger").add(columns, videos, "task 0", success=True)

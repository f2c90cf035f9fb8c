"""A tiny checkpoint and a tiny prepared data set, made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wamserve.embodiments.contract import load
from wamserve.policy_server.world_model.random_weights import write_random_checkpoint
from wamserve.training.prepare import SourceEpisode, prepare


def dots(count: int = 20, length: int = 20):
    """A dot that goes where the action says; every third episode is disturbed at its start."""
    rng = np.random.default_rng(0)
    for number in range(count):
        target = np.cumsum(rng.uniform(-20, 20, (length, 2)), axis=0) + 256
        target = target.clip(0, 511).astype(np.float32)
        canvas = np.zeros((length, 128, 128, 3), np.uint8)
        for row, (x, y) in enumerate(target // 4):
            canvas[row, max(0, int(y) - 6) : int(y) + 6, max(0, int(x) - 6) : int(x) + 6] = 255
        state = np.concatenate([target[:1], target[:-1]])
        yield SourceEpisode(
            columns={"action": target, "observation.state": state},
            canvas=canvas,
            instruction="push the T" if number % 2 else "move the T onto the goal",
            disturbed=np.arange(length) < (3 if number % 3 == 0 else 0),
        )


@pytest.fixture(scope="session")
def episodes():
    return dots


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("start") / "tiny", "tiny-nano")


@pytest.fixture(scope="session")
def prepared(start: Path, tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("prepared") / "pusht"
    prepare(dots(), load("pusht"), start / "vae", folder, hop=5, log=lambda line: None)
    return folder

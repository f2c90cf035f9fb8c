"""A training file that cannot be meant is refused by its key, before any weight is read."""

from __future__ import annotations

import pytest

from wamserve.action_codec.errors import WamError
from wamserve.training.config import TrainConfig, build, load

GOOD = {"start": "s", "out": "o", "steps": 1, "batch": 1, "data": [{"prepared": "p"}]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch": 0}, "batch must be 1 or more"),
        ({"steps": -3}, "steps must be 1 or more"),
        ({"data": []}, "needs data of positive weight"),
        ({"data": [{"prepared": "p", "weight": 0}]}, "needs data of positive weight"),
        ({"objective": {"modes": {"polcy": 1.0}}}, "unknown modes; seen: polcy; expected: policy, fd, id"),
        ({"objective": {"modes": {"fd": 0.0}}}, "positive sum"),
        ({"objective": {"modes": {"fd": float("nan")}}}, "finite weights"),
        ({"objective": {"modes": {"fd": "x"}}}, "objective.modes.fd: wrong type"),
        ({"data": [{"prepared": "p", "modes": "fd"}]}, "wrong type; seen: 'fd'; expected: a table"),
        ({"data": [{"prepared": "p", "modes": {"fdx": 1.0}}]}, "unknown modes; seen: fdx"),
        ({"stepz": 4}, "unknown keys; seen: stepz"),
        ({"batch": "8"}, "wrong type"),
        ({"precision": "fp8"}, "not one of the choices; seen: fp8; expected: fp32, bf16"),
    ],
)
def test_value_that_cannot_be_meant_is_refused(change, said):
    with pytest.raises(WamError, match=said):
        build(TrainConfig, GOOD | change, "train.toml")


def test_missing_key_and_missing_file_are_named(tmp_path):
    with pytest.raises(WamError, match="missing keys"):
        build(TrainConfig, {"start": "s"}, "train.toml")
    with pytest.raises(WamError, match="no training configuration"):
        load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("steps = = 3")
    with pytest.raises(WamError, match="is not TOML"):
        load(tmp_path / "bad.toml")


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "t.toml").write_text(
        'start = "a"\nout = "b"\nsteps = 1\nbatch = 1\n[[data]]\nprepared = "c"\n'
    )
    config = load(tmp_path / "t.toml")
    assert (config.start, config.out) == (str(tmp_path / "a"), str(tmp_path / "b"))
    assert config.data[0].prepared == str(tmp_path / "c")

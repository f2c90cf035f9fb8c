"""What a run leaves: its numbers, its report, and a LeRobot data set that the contract can read."""

import json

import numpy as np
import pytest

from wamserve.clients.franka.lerobot import columns_of, write_lerobot
from wamserve.clients.franka.limits import SafetyLimits
from wamserve.clients.franka.pilot import Tally
from wamserve.clients.franka.record import Recorder
from wamserve.clients.franka.report import report, text, tracking
from wamserve.embodiments import episodes
from wamserve.embodiments.contract import load

HOME = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])


def sine(times, lag=0.0):
    return HOME + 0.2 * np.sin(np.outer(times - lag, np.linspace(1.0, 2.0, 7)))


def recorded(rate_hz, seconds=6.0, lag=0.13):
    times = 50.0 + np.arange(0.0, seconds, 1 / rate_hz)
    return {
        "time": times,
        "robot_time": times,
        "q": sine(times, lag),
        "dq": np.zeros((len(times), 7)),
        "q_command": sine(times, lag - 0.01),
        "command": sine(times, -0.1),
        "wanted": sine(times),
        "gripper_wish": np.where(times < 53.0, 0.0, 1.0),  # one is closed
        "gripper": np.where(times < 53.5, 1.0, 0.0),  # one is open
        "chunk": np.ones(len(times), int),
        "age": np.full(len(times), 0.3),
        "success_rate": np.ones(len(times)),
        "moving": np.ones(len(times), bool),
        "state": np.array(["playing"] * len(times)),
    }


def test_the_lag_that_was_put_in_is_found():
    steps = recorded(15)
    found = tracking(steps["time"], steps["wanted"], steps["q"])
    assert found.lag_s == pytest.approx(0.13)
    assert found.rms_rad < 1e-3 < found.rms_raw_rad


def test_an_arm_that_rests_has_no_lag():
    still = np.tile(HOME, (100, 1))
    assert tracking(np.arange(100) / 15, still, still) is None


def test_the_report_names_what_came_closest_to_a_limit():
    steps = recorded(15)
    steps["q"][40, 5] = 3.7
    tally = Tally(steps=90, accepted=3, stopped_by="operator: stop key ' '")
    tally.refused_chunks["first row"] += 2
    found = report(steps, tally, SafetyLimits(), [80.0, 90.0, 400.0], {"sent": 2})
    assert found["joint_margin_rad"]["joint6"] == pytest.approx(0.0525)
    assert found["rate_hz"] == pytest.approx(15.0)
    lines = text(found)
    assert "joint6 came within 0.052 rad" in lines and "first row x2" in lines and "key ' '" in lines
    json.dumps(found)


@pytest.mark.parametrize("rate_hz", [15, 200])
def test_the_data_set_reads_back_under_the_contracts_names(tmp_path, rate_hz):
    pytest.importorskip("pyarrow")
    contract = load("droid_lerobot")
    steps = recorded(rate_hz)
    write_lerobot(tmp_path / "set", columns_of(steps, contract), 15, "Franka", "put it away")
    read = episodes.read(tmp_path / "set")
    episode = episodes.at_control_rate(read, contract)
    assert read.rate_hz == 15 and abs(len(episode) - 90) <= 1
    at = 50.0 + episode.timestamps
    np.testing.assert_allclose(
        episode.columns["observation.state.joint_positions"], sine(at, 0.13), atol=4e-3
    )
    np.testing.assert_allclose(episode.columns["action.joint_position"], sine(at, -0.1), atol=4e-3)
    # One is closed, in both of DROID's gripper columns.
    assert list(episode.columns["action.gripper_position"][[0, -1]]) == [0.0, 1.0]
    assert list(episode.columns["observation.state.gripper_position"][[0, -1]]) == [0.0, 1.0]
    assert sum(1 for _ in episodes.chunks(episode, contract, 1)) > 50


def test_the_recorder_keeps_every_row_and_writes_it(tmp_path):
    recorder = Recorder(tmp_path / "run")
    for number in range(500):
        recorder.step({"time": float(number), "q": np.full(7, number)})
        if number % 100 == 0:
            recorder.event("clamped", reason="speed", value=np.float64(1.2), limit=1.0)
    recorder.chunk(1, 0.0, np.zeros((32, 8)), "")
    recorder.close({"stopped_by": "x"})
    part = np.load(tmp_path / "run" / "steps-000.npz")
    np.testing.assert_array_equal(part["time"], np.arange(500.0))
    assert part["q"].shape == (500, 7)
    assert np.load(tmp_path / "run" / "chunks-000.npz")["actions_1"].shape == (32, 8)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert len(events) == 5 and events[0]["value"] == 1.2
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == {"stopped_by": "x"}
    with pytest.raises(FileExistsError):
        Recorder(tmp_path / "run")

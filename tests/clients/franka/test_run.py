"""`wam run franka` without an arm: the dry run, what it refuses to start, and who must say yes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wamserve.action_codec.errors import ContractError, WamError
from wamserve.clients.franka import run as runs
from wamserve.clients.franka.arm import POSITION, DryRunArm
from wamserve.clients.franka.backends import limits_for
from wamserve.clients.franka.cameras import CameraFault, camera_named
from wamserve.clients.franka.governor import MotionRefused, SafetyGovernor
from wamserve.clients.franka.operator import NotConfirmed, confirm
from wamserve.embodiments.contract import load

spec = importlib.util.spec_from_file_location("franka_rig", Path(__file__).with_name("rig.py"))
rig = sys.modules.setdefault("franka_rig", importlib.util.module_from_spec(spec))
spec.loader.exec_module(rig)

CHAIN = load("droid_lerobot").wire.kinematics


@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", ["position", "impedance"])
def test_a_dry_run_plays_chunks_and_leaves_a_record(tmp_path, backend):
    pytest.importorskip("ruckig")
    with rig.policy_server(tmp_path) as (uri, _server):
        command = [*rig.WAM, "run", "franka", "--policy", uri, "--instruction", "follow", "--seconds", "5"]
        command += ["--backend", backend, "--record", str(tmp_path / "run"), "--tcp-speed", "0.5"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=rig.ROOT, stdin=subprocess.DEVNULL)
    run = rig.Run(done.returncode, done.stdout + done.stderr, tmp_path / "run")
    assert run.code == 0, run.output
    assert run.output.startswith(f"dry run, {backend} backend, policy ws://")
    assert "recorded in" in run.output.splitlines()[-1]
    assert run.report["chunks_accepted"] >= 4
    steps = run.steps()
    assert (steps["state"] == "playing").mean() > 0.5
    raw = np.load(tmp_path / "run" / "chunks-000.npz")
    assert raw["actions_1"].shape == (32, 8)
    info = json.loads((tmp_path / "run" / "lerobot" / "meta" / "info.json").read_text())
    assert info["fps"] == 15 and 60 <= info["total_frames"] <= 80


@pytest.mark.timeout(120)
def test_a_server_of_another_robot_ends_the_run_and_says_what_differs(tmp_path):
    with rig.policy_server(tmp_path, embodiment="panda_joint") as (uri, _server):
        command = [*rig.WAM, "run", "franka", "--policy", uri, "--instruction", "follow", "--seconds", "20"]
        command += ["--record", str(tmp_path / "run")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=rig.ROOT, stdin=subprocess.DEVNULL)
    run = rig.Run(done.returncode, done.stdout + done.stderr, tmp_path / "run")
    assert run.code == 1 and run.report["seconds"] < 10
    assert run.report["stopped_by"].startswith("network: stop ContractError")


def options(**changes):
    return runs.FrankaOptions(**{"policy": "ws://127.0.0.1:1", "instruction": "x", **changes})


def test_a_run_is_dry_unless_it_says_otherwise():
    chosen = options()
    assert chosen.dry_run
    assert isinstance(runs.arm_of(chosen, limits_for("position")), DryRunArm)


def test_a_run_that_is_not_dry_needs_an_address():
    with pytest.raises(ContractError, match="--robot-ip"):
        runs.arm_of(options(dry_run=False), limits_for("position"))


def test_limits_beyond_the_arm_are_refused_before_anything_is_connected():
    with pytest.raises(ContractError, match="velocity limit does not fit the portable arm"):
        runs.limits_of(options(velocity=3.0))


def test_every_view_of_the_contract_needs_a_camera():
    assert runs.cameras_of(options()) == {"wrist": "grey", "exterior_1": "grey", "exterior_2": "grey"}
    assert runs.cameras_of(options(dry_run=False)) == {}
    with pytest.raises(WamError, match="VIEW=SPEC"):
        runs.cameras_of(options(cameras=("v4l2:0",)))
    with pytest.raises(CameraFault, match="realsense:SERIAL"):
        camera_named("webcam", 640, 360)


@pytest.mark.parametrize("typed", ["", "yes\n", "Move\n", "movee\n"])
def test_only_the_word_itself_confirms(typed):
    with pytest.raises(NotConfirmed):
        confirm("The arm will move.", "move", lambda: typed)


def test_the_word_confirms(capsys):
    confirm("The arm will move.", "move", lambda: " move \n")
    assert "The arm will move." in capsys.readouterr().out


class BrokenArm(DryRunArm):
    """Stands in a reflex until somebody recovers it."""

    def __init__(self):
        super().__init__(POSITION, np.array(runs.HOME))
        self.calls = []

    def needs_recovery(self):
        return "Reflex: cartesian_reflex"

    def recover(self):
        self.calls.append("recover")

    def start(self):
        self.calls.append("start")

    def go_to(self, q, speed):
        self.calls.append("go_to")


def test_an_arm_in_a_reflex_is_never_recovered_without_the_word(monkeypatch, tmp_path):
    arm = BrokenArm()
    asked = []

    def refuse(text, word):
        asked.append(word)
        raise NotConfirmed("no")

    monkeypatch.setattr(runs, "arm_of", lambda options, limits: arm)
    with pytest.raises(NotConfirmed):
        runs.run(options(record=tmp_path / "run"), confirm=refuse)
    assert asked == ["recover"] and arm.calls == []


def test_the_first_motion_needs_its_own_word_after_the_recovery(monkeypatch, tmp_path):
    arm = BrokenArm()
    asked = []

    def recover_only(text, word):
        asked.append((word, text))
        if word == "move":
            raise NotConfirmed("no")

    monkeypatch.setattr(runs, "arm_of", lambda options, limits: arm)
    monkeypatch.setattr(runs, "cameras_of", lambda options: {v: "grey" for v in rig.VIEWS})
    chosen = options(dry_run=False, robot_ip="10.0.0.1", home=True, record=tmp_path / "run")
    with pytest.raises(NotConfirmed):
        runs.run(chosen, confirm=recover_only)
    assert [word for word, _ in asked] == ["recover", "move"] and arm.calls == ["recover"]
    assert "It will go to" in asked[1][1] and "10.0.0.1" in asked[1][1]


def test_a_way_home_through_the_table_is_refused():
    governor = SafetyGovernor(limits_for("position"), CHAIN, 1 / 15)
    low = np.array(runs.HOME)
    low[1] = 1.6
    low[3] = -1.0
    with pytest.raises(MotionRefused, match="below the table"):
        runs.preview(options(home=True, robot_ip="x"), low, governor.tool_at)

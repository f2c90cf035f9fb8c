"""The verbs that show, compare and check contracts."""

from __future__ import annotations

import subprocess
import sys

import pytest

import wam
from wamserve.embodiments.contract import HERE, load, names


def run(capsys, *words):
    code = wam.main(list(words))
    told = capsys.readouterr()
    return code, told.out, told.err


def test_list_has_one_line_per_contract(capsys):
    code, out, _ = run(capsys, "ls", "embodiments")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == names()


@pytest.mark.parametrize("name", names())
def test_a_contract_is_shown_with_what_a_person_asks_for(capsys, name):
    code, out, _ = run(capsys, "ls", "embodiment", name)
    embodiment = load(name)
    assert code == 0
    assert embodiment.model_hash in out and embodiment.wire_hash in out
    for block in embodiment.model.blocks:
        assert block.name in out
    for image in embodiment.wire.images:
        assert image.name in out


def test_the_start_of_a_name_shows_all_that_begin_so(capsys):
    code, out, _ = run(capsys, "ls", "embodiment", "droid")
    assert code == 0
    assert load("droid_lerobot").model_hash in out and load("droid_lerobot_midtrain").model_hash in out
    _, out, _ = run(capsys, "ls", "embodiment", "droid_lerobot")
    assert load("droid_lerobot_midtrain").model_hash not in out


def test_an_unknown_name_fails_with_the_nearest(capsys):
    code, _, err = run(capsys, "ls", "embodiment", "pusht2")
    assert code == 1 and "no embodiment 'pusht2'" in err and "wam ls embodiment pusht" in err


def test_equal_contracts_compare_equal(capsys):
    code, out, _ = run(capsys, "check", "contract", "umi", str(HERE / "contracts" / "umi.toml"))
    assert code == 0 and "model half: equal" in out and "wire half: equal" in out


def test_differing_contracts_print_their_fields_and_fail(capsys, tmp_path):
    text = (HERE / "contracts" / "panda_joint.toml").read_text()
    edited = tmp_path / "panda_joint.toml"
    edited.write_text(
        text.replace(
            'polarity = "one_is_closed", unit = "fraction", low = 0.0, high = 1.0, beyond',
            'polarity = "one_is_open", unit = "fraction", low = 0.0, high = 1.0, beyond',
        )
    )
    code, out, _ = run(capsys, "check", "contract", "panda_joint", str(edited))
    assert code == 1 and "model half: equal" in out and "wire half: 1 fields differ" in out
    assert "reply.grippers.0.polarity" in out and "one_is_open" in out


def test_a_good_episode_passes_and_a_bad_one_fails(capsys, shared):
    pytest.importorskip("pyarrow")
    folder = shared / "data" / "episodes"
    code, out, _ = run(capsys, "check", "episode", str(folder / "umi_lerobot_example"), "--embodiment", "umi")
    assert code == 0 and "nothing suspicious" in out
    code, out, _ = run(
        capsys, "check", "episode", str(folder / "actions" / "umi.json"), "--embodiment", "umi"
    )
    assert code == 0
    code, out, _ = run(
        capsys,
        "check",
        "episode",
        str(folder / "human_hand_pose_lerobot_example"),
        "--embodiment",
        "hand_pose",
    )
    assert code == 1 and "scale: rotations are large" in out and "1 findings" in out
    code, _, err = run(
        capsys, "check", "episode", str(folder / "umi_lerobot_example"), "--embodiment", "libero"
    )
    assert code == 1 and "column 'action' is missing" in err


def test_showing_a_contract_imports_nothing_heavy():
    code = (
        "import sys, wam\n"
        "assert wam.main(['ls', 'embodiment', 'droid_lerobot']) == 0\n"
        "heavy = {'torch', 'scipy', 'pyarrow', 'mujoco', 'diffusers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

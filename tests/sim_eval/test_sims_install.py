"""Simulators are installed by pip calls that ask nothing, pull no GPU build and keep physics apart."""

import subprocess
import sys

import pytest

from wamserve.sim_eval import sims_install

NAMES = ("libero-1.5.2", "libero-1.4.0", "robosuite", "pusht")


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What would have been run; nothing is."""
    made = []

    def run(command, **options):
        made.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(sims_install.subprocess, "run", run)
    monkeypatch.setattr(
        sims_install.venv, "create", lambda folder, with_pip: made.append(["venv", str(folder)])
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return made


@pytest.mark.parametrize("name", NAMES)
def test_no_list_pulls_torch_and_every_wrong_pin_is_bypassed(name):
    resolved, bare = sims_install.requirements(name)
    assert not [r for r in (*resolved, *bare) if r.startswith(("torch", "nvidia", "lerobot"))]
    for loose in (
        "robosuite",
        "hf-libero",
        "bddl",
        "gym-pusht",
    ):  # their declared needs pull, or refuse, others
        assert not [r for r in resolved if r.startswith(loose)]
    assert all("==" in r for r in bare)
    for command in sims_install.commands(name, "python", with_package=False):
        assert "--no-input" in command


def test_the_two_physics_of_libero_differ_in_robosuite_only():
    new, old = (
        dict(r.split("==") for r in sims_install.requirements(f"libero-{v}")[1]) for v in ("1.5.2", "1.4.0")
    )
    assert (new.pop("robosuite"), old.pop("robosuite")) == ("1.5.2", "1.4.0")
    assert new == old and {"hf-libero", "bddl"} == set(new)


def test_the_published_physics_goes_into_an_environment_of_its_own(calls, tmp_path, capsys):
    assert sims_install.install("libero", physics="1.4.0", assets=False) == 0
    home = tmp_path / "wamserve" / "sims" / "libero-1.4.0"
    assert calls[0] == ["venv", str(home)]
    assert {command[0] for command in calls[1:]} == {str(home / "bin" / "python")}
    assert any("robosuite==1.4.0" in command for command in calls)
    assert any("wamserve" in word or word == "-e" for word in calls[-1])  # workers need this package too
    assert f"--python {home / 'bin' / 'python'}" in capsys.readouterr().out


def test_others_go_into_this_environment(calls):
    assert sims_install.install("pusht") == 0
    assert {command[0] for command in calls} == {sys.executable}


def test_a_dry_run_runs_nothing_and_does_not_say_that_it_did(calls, capsys):
    for simulator in ("libero", "robosuite", "pusht"):
        sims_install.install(simulator, dry_run=True)
    said = capsys.readouterr().out
    assert calls == [] and "+ " in said and "installed into" not in said

"""The front door answers fast and says what it knows."""

from __future__ import annotations

import subprocess
import sys

import wam


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, wam\n"
        "assert wam.main(['--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'tyro', 'mujoco', 'diffusers', 'transformers', 'websockets'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_verb_lists_the_known_ones(capsys) -> None:
    assert wam.main(["swerve"]) == 2
    assert "no verb 'swerve'" in capsys.readouterr().err


def test_every_verb_resolves_to_a_function() -> None:
    from importlib import import_module

    for verb, (target, _) in wam.VERBS.items():
        module, function = target.split(":")
        assert callable(getattr(import_module(module), function)), verb

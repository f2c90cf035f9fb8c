"""Rooms import one way only, and what a robot installs never imports torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "action_codec": set(),
    "embodiments": {"action_codec"},
    "clients": {"action_codec", "embodiments"},
    "policy_server": {"action_codec", "embodiments", "clients"},
    "sim_eval": {"action_codec", "embodiments", "clients"},
    "training": {"action_codec", "embodiments", "clients", "policy_server", "sim_eval"},
}


def rooms_imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "wamserve":
                names |= {alias.name for alias in node.names}
            elif node.module.startswith("wamserve."):
                names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("wamserve.")}
    return names


@pytest.mark.parametrize("room", ALLOWED)
def test_room_imports_only_what_stands_before_it(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        extra = rooms_imported(path) - ALLOWED[room] - {room}
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}"


@pytest.mark.parametrize("package", ["action_codec", "embodiments", "clients", "policy_server.serving"])
def test_robot_and_serving_side_never_import_torch(package: str) -> None:
    code = (
        "import importlib, pkgutil, sys\n"
        f"package = importlib.import_module('wamserve.{package}')\n"
        "for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "    if '.franka' in module.name or module.name.endswith('_torch'): continue\n"
        "    importlib.import_module(module.name)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

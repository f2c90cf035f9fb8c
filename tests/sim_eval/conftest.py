"""What the evaluation tests share: `toys`, the module that makes whole run directories of known numbers."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toys():
    spec = importlib.util.spec_from_file_location("recorded_runs", Path(__file__).parent / "recorded_runs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""What every test may use: the folder of reference data, where this machine has one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A claim holds on a busy machine too: no test is about how long it took.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# Reference data that is not part of the project. Tests that need it skip where it is absent.
SHARED = Path(os.environ.get("WAMSERVE_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"reference data not found at {SHARED} (set WAMSERVE_SHARED)")
    return SHARED

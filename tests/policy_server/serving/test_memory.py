"""Freed buffers are kept for the next request, and given back when asked."""

from __future__ import annotations

import subprocess
import sys

import pytest

_BURST = """
import psutil
from wamserve.policy_server.serving.memory import give_back, keep_freed_memory

def resident(): return psutil.Process().memory_info().rss / 2**20

assert keep_freed_memory()
before = resident()
burst = [bytearray(2**20) for _ in range(64)]
held = resident() - before
burst.clear()
kept = resident() - before
assert give_back()
print(held, kept, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_burst_is_kept_until_it_is_given_back():
    out = subprocess.run(
        [sys.executable, "-c", _BURST], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    held, kept, left = map(float, out.split())  # MiB above the start
    assert held > 60 and kept > 60
    assert left < 8

"""A worker that is killed is said in words."""

from __future__ import annotations

import os
import signal

import pytest

from wamserve.action_codec.errors import RunError
from wamserve.training.crew import crew


def test_killed_worker_ends_the_work_in_words():
    with pytest.raises(RunError, match=r"a worker was killed.*fewer --workers"), crew(1) as pool:
        assert pool.submit(os.getppid).result() == os.getpid()
        list(pool.map(os.kill, [pool.submit(os.getpid).result()], [signal.SIGKILL]))

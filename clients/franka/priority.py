"""Scheduling: the arm's threads before everything else on the machine, helper threads as usual."""

from __future__ import annotations

import os
from contextlib import suppress

PRIORITY = 20  # of 1 .. 99; below the kernel's own interrupt threads at 50


def punctual() -> str:
    """Gives this thread, and those it starts from now on, a real-time priority; why not, where it may not."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    except (OSError, AttributeError) as error:
        return f"no real-time priority ({error}); add 'USER - rtprio 99' to /etc/security/limits.conf"
    return ""


def ordinary() -> None:
    """Takes it back for the calling thread."""
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

"""Every random number of a run follows from the run's seed and from what it is for."""

from __future__ import annotations

import hashlib

RULE = "sha256(seed|task|init[|repeat[|step]]) mod 2^31"  # written into the protocol card


def derive(*parts: object) -> int:
    """A seed in [0, 2^31) that depends on all parts and on nothing else."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF


def init_seed(run_seed: int, task: str, init: int) -> int:
    """Of an initial state: equal for all repeats and all policies."""
    return derive(run_seed, task, init)


def episode_seed(run_seed: int, task: str, init: int, repeat: int) -> int:
    return derive(run_seed, task, init, repeat)


def request_seed(episode: int, step: int) -> int:
    """Of the question asked at a control step of an episode."""
    return derive(episode, step)

"""Prompts read before the first request: the instructions of a robot's day, one per line of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wamserve.action_codec.errors import RequestError
from wamserve.policy_server.blank import blank_request
from wamserve.policy_server.policy import WorldActionPolicy


def read_instructions(file: Path) -> list[str]:
    """Lines of a text file without empty ones and those that begin with #. Raises RequestError."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"no instructions can be read from {file}", seen=str(error)) from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise RequestError(f"{file} holds no instruction", expected="one per line")
    return list(dict.fromkeys(found))


def read_ahead(policy: WorldActionPolicy, instructions: Sequence[str]) -> int:
    """Reads the prompts that requests with these instructions will have; how many there are."""
    blank = blank_request(policy.contract, policy.card.modes(policy.contract)[0])
    prompts = [
        policy.prepare(replace(blank, observation=replace(blank.observation, instruction=words))).prompt
        for words in instructions
    ]
    policy.prompts.warm(prompts)
    return len(prompts)

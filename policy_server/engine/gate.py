"""What quantization costs the actions, dimension by dimension, and whether the card allows it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wamserve.action_codec.errors import CheckpointError
from wamserve.policy_server.blank import blank_request
from wamserve.policy_server.engine.engine import Engine
from wamserve.policy_server.engine.quantize import release_plain_weights
from wamserve.policy_server.policy import WorldActionPolicy
from wamserve.policy_server.runner import Plain, Runner
from wamserve.policy_server.sampling.sampler import Sample

logger = logging.getLogger("wamserve.engine")


@dataclass(frozen=True)
class ActionError:
    """Differences of action rows in model units (normalized: a channel spans about -1 .. 1)."""

    mean: np.ndarray  # [D] mean |quantized - reference| per action dimension
    worst: np.ndarray  # [D] the largest one
    spread: np.ndarray  # [D] standard deviation of the reference, to judge both by
    calls: int

    def lines(self) -> list[str]:
        head = f"{'dimension':>9}{'mean |Δ|':>12}{'max |Δ|':>12}{'std':>10}   over {self.calls} calls"
        rows = zip(self.mean, self.worst, self.spread, strict=True)
        return [head, *(f"{d:9}{m:12.2e}{w:12.2e}{s:10.3f}" for d, (m, w, s) in enumerate(rows))]


def action_error(reference: Sequence[np.ndarray], quantized: Sequence[np.ndarray]) -> ActionError:
    """Of equal calls: the same pictures, prompts and seeds. Each [rows, D]."""
    wanted = np.concatenate([np.asarray(rows, np.float64) for rows in reference])
    got = np.concatenate([np.asarray(rows, np.float64) for rows in quantized])
    gap = np.abs(got - wanted)
    gap[~np.isfinite(gap)] = np.inf
    return ActionError(gap.mean(axis=0), gap.max(axis=0), wanted.std(axis=0), len(reference))


def check_quantized(found: ActionError, limit: float, what: str) -> ActionError:
    """Raises CheckpointError when the mean error of any dimension is past `limit`, in model units."""
    if not (found.mean <= limit).all():
        dimension = int(np.argmax(found.mean))
        raise CheckpointError(
            f"{what} changes the actions of this checkpoint more than its card allows",
            seen=f"mean |Δ| {found.mean[dimension]:.2e} in dimension {dimension} over {found.calls} calls",
            expected=f"at most {limit:.2e} in every dimension",
            fix="--quantize none, or another limit in the card after scoring the quantized policy",
        )
    return found


class Recorder:
    """A runner that keeps the action rows of every call, in model units."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.encode = runner.encode
        self.rows: list[np.ndarray] = []  # [rows, action_dim] per request

    def sample(self, *args: Any, **kwargs: Any) -> Sample:
        result = self.runner.sample(*args, **kwargs)
        self.rows += list(result.actions.double().cpu().numpy())
        return result


def measure(policy: WorldActionPolicy, runner: Runner, calls: int = 3) -> list[np.ndarray]:
    """Action rows [chunk, width] of `calls` fixed requests answered through `runner`."""
    recorder, before = Recorder(runner), policy.runner
    policy.runner = recorder
    try:
        for seed in range(calls):
            blank = blank_request(policy.contract, policy.card.modes(policy.contract)[0], seed)
            noise = np.random.default_rng(seed)
            seen = {
                name: noise.integers(0, 256, (-(-h // 16), -(-w // 16), 3), np.uint8)
                .repeat(16, 0).repeat(16, 1)[:h, :w]
                for name, (h, w, _) in ((n, i.shape) for n, i in blank.observation.images.items())
            }  # fmt: skip
            policy.infer(replace(blank, observation=replace(blank.observation, images=seen)))
    finally:
        policy.runner = before
    lead, width = policy.codec.lead, policy.contract.model.width
    return [rows[lead:, :width] for rows in recorder.rows]


def admit(policy: WorldActionPolicy, engine: Engine) -> ActionError:
    """Lets a quantized engine serve a policy whose card allows what it costs, and frees the plain weights.

    Raises CheckpointError where the card names no limit, or the error is past it.
    """
    limit = policy.card.bounds.quantized_error
    if limit is None:
        raise CheckpointError(
            f"the card of {policy.card.name} does not say how far quantization may move an action",
            seen="no quantized_error in [bounds]",
            expected="the largest mean |Δ| of any action dimension, in model units",
            fix="score the quantized policy, then add it to the card; or --quantize none",
        )
    plain = Plain(policy.vae, policy.network.device)
    found = action_error(measure(policy, plain), measure(policy, engine))
    logger.info("%s against %s:\n%s", engine.options.quantize, policy.network.dtype, "\n".join(found.lines()))
    check_quantized(found, limit, engine.options.quantize)
    release_plain_weights(engine.tower)
    return found

"""What quantization costs the actions, dimension by dimension, and whether the card allows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wamserve.action_codec.errors import CheckpointError


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
            fix="--engine.quantize none, or another limit in the card after scoring the quantized policy",
        )
    return found

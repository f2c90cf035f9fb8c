"""The contract's normalizers as the codec runs them: raw units of the robot to model space and back."""

from __future__ import annotations

from functools import cache

import numpy as np

from wamserve.action_codec.errors import ContractError
from wamserve.action_codec.normalizers import (
    ChunkNormalizer,
    Normalizer,
    no_normalizer,
    normalizer_from_stats,
    scale_normalizer,
)
from wamserve.embodiments import contract
from wamserve.embodiments.contract import ModelHalf


@cache
def chunk_normalizer(model: ModelHalf) -> ChunkNormalizer:
    """Both normalizers of a contract: action rows and, where chunks start with one, state rows."""
    return ChunkNormalizer(
        actions=_normalizer(model, model.normalizer),
        state=_normalizer(model, model.state_normalizer) if model.state_row or model.history else None,
    )


def _normalizer(model: ModelHalf, declared: contract.Normalizer) -> Normalizer:
    if declared.method == "none":
        return no_normalizer(model.width)
    if declared.method == "scale":
        scale = np.ones(model.width)
        for block in model.layout.blocks:
            if block.of_kind.position:
                scale[block.start : block.start + 3] = model.translation_scale
        return scale_normalizer(scale)
    stats = contract.read_stats(declared, model.domain)
    normalizer = normalizer_from_stats(
        declared.method, stats, clamp=declared.clamp, constant=declared.constant
    )
    if normalizer.width != model.width:
        raise ContractError(
            f"{model.domain}: statistics and action rows differ in width",
            seen=f"{normalizer.width} in {declared.stats}",
            expected=model.width,
        )
    normalizer.check_layout(model.layout)
    return normalizer

"""A policy call in diffusers' pipeline, timed in parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from wamserve.embodiments.canvas import TIERS
from wamserve.policy_server.engine.shapes import CallShapes
from wamserve.policy_server.parity import diffusers_pipeline
from wamserve.policy_server.world_model.checkpoint import Checkpoint
from wamserve.policy_server.world_model.network import WorldModel


class Theirs:
    """Picture in, action rows on the host out. It returns latents, so that no video is decoded.

    `handed` says what diffusers was given because its own tables lack it: data, and no code of the call.
    """

    def __init__(self, checkpoint: Checkpoint, network: WorldModel, shapes: CallShapes) -> None:
        from diffusers.pipelines.cosmos import pipeline_cosmos3_omni as cosmos

        self.shapes = shapes
        self.handed: list[str] = []
        self.pipeline, _ = diffusers_pipeline(checkpoint, network)
        self.tiers, self.domains = cosmos._ACTION_RESOLUTION_BINS, cosmos._EMBODIMENT_TO_DOMAIN_ID
        self.widths = cosmos._EMBODIMENT_TO_RAW_ACTION_DIM
        self.more_tiers: dict[str, dict[str, tuple[int, int]]] = {}
        if shapes.tier not in self.tiers:
            self.handed.append(f"tier {shapes.tier}")
            sizes = TIERS[shapes.tier].values()
            self.more_tiers[shapes.tier] = {str(height / width): (height, width) for width, height in sizes}
        wanted = (shapes.domain, shapes.columns)
        known = [name for name, domain in self.domains.items() if (domain, self.widths.get(name)) == wanted]
        self.domain = known[0] if known else f"wamserve's {shapes.name}"
        if not known:
            self.handed.append(f"domain {shapes.domain} with {shapes.columns} columns")
        self._hand_words()
        self.transformer_s = self.encode_s = 0.0  # of the last call
        self.pipeline.transformer.forward = self._timed(self.pipeline.transformer.forward, "transformer_s")
        self.pipeline.vae.encode = self._timed(self.pipeline.vae.encode, "encode_s")

    def __call__(self, picture: np.ndarray, seed: int) -> np.ndarray:
        from diffusers.pipelines.cosmos import CosmosActionCondition
        from PIL import Image

        shapes, self.transformer_s, self.encode_s = self.shapes, 0.0, 0.0
        with self._tables():
            condition = CosmosActionCondition(
                mode="policy", chunk_size=shapes.chunk, domain_name=self.domain,
                resolution_tier=int(shapes.tier), image=Image.fromarray(picture), view_point=shapes.viewpoint,
            )  # fmt: skip
            answer = self.pipeline(
                prompt=shapes.task, action=condition,
                fps=float(shapes.rate_hz), num_inference_steps=shapes.steps, guidance_scale=shapes.guidance,
                generator=torch.Generator().manual_seed(seed), output_type="latent",
                use_system_prompt=False, enable_safety_check=False,
            )  # fmt: skip
        rows: np.ndarray = answer.action[0].float().cpu().numpy()
        return rows

    @contextmanager
    def _tables(self) -> Iterator[None]:
        """diffusers' tables with the rows that are handed to it."""
        with (
            patch.dict(self.tiers, self.more_tiers),
            patch.dict(self.domains, {self.domain: self.shapes.domain}),
            patch.dict(self.widths, {self.domain: self.shapes.columns}),
        ):
            yield

    def _hand_words(self) -> None:
        """The very prompt of the other side, where diffusers would word another."""
        shapes = self.shapes
        own = self.pipeline._build_action_json_prompt(
            shapes.task, view_point=shapes.viewpoint, num_frames=shapes.chunk + 1, fps=float(shapes.rate_hz),
            height=shapes.fit.height, width=shapes.fit.width,
        )  # fmt: skip
        if own != shapes.words:
            self.handed.append("the prompt")
            self.pipeline._build_action_json_prompt = lambda *_, **__: shapes.words

    def _timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            out = function(*args, **kwargs)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            setattr(self, name, getattr(self, name) + time.perf_counter() - begin)
            return out

        return run

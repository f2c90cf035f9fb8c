"""Noise by seed, of which the next request's can be drawn while nobody waits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from wamserve.policy_server.sampling.noise import NoiseKind, draw_noise
from wamserve.policy_server.world_model.tokens import LatentShape

_Form = tuple[NoiseKind, LatentShape, int, int, str]  # kind, shape, channels, action width, device


class NoiseAhead:
    """`draw_noise`, number for number. What `draw` made and nobody asked for is dropped, oldest first."""

    def __init__(self, keep: int = 16) -> None:
        """keep: seeds whose noise may wait; DROID's is 3 MB each."""
        self.keep = keep
        self.hits = 0  # rows that were there when they were asked for
        self.misses = 0
        self._form: _Form | None = None  # of the latest call
        self._drawn: OrderedDict[tuple[_Form, int], tuple[Tensor, Tensor]] = OrderedDict()

    def __call__(
        self,
        kind: NoiseKind,
        seeds: Sequence[int],
        shape: LatentShape,
        channels: int,
        action_dim: int,
        device: torch.device | str = "cpu",
    ) -> tuple[Tensor, Tensor]:
        """As `draw_noise`: fp32 video [B, C, T, h, w] and action [B, Ta, action_dim]."""
        self._form = form = (kind, shape, channels, action_dim, str(device))
        drawn = {seed: self._drawn.pop((form, seed), None) for seed in dict.fromkeys(seeds)}
        self.hits += sum(row is not None for row in drawn.values())
        self.misses += sum(row is None for row in drawn.values())
        if not any(drawn.values()):
            return draw_noise(kind, seeds, shape, channels, action_dim, device)
        rows = [
            drawn[seed] or draw_noise(kind, [seed], shape, channels, action_dim, device) for seed in seeds
        ]
        if len(rows) == 1:
            return rows[0]
        return torch.cat([video for video, _ in rows]), torch.cat([action for _, action in rows])

    def draw(self, seed: int) -> None:
        """Draws the noise that a request with this seed would have, were it formed like the latest one."""
        if self._form is None or (self._form, seed) in self._drawn:
            return
        self._drawn[self._form, seed] = draw_noise(self._form[0], [seed], *self._form[1:])
        while len(self._drawn) > self.keep:
            self._drawn.popitem(last=False)

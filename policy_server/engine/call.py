"""One policy call over static buffers: first-frame encode, every step, both branches, the solver.

`load` fills the buffers, `run` launches kernels and never waits. Nothing in `run` depends on data, so that it
can be captured as one CUDA graph and replayed for other pictures, prompts, noise, noise levels and scales.
The state lives as tokens from start to end: `patchify` runs once before the loop and `unpatchify` once after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wamserve.policy_server.engine.attention import MASKED
from wamserve.policy_server.engine.key import CallKey
from wamserve.policy_server.engine.ranks import Ranks
from wamserve.policy_server.engine.tower import Rows, Tower
from wamserve.policy_server.sampling.guidance import Guidance
from wamserve.policy_server.sampling.schedule import Schedule
from wamserve.policy_server.sampling.start import Start
from wamserve.policy_server.sampling.unipc import unipc_rows
from wamserve.policy_server.world_model.layout import TokenLayout
from wamserve.policy_server.world_model.prompt_kv import PromptKV
from wamserve.policy_server.world_model.tokens import RequestPlan, patchify, unpatchify
from wamserve.policy_server.world_model.vae import VideoVAE, crop_content

Progress = Callable[[int, int], None]  # (done, steps)


class Call:
    """Buffers of one key and the program over them.

    batched: guided steps run both branches in one batch. merged: attention takes prompt lengths from the
    device. ranks: two processes, a branch each, that exchange velocities.
    """

    def __init__(
        self,
        key: CallKey,
        tower: Tower,
        vae: VideoVAE,
        batched: bool,
        merged: bool,
        ranks: Ranks | None = None,
    ) -> None:
        network = tower.network[0]
        config, device, dtype = network.config, network.device, network.dtype
        self.key, self.tower, self.vae = key, tower, vae
        self.batched, self.merged, self.ranks = batched, merged, ranks
        self.patch = config.latent_patch_size
        self.video_size = (key.shape.video_tokens(self.patch), config.patch_latent_dim)
        self.action_size = (key.shape.actions, config.action_dim)
        self.cut = self.video_size[0] * self.video_size[1]
        batch, steps = key.batch, len(key.guided)
        width = self.cut + self.action_size[0] * self.action_size[1]
        tokens = self.video_size[0] + key.shape.actions

        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*size, dtype=dtype, device=device)

        # One flat row per request: video tokens, then action rows; the solver is element-wise.
        self.given, self.noise = zeros(batch, width), zeros(batch, width)
        self.moves = zeros(batch, width)  # 1 where the value is denoised; 0 given, padded or past the width
        self.first, self.last = zeros(batch, width), zeros(batch, width)
        self.velocities = zeros(steps, batch, width)
        self.time = zeros(steps, config.hidden_size, dtype=dtype)
        self.solver = zeros(steps, steps)  # row k: the next iterate in units of the velocities so far
        self.scales = zeros(2)  # guidance of the video and of the actions
        picture = key.picture
        self.frames = (
            None if picture is None else zeros(batch, picture.height, picture.width, 3, dtype=torch.uint8)
        )
        rows, heads = key.rows, config.num_key_value_heads
        kv = (config.num_hidden_layers, rows, heads, key.bucket + tokens, config.head_dim)
        half = (rows, 1, tokens, config.head_dim // 2)
        self.rows = Rows(
            cos=zeros(*half, dtype=dtype),
            sin=zeros(*half, dtype=dtype),
            keys=zeros(*kv, dtype=dtype),
            values=zeros(*kv, dtype=dtype),
            bias=zeros(rows, 1, 1, key.bucket, dtype=dtype),
            noisy=zeros(rows, tokens, 1, dtype=dtype),
            domain=zeros(rows, dtype=torch.int64),
            bucket=key.bucket,
        )
        self.lengths: tuple[int, ...] = ()
        self._plans: tuple[object, ...] = ()
        self._prompts: list[PromptKV | None] = [None, None]
        self._levels: tuple[object, ...] = ()

    @property
    def nbytes(self) -> int:
        held = (*vars(self).values(), *vars(self.rows).values())
        return sum(one.numel() * one.element_size() for one in held if isinstance(one, Tensor))

    def load(
        self,
        plans: Sequence[RequestPlan],
        start: Start,
        schedule: Schedule,
        guidance: Guidance,
        prompts: Sequence[PromptKV],
        frames: Tensor | None = None,
    ) -> None:
        """Fills the buffers; what is there already from the call before is left alone.

        prompts: the conditional ones, and the empty one repeated where a step is guided. frames: uint8
        [B, H, W, 3], pinned where the device is a GPU, for a key with a picture.
        """
        self._load_layout(tuple(plans), prompts)
        for branch, prompt in enumerate(prompts):
            self._load_prompt(branch, prompt)
        levels = (schedule.sigmas, schedule.timesteps, guidance.scales)
        if levels != self._levels:
            self.time.copy_(self.tower.time_rows(schedule.timesteps))
            self.solver.copy_(torch.from_numpy(unipc_rows(schedule.sigmas)))
            self.scales.copy_(torch.tensor(guidance.scales))
            self._levels = levels
        self._join(self.noise, start.video_noise, start.action_noise)
        if self.frames is None:
            self._join(self.given, start.latents, start.actions)
        else:
            assert frames is not None
            self.frames.copy_(frames, non_blocking=True)
            self.given[:, self.cut :].copy_(start.actions.flatten(1))

    def _load_layout(self, plans: tuple[RequestPlan, ...], prompts: Sequence[PromptKV]) -> None:
        """Positions and masks of both branches, when the plans or the prompts' lengths have changed."""
        lengths = tuple(n for prompt in prompts for n in prompt.lengths)
        if (plans, lengths) == self._plans:
            return
        network, rows, batch = self.tower.network[0], self.rows, self.key.batch
        half = rows.cos.shape[-1]
        for branch, prompt in enumerate(prompts):
            layout = TokenLayout.build(
                network.config, self.key.shape, plans, prompt.lengths, network.device, network.dtype
            )
            mine = slice(branch * batch, (branch + 1) * batch)
            rows.cos[mine], rows.sin[mine] = layout.cos[..., :half], layout.sin[..., :half]
            rows.noisy[mine], rows.domain[mine] = layout.noisy, layout.domain
        shape = self.key.shape
        size = (batch, network.config.latent_channel, shape.frames, shape.height, shape.width)
        self._join(self.moves, layout.video_noisy.float().expand(size), layout.action_noisy.float())
        rows.bias.fill_(MASKED)
        for row, length in enumerate(lengths):
            rows.bias[row, ..., rows.bucket - length :] = 0
        self.lengths, self._plans = lengths, (plans, lengths)

    def _load_prompt(self, branch: int, prompt: PromptKV) -> None:
        """The text tower's keys and values, right-aligned before generation's: once per prompt."""
        if prompt is self._prompts[branch]:
            return
        bucket = self.rows.bucket
        for row, length in enumerate(prompt.lengths):
            place = (slice(None), branch * self.key.batch + row, slice(None), slice(bucket - length, bucket))
            self.rows.keys[place] = prompt.keys[:, row, :, :length]
            self.rows.values[place] = prompt.values[:, row, :, :length]
        self._prompts[branch] = prompt

    def _join(self, flat: Tensor, latents: Tensor, actions: Tensor) -> None:
        """Latents [B, C, T, h, w] as tokens and actions [B, Ta, A], side by side in `flat`."""
        flat[:, : self.cut].copy_(patchify(latents, self.patch).flatten(1))
        flat[:, self.cut :].copy_(actions.flatten(1))

    def split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Views of flat [R, M]: video tokens [R, Nv, features], action rows [R, Ta, A]."""
        return (
            flat[:, : self.cut].unflatten(1, self.video_size),
            flat[:, self.cut :].unflatten(1, self.action_size),
        )

    @torch.no_grad()
    def run(self, progress: Progress | None = None) -> None:
        """From loaded buffers to `self.last`, without waiting for the device."""
        if self.frames is not None:
            self._encode(self.frames)
        torch.lerp(self.given, self.noise, self.moves, out=self.first)
        if self.ranks is not None:
            self.ranks.broadcast(self.first)
        x, steps = self.first, len(self.key.guided)
        for step, guided in enumerate(self.key.guided):
            want_video = self.key.video_moves and (self.key.want_video or step < steps - 1)
            self._predict(x, step, guided, want_video)
            seen = self.velocities[: step + 1].flatten(1)
            x = torch.addmv(self.first.flatten(), seen.T, self.solver[step, : step + 1]).view_as(x)
            if progress is not None:
                progress(step + 1, steps)
        self.last.copy_(x)

    def _encode(self, frames: Tensor) -> None:
        picture = self.key.picture
        assert picture is not None
        pixels = frames.permute(0, 3, 1, 2).float() / 127.5 - 1.0  # NHWC in memory: channels-last already
        latents = crop_content(
            self.vae.encode_first_frame(pixels), (picture.content_height, picture.content_width)
        )
        tokens = patchify(latents, self.patch).flatten(1)
        self.given[:, : tokens.shape[1]].copy_(tokens)

    def _predict(self, x: Tensor, step: int, guided: bool, want_video: bool) -> None:
        """Velocity of one step, guided where asked, into its row of `self.velocities`."""
        batch = self.key.batch
        if not guided:
            velocities = [self._forward(x, step, slice(0, batch), want_video)]
        elif self.ranks is not None:
            mine = self.ranks.rank * batch
            own = self._forward(x, step, slice(mine, mine + batch), want_video)
            velocities = self._exchange(own)
        elif self.batched:
            video, action = self._forward(x.repeat(2, 1), step, slice(0, 2 * batch), want_video)
            velocities = [
                (None if video is None else video[half], None if action is None else action[half])
                for half in (slice(0, batch), slice(batch, None))
            ]
        else:
            velocities = [
                self._forward(x, step, slice(branch * batch, (branch + 1) * batch), want_video)
                for branch in (0, 1)
            ]
        moves, target = self.split(self.moves), self.split(self.velocities[step])
        for which in (0, 1):
            cond = velocities[0][which]
            if cond is None:
                continue
            guess = cond.float()
            if guided:
                uncond = velocities[1][which]
                assert uncond is not None
                guess = torch.addcmul(uncond.float(), guess - uncond.float(), self.scales[which])
            torch.mul(guess, moves[which], out=target[which])

    def _forward(
        self, x: Tensor, step: int, rows: slice, want_video: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        video, action = self.split(x)
        lengths = None if self.merged else self.lengths[rows]
        return self.tower(
            video, action, self.time[step], self.rows.slice(rows), lengths, want_video, self.key.action_moves
        )

    def _exchange(
        self, own: tuple[Tensor | None, Tensor | None]
    ) -> list[tuple[Tensor | None, Tensor | None]]:
        """This rank's velocities -> those of both ranks, conditional first, in one collective."""
        assert self.ranks is not None
        flat = torch.cat([part.float().flatten(1) for part in own if part is not None], dim=1)
        pairs: list[tuple[Tensor | None, Tensor | None]] = []
        for whole in self.ranks.exchange(flat):
            cut = 0 if own[0] is None else self.cut
            pairs.append(
                (
                    whole[:, :cut].unflatten(1, self.video_size) if own[0] is not None else None,
                    whole[:, cut:].unflatten(1, self.action_size) if own[1] is not None else None,
                )
            )
        return pairs

    def latents(self) -> Tensor:
        """Final latents [B, C, T, h, w] fp32."""
        return unpatchify(self.split(self.last)[0], self.key.shape, self.patch)

    def actions(self) -> Tensor:
        """Final action rows [B, Ta, A] fp32, in memory of their own."""
        return self.split(self.last)[1].clone()

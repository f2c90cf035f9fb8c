"""The training loop: draw, noise, predict the velocity, step. Resumable; equal seeds give equal weights."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wamserve.action_codec.errors import WamError
from wamserve.clients.policy import Mode
from wamserve.embodiments.contract import load
from wamserve.policy_server.world_model.attention import MoTAttention
from wamserve.policy_server.world_model.checkpoint import Checkpoint, load_weights, open_checkpoint
from wamserve.policy_server.world_model.network import WorldModel
from wamserve.policy_server.world_model.prompt_kv import PromptKV
from wamserve.policy_server.world_model.text import PromptTokenizer, load_tokenizer
from wamserve.training.attention import product_attention
from wamserve.training.config import TrainConfig
from wamserve.training.curve import forget_after, keep_curve
from wamserve.training.export import export_card, export_checkpoint
from wamserve.training.objective import Losses, draw_modes, flow_losses
from wamserve.training.parameters import (
    Average,
    make_optimizer,
    merge_lora,
    prepare_parameters,
    set_learning_rate,
)
from wamserve.training.prepared import Prepared, Samples, contract_name, open_prepared, vae_hash
from wamserve.training.ranks import Ranks, average_gradients, join_ranks, local, shard

TRAIN_STREAM, VALIDATION_STREAM, DATA_STREAM = 0, 1, 2  # second number of every random seed
STORED = {"as_started": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def train(config: TrainConfig, log: Callable[[str], None] = print) -> Path:
    """Runs or resumes `config`; returns the folder of the finished checkpoint (averaged weights)."""
    with join_ranks() as ranks:
        return Trainer(config, ranks, log).run()


@dataclass
class Batch:
    """One drawn batch on the device; all samples are of one embodiment."""

    data: Prepared
    latents: Tensor  # [B, C, T, h, w]
    actions: Tensor  # [B, Ta, action_dim] model space
    prompts: list[str]


class Trainer:
    def __init__(self, config: TrainConfig, ranks: Ranks, log: Callable[[str], None]) -> None:
        for batch in (config.batch, *(data.batch for data in config.data)):
            if batch % ranks.size:
                raise WamError("batch must be a multiple of the ranks", seen=batch, expected=ranks.size)
        self.config, self.ranks, self.log = config, ranks, log
        self.out = Path(config.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.checkpoint: Checkpoint = open_checkpoint(config.start)
        if config.vae and vae_hash(Path(config.vae)) != vae_hash(self.checkpoint.vae_folder):
            raise WamError(
                f"the VAE in {config.vae} has another encoder than the one in {config.start}",
                fix="a VAE that was trained with decoder_only",
            )
        with torch.device("meta"):
            network = WorldModel(self.checkpoint.config)
        load_weights(network, self.checkpoint, ranks.device, torch.float32)
        network.gradient_checkpointing = config.gradient_checkpointing
        if ranks.device.type == "cpu" and config.precision == "bf16":
            for module in network.modules():
                if isinstance(module, MoTAttention):
                    module.attend = product_attention
        names = prepare_parameters(network, config.trainable)
        if config.shard:
            shard(network, ranks)
        self.network = network
        self.text_frozen = not config.trainable.text_tower or config.trainable.lora_rank > 0
        self.tokenizer: PromptTokenizer = load_tokenizer(
            self.checkpoint.tokenizer_folder, self.checkpoint.config.vocab_size
        )
        self._tokens: dict[str, list[int]] = {}
        self.data = [
            open_prepared(Path(d.prepared), load(contract_name(Path(d.prepared))), self.checkpoint, d.reach)
            for d in config.data
        ]
        for asked, found in zip(config.data, self.data, strict=True):
            if found.still and set(asked.modes) - {"policy"}:
                raise WamError(
                    f"first frames in {asked.prepared} teach a policy only", seen=", ".join(asked.modes),
                    expected="policy, or no modes",
                )  # fmt: skip
        self.adam = make_optimizer(network, config.optimizer)
        self.average = Average(network.named_parameters(), config.optimizer.ema_decay)
        self.step = 0
        total = sum(p.numel() for n, p in network.named_parameters() if n in names)
        self._say(
            f"train {config.start} -> {config.out}: {total / 1e6:.2f} M weights move, {ranks.size} ranks"
        )

    def run(self) -> Path:
        self._resume()
        began, last = time.monotonic(), self.step
        while self.step < self.config.steps:
            rate = set_learning_rate(self.adam, self.config.optimizer, self.step, self.config.steps)
            which = self._which()
            losses, norm = self._train_step()
            self.step += 1
            if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                seconds = (time.monotonic() - began) / (self.step - last)
                self._curve("train", which, losses, learning_rate=rate, grad_norm=norm, s_per_step=seconds)
                began, last = time.monotonic(), self.step
            if self.step % self.config.validate_every == 0 or self.step == self.config.steps:
                self.average.swap(self.network.named_parameters())
                for which in range(len(self.data)):
                    self._curve("validation", which, self._validate(which))
                self.average.swap(self.network.named_parameters())
            if self.step % self.config.save_every == 0 or self.step == self.config.steps:
                self._save()
        self.average.swap(self.network.named_parameters())
        merge_lora(self.network)
        folder = export_checkpoint(
            self.network, self.checkpoint, self.out / "checkpoint", self.ranks, STORED[self.config.stored],
            Path(self.config.vae) if self.config.vae else None,
        )  # fmt: skip
        if self.ranks.first:
            profiles = {data.meta.render_profile for data in self.data}
            export_card(
                self.config, [data.embodiment for data in self.data], "/".join(sorted(profiles)), folder
            )
            keep_curve(self.out / "curve.jsonl", folder)
        return folder

    def _train_step(self) -> tuple[Losses, float]:
        self.network.train()
        losses = self._losses(TRAIN_STREAM, self.step, self._which(), held_out=False)
        self.adam.zero_grad(set_to_none=True)
        losses.total.backward()
        if not self.config.shard:
            average_gradients(self.network, self.ranks)
        moving = [p for p in self.network.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(moving, self.config.optimizer.clip_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if not torch.isfinite(norm):
            raise WamError(
                "the gradient is not finite", seen=f"{float(norm)} at step {self.step}",
                fix="lower optimizer.learning_rate and resume from the last state",
            )  # fmt: skip
        self.adam.step()
        self.average.update(self.network.named_parameters(), self.step)
        return losses, float(norm)

    @torch.no_grad()
    def _validate(self, which: int) -> Losses:
        self.network.eval()
        parts = [
            self._losses(VALIDATION_STREAM, i, which, held_out=True)
            for i in range(self.config.validation_batches)
        ]
        return Losses(*(torch.stack(values).mean() for values in zip(*parts, strict=True)))

    def _losses(self, stream: int, index: int, which: int, held_out: bool) -> Losses:
        """The losses of batch `index` of a random stream on data set `which`. The seed decides the rest."""
        config, data = self.config, self.data[which]
        count = config.samples(which) // self.ranks.size
        rng, modes = begin_batch(config, which, stream, index, self.ranks.rank, count)
        batch, modes = self._draw(data, rng, ["policy"] * count if data.still else modes, held_out)
        plans = [config.objective.draw_plan(rng, mode, **batch.data.plan_arguments) for mode in modes]
        sigma = torch.from_numpy(config.objective.draw_sigma(rng, count)).float().to(self.ranks.device)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        noise = tuple(
            torch.randn(x.shape, generator=generator).to(self.ranks.device)
            for x in (batch.latents, batch.actions)
        )
        bf16 = config.precision == "bf16"
        with torch.autocast(self.ranks.device.type, dtype=torch.bfloat16, enabled=bf16):
            prompt = self._prefill(batch.prompts)
            return flow_losses(
                self.network, config.objective, batch.latents, batch.actions, sigma, plans, prompt,
                (noise[0], noise[1]),
            )  # fmt: skip

    def _draw(
        self, data: Prepared, rng: np.random.Generator, modes: list[Mode], held_out: bool
    ) -> tuple[Batch, list[Mode]]:
        """A batch and the mode of each of its samples, in the order of their prompts.

        Attention runs once per stretch of equally long prompts: a batch in any order is several times slower.
        """
        samples: Samples = data.draw(rng, [mode == "policy" for mode in modes], held_out)
        dropout = self.config.objective.text_dropout
        prompts = ["" if rng.random() < dropout else prompt for prompt in samples.prompts]
        lengths = [len(self._ids(prompt)) for prompt in prompts]
        order = sorted(range(len(modes)), key=lambda i: (lengths[i], prompts[i]))
        width = self.checkpoint.config.action_dim
        actions = torch.zeros(len(modes), samples.actions.shape[1], width)
        actions[..., : samples.actions.shape[2]] = torch.from_numpy(samples.actions[order])
        latents = torch.from_numpy(samples.latents[order].astype(np.float32))
        device = self.ranks.device
        batch = Batch(data, latents.to(device), actions.to(device), [prompts[i] for i in order])
        return batch, [modes[i] for i in order]

    def _ids(self, prompt: str) -> list[int]:
        if prompt not in self._tokens:
            self._tokens[prompt] = list(self.tokenizer.ids(prompt))
        return self._tokens[prompt]

    def _prefill(self, prompts: list[str]) -> PromptKV:
        """Each different prompt is read once and shared by the samples that carry it."""
        different = sorted(set(prompts))
        ids = [self._ids(prompt) for prompt in different]
        lengths = [len(row) for row in ids]
        table = torch.zeros(len(ids), max(lengths), dtype=torch.int64)
        for row, tokens in enumerate(ids):
            table[row, : len(tokens)] = torch.tensor(tokens)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.text_frozen):
            prompt = self.network.prefill(table.to(self.ranks.device), lengths)
        return prompt.rows([different.index(p) for p in prompts])

    def _state_file(self) -> Path:
        return self.out / f"state-{self.ranks.rank}-of-{self.ranks.size}.pt"

    def _save(self) -> None:
        """This rank's part of what a resumed run needs; the old state stays until the new one is whole."""
        state = {
            "step": self.step,
            "fingerprint": self.config.fingerprint(),
            "weights": {n: local(p.detach()) for n, p in self._moving()},
            "average": {n: local(v) for n, v in self.average.values.items()},
            "adam": _local_state(self.adam),
        }
        file = self._state_file()
        torch.save(state, file.with_suffix(".partial"))
        self.ranks.wait()
        file.with_suffix(".partial").replace(file)

    def _resume(self) -> None:
        file = self._state_file()
        if not file.exists():
            others = sorted(path.name for path in self.out.glob("state-*.pt"))
            if others:
                raise WamError(
                    "this run was made by another number of ranks", seen=others, expected=file.name
                )
            return
        state = torch.load(file, weights_only=True, map_location=self.ranks.device)
        if state["fingerprint"] != self.config.fingerprint():
            raise WamError(
                f"{self.out} holds a run of another configuration", seen=state["fingerprint"],
                expected=self.config.fingerprint(), fix="another `out`, or remove the state files",
            )  # fmt: skip
        with torch.no_grad():
            for name, parameter in self._moving():
                local(parameter).copy_(state["weights"][name])
            for name, value in self.average.values.items():
                local(value).copy_(state["average"][name])
        _restore_state(self.adam, state["adam"])
        self.step = state["step"]
        if self.ranks.first:
            forget_after(self.step, self.out / "curve.jsonl")
        self._say(f"resumed at step {self.step}")

    def _moving(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(n, p) for n, p in self.network.named_parameters() if p.requires_grad]

    def _which(self) -> int:
        return data_of_step(self.config, self.step)

    def _curve(self, stream: str, which: int, losses: Losses, **more: float) -> None:
        data = self.config.data[which].label
        row: dict[str, Any] = {"step": self.step, "stream": stream, "data": data}
        row |= {name: float(self.ranks.mean(value.detach())) for name, value in losses._asdict().items()}
        row |= more
        if self.ranks.first:
            with (self.out / "curve.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        shown = " ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float))
        self._say(f"{stream} {self.step}/{self.config.steps} {data} {shown}")

    def _say(self, line: str) -> None:
        if self.ranks.first:
            self.log(line)


def data_of_step(config: TrainConfig, step: int) -> int:
    """The data set that a step learns from, the same on all ranks."""
    weights = np.array([data.weight for data in config.data])
    draw = np.random.default_rng((config.seed, DATA_STREAM, step))
    return int(draw.choice(len(weights), p=weights / weights.sum()))


def begin_batch(
    config: TrainConfig, which: int, stream: int, index: int, rank: int, count: int
) -> tuple[np.random.Generator, list[Mode]]:
    """The modes of the `count` samples that a rank draws for batch `index` of data set `which`, and the
    generator behind them."""
    rng = np.random.default_rng((config.seed, stream, index, rank))
    return rng, draw_modes(config.modes(which), rng, count)


def samples_by_mode(config: TrainConfig) -> dict[Mode, int]:
    """How many samples of each mode a run of one rank learns from windows, counted and not expected."""
    counts: dict[Mode, int] = dict.fromkeys(config.objective.modes, 0)
    for step in range(config.steps):
        which = data_of_step(config, step)
        for mode in begin_batch(config, which, TRAIN_STREAM, step, 0, config.samples(which))[1]:
            counts[mode] = counts.get(mode, 0) + 1
    return counts


def _local_state(adam: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    state = adam.state_dict()["state"]
    return {i: {k: local(v) if torch.is_tensor(v) else v for k, v in s.items()} for i, s in state.items()}


def _restore_state(adam: torch.optim.Optimizer, saved: dict[int, dict[str, Tensor]]) -> None:
    """Puts moments back next to their parameters, sharded as these are."""
    parameters = [p for group in adam.param_groups for p in group["params"]]
    for index, values in saved.items():
        parameter = parameters[index]
        state: dict[str, Any] = {}
        for key, value in values.items():
            if torch.is_tensor(value) and value.shape == local(parameter).shape and key != "step":
                moment = torch.zeros_like(parameter)
                local(moment).copy_(value)
                state[key] = moment
            else:
                state[key] = value
        adam.state[parameter] = state

"""Episodes to training samples: action rows by contract, video latents computed once and memory-mapped."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wamserve.action_codec.errors import ContractError, WamError
from wamserve.embodiments.adapters import encode_chunk
from wamserve.embodiments.canvas import Fit, fit_frame
from wamserve.embodiments.contract import Embodiment
from wamserve.embodiments.prompt import render
from wamserve.embodiments.units import chunk_normalizer
from wamserve.policy_server.world_model.checkpoint import Checkpoint
from wamserve.policy_server.world_model.vae import VideoVAE, crop_content
from wamserve.training.vae import open_vae

HOLD_OUT = 20  # every HOLD_OUT-th episode is for validation
ENCODE_BATCH = 4  # windows at once


@dataclass(frozen=True, eq=False)
class SourceEpisode:
    """One episode at the contract's rate."""

    columns: Mapping[str, np.ndarray]  # the contract's dataset columns, [T, ...]
    canvas: np.ndarray  # uint8 [T, H, W, 3], composed but not yet fitted to the tier
    instruction: str
    disturbed: np.ndarray  # bool [T]: rows that no policy should imitate
    render_profile: str = ""  # of a simulator's pictures; "" for cameras


@dataclass(frozen=True)
class Samples:
    latents: np.ndarray  # float16 [B, C, T, h, w] normalised
    actions: np.ndarray  # float32 [B, rows, D] model space
    prompts: list[str]


@dataclass(frozen=True)
class Meta:
    """What a prepared folder was made with."""

    contract: str
    model_hash: str
    vae_hash: str
    windows: int
    latent_shape: tuple[int, ...]  # C, T, h, w
    action_shape: tuple[int, ...]  # rows (state row included), D
    fit: Fit
    instructions: tuple[str, ...]
    render_profile: str = ""  # of a simulator's pictures; "" for cameras


class Prepared:
    """A prepared folder, opened for drawing."""

    def __init__(self, folder: Path, meta: Meta, embodiment: Embodiment, reach: float = float("inf")) -> None:
        self.folder, self.meta, self.embodiment = folder, meta, embodiment
        shape = (meta.windows, *meta.latent_shape)
        size, whole = (folder / "latents.f16").stat().st_size, 2 * math.prod(shape)
        if size != whole:
            raise WamError(
                f"{folder / 'latents.f16'} is not whole", seen=f"{size} bytes", expected=whole,
                fix="prepare it again",
            )  # fmt: skip
        self._latents = np.memmap(folder / "latents.f16", np.float16, "r", shape=shape)
        rows = np.load(folder / "windows.npz")
        self._actions, self._instruction = rows["actions"], rows["instruction"]
        held_out = rows["episode"] % HOLD_OUT == HOLD_OUT - 1
        if held_out.all() or not held_out.any():
            raise WamError(
                f"{folder} leaves nothing to train on or nothing to validate with",
                seen=f"{len(np.unique(rows['episode']))} episodes",
                expected=f"at least {HOLD_OUT}: every {HOLD_OUT}th is held out",
            )
        clean, near = rows["clean"], np.abs(self._actions).max(axis=(1, 2)) <= reach
        # (held out?, for a policy?) -> windows that may be drawn
        self._pool = {
            (held, policy): np.flatnonzero(near & (held_out == held) & (clean | (not policy)))
            for held in (False, True)
            for policy in (False, True)
        }

    def draw(self, rng: np.random.Generator, for_policy: Sequence[bool], held_out: bool) -> Samples:
        """One window per entry; an entry that is True gets a window whose actions are worth imitating."""
        chosen = np.array([rng.choice(self._windows(held_out, policy)) for policy in for_policy])
        return Samples(
            latents=np.asarray(self._latents[chosen]),
            actions=self._actions[chosen],
            prompts=[self._prompts[i] for i in self._instruction[chosen]],
        )

    def _windows(self, held_out: bool, policy: bool) -> np.ndarray:
        pool = self._pool[held_out, policy]
        if not len(pool):
            raise WamError(
                f"{self.folder} has no such windows",
                seen=f"held out: {held_out}, undisturbed: {policy}",
                fix="record more episodes, or fewer with pushes",
            )
        return pool

    @cached_property
    def _prompts(self) -> list[str]:
        return [render(self.embodiment.model, text, fit=self.meta.fit) for text in self.meta.instructions]

    @property
    def plan_arguments(self) -> dict[str, Any]:
        """The embodiment's part of `tokens.plan_request`."""
        model = self.embodiment.model
        return {
            "chunk": model.chunk,
            "domain": model.domain_id,
            "raw_action_dim": model.width,
            "rate_hz": float(model.rate_hz),
            "state_row": model.state_row,
        }


def prepare(
    episodes: Iterable[SourceEpisode],
    embodiment: Embodiment,
    vae_folder: Path,
    folder: Path,
    *,
    hop: int = 1,
    workers: int = 0,
    log: Callable[[str], None] = print,
) -> Meta:
    """Writes `latents.f16`, `windows.npz` and `meta.json` to `folder`.

    `workers` processes of one thread each encode (0: this one does); the result is the same for any number.
    A window begins every `hop` rows. Where every block is absolute, windows run past the episode's end and
    hold its last row and frame; a delta may not be repeated, so other contracts get whole windows only.
    """
    model = embodiment.model
    if model.history:
        raise ContractError("contracts with history rows are not prepared yet", seen=embodiment.name)
    folder.mkdir(parents=True, exist_ok=True)
    holds = all(block.of_kind.reference == "absolute" for block in model.layout.blocks)
    normalizer = chunk_normalizer(model)
    actions, clean, episode_of, instruction_of = [], [], [], []
    instructions: dict[str, int] = {}
    fit: Fit | None = None
    shape: tuple[int, ...] = ()
    profiles: set[str] = set()
    windows = (_cut(episode, embodiment, holds, hop) for episode in episodes)
    with (folder / "latents.f16").open("wb") as out:
        for number, (cut, latents) in enumerate(_encoded(windows, vae_folder, model.chunk, workers)):
            out.write(latents.tobytes())
            fit = cut.fit
            if len(latents):
                shape = latents.shape[1:]
            profiles.add(cut.render_profile)
            for start in cut.starts:
                raw = encode_chunk(embodiment, cut.columns, start)
                actions.append(normalizer.to_model(raw).values.astype(np.float32))
                clean.append(not cut.disturbed[start : start + model.chunk].any())
                episode_of.append(number)
                instruction_of.append(instructions.setdefault(cut.instruction, len(instructions)))
            log(f"prepared episode {number}: {len(actions)} windows so far")
    if fit is None or not actions:
        raise WamError("no episode gave a window", expected=f"more than {model.chunk} rows")
    if len(profiles) > 1:
        raise WamError("pictures of several render profiles", seen=sorted(profiles), expected="one")
    np.savez(
        folder / "windows.npz",
        actions=np.stack(actions),
        clean=np.array(clean),
        episode=np.array(episode_of),
        instruction=np.array(instruction_of),
    )
    meta = Meta(
        contract=embodiment.name,
        model_hash=embodiment.model_hash,
        vae_hash=vae_hash(vae_folder),
        windows=len(actions),
        latent_shape=tuple(shape),
        action_shape=actions[0].shape,
        fit=fit,
        instructions=tuple(instructions),
        render_profile=profiles.pop(),
    )
    (folder / "meta.json").write_text(json.dumps(asdict(meta), indent=2))
    return meta


def open_prepared(
    folder: Path, embodiment: Embodiment, checkpoint: Checkpoint, reach: float = float("inf")
) -> Prepared:
    """The folder, if it was made for this contract and with this checkpoint's VAE.

    Windows with an action value beyond `reach`, in model space, are never drawn.
    """
    file = folder / "meta.json"
    if not file.is_file():
        raise WamError(f"no prepared data in {folder}", fix="wam prepare --help")
    table = json.loads(file.read_text())
    table["fit"] = Fit(**table["fit"])
    table |= {k: tuple(table[k]) for k in ("latent_shape", "action_shape", "instructions")}
    meta = Meta(**table)
    for what, seen, expected in (
        ("contract", meta.model_hash, embodiment.model_hash),
        ("VAE", meta.vae_hash, vae_hash(checkpoint.vae_folder)),
    ):
        if seen != expected:
            raise WamError(
                f"{folder} was prepared with another {what}", seen=seen[:12], expected=expected[:12],
                fix="prepare it again",
            )  # fmt: skip
    return Prepared(folder, meta, embodiment, reach)


def contract_name(folder: Path) -> str:
    """The contract a prepared folder is of."""
    return str(json.loads((folder / "meta.json").read_text())["contract"])


def load_vae(folder: Path) -> VideoVAE:
    return VideoVAE(open_vae(folder).eval())


def vae_hash(folder: Path) -> str:
    """sha256 over the VAE's configuration and weights as they lie on disk."""
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class _Cut:
    """An episode fitted to the tier, and the rows at which its windows begin."""

    columns: dict[str, np.ndarray]
    disturbed: np.ndarray  # bool [T]
    instruction: str
    render_profile: str
    pixels: np.ndarray  # uint8 [T, H, W, 3]
    fit: Fit
    starts: list[int]


def _cut(episode: SourceEpisode, embodiment: Embodiment, holds: bool, hop: int) -> _Cut:
    columns, canvas, disturbed = _extended(episode, embodiment, holds)
    frame = fit_frame(canvas, embodiment.model.canvas.tier)
    starts = list(range(0, len(canvas) - embodiment.model.chunk, hop))  # a window has chunk + 1 frames
    return _Cut(
        columns, disturbed, episode.instruction, episode.render_profile, frame.pixels, frame.fit, starts
    )


def _encoded(
    cuts: Iterable[_Cut], vae_folder: Path, chunk: int, workers: int
) -> Iterator[tuple[_Cut, np.ndarray]]:
    """Every cut with its windows' latents float16 [N, C, T, h, w], in order."""
    if not workers:
        for cut in cuts:
            yield cut, _encode_windows(vae_folder, cut.pixels, cut.starts, chunk, cut.fit)
        return
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        running: deque[tuple[_Cut, Future[np.ndarray]]] = deque()
        for cut in cuts:
            job = pool.submit(_encode_windows, vae_folder, cut.pixels, cut.starts, chunk, cut.fit)
            running.append((cut, job))
            if len(running) > 2 * workers:
                first, done = running.popleft()
                yield first, done.result()
        for first, done in running:
            yield first, done.result()


def _encode_windows(
    vae_folder: Path, pixels: np.ndarray, starts: list[int], chunk: int, fit: Fit
) -> np.ndarray:
    vae = _opened_vae(vae_folder)
    parts = []
    for first in range(0, len(starts), ENCODE_BATCH):
        clips = np.stack([pixels[s : s + chunk + 1] for s in starts[first : first + ENCODE_BATCH]])
        parts.append(_encode(vae, clips, fit).astype(np.float16))
    return np.concatenate(parts) if parts else np.empty(0, np.float16)


@lru_cache(maxsize=1)
def _opened_vae(folder: Path) -> VideoVAE:
    return load_vae(folder)


def _extended(
    episode: SourceEpisode, embodiment: Embodiment, holds: bool
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """The episode with its last row and frame held for one more chunk, where rows may be held."""
    more = embodiment.model.chunk if holds else 0

    def held(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.repeat(values[-1:], more, axis=0)]) if more else values

    columns = {name: held(np.asarray(values)) for name, values in episode.columns.items()}
    return columns, held(episode.canvas), held(episode.disturbed)


def _encode(vae: VideoVAE, clips: np.ndarray, fit: Fit) -> np.ndarray:
    """uint8 [B, F, H, W, 3] -> float32 [B, C, T, h, w], canvas padding cropped away."""
    pixels = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents = vae.encode_video(pixels)
    return crop_content(latents, (fit.content_height, fit.content_width)).float().numpy()

"""Episodes to training samples: action rows by contract, video latents computed once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from wamserve.action_codec.errors import ContractError, WamError
from wamserve.embodiments.adapters import encode_chunk
from wamserve.embodiments.canvas import Fit, fit_frame
from wamserve.embodiments.contract import Embodiment
from wamserve.embodiments.units import chunk_normalizer
from wamserve.policy_server.world_model.vae import VideoVAE, crop_content
from wamserve.training.crew import crew
from wamserve.training.prepared import Meta, Window, latents_file, write_windows
from wamserve.training.vae import open_vae

ENCODE_BATCH = 4  # windows at once


@dataclass(frozen=True, eq=False)
class SourceEpisode:
    """One episode at the contract's rate."""

    columns: Mapping[str, np.ndarray]  # the contract's dataset columns, [T, ...]
    canvas: np.ndarray  # uint8 [T, H, W, 3], composed but not yet fitted to the tier
    instruction: str
    disturbed: np.ndarray  # bool [T]: rows that no policy should imitate
    render_profile: str = ""  # of a simulator's pictures; "" for cameras


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
    holds = all(block.of_kind.reference == "absolute" for block in model.layout.blocks)
    normalizer = chunk_normalizer(model)
    rows: list[Window] = []
    fit: Fit | None = None
    shape: tuple[int, ...] = ()
    profiles: set[str] = set()
    windows = (_cut(episode, embodiment, holds, hop) for episode in episodes)
    with latents_file(folder) as out:
        for number, (cut, latents) in enumerate(_encoded(windows, vae_folder, model.chunk, workers)):
            out.write(latents.tobytes())
            fit = cut.fit
            if len(latents):
                shape = latents.shape[1:]
            profiles.add(cut.render_profile)
            for start in cut.starts:
                raw = encode_chunk(embodiment, cut.columns, start)
                clean = not cut.disturbed[start : start + model.chunk].any()
                rows.append(Window(normalizer.to_model(raw).values, number, cut.instruction, clean))
            log(f"prepared episode {number}: {len(rows)} windows so far")
    if fit is None or not rows:
        raise WamError("no episode gave a window", expected=f"more than {model.chunk} rows")
    if len(profiles) > 1:
        raise WamError("pictures of several render profiles", seen=sorted(profiles), expected="one")
    return write_windows(
        folder, rows, Meta.of(embodiment, vae_folder, shape, fit, render_profile=profiles.pop())
    )


def load_vae(folder: Path) -> VideoVAE:
    return VideoVAE(open_vae(folder).eval())


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
    with crew(workers) as pool:
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

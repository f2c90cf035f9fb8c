"""A prepared folder: windows of model-space actions and memory-mapped latents, ready to be drawn."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import safe_open

from wamserve.action_codec.errors import WamError
from wamserve.embodiments.canvas import Fit
from wamserve.embodiments.contract import Embodiment
from wamserve.embodiments.prompt import render
from wamserve.policy_server.world_model.checkpoint import Checkpoint

HOLD_OUT = 20  # every HOLD_OUT-th episode is for validation


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
    latent_shape: tuple[int, ...]  # C, T, h, w; T is 1 where there are first frames only
    action_shape: tuple[int, ...]  # rows (state row included), D
    fit: Fit
    instructions: tuple[str, ...]
    render_profile: str = ""  # of a simulator's pictures; "" for cameras

    @classmethod
    def of(
        cls,
        embodiment: Embodiment,
        vae_folder: Path,
        latent_shape: tuple[int, ...],
        fit: Fit,
        render_profile: str,
    ) -> Meta:
        """That of a folder whose windows are still to be written."""
        made = (embodiment.name, embodiment.model_hash, vae_hash(vae_folder))
        return cls(*made, 0, latent_shape, (), fit, (), render_profile)


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
    def still(self) -> bool:
        """Windows hold no frame but the first: there is a policy to be learned from them and no dynamics."""
        return self.meta.latent_shape[1] == 1

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
            "frames": self.meta.latent_shape[1],
        }


@dataclass(frozen=True)
class Window:
    """One entry of a prepared folder, its latents aside."""

    actions: np.ndarray  # [rows, D] model space
    episode: int  # every HOLD_OUT-th is held out, whole
    instruction: str
    clean: bool = True  # worth imitating


@contextmanager
def latents_file(folder: Path) -> Iterator[BinaryIO]:
    """Where a new folder's latents are written; they get their name when all are there.

    Raises WamError for a folder that holds a prepared set: somebody may be training on it.
    """
    if (folder / "meta.json").exists():
        raise WamError(
            f"{folder} holds prepared data already", seen=contract_name(folder), expected="a new folder",
            fix="another --out, or remove it",
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "latents.partial"
    with partial.open("wb") as out:
        yield out
    partial.replace(folder / "latents.f16")


def write_windows(folder: Path, windows: Sequence[Window], meta: Meta) -> Meta:
    """`windows.npz` and `meta.json` beside the `latents.f16` that is there; returns `meta` as written."""
    places = {text: i for i, text in enumerate(dict.fromkeys(window.instruction for window in windows))}
    np.savez(
        folder / "windows.npz",
        actions=np.stack([window.actions.astype(np.float32) for window in windows]),
        clean=np.array([window.clean for window in windows]),
        episode=np.array([window.episode for window in windows]),
        instruction=np.array([places[window.instruction] for window in windows]),
    )
    meta = replace(
        meta, windows=len(windows), action_shape=windows[0].actions.shape, instructions=tuple(places)
    )
    (folder / "meta.json").write_text(json.dumps(asdict(meta), indent=2))
    return meta


def open_prepared(
    folder: Path, embodiment: Embodiment, checkpoint: Checkpoint, reach: float = float("inf")
) -> Prepared:
    """The folder, if it was made for this contract and with this checkpoint's VAE.

    Windows with an action value beyond `reach`, in model space, are never drawn.
    """
    table = _meta(folder)
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
    return str(_meta(folder)["contract"])


def _meta(folder: Path) -> dict[str, Any]:
    file = folder / "meta.json"
    if not file.is_file():
        raise WamError(f"no prepared data in {folder}", fix="wam prepare --help, or wam label --help")
    return dict(json.loads(file.read_text()))


def vae_hash(folder: Path) -> str:
    """sha256 over what latents depend on: the VAE's configuration and its encoder. Another decoder is the
    same VAE to them."""
    if not (folder / "config.json").is_file():
        raise WamError(f"no VAE in {folder}", expected="config.json and weights", fix="wam train vae --help")
    digest = hashlib.sha256()
    config = json.loads((folder / "config.json").read_text())
    about = {name: value for name, value in config.items() if not name.startswith("_")}
    digest.update(json.dumps(about, sort_keys=True).encode())
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as weights:
            for name in sorted(weights.keys()):
                if name.startswith(("encoder.", "quant_conv.")):
                    digest.update(name.encode() + weights.get_tensor(name).tobytes())
    return digest.hexdigest()

"""The shapes of a policy call that is compared: what goes in, what comes out, how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wamserve.embodiments.canvas import Fit, canvas_fit, fit_size
from wamserve.embodiments.contract import Embodiment, load, load_file
from wamserve.embodiments.prompt import json_prompt, render
from wamserve.policy_server.card import ANY, CARD_FILE, PolicyCard, find_card
from wamserve.policy_server.world_model.config import SPATIAL_FACTOR
from wamserve.policy_server.world_model.tokens import RequestPlan, plan_request

INSTRUCTION = "lift the cube"  # where a contract leaves it to the request; the shipped weights learned it


@dataclass(frozen=True)
class CallShapes:
    """A policy call that diffusers' pipeline can make too: without state and history rows."""

    name: str  # of the contract
    picture: tuple[int, int]  # height, width in pixels: a size that neither side resizes
    tier: str
    viewpoint: str  # as prompts name it
    task: str  # the instruction alone
    words: str  # the whole prompt around it
    domain: int  # which rows of the action heads
    columns: int  # numbers per action row
    chunk: int  # action rows; the video has one frame more
    rate_hz: int  # action rows, and frames, per second
    steps: int
    guidance: float
    interval: tuple[float, float] | None = None  # the steps that the card guides; diffusers guides all
    state_row: bool = False  # whether a robot's call has a clean row of measured state before the chunk
    history: int = 0  # clean rows of past actions before that

    @property
    def fit(self) -> Fit:
        return fit_size(*self.picture, self.tier)

    @property
    def lead(self) -> list[str]:
        """What a robot's call has before its chunk, in words."""
        history = [f"{self.history} rows of history"] if self.history else []
        return history + (["the state row"] if self.state_row else [])

    def plan(self, lead: bool = False) -> RequestPlan:
        """The call's rows and frames. lead: with state and history, as a robot's call."""
        return plan_request(
            "policy", chunk=self.chunk, domain=self.domain, raw_action_dim=self.columns,
            rate_hz=self.rate_hz, state_row=lead and self.state_row, history=self.history if lead else 0,
        )  # fmt: skip

    def pixels(self, seed: int) -> np.ndarray:
        """uint8 [H, W, 3] of coloured blocks."""
        height, width = (side // SPATIAL_FACTOR for side in self.picture)
        coarse = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        return coarse.repeat(SPATIAL_FACTOR, axis=0).repeat(SPATIAL_FACTOR, axis=1)

    def line(self) -> str:
        """As a person says it."""
        height, width = self.picture
        return (
            f"{self.name}: picture {height} x {width} in tier {self.tier}, domain {self.domain}, "
            f"{self.chunk} rows of {self.columns} at {self.rate_hz} Hz, {self.steps} steps, "
            f"guidance {self.guidance:g}"
        )


def _droid() -> CallShapes:
    task, chunk, rate = "Put the banana in the bowl.", 32, 15
    words = json_prompt(task, "concat_view", "", frames=chunk + 1, fps=rate, height=544, width=736)
    return CallShapes(
        name="droid_lerobot of diffusers", picture=(528, 640), tier="480",  # latents as for DROID's 540
        viewpoint="concat_view", task=task, words=words, domain=8, columns=10, chunk=chunk, rate_hz=rate,
        steps=4, guidance=3.0, interval=(960.0, 1001.0),  # guides the first of four steps, as Edge's card
    )  # fmt: skip


DROID = _droid()  # every table it needs is diffusers' own


def contract_shapes(contract: Embodiment, card: PolicyCard) -> CallShapes:
    """Those of a contract, sampled as the card says. Raises CheckpointError where the card refuses it."""
    card.check_use(contract, "policy")
    model, sampling = contract.model, card.policy
    whole = canvas_fit(model.canvas)
    # diffusers rounds a picture down to whole latents before anything else.
    picture = (
        whole.content_height // SPATIAL_FACTOR * SPATIAL_FACTOR,
        whole.content_width // SPATIAL_FACTOR * SPATIAL_FACTOR,
    )
    task = model.instruction or INSTRUCTION
    return CallShapes(
        name=contract.name, picture=picture, tier=model.canvas.tier, viewpoint=model.viewpoint, task=task,
        words=render(model, task, fit=fit_size(*picture, model.canvas.tier)), domain=model.domain_id,
        columns=model.width, chunk=model.chunk, rate_hz=model.rate_hz, steps=sampling.steps,
        guidance=sampling.guidance, interval=None if sampling.guidance == 1.0 else sampling.interval,
        state_row=model.state_row, history=model.history,
    )  # fmt: skip


def folder_shapes(folder: Path, embodiment: str | None = None) -> CallShapes:
    """Those of the contract that the folder's card names; DROID's where no card says.

    embodiment: a contract's name or TOML file, for a card of several. Raises CheckpointError.
    """
    if embodiment is None and not (folder / CARD_FILE).is_file():
        return DROID
    card = find_card(folder, str(folder))
    if embodiment is None and all(entry.embodiment == ANY for entry in card.trained):
        return DROID
    name = embodiment or card.default_embodiment()
    return contract_shapes(load_file(name) if name.endswith(".toml") else load(name), card)

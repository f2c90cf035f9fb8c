"""The nouns of a policy call: Observation, Request, ActionChunk, Prediction, and the Policy protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from wamserve.action_codec.errors import PolicyError

Mode = Literal["policy", "fd", "id"]


@dataclass(frozen=True)
class Observation:
    """What the robot saw and felt at one instant, in the wire half of its contract."""

    images: Mapping[str, np.ndarray]  # view name -> uint8 [H, W, 3] RGB; the single view "canvas" = composed
    state: Mapping[str, np.ndarray]  # state name -> float [D], or [T, D] oldest first where history is used
    instruction: str = ""
    time: float = 0.0  # seconds on the sender's monotonic clock, when the images were taken


@dataclass(frozen=True)
class Request:
    """One question to a world-action model.

    policy: observation -> actions (and video on demand). fd: observation + actions -> video.
    id: video -> actions.
    """

    observation: Observation
    mode: Mode = "policy"
    actions: np.ndarray | None = None  # fd: [H, D] raw embodiment units
    video: np.ndarray | None = None  # id: uint8 [H + 1, h, w, 3] RGB canvas frames
    prefix: np.ndarray | None = None  # [P, D] raw rows already committed at the head of the chunk
    delay: int = 0  # control steps the sender expects to pass before the reply can be used
    seed: int | None = None  # None: the server draws one and echoes it
    steps: int | None = None  # overrides inside the card's bounds
    guidance: float | None = None
    want_video: bool = False
    session: str = ""
    step: int = 0  # control step of the session at which the observation was taken
    deadline_ms: float | None = None  # counted from arrival; past it the request is answered late


@dataclass(frozen=True)
class ActionChunk:
    """Actions to run from `start`, one row per control step."""

    actions: np.ndarray  # [H, D] raw embodiment units of the contract's reply
    start: float  # seconds on the sender's clock: time of the observation this chunk answers
    period: float  # seconds between rows
    delay: int = 0  # leading rows already in the past when the chunk left the server


@dataclass(frozen=True)
class Ledger:
    """Where the milliseconds of one request went, and how much network was run."""

    decode_ms: float = 0.0
    queue_ms: float = 0.0
    preprocess_ms: float = 0.0
    encode_ms: float = 0.0
    denoise_ms: float = 0.0
    postprocess_ms: float = 0.0
    reply_ms: float = 0.0
    forwards: int = 0  # denoiser evaluations, both guidance branches counted
    batch: int = 1  # requests that shared those forwards

    @property
    def infer_ms(self) -> float:
        """Engine time: preprocess + encode + denoise + postprocess."""
        return self.preprocess_ms + self.encode_ms + self.denoise_ms + self.postprocess_ms


@dataclass(frozen=True)
class Prediction:
    """The answer to a Request."""

    chunk: ActionChunk | None = None  # policy and id
    video: np.ndarray | None = None  # uint8 [T, h, w, 3] RGB canvas frames; fd always, policy on demand
    seed: int = 0  # the seed used
    ledger: Ledger = field(default_factory=Ledger)


@runtime_checkable
class Policy(Protocol):
    """Anything that answers requests: a model in this process or a server across the network."""

    def infer(self, request: Request) -> Prediction: ...

    def reset(self, session: str = "") -> None: ...


@runtime_checkable
class BatchPolicy(Policy, Protocol):
    """A policy that answers several requests in one go."""

    def infer_batch(self, requests: Sequence[Request]) -> list[Prediction]: ...


def infer_batch(policy: Policy, requests: Sequence[Request]) -> list[Prediction]:
    """Answers in order; one call where the policy can batch, one by one where it cannot.

    Raises PolicyError where the policy gives more or fewer answers than it was asked for.
    """
    together = getattr(policy, "infer_batch", None)  # isinstance() would look at the whole protocol each time
    if together is not None:
        answers = list(together(requests))
        if len(answers) != len(requests):
            raise PolicyError(
                "the policy answered another number of requests", seen=len(answers), expected=len(requests)
            )
        return answers
    return [policy.infer(request) for request in requests]

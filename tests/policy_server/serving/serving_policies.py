"""Policies that tests put into the engine process. The factory spec is "…/policies.py:NAME"."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from wamserve.action_codec.errors import RequestError
from wamserve.clients.policy import ActionChunk, Ledger, Prediction
from wamserve.embodiments.contract import load
from wamserve.policy_server.serving.served import Served

HERE = str(Path(__file__).resolve())


def spec(name: str) -> str:
    return f"{HERE}:{name}"


def rows_for(request, rows: int = 32, width: int = 8) -> np.ndarray:
    """Actions that only this request can have: a function of its seed, pixels and state."""
    pixels = sum(int(view[::16, ::16].astype(np.int64).sum()) for view in request.observation.images.values())
    state = sum(float(np.sum(row)) for row in request.observation.state.values())
    noise = np.random.RandomState(request.seed or 0).standard_normal((rows, width))
    return (noise + 1e-6 * pixels + state).astype(np.float32)


class Echo:
    """Answers at once with `rows_for`; prompts choose misbehaviour."""

    def __init__(self, embodiment: str = "", delay_s: float = 0.0, video_bytes: int = 0, **declared) -> None:
        self.embodiment = load(embodiment) if embodiment else None
        self.delay_s = delay_s
        self.video_bytes = video_bytes
        self.declared = declared
        self.on_step = None  # set by the engine process
        self.ahead: list[int] = []  # seeds it was told to expect

    def describe(self) -> dict:
        served = {"device": "cpu", "sampler": "echo", "weights_sha256": "e" * 64, "video": True}
        if self.embodiment is not None:
            served |= Served.of(self.embodiment)
        return (
            served
            | {
                "modes": ["policy", "fd", "id"],
                "steps": [1, 50],
                "guidance": [1.0, 7.0],
                "max_prefix_rows": 16,
            }
            | self.declared
        )

    def infer(self, request):
        return self.infer_batch([request])[0]

    def infer_batch(self, requests):
        for request in requests:
            words = request.observation.instruction
            if words == "expected?" and request.seed not in self.ahead:
                raise RequestError("nobody announced this seed", seen=request.seed)
            if words == "refuse me":
                raise RequestError("this instruction is refused", seen=words)
            if words == "break":
                raise ValueError("secret /root/model.py broke")
            if words.startswith("sleep "):
                time.sleep(float(words.split()[1]))
            if words == "hang" or (words == "hang rank 1" and os.environ.get("RANK") == "1"):
                time.sleep(3600)
            if words.startswith("steps "):
                for step in range(int(words.split()[1])):
                    time.sleep(0.5)
                    self.on_step(step, int(words.split()[1]))
            if words == "die rank 1" and os.environ.get("RANK") == "1":
                os.kill(os.getpid(), 9)
            if words == "die":
                os.kill(os.getpid(), 9)
        if self.delay_s:
            time.sleep(self.delay_s)
        return [self._answer(request) for request in requests]

    def _answer(self, request) -> Prediction:
        wire = self.embodiment.wire if self.embodiment is not None else None
        rows = rows_for(request, wire.chunk, wire.reply.width) if wire is not None else rows_for(request)
        if request.observation.instruction == "nan":
            rows[3, 2] = np.nan
        wants = request.want_video or self.video_bytes or request.mode == "fd"
        frames = max(3, self.video_bytes // 768)
        video = np.full((frames, 16, 16, 3), (request.seed or 0) % 256, np.uint8) if wants else None
        chunk = None
        if request.mode != "fd":
            chunk = ActionChunk(rows, request.observation.time, 1 / 15, request.delay)
        return Prediction(chunk, video, request.seed or 0, Ledger(denoise_ms=1.0, forwards=5))

    def draw_ahead(self, seed: int) -> None:
        self.ahead.append(seed)

    def reset(self, session: str = "") -> None:
        if session.endswith("/hang in reset"):
            time.sleep(3600)


class Instant(Echo):
    """One stored chunk for every request."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.prediction = Prediction(ActionChunk(np.zeros((32, 8), np.float32), 0.0, 1 / 15))

    def infer_batch(self, requests):
        if self.delay_s:
            time.sleep(self.delay_s)
        return [self.prediction] * len(requests)


class Busy(Echo):
    """Holds its interpreter lock and saturates every core for `busy_s` per batch."""

    def __init__(self, busy_s: float, **kwargs) -> None:
        super().__init__(**kwargs)
        self.busy_s = busy_s

    def infer_batch(self, requests):
        deadline = time.monotonic() + self.busy_s
        for _ in range(os.cpu_count() or 1):
            if os.fork() == 0:
                while time.monotonic() < deadline:
                    sum(range(1000))
                os._exit(0)
        hold_interpreter_lock(deadline)
        return super().infer_batch(requests)


def hold_interpreter_lock(deadline: float) -> None:
    """C calls of tens of milliseconds each: no other thread of this process runs in between."""
    big = 10**400_000
    while time.monotonic() < deadline:
        _ = big % 7919
        pow(3, 1_000_000, 10**2000)


def echo(**kwargs) -> Echo:
    return Echo(**kwargs)


def instant(**kwargs) -> Instant:
    return Instant(**kwargs)


def busy(**kwargs) -> Busy:
    return Busy(**kwargs)


def slow_load(load_s: float = 1.0, progress=None, **kwargs) -> Echo:
    for part in range(10):
        progress("weights", part / 10)
        time.sleep(load_s / 10)
    return Echo(**kwargs)


def broken(**kwargs):
    raise RequestError("the checkpoint is not there", fix="wam serve CHECKPOINT")


class Matrix(Echo):
    """A random two-layer network on numpy's BLAS: its bits depend on the batch shape, like a real one's.

    padded: rows of the one batch shape it runs; 0 runs each batch as it comes.
    """

    def __init__(self, padded: int = 0, **declared) -> None:
        super().__init__(**declared)
        self.padded = padded
        draw = np.random.default_rng(0)
        self.first = draw.standard_normal((263, 512)).astype(np.float32) / 16
        self.second = draw.standard_normal((512, 256)).astype(np.float32) / 22

    def infer_batch(self, requests):
        rows = np.zeros((max(self.padded, len(requests)), 263), np.float32)
        for row, request in zip(rows, requests, strict=False):
            row[:256] = np.random.RandomState(request.seed).standard_normal(256)
            row[256:] = request.observation.state["joint_position"]
        out = np.tanh(rows @ self.first) @ self.second
        return [
            Prediction(ActionChunk(out[i].reshape(32, 8), 0.0, 1 / 15), None, request.seed)
            for i, request in enumerate(requests)
        ]


def matrix(**kwargs) -> Matrix:
    return Matrix(**kwargs)

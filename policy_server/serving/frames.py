"""Requests and predictions as small messages between processes; their large arrays lie in shared memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from wamserve.action_codec import errors
from wamserve.action_codec.errors import PolicyError, WamError
from wamserve.clients.policy import ActionChunk, Ledger, Observation, Prediction, Request
from wamserve.policy_server.serving.shm import Arena

_INLINE_BYTES = 4096  # smaller arrays travel inside the message
_PLAIN = ("mode", "delay", "seed", "steps", "guidance", "want_video", "session", "step")


class Writer:
    """Puts the arrays of one message into an arena and remembers the blocks, to free them together.

    What lies there already stays, and is held until then.
    """

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.blocks: list[int] = []
        self._held: list[np.ndarray] = []

    def array(self, array: np.ndarray | None) -> Any:
        if array is None:
            return None
        if array.nbytes <= _INLINE_BYTES:
            return [array.dtype.str, array.shape, array.tobytes()]
        place = self.arena.place(array)
        if place is not None:
            self._held.append(array)
        else:
            place = self.arena.write(array)
            self.blocks.append(place)
        return [array.dtype.str, array.shape, place]

    def request(self, request: Request) -> dict[str, Any]:
        """Raises ArenaFull; what was written until then is in `blocks`."""
        seen = request.observation
        return {
            "images": {name: self.array(image) for name, image in seen.images.items()},
            "state": {name: self.array(state) for name, state in seen.state.items()},
            "instruction": seen.instruction,
            "time": seen.time,
            "actions": self.array(request.actions),
            "video": self.array(request.video),
            "prefix": self.array(request.prefix),
            **{name: getattr(request, name) for name in _PLAIN},
        }

    def prediction(self, prediction: Prediction) -> dict[str, Any]:
        chunk = prediction.chunk
        return {
            "chunk": None
            if chunk is None
            else [self.array(chunk.actions), chunk.start, chunk.period, chunk.delay],
            "video": self.array(prediction.video),
            "seed": int(prediction.seed),
            "ledger": vars(prediction.ledger),
        }

    def free(self) -> None:
        for block in self.blocks:
            self.arena.free(block)
        self.blocks.clear()
        self._held.clear()


class Reader:
    """Rebuilds the nouns; large arrays are read-only views unless `copy`."""

    def __init__(self, arena: Arena, copy: bool = False) -> None:
        self.arena = arena
        self.copy = copy
        self.blocks: list[int] = []  # what the writer may free once this message is done with

    def array(self, packed: Any) -> np.ndarray | None:
        return None if packed is None else self._array(packed)

    def _array(self, packed: Any) -> np.ndarray:
        dtype, shape, data = np.dtype(packed[0]), tuple(packed[1]), packed[2]
        if isinstance(data, bytes):
            return np.frombuffer(data, dtype).reshape(shape)
        self.blocks.append(data)
        view = self.arena.read(data, dtype, shape)
        return view.copy() if self.copy else view

    def request(self, packed: dict[str, Any]) -> Request:
        return Request(
            observation=Observation(
                images={name: self._array(image) for name, image in packed["images"].items()},
                state={name: self._array(state) for name, state in packed["state"].items()},
                instruction=packed["instruction"],
                time=packed["time"],
            ),
            actions=self.array(packed["actions"]),
            video=self.array(packed["video"]),
            prefix=self.array(packed["prefix"]),
            **{name: packed[name] for name in _PLAIN},
        )

    def prediction(self, packed: dict[str, Any]) -> Prediction:
        chunk = packed["chunk"]
        return Prediction(
            chunk=None if chunk is None else ActionChunk(self._array(chunk[0]), *chunk[1:]),
            video=self.array(packed["video"]),
            seed=packed["seed"],
            ledger=Ledger(**packed["ledger"]),
        )


def pack_error(error: BaseException) -> dict[str, str]:
    """A failure as it may leave the engine: our own errors in full, others by type only."""
    if isinstance(error, WamError):
        return {"kind": type(error).__name__, "what": str(error)}
    return {"kind": "PolicyError", "what": f"inference failed ({type(error).__name__}); see the server's log"}


def unpack_error(packed: dict[str, str]) -> WamError:
    kind = getattr(errors, packed["kind"], PolicyError)
    return kind(packed["what"]) if issubclass(kind, WamError) else PolicyError(packed["what"])

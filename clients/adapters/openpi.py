"""openpi's own interface over a Policy: dictionaries in, dictionaries out, one action at a time.

>>> policy = ActionChunkBroker(OpenpiPolicy(PolicyClient("ws://127.0.0.1:8000"), COSMOS), action_horizon=8)
>>> policy.infer(observation)["action"]  # [D], a row per call; asks the server every 8 calls
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from wamserve.action_codec.errors import PolicyError, RequestError
from wamserve.clients.plain import Plain
from wamserve.clients.policy import Observation, Policy, Request

# The keys under which servers of the openpi family send rows of actions.
ACTION_KEYS = ("actions", "action")


class DictPolicy(Protocol):
    """openpi_client.base_policy.BasePolicy."""

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]: ...

    def reset(self) -> None: ...


class OpenpiPolicy:
    """A Policy behind openpi's dictionaries, in a declared dialect."""

    def __init__(
        self,
        policy: Policy,
        plain: Plain,
        *,
        session: str = "",
        clock: Callable[[], float] = time.monotonic,
        **fields: Any,
    ) -> None:
        """`fields` are further fields of every Request, as in seed=0."""
        if not plain.reply:
            raise PolicyError(f"the {plain.name} dialect replies with a bare array, not a dictionary")
        self.policy = policy
        self.plain = plain
        self.session = session
        self._clock = clock
        self._fields = fields
        self._images = {key: name for name, key in plain.images.items()}
        self._states = {key: name for name, key in plain.states.items()}

    def infer(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """{reply key: [H, D], "server_timing": {"infer_ms": ...}}. RequestError for a key of no dialect's."""
        known = {*self._images, *self._states, "prompt"}
        if not set(obs) <= known or "prompt" not in obs:
            raise RequestError(
                f"not an observation of the {self.plain.name} dialect",
                seen=", ".join(sorted(obs)),
                expected=", ".join(sorted(known)),
            )
        observation = Observation(
            {name: np.asarray(obs[key]) for key, name in self._images.items() if key in obs},
            {name: np.asarray(obs[key]) for key, name in self._states.items() if key in obs},
            obs["prompt"],
            self._clock(),
        )
        prediction = self.policy.infer(Request(observation, session=self.session, **self._fields))
        if prediction.chunk is None:
            raise PolicyError("the policy answered without actions")
        timing = {"infer_ms": prediction.ledger.infer_ms}
        return {self.plain.reply: prediction.chunk.actions, "server_timing": timing}

    def reset(self) -> None:
        self.policy.reset(self.session)


class ActionChunkBroker:
    """Hands out a chunk one row per call, as openpi_client.action_chunk_broker does, slicing actions only.

    Everything else in the reply (video, timings, arrays of any shape) is handed out whole with every row.
    """

    def __init__(self, policy: DictPolicy, action_horizon: int) -> None:
        self._policy = policy
        self._horizon = action_horizon
        self._step = 0
        self._reply: dict[str, Any] | None = None
        self._keys: tuple[str, ...] = ()

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        """The reply with its actions [D] for this step. PolicyError for a chunk shorter than the horizon."""
        if self._reply is None:
            reply = self._policy.infer(obs)
            self._keys = tuple(key for key in ACTION_KEYS if key in reply)
            rows = min((len(reply[key]) for key in self._keys), default=0)
            if rows < self._horizon:
                raise PolicyError(
                    "the chunk is shorter than the horizon it is played for",
                    seen=f"{rows} rows in {', '.join(reply)}",
                    expected=f">= {self._horizon}",
                    fix=f"action_horizon={rows}" if rows else None,
                )
            self._reply, self._step = reply, 0
        now = {key: self._reply[key][self._step] for key in self._keys}
        out = {**self._reply, **now}
        self._step += 1
        if self._step >= self._horizon:
            self._reply = None
        return out

    def reset(self) -> None:
        self._policy.reset()
        self._reply = None

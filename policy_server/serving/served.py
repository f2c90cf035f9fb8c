"""What a server serves, as the engine declares it: plain data that any process can hold."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from wamserve.action_codec.errors import ContractError
from wamserve.clients.messages import Hello
from wamserve.clients.policy import Mode
from wamserve.embodiments import tables
from wamserve.embodiments.contract import Embodiment


@dataclass(frozen=True)
class Served:
    """The declaration of one loaded policy. Empty: the policy did not say."""

    embodiment: str = ""  # name of the contract
    contract: Mapping[str, Any] = field(default_factory=dict)  # all of it as plain nested data
    wire: Mapping[str, Any] = field(default_factory=dict)  # its wire half
    wire_sha256: str = ""
    model_sha256: str = ""
    period: float = 1 / 15  # seconds between rows of a chunk
    chunk_rows: int = 32
    card: Mapping[str, Any] = field(default_factory=dict)  # summary of the policy card, for people
    weights_sha256: str = ""
    sampler: str = ""  # as in "unipc 4 steps, shift 5, guidance 3"
    device: str = ""
    modes: tuple[Mode, ...] = ("policy",)
    steps: tuple[int, int] | None = None  # inclusive bounds of a request's override; None: none allowed
    guidance: tuple[float, float] | None = None
    max_prefix_rows: int = 0  # committed rows the policy can freeze at the head of a chunk
    video: bool = False  # predicted frames can be asked for
    composed: bool = False  # the policy wants one picture: serving composes the views while the engine works
    deterministic: bool = False  # equal seeds give equal bytes whatever shares the batch

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Served:
        """From what crossed a process boundary as msgpack. Raises ContractError for unknown names."""
        known = {item.name for item in dataclasses.fields(cls)}
        if unknown := set(plain) - known:
            raise ContractError(
                "a policy declares unknown fields", seen=sorted(unknown), expected=sorted(known)
            )
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        served = cls(**values)
        # Fails here, at the start, rather than at a request.
        contract = served.declared
        if contract is not None and served.wire_sha256 not in ("", contract.wire_hash):
            raise ContractError(
                "a policy declares another contract than its hash", seen=served.wire_sha256[:12]
            )
        return served

    @classmethod
    def of(cls, contract: Embodiment, **rest: Any) -> dict[str, Any]:
        """What a policy of `contract` declares, as plain data: for `describe()`."""
        plain = json.loads(tables.canonical(contract))
        return {
            "embodiment": contract.name,
            "contract": plain,
            "wire": plain["wire"],
            "wire_sha256": contract.wire_hash,
            "model_sha256": contract.model_hash,
            "period": 1.0 / contract.wire.rate_hz,
            "chunk_rows": contract.wire.chunk,
            **rest,
        }

    @cached_property
    def declared(self) -> Embodiment | None:
        """The contract itself; None where the policy declares none, and nothing can be checked."""
        return tables.build(Embodiment, _present(self.contract), "contract") if self.contract else None

    @property
    def reply_form(self) -> str:
        """What the rows of a chunk are, as in "joint_targets"; "" where undeclared."""
        return self.declared.wire.reply.form if self.declared is not None else ""

    def line(self) -> str:
        """The first line a server prints about a policy."""
        parts = [
            self.embodiment or "an undeclared embodiment",
            f"weights {self.weights_sha256[:12] or 'undeclared'}",
            f"contract {self.wire_sha256[:12] or 'undeclared'}",
            f"sampler {self.sampler or 'undeclared'}",
            f"on {self.device or 'an undeclared device'}",
        ]
        return "serving " + ", ".join(parts)

    def hello(self, server: str, *, jpeg: bool, max_message_bytes: int, max_in_flight: int) -> Hello:
        """The handshake of `wam.v1`."""
        return Hello(
            server=server,
            embodiment=self.embodiment,
            wire_sha256=self.wire_sha256,
            model_sha256=self.model_sha256,
            period=self.period,
            chunk_rows=self.chunk_rows,
            wire=self.wire,
            card={**self.card, "weights_sha256": self.weights_sha256},
            modes=self.modes,
            steps=self.steps,
            guidance=self.guidance,
            max_prefix_rows=self.max_prefix_rows,
            jpeg=jpeg,
            streaming=True,
            video=self.video,
            deterministic=self.deterministic,
            max_message_bytes=max_message_bytes,
            max_in_flight=max_in_flight,
        )


def _present(value: Any) -> Any:
    """Nested data without its None entries, as a TOML file would hold it."""
    if isinstance(value, Mapping):
        return {key: _present(item) for key, item in value.items() if item is not None}
    return [_present(item) for item in value] if isinstance(value, list | tuple) else value

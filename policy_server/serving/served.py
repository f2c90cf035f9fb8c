"""What a server serves, as the engine declares it: plain data that any process can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from wamserve.action_codec.errors import ContractError
from wamserve.clients.messages import Hello
from wamserve.clients.policy import Mode
from wamserve.embodiments import tables
from wamserve.embodiments.contract import WireHalf


@dataclass(frozen=True)
class Served:
    """The declaration of one loaded policy. Empty strings: the policy did not say."""

    embodiment: str = ""  # name of the contract
    wire: Mapping[str, Any] = field(default_factory=dict)  # wire half of the contract, canonical; {}: none
    wire_sha256: str = ""
    model_sha256: str = ""
    card: Mapping[str, Any] = field(default_factory=dict)  # summary of the policy card
    weights_sha256: str = ""
    sampler: str = ""  # as in "unipc 4 steps, shift 5, guidance 3"
    device: str = ""
    period: float = 1 / 15  # seconds between rows of a chunk
    chunk_rows: int = 32
    modes: tuple[Mode, ...] = ("policy",)
    steps: tuple[int, int] | None = None  # inclusive bounds of a request's override; None: none allowed
    guidance: tuple[float, float] | None = None
    max_prefix_rows: int = 0
    video: bool = False  # predicted frames can be asked for
    deterministic: bool = False

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Served:
        """From what crossed a process boundary as msgpack. Raises ContractError for unknown names."""
        known = {item.name for item in fields(cls)}
        if unknown := set(plain) - known:
            raise ContractError(
                "a policy declares unknown fields", seen=sorted(unknown), expected=sorted(known)
            )
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        return cls(**values)

    @property
    def wire_half(self) -> WireHalf | None:
        """The wire half as its dataclass; None where the policy declares no contract."""
        return tables.build(WireHalf, self.wire, self.embodiment or "contract") if self.wire else None

    @property
    def reply_form(self) -> str:
        """What the rows of a chunk are, as in "joint_targets"; "" where undeclared."""
        return str(self.wire["reply"]["form"]) if self.wire else ""

    def line(self) -> str:
        """The first line a server prints about a loaded policy."""
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

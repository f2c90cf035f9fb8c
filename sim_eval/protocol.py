"""The protocol card: every resolved value that could change a score, and its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from wamserve.sim_eval.task import TaskSpec

# What a comparison of two policies is about; everything else must be equal.
IDENTITY = ("policy.",)


@dataclass(frozen=True)
class PolicyIdentity:
    """Who answered, and how it sampled."""

    spec: str  # what was typed: "oracle", "noop", a checkpoint, a ws:// URL, "module:function"
    name: str = ""  # what the policy calls itself
    weights_sha256: str = ""
    sampler: Mapping[str, Any] = field(default_factory=dict)  # steps, guidance, shift, schedule, noise
    prompt_form: str = ""


@dataclass(frozen=True)
class LoopProtocol:
    """How the policy was asked and its chunks were played."""

    replan_horizon: int  # control steps between two questions
    strategy: str  # how the player switches chunks
    latency: str  # "0", milliseconds, or "measured"
    deterministic: bool = False


@dataclass(frozen=True)
class ProtocolCard:
    """Two scores are comparable when these fields are equal, `policy.*` apart."""

    suite: str
    tasks: tuple[TaskSpec, ...]
    init_states: tuple[int, ...]  # indices run for every task
    repeats: int  # rollouts per initial state
    seed: int  # of the run
    seed_rule: str  # how an episode's seed follows from the run's
    contract: str
    contract_model_sha256: str
    contract_wire_sha256: str
    policy: PolicyIdentity
    loop: LoopProtocol
    versions: Mapping[str, str] = field(default_factory=dict)  # package -> version
    format: int = 1

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types only; what run.json holds under "protocol"."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ProtocolCard:
        fields = dict(data)
        fields["tasks"] = tuple(
            TaskSpec(
                **{
                    **task,
                    "views": tuple((n, h, w) for n, h, w in task["views"]),
                    "states": tuple((n, d) for n, d in task["states"]),
                }
            )
            for task in data["tasks"]
        )
        fields["init_states"] = tuple(data["init_states"])
        fields["policy"] = PolicyIdentity(**data["policy"])
        fields["loop"] = LoopProtocol(**data["loop"])
        return cls(**fields)

    def flat(self) -> dict[str, Any]:
        """Dotted field -> JSON scalar or list; tasks go by name: "tasks.robosuite/Lift.rate_hz"."""
        tree = self.to_json()
        tree["tasks"] = {task.pop("name"): task for task in tree["tasks"]}
        out: dict[str, Any] = {}

        def walk(prefix: str, value: Any) -> None:
            if isinstance(value, dict):
                for key, inner in value.items():
                    walk(f"{prefix}.{key}" if prefix else key, inner)
            else:
                out[prefix] = value

        walk("", tree)
        return out

    @property
    def sha256(self) -> str:
        """Of the canonical JSON of all fields, the policy included: one run's identity."""
        return _sha256(self.flat())

    @property
    def comparable_sha256(self) -> str:
        """Equal for two runs that may be compared: everything but who answered."""
        return _sha256({k: v for k, v in self.flat().items() if not k.startswith(IDENTITY)})

    def differences(
        self, other: ProtocolCard, across: tuple[str, ...] = (), policy: bool = False
    ) -> dict[str, tuple[Any, Any]]:
        """Fields in which two cards differ: dotted name -> (mine, theirs), None where one lacks it.

        `across` names fields (or dotted prefixes) that may differ; `policy` includes who answered.
        """
        mine, theirs = self.flat(), other.flat()
        skip = tuple(across) if policy else (*across, *IDENTITY)
        return {
            key: (mine.get(key), theirs.get(key))
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
            and not any(key == s or key.startswith(s if s.endswith(".") else s + ".") for s in skip)
        }


def _sha256(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

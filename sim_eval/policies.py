"""Who is scored: a name, a checkpoint, an address or a factory, resolved to a Policy and what it declares."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import numpy as np

from wamserve.action_codec.errors import ContractError, PolicyError
from wamserve.clients.client import PolicyClient
from wamserve.clients.policy import ActionChunk, Policy, Prediction, Request
from wamserve.clients.wam_v1 import Hello
from wamserve.embodiments import tables
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval.render import Profile

# Loads a checkpoint folder or Hub id as a Policy. Named, not imported: scoring knows no model.
CHECKPOINT_FACTORY = "wamserve.policy_server.load:load_policy"


@dataclass(frozen=True)
class Facts:
    """What a policy says about itself."""

    contract: str = ""  # embodiment; "" where it does not say
    wire_sha256: str = ""
    model_sha256: str = ""
    privileged: bool = False  # it looks at what only a simulator knows
    sighted: bool = True  # it looks at images
    max_prefix_rows: int = 0  # committed rows it can freeze at the head of a chunk
    batch_invariant: bool = False  # neighbours in a batch cannot change a bit of an answer
    card: Mapping[str, Any] = field(default_factory=dict)  # weights_sha256, sampler, ...

    @property
    def render_profile(self) -> Profile | None:
        """The simulator pictures it learned from; None where its card does not say, or names no profile."""
        said = self.card.get("render_profile")
        return said if said in get_args(Profile) else None


def facts_of(policy: Policy) -> Facts:
    """From a served policy's hello, or from the attributes of one in this process."""
    hello = getattr(policy, "hello", None)
    if hello is None and hasattr(policy, "connect"):
        policy.connect()
        hello = getattr(policy, "hello", None)
    if hello is not None:
        card = dict(hello.card)
        return Facts(
            contract=hello.embodiment,
            wire_sha256=hello.wire_sha256,
            model_sha256=hello.model_sha256,
            privileged=bool(card.get("privileged", False)),
            max_prefix_rows=hello.max_prefix_rows,
            batch_invariant=bool(hello.deterministic),
            card=card,
        )
    contract: Embodiment | None = getattr(policy, "contract", None)
    served = policy.describe() if hasattr(policy, "describe") else {}
    card = dict(served.get("card", {}))
    card |= {k: served[k] for k in ("weights_sha256", "sampler") if served.get(k)}
    return Facts(
        contract=contract.name if contract else "",
        wire_sha256=contract.wire_hash if contract else "",
        model_sha256=contract.model_hash if contract else "",
        privileged=bool(getattr(policy, "privileged", False)),
        sighted=bool(getattr(policy, "sighted", True)),
        max_prefix_rows=int(served.get("max_prefix_rows", 0)),
        batch_invariant=bool(served.get("deterministic", False)),
        card=card,
    )


def resolve(spec: str, contract: Embodiment | None, task: str) -> Policy:
    """The policy `spec` names: noop, oracle, ws:// or wss:// URL, module:function, checkpoint.

    `contract` is the task's: noop and oracle are made for it, a checkpoint is served as it. A factory is
    called with no arguments.
    """
    if spec == "noop":
        if contract is None:
            raise PolicyError(
                "noop must know how this robot holds still",
                seen=f"{task} without a contract",
                fix="--contract NAME, or --policy module:function",
            )
        return NoopPolicy(contract)
    if spec == "oracle":
        from wamserve.sim_eval.oracles.policy import oracle_for

        return oracle_for(task, contract)
    if spec.startswith(("ws://", "wss://")):
        return RemotePolicy(spec, contract)
    if ":" in spec and not Path(spec).exists():
        return _call(spec)
    return _call(CHECKPOINT_FACTORY, spec, embodiment=contract.name if contract else None)


def _call(path: str, *args: Any, **options: Any) -> Policy:
    module, _, function = path.partition(":")
    try:
        factory = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise PolicyError(
            f"no policy at {path}",
            seen=str(error),
            expected="oracle, noop, ws://host:port, module:function or a checkpoint",
        ) from None
    policy = factory(*args, **options)
    if not isinstance(policy, Policy):
        raise PolicyError(f"{path} made no policy", seen=type(policy).__name__, expected="infer and reset")
    return policy


class RemotePolicy:
    """A served policy. Each question of a batch takes a connection of its own, so the server can batch."""

    def __init__(self, uri: str, contract: Embodiment | None) -> None:
        self._uri, self._contract = uri, contract
        self._clients: list[PolicyClient] = [PolicyClient(uri, contract=contract)]
        self._threads = ThreadPoolExecutor(64, thread_name_prefix="wam-policy")

    def connect(self) -> Any:
        return self._clients[0].connect()

    @property
    def hello(self) -> Hello | None:
        return self._clients[0].hello

    def infer(self, request: Request) -> Prediction:
        return self._clients[0].infer(request)

    def infer_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        while len(self._clients) < len(requests):
            self._clients.append(PolicyClient(self._uri, contract=self._contract))
        waiting = [
            self._threads.submit(client.infer, request)
            for client, request in zip(self._clients, requests, strict=False)
        ]
        return [future.result() for future in waiting]

    def reset(self, session: str = "") -> None:
        self._clients[0].reset(session)


def declare(contract: Embodiment, name: str, **rest: Any) -> dict[str, Any]:
    """What a scripted policy of that contract answers to `describe`, so that a server can serve it."""
    plain = json.loads(tables.canonical(contract))
    return {
        "embodiment": contract.name,
        "contract": plain,
        "wire": plain["wire"],
        "wire_sha256": contract.wire_hash,
        "model_sha256": contract.model_hash,
        "period": 1.0 / contract.wire.rate_hz,
        "chunk_rows": contract.wire.chunk,
        "card": {"name": name, **rest},
        "sampler": "scripted",
        "device": "cpu",
        "deterministic": True,
    }


class NoopPolicy:
    """Keeps the robot where it is: the floor every score must beat. It must fail every task."""

    sighted = False

    def __init__(self, contract: Embodiment) -> None:
        self.contract = contract
        self._positions = {"joint_targets": "joint_position", "position_targets": "agent_pos"}

    def infer(self, request: Request) -> Prediction:
        wire, state = self.contract.wire, request.observation.state
        row = np.zeros(wire.reply.width)
        if wire.reply.form in self._positions:
            name = self._positions[wire.reply.form]
            if name not in state:
                raise ContractError(f"noop needs the state {name!r}", seen=", ".join(state))
            here = np.asarray(state[name], dtype=np.float64).reshape(-1)
            row[: here.size] = here
        elif wire.reply.form not in ("osc_deltas", "pose_deltas"):
            raise ContractError("noop cannot hold this robot", seen=wire.reply.form)
        for gripper in wire.reply.grippers:
            row[gripper.index] = gripper.meaning.opened
        rows = np.tile(row, (wire.chunk, 1))
        return Prediction(
            ActionChunk(rows, request.observation.time, 1.0 / wire.rate_hz), seed=request.seed or 0
        )

    def infer_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        return [self.infer(request) for request in requests]

    def reset(self, session: str = "") -> None: ...

    def describe(self) -> dict[str, Any]:
        return declare(self.contract, "noop")

"""Recorded conversations sent again, frame by frame, and what came back compared with what came then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from wamserve.clients import wire
from wamserve.policy_server.serving.record import Recording, recordings

# What differs between two runs of the same server and says nothing about its answers.
_VOLATILE = frozenset({"server_timing", "policy_timing", "ledger", "connection"})


@dataclass(frozen=True)
class Comparison:
    """One reply now and then."""

    largest: float  # largest |difference| of any number; inf where the replies are of different form
    what: str  # where, in words; "" where equal


def replay_folder(folder: Path, uri: str, token: str | None, tolerance: float, timeout_s: float) -> int:
    """Replays every conversation, one after the other, and prints one line each. 1 where any differs."""
    worst, differing, replies = 0.0, 0, 0
    for path, recording in recordings(folder):
        results = list(_replay(recording, uri, token, timeout_s))
        largest = max((result.largest for result in results), default=0.0)
        bad = [result for result in results if result.largest > tolerance]
        worst, differing, replies = max(worst, largest), differing + len(bad), replies + len(results)
        first = f"; first: {bad[0].what}" if bad else ""
        print(
            f"{path.name}: {len(results)} replies, {len(bad)} differ, largest {largest:g}{first}", flush=True
        )
    print(f"{replies} replies, {differing} differ by more than {tolerance:g}, largest difference {worst:g}")
    return 1 if differing or not replies else 0


def _replay(recording: Recording, uri: str, token: str | None, timeout_s: float) -> Iterator[Comparison]:
    """Sends and receives in the recorded order."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    protocols = [Subprotocol(recording.subprotocol)] if recording.subprotocol else None
    with connect(
        uri.rstrip("/") + recording.path,
        compression=None,
        max_size=None,
        additional_headers=headers,
        subprotocols=protocols,
    ) as websocket:
        for _, side, frame in recording.frames:
            try:
                if side == "client":
                    websocket.send(frame)
                else:
                    yield compare(frame, _receive(websocket, timeout_s))
            except TimeoutError:
                yield Comparison(float("inf"), f"no reply within {timeout_s:g} s")
                return
            except ConnectionClosed as error:
                yield Comparison(float("inf"), f"the server closed the connection: {error}")
                return


def _receive(websocket: ClientConnection, timeout_s: float) -> bytes | str:
    """The next frame that is not load progress, which no two runs share."""
    while True:
        frame = websocket.recv(timeout_s)
        if isinstance(frame, str) or b"\xa7loading" not in frame[:32]:
            return frame


def compare(then: bytes | str, now: bytes | str) -> Comparison:
    """Two frames; times and ledgers are passed over."""
    if isinstance(then, str) or isinstance(now, str):
        return (
            Comparison(0.0, "")
            if then == now
            else Comparison(float("inf"), f"{then!r:.80} then, {now!r:.80} now")
        )
    return _compare(wire.decode(then), wire.decode(now), "reply")


def _compare(then: Any, now: Any, where: str) -> Comparison:
    if isinstance(then, dict) and isinstance(now, dict):
        keys = (then.keys() | now.keys()) - _VOLATILE
        missing = [key for key in keys if key not in then or key not in now]
        if missing:
            return Comparison(float("inf"), f"{where} has other keys: {sorted(missing)}")
        parts = [_compare(then[key], now[key], f"{where}.{key}") for key in sorted(keys)]
        return max(parts, key=lambda part: part.largest, default=Comparison(0.0, ""))
    if isinstance(then, np.ndarray) and isinstance(now, np.ndarray):
        if then.shape != now.shape or then.dtype != now.dtype:
            return Comparison(
                float("inf"), f"{where}: {then.dtype} {then.shape} then, {now.dtype} {now.shape} now"
            )
        if then.dtype.kind in "biuf" and then.size:
            difference = float(np.max(np.abs(then.astype(np.float64) - now.astype(np.float64))))
            # NaN equals nothing, and must not pass as a small number.
            difference = float("inf") if np.isnan(difference) else difference
            return Comparison(difference, f"{where} by {difference:g}" if difference else "")
        then, now = then.tolist(), now.tolist()
    return (
        Comparison(0.0, "")
        if then == now
        else Comparison(float("inf"), f"{where}: {then!r:.60} then, {now!r:.60} now")
    )


__all__ = ["Comparison", "compare", "replay_folder"]

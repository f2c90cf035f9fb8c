"""Frames of every conversation on disk, as they crossed the wire, for `wam replay`."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import msgpack
from websockets.asyncio.server import ServerConnection

from wamserve.action_codec.errors import RunError

logger = logging.getLogger("wamserve.serving")

Side = Literal["client", "server"]
SUFFIX = ".wamrec"


@dataclass(frozen=True)
class Recording:
    """One conversation: where it connected, and its frames in order."""

    path: str  # of the URL
    subprotocol: str
    frames: list[tuple[float, Side, bytes | str]]  # seconds since the epoch, sender, frame


class Recorder:
    """Writes in a thread of its own, so that a slow disk delays no reply; drops frames, and says so, when
    the disk cannot follow. Tokens are not written."""

    def __init__(self, folder: Path, max_bytes: int = 256 * 2**20) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.max_bytes = max_bytes  # of frames that wait to be written
        self.dropped = 0
        self._waiting_bytes = 0
        self._queue: queue.SimpleQueue[tuple[str, object] | None] = queue.SimpleQueue()
        self._start = time.strftime("%Y%m%d-%H%M%S")
        self._thread = threading.Thread(target=self._write, name="recorder", daemon=True)
        self._thread.start()

    def opened(self, name: str, websocket: ServerConnection) -> None:
        path = websocket.request.path if websocket.request is not None else "/"
        self._put(name, {"path": path, "subprotocol": websocket.subprotocol or ""})

    def frame(self, name: str, side: Side, frame: bytes | str | memoryview) -> None:
        if self._waiting_bytes + len(frame) > self.max_bytes:
            self.dropped += 1
            if self.dropped == 1:
                logger.warning(json.dumps({"event": "recording drops frames", "folder": str(self.folder)}))
            return
        self._waiting_bytes += len(frame)
        self._put(name, [time.time(), side, bytes(frame) if isinstance(frame, memoryview) else frame])

    def closed(self, name: str) -> None:
        self._put(name, None)

    def finish(self) -> None:
        self._queue.put(None)
        self._thread.join(timeout=30)

    def _put(self, name: str, item: object) -> None:
        self._queue.put((name, item))

    def _write(self) -> None:
        files: dict[str, BinaryIO] = {}
        while (entry := self._queue.get()) is not None:
            name, item = entry
            if item is None:
                if name in files:
                    files.pop(name).close()
                continue
            if name not in files:
                files[name] = open(self.folder / f"{self._start}-{name}{SUFFIX}", "ab")  # noqa: SIM115
            files[name].write(msgpack.packb(item))
            files[name].flush()
            if isinstance(item, list):
                self._waiting_bytes -= len(item[2])
        for file in files.values():
            file.close()


def recordings(folder: Path) -> Iterator[tuple[Path, Recording]]:
    """Every conversation in a folder, in the order they began. Raises RunError where there is none."""
    paths = sorted(
        folder.glob(f"*{SUFFIX}"), key=lambda path: (path.name.rsplit("-c", 1)[0], len(path.name), path)
    )
    if not paths:
        raise RunError(
            f"no recorded conversation in {folder}", expected=f"files *{SUFFIX}", fix="wam serve --record DIR"
        )
    for path in paths:
        yield path, read(path)


def read(path: Path) -> Recording:
    """One file; a last entry cut short by a crash is left out."""
    with path.open("rb") as file:
        entries = list(msgpack.Unpacker(file, max_buffer_size=0))
    if not entries or not isinstance(entries[0], dict):
        raise RunError(f"{path} is not a recording")
    frames = [(float(when), side, frame) for when, side, frame in entries[1:]]
    return Recording(entries[0]["path"], entries[0]["subprotocol"], frames)

"""Length-prefixed msgpack messages over a socket pair: control between serving and engine, both trusted."""

from __future__ import annotations

import select
import socket
import struct
from typing import Any

import msgpack

_HEADER = struct.Struct("<I")
Message = dict[str, Any]


def pack(message: Message) -> bytes:
    body = msgpack.packb(message)
    return _HEADER.pack(len(body)) + body


class Framer:
    """Bytes as they arrive in, whole messages out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        # One message, as nearly always.
        if not self._buffer and int.from_bytes(data[: _HEADER.size], "little") == len(data) - _HEADER.size:
            return [msgpack.unpackb(memoryview(data)[_HEADER.size :])]
        self._buffer += data
        messages = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer, start)
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            messages.append(msgpack.unpackb(bytes(self._buffer[start + _HEADER.size : end])))
            start = end
        del self._buffer[:start]
        return messages


class Channel:
    """The engine's end: blocking, one thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._framer = Framer()
        self._waiting: list[Message] = []

    def send(self, message: Message) -> None:
        self._socket.sendall(pack(message))

    def idle(self) -> bool:
        """True when no message waits."""
        return not self._waiting and not select.select([self._socket], [], [], 0.0)[0]

    def receive(self) -> Message | None:
        """The next message; None once the other end is gone."""
        while not self._waiting:
            data = self._socket.recv(1 << 16)
            if not data:
                return None
            self._waiting = self._framer.feed(data)
        return self._waiting.pop(0)

"""Receives a camera frame where it stays: from the socket into one buffer of its final size."""

from __future__ import annotations

import asyncio
from collections.abc import Generator

import numpy as np
from websockets.asyncio.connection import Connection
from websockets.streams import StreamReader

# Above, the declared size of a frame is not believed before its bytes arrive: 512 connections that claim
# 64 MiB each and send nothing must not cost memory.
_LARGE, _TOO_LARGE = 2**16, 2**22
_SMALL = 2**14  # bytes received at once outside of a large payload; its first ones come with the header


class FrameReader(StreamReader):
    """websockets' reader appends what arrives to one growing buffer and cuts each payload out of it; at two
    megabytes a request those moves cost more than decoding does. Put in place by `install`."""

    rest: memoryview | None = None  # what is still missing of the payload being received

    def read_exact(self, n: int) -> Generator[None, None, bytearray]:
        if not _LARGE <= n <= _TOO_LARGE:
            return (yield from super().read_exact(n))
        payload = np.empty(n, np.uint8).data  # a bytearray would be zeroed first
        here = min(len(self.buffer), n)
        payload[:here] = self.buffer[:here] if here < len(self.buffer) else self.buffer
        del self.buffer[:here]
        self.rest = payload[here:]
        try:
            while self.rest:
                if self.eof:
                    missing = len(self.rest)
                    raise EOFError(f"stream ends {missing} bytes before the end of a payload of {n} bytes")
                yield
        finally:
            self.rest = None
        return payload  # type: ignore[return-value]  # unmasked at once, which takes any buffer

    def feed_data(self, data: bytes | bytearray) -> None:
        if not self.rest:
            super().feed_data(data)
            return
        if self.eof:
            raise EOFError("stream ended")
        here = min(len(self.rest), len(data))
        arrived = memoryview(data)
        self.rest[:here] = arrived[:here]
        self.rest = self.rest[here:]
        if here < len(data):
            self.buffer += arrived[here:]


class Intake(asyncio.BufferedProtocol):
    """Between a transport and its connection: lets the socket write into the payload that is being read."""

    def __init__(self, connection: Connection, reader: FrameReader) -> None:
        self._connection = connection
        self._reader = reader
        self._small = memoryview(bytearray(_SMALL))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.rest or self._small

    def buffer_updated(self, nbytes: int) -> None:
        rest = self._reader.rest
        if not rest:
            self._connection.data_received(bytes(self._small[:nbytes]))
            return
        self._reader.rest = rest[nbytes:]
        if nbytes == len(rest):
            self._connection.data_received(b"")

    def eof_received(self) -> None:
        self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()


def install(connection: Connection) -> None:
    """Turns a connection's reader, between two messages, into this kind; both keep the same buffer."""
    reader = connection.protocol.reader
    if type(reader) is StreamReader:
        reader.__class__ = FrameReader
        assert isinstance(reader, FrameReader)
        connection.transport.set_protocol(Intake(connection, reader))

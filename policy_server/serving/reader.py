"""Receives a camera frame where it stays: from the socket into memory the engine reads, unmasked there."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Generator

import numpy as np
from websockets.asyncio.connection import Connection
from websockets.frames import apply_mask
from websockets.streams import StreamReader

# Above, the declared size of a frame is not believed before its bytes arrive: 512 connections that claim
# 64 MiB each and send nothing must not cost memory.
_LARGE, _TOO_LARGE = 2**16, 2**22
_SMALL = 2**14  # bytes received at once outside of a large payload; its first ones come with the header
_PIECE = 2**18  # bytes received at once inside of one: unmasked while the processor's cache holds them
_WHOLE_BINARY = 0x82  # first byte of a binary message in one frame, as pictures are sent


def _private(nbytes: int) -> np.ndarray:
    return np.empty(nbytes, np.uint8)  # a bytearray would be zeroed first


def _nothing() -> None: ...


class Payload:
    """A large payload on its way into its memory."""

    def __init__(self, block: np.ndarray, mask: bytes = b"") -> None:
        """block: uint8, at an address that 8 divides. mask: of 4 bytes; without one it stays as it comes."""
        self.block = block
        self.rest: memoryview = block.data  # what is still missing
        self._words = block[: len(block) // 8 * 8].view(np.uint64)
        self._mask = np.frombuffer(2 * mask, np.uint8)
        self._unmasked = 0  # words

    def arrived(self, nbytes: int) -> None:
        """The first `nbytes` of `rest` have been written."""
        self.rest = self.rest[nbytes:]
        if not len(self._mask):
            return
        words = self._words[self._unmasked : (len(self.block) - len(self.rest)) // 8]
        np.bitwise_xor(words, self._mask.view(np.uint64), out=words)
        self._unmasked += len(words)
        if not self.rest:
            last = self.block[8 * self._unmasked :]
            np.bitwise_xor(last, self._mask[: len(last)], out=last)


class FrameReader(StreamReader):
    """websockets' reader appends what arrives to one growing buffer, cuts each payload out of it and unmasks
    into another; at two megabytes a request those moves cost more than decoding does. Put in place by
    `install`.

    A payload that is a whole message is kept in `whole`. What websockets sees of it is `ticket`, a word that
    no client can know: its own unmasking would copy the message, and so would its joining of frames.
    """

    filling: Payload | None = None
    room: Callable[[int], np.ndarray] = staticmethod(_private)
    ticket: bytes = b""  # none: every payload goes through websockets
    whole: deque[memoryview]
    _first: int | None = 0  # byte of the frame that is being read; None: it is the next to be read
    _mask = b""  # of this frame once its payload is next: the mask comes right before

    @property
    def rest(self) -> memoryview | None:
        """What is still missing of the payload being received."""
        return self.filling.rest if self.filling is not None else None

    def at_eof(self) -> Generator[None, None, bool]:
        self._first = None  # asked between two frames
        return (yield from super().at_eof())

    def read_exact(self, n: int) -> Generator[None, None, bytearray]:
        if not _LARGE <= n <= _TOO_LARGE:
            data = yield from super().read_exact(n)
            if self._first is None:
                self._first = data[0]
            self._mask = bytes(data) if n == 4 else b""
            return data
        is_whole = bool(self.ticket) and self._first == _WHOLE_BINARY and len(self._mask) == 4
        payload = self.filling = Payload(self.room(n), self._mask if is_whole else b"")
        here = min(len(self.buffer), n)
        payload.rest[:here] = self.buffer[:here] if here < len(self.buffer) else self.buffer
        del self.buffer[:here]
        payload.arrived(here)
        try:
            while payload.rest:
                if self.eof:
                    missing = len(payload.rest)
                    del payload  # the connection keeps the error, which keeps this frame
                    raise EOFError(f"stream ends {missing} bytes before the end of a payload of {n} bytes")
                yield
        finally:
            self.filling = None
        if is_whole:
            self.whole.append(payload.block.data.toreadonly())
            return bytearray(apply_mask(self.ticket, self._mask))
        return payload.block.data  # type: ignore[return-value]  # unmasked at once, which takes any buffer

    def feed_data(self, data: bytes | bytearray) -> None:
        if self.filling is None or not self.filling.rest:
            super().feed_data(data)
            return
        if self.eof:
            raise EOFError("stream ended")
        here = min(len(self.filling.rest), len(data))
        arrived = memoryview(data)
        self.filling.rest[:here] = arrived[:here]
        self.filling.arrived(here)
        if here < len(data):
            self.buffer += arrived[here:]


class Intake(asyncio.BufferedProtocol):
    """Between a transport and its connection: lets the socket write into the payload that is being read."""

    def __init__(self, connection: Connection, reader: FrameReader, coming: Callable[[], None]) -> None:
        self._connection = connection
        self._reader = reader
        self._coming = coming
        self._small = memoryview(bytearray(_SMALL))

    def message(self, message: bytes | str) -> bytes | str | memoryview:
        """A message of the connection as it was sent."""
        return self._reader.whole.popleft() if message == self._reader.ticket else message

    def end(self) -> None:
        """No message will be asked for any more: the memory of those that wait is free again."""
        self._reader.whole = deque(maxlen=0)

    def get_buffer(self, sizehint: int) -> memoryview:
        rest = self._reader.rest
        return rest[:_PIECE] if rest else self._small

    def buffer_updated(self, nbytes: int) -> None:
        filling = self._reader.filling
        if filling is None or not filling.rest:
            self._connection.data_received(bytes(self._small[:nbytes]))
            return
        half = len(filling.block) // 2
        filling.arrived(nbytes)
        if len(filling.rest) < half <= len(filling.rest) + nbytes:
            self._coming()
        if not filling.rest:
            self._connection.data_received(b"")

    def eof_received(self) -> None:
        self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)
        self._reader.filling = None

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()


def install(
    connection: Connection,
    room: Callable[[int], np.ndarray] = _private,
    coming: Callable[[], None] = _nothing,
) -> Intake:
    """Turns a connection's reader, between two messages, into this kind; both keep the same buffer.

    room: memory for a payload of so many bytes. coming: called when half of a payload is here.
    """
    reader = connection.protocol.reader
    reader.__class__ = FrameReader
    assert isinstance(reader, FrameReader)
    reader.room, reader.ticket, reader.whole = room, secrets.token_bytes(16), deque()
    intake = Intake(connection, reader, coming)
    connection.transport.set_protocol(intake)
    return intake

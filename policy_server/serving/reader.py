"""Receives a camera frame into one buffer of its final size."""

from __future__ import annotations

from collections.abc import Generator

from websockets.streams import StreamReader

# Above, the declared size of a frame is not believed before its bytes arrive: 512 connections that claim
# 64 MiB each and send nothing must not cost memory.
_LARGE, _TOO_LARGE = 2**16, 2**22


class FrameReader(StreamReader):
    """websockets' reader appends what arrives to one growing buffer and cuts each payload out of it; at two
    megabytes a request those moves cost more than decoding does. Put in place by `install`."""

    _rest: memoryview | None = None  # what is still missing of the payload being received

    def read_exact(self, n: int) -> Generator[None, None, bytearray]:
        if not _LARGE <= n <= _TOO_LARGE:
            return (yield from super().read_exact(n))
        payload = bytearray(n)
        here = min(len(self.buffer), n)
        payload[:here] = self.buffer[:here] if here < len(self.buffer) else self.buffer
        del self.buffer[:here]
        self._rest = memoryview(payload)[here:]
        try:
            while self._rest:
                if self.eof:
                    missing = len(self._rest)
                    raise EOFError(f"stream ends {missing} bytes before the end of a payload of {n} bytes")
                yield
        finally:
            self._rest = None
        return payload

    def feed_data(self, data: bytes | bytearray) -> None:
        if not self._rest:
            super().feed_data(data)
            return
        if self.eof:
            raise EOFError("stream ended")
        here = min(len(self._rest), len(data))
        arrived = memoryview(data)
        self._rest[:here] = arrived[:here]
        self._rest = self._rest[here:]
        if here < len(data):
            self.buffer += arrived[here:]


def install(reader: StreamReader) -> None:
    """Turns a connection's reader, between two messages, into this kind; both keep the same buffer."""
    if type(reader) is StreamReader:
        reader.__class__ = FrameReader

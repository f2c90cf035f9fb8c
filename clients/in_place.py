"""Large array data of a message, left where it was received while msgpack reads the rest."""

from __future__ import annotations

import secrets

# Where openpi's array marker holds data of 64 KiB or more: the key, then msgpack's bin with a 32-bit length.
_LARGE_DATA = b"\xc4\x04data\xc6"
_LARGE = 2**16
_WINDOW = 1024  # bytes after the last large data in which the next one is looked for
# What stands for it meanwhile: msgpack's fixext of 16 bytes, twelve of which no sender knows.
_STAND_IN = b"\xd8\x00"
_SECRET = secrets.token_bytes(12)


def set_aside(data: bytes | bytearray | memoryview) -> tuple[bytes, list[memoryview]]:
    """The message with stand-ins for its large array data, and that data; empty where it has none.

    Msgpack would copy every image. The search only guesses; what it found is large data if and only if
    msgpack meets each stand-in as a value, in order (`stands_for`): up to the first one it reads the same
    bytes in the same state as it would in the message itself, and so on from one to the next.
    """
    view = memoryview(data).toreadonly()
    large: list[memoryview] = []
    if view.nbytes < _LARGE or view.ndim != 1 or view.itemsize != 1:
        return b"", large
    pieces: list[bytes | memoryview] = []
    at = 0
    while True:
        window = bytes(view[at : at + _WINDOW])
        before, _, rest = window.partition(_LARGE_DATA)
        length = int.from_bytes(rest[:4], "big")
        start = at + len(before) + len(_LARGE_DATA) + 4
        if not _LARGE <= length <= view.nbytes - start:
            pieces.append(view[at:])
            return b"".join(pieces), large
        pieces += [before, _LARGE_DATA[:-1], _STAND_IN, stands_for(len(large))]
        large.append(view[start : start + length])
        at = start + length


def stands_for(number: int) -> bytes:
    """What msgpack hands over where large data `number` was."""
    return _SECRET + number.to_bytes(4, "big")


def own(value: object) -> object:
    """Large data outside of an array marker is bytes like any other."""
    return bytes(value) if type(value) is memoryview else value

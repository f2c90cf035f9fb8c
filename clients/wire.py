"""Bytes of the openpi wire: msgpack with numpy arrays in it, and a decoder that is safe on hostile bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgpack
import numpy as np

from wamserve.action_codec.errors import WireError
from wamserve.clients.in_place import own, set_aside, stands_for
from wamserve.clients.jpeg import Jpeg


@dataclass(frozen=True)
class Limits:
    """How much one message may cost before it is refused."""

    message_bytes: int = 64 * 2**20  # whole frame
    items: int = 16_384  # elements of all lists and maps of a message together; arrays count as one map
    list_items: int = 2048  # elements of one list: msgpack allocates it as soon as its header claims them
    depth: int = 32  # containers inside containers


LIMITS = Limits()

# Marker keys are msgpack *bin*, in this order: the bytes openpi-client writes.
_ARRAY, _SCALAR, _JPEG = b"__ndarray__", b"__npgeneric__", b"__jpeg__"

_OPENPI_ARRAY_KEYS = frozenset({_ARRAY, b"data", b"dtype", b"shape"})
_ARRAY_KEYS = frozenset({"__ndarray__", "data", "dtype", "shape"})
_SCALAR_KEYS = frozenset({"__npgeneric__", "data", "dtype"})
_JPEG_KEYS = frozenset({"__jpeg__", "data", "shape"})
# The msgpack-numpy package: arrays have nd = true, scalars nd = false and neither kind nor shape.
_MSGPACK_NUMPY_ARRAY_KEYS = frozenset({"nd", "type", "kind", "shape", "data"})
_MSGPACK_NUMPY_SCALAR_KEYS = frozenset({"nd", "type", "data"})
_MARKERS = frozenset({"__ndarray__", "__npgeneric__", "__jpeg__"})

# Nothing else reaches np.dtype: no objects, no structures, no complex numbers, no zero-width strings, no
# dates without a unit (which numpy cannot print).
_DTYPE = re.compile(
    r"[<>|=]?(b1|[iu][1248]|f[248]|[US][1-9][0-9]{0,3}|[mM]8\[([1-9][0-9]{0,3})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])"
)
_MAX_NDIM = 16


def encode(message: object, *, jpeg: bool = False) -> bytes:
    """`message` as msgpack, byte for byte what openpi-client 0.1.2 would send.

    Numpy arrays and scalars of kind b, i, u, f, U, S, m, M become marker maps. With `jpeg`, `Jpeg` values
    may occur: only peers that agreed to it (`wam.v1`) can read them.
    Raises WireError for anything else: objects, complex or structured arrays, sets, datetimes, tensors.
    """

    def default(value: object) -> object:
        if isinstance(value, np.ndarray | np.generic):
            if value.dtype.kind not in "biufUSmM":
                raise WireError(
                    "numpy data of this dtype cannot be sent",
                    seen=value.dtype,
                    expected="bool, integer, float, text or datetime",
                )
            if isinstance(value, np.ndarray):
                # A view spares a copy of every image; msgpack reads it in C order.
                plain = value.dtype.kind in "biuf" and value.flags.c_contiguous
                data = value.data if plain else value.tobytes()
                return {_ARRAY: True, b"data": data, b"dtype": value.dtype.str, b"shape": value.shape}
            return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
        if isinstance(value, Jpeg):
            if not jpeg:
                raise WireError("JPEG images were not agreed on", fix="jpeg=True in wam.v1")
            return {_JPEG: True, b"data": value.data, b"shape": value.shape}
        raise WireError(
            "a value of this type cannot be sent",
            seen=type(value).__name__,
            expected="numpy array, number, str, bytes, bool, None, list or dict",
        )

    try:
        return msgpack.packb(message, default=default)
    except WireError:
        raise
    except Exception as error:  # msgpack raises TypeError, ValueError, OverflowError by turns
        raise WireError(f"the message cannot be encoded: {error}") from error


def decode(data: object, limits: Limits = LIMITS, *, jpeg: bool = False) -> Any:
    """The value in one msgpack message. Arrays are read-only views of the received bytes.

    Understands markers keyed by bin (openpi) or str (vllm-omni), and those of the msgpack-numpy package.
    Raises WireError, and nothing else, for any bytes that are not one well-formed message within `limits`.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise WireError("a message is bytes", seen=type(data).__name__, expected="one binary frame")
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    if size > limits.message_bytes:
        raise WireError("the message is too large", seen=f"{size} B", expected=f"<= {limits.message_bytes} B")
    short, large = set_aside(data)
    if large:
        try:
            return _unpacked(short, _Budget(limits, jpeg, large))
        except WireError:
            pass  # hostile, or what looked like large data was not: the message itself says which
    return _unpacked(data, _Budget(limits, jpeg))


def _unpacked(data: bytes | bytearray | memoryview, budget: _Budget) -> Any:
    limits = budget.limits
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_hook=budget.map,
            list_hook=budget.list,
            max_array_len=limits.list_items,
            max_map_len=limits.items,
            max_ext_len=16 if budget.large else 0,
            ext_hook=budget.stand_in,
        )
    except WireError:
        raise
    except Exception as error:
        raise WireError(f"the bytes are not one msgpack message: {_short(error)}") from error
    if budget.met != len(budget.large):
        raise WireError("large data lies inside of another value")
    # Fewer containers than the depth allows cannot be nested too deep.
    if budget.containers > limits.depth:
        _check_depth(value, limits.depth)
    return value


def decode_map(data: object, limits: Limits = LIMITS, *, jpeg: bool = False) -> dict[str, Any]:
    """As `decode`, for the messages of every dialect: a map with text keys."""
    value = decode(data, limits, jpeg=jpeg)
    if not isinstance(value, dict):
        raise WireError(
            "the message is not a map", seen=type(value).__name__, expected="a map with text keys"
        )
    return value


class _Budget:
    """Msgpack's hooks, called innermost container first; they count, and turn marker maps into arrays."""

    def __init__(self, limits: Limits, jpeg: bool, large: Sequence[memoryview] = ()) -> None:
        self.limits = limits
        self.jpeg = jpeg
        self.large = large  # what stand-ins stand for
        self.met = 0
        self.containers = 0
        self.items = 0

    def stand_in(self, code: int, data: bytes) -> memoryview:
        if self.met < len(self.large) and data == stands_for(self.met):
            self.met += 1
            return self.large[self.met - 1]
        raise WireError("msgpack extension types are refused", seen=f"type {code}")

    def _count(self, length: int) -> None:
        self.containers += 1
        # Every container costs one item, so that a million empty lists are refused too.
        self.items += length + 1
        if self.items > self.limits.items:
            raise WireError("the message has too many items", expected=f"<= {self.limits.items}")

    def list(self, value: list[Any]) -> list[Any]:
        self._count(len(value))
        return [own(item) for item in value] if self.large and memoryview in map(type, value) else value

    def map(self, value: dict[Any, Any]) -> Any:
        self._count(0)
        if len(value) == 4 and _ARRAY in value and value.keys() == _OPENPI_ARRAY_KEYS:  # the common case
            return array_from(value[b"data"], value[b"dtype"], value[b"shape"], self.limits)
        if self.large and memoryview in map(type, value.values()):
            value = {key: own(item) for key, item in value.items()}
        if all(type(key) is str for key in value) and _MARKERS.isdisjoint(value) and "nd" not in value:
            self.items += len(value)
            return value
        fields: dict[str, Any] = {}
        for key, item in value.items():
            name = key.decode("ascii", "replace") if isinstance(key, bytes) else key
            if name in fields:
                raise WireError("a map holds one key twice, as bin and as str", seen=name[:40])
            fields[name] = item
        keys = fields.keys()
        if "__ndarray__" in fields:
            _expect_keys(keys, _ARRAY_KEYS)
            return array_from(fields["data"], fields["dtype"], fields["shape"], self.limits)
        if "__npgeneric__" in fields:
            _expect_keys(keys, _SCALAR_KEYS)
            return _scalar_from(fields["data"], fields["dtype"])
        if "__jpeg__" in fields:
            _expect_keys(keys, _JPEG_KEYS)
            return self._jpeg(fields["data"], fields["shape"])
        if keys == _MSGPACK_NUMPY_ARRAY_KEYS:
            if fields["kind"] not in (b"", ""):
                raise WireError("msgpack-numpy objects and structures are refused", expected="kind ''")
            return array_from(fields["data"], fields["type"], fields["shape"], self.limits)
        if keys == _MSGPACK_NUMPY_SCALAR_KEYS:
            return array_from(fields["data"], fields["type"], [], self.limits)[()]
        if any(type(key) is not str for key in value):
            raise WireError("map keys must be text", seen=", ".join(sorted(fields))[:60])
        self.items += len(value)
        return value

    def _jpeg(self, data: object, shape: object) -> Jpeg:
        if not self.jpeg:
            raise WireError("JPEG images were not agreed on", expected="uint8 arrays")
        dims = _shape_from(shape)
        if len(dims) != 3 or dims[2] != 3 or not isinstance(data, bytes):
            raise WireError("not a JPEG image", seen=dims, expected="bytes with shape [H, W, 3]")
        if math.prod(dims) > self.limits.message_bytes:
            raise WireError("the JPEG image is too large", seen=dims)
        return Jpeg(data, (dims[0], dims[1], 3))


def array_from(data: object, dtype: object, shape: object, limits: Limits = LIMITS) -> np.ndarray:
    """A read-only array over `data`, after everything numpy would take on trust has been checked."""
    kind = _dtype_from(dtype)
    dims = _shape_from(shape)
    if not isinstance(data, bytes | memoryview):
        raise WireError("array data must be bytes", seen=type(data).__name__)
    expected = math.prod(dims) * kind.itemsize
    # Zero-sized dimensions must not hide absurd ones; otherwise the data bounds them.
    if expected == 0 and math.prod(max(dim, 1) for dim in dims) * kind.itemsize > limits.message_bytes:
        raise WireError("the array is too large", seen=f"{kind.str} {list(dims)}")
    if len(data) != expected:
        raise WireError(
            "array data does not fit its shape",
            seen=f"{len(data)} B for {kind.str} {list(dims)}",
            expected=f"{expected} B",
        )
    try:
        array: np.ndarray = np.ndarray(dims, kind, buffer=data)
    except Exception as error:
        raise WireError(f"not an array: {_short(error)}", seen=f"{kind.str} {list(dims)}") from error
    if not array.flags.aligned:  # numbers that lie in the message wherever they happened to
        array = array.copy()
        array.flags.writeable = False
    if kind.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise WireError("a bool array holds bytes other than 0 and 1")
    if kind.kind == "U" and array.size:
        codes = np.frombuffer(data, np.dtype("u4").newbyteorder(kind.byteorder))
        if codes.max() > 0x10FFFF or ((codes >= 0xD800) & (codes < 0xE000)).any():
            raise WireError("a text array holds code points that are not characters")
    return array


@lru_cache(maxsize=256)
def _known_dtype(name: str) -> np.dtype:
    if len(name) > 24 or _DTYPE.fullmatch(name) is None:
        raise WireError(
            "this array dtype is refused", seen=name[:24], expected="bool, integer, float, text or datetime"
        )
    try:
        return np.dtype(name)
    except Exception as error:
        raise WireError(f"not an array dtype: {_short(error)}", seen=name) from error


def _dtype_from(name: object) -> np.dtype:
    if not isinstance(name, str):
        raise WireError("an array dtype is text", seen=type(name).__name__, expected="as in '<f4'")
    return _known_dtype(name)


def _shape_from(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > _MAX_NDIM:
        raise WireError("an array shape is a short list", expected=f"<= {_MAX_NDIM} dimensions")
    for dim in shape:
        if type(dim) is not int or not 0 <= dim < 2**40:
            raise WireError("an array dimension is not a size", seen=_short(dim))
    return tuple(shape)


# What msgpack hands over for a scalar of each numpy kind.
_PYTHON_OF_KIND: dict[str, tuple[type, ...]] = {
    "b": (bool,),
    "i": (int,),
    "u": (int,),
    "f": (float, int),
    "U": (str,),
    "S": (bytes,),
}


def _scalar_from(data: object, dtype: object) -> np.generic:
    kind = _dtype_from(dtype)
    if type(data) not in _PYTHON_OF_KIND.get(kind.kind, ()):
        raise WireError("scalar data does not fit its dtype", seen=f"{type(data).__name__} as {kind.str}")
    if kind.kind in "iu":
        bounds = np.iinfo(kind)
        if not bounds.min <= data <= bounds.max:  # type: ignore[operator]
            raise WireError("an integer does not fit its dtype", seen=f"{data} as {kind.str}")
    try:
        with np.errstate(all="ignore"):
            return kind.type(data)
    except Exception as error:
        raise WireError(f"not a scalar: {_short(error)}", seen=kind.str) from error


def _expect_keys(seen: Any, expected: frozenset[str]) -> None:
    if seen != expected:
        raise WireError(
            "an array marker has the wrong keys",
            seen=", ".join(sorted(seen))[:80],
            expected=", ".join(sorted(expected)),
        )


def _check_depth(value: object, depth: int) -> None:
    layer = [value]
    for _ in range(depth):
        layer = [
            item
            for container in layer
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not layer:
            return
    if any(isinstance(item, dict | list) for item in layer):
        raise WireError("the message is nested too deep", expected=f"<= {depth} levels")


def _short(value: object) -> str:
    text = (str(value) or type(value).__name__) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

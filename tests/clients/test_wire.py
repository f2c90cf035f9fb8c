"""The codec is openpi's, byte for byte, and no bytes can hurt it."""

import contextlib
import hashlib
import importlib.util
import json
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wamserve.action_codec.errors import WireError
from wamserve.clients import wire
from wamserve.clients.jpeg import Jpeg

HOSTILE = {  # what a safe server refuses; the rest of the hand-made ones are read
    "raw_object_dtype_segfault",
    "raw_void_dtype",
    "raw_complex_dtype",
    "raw_short_buffer",
    "raw_long_buffer",
    "raw_negative_shape",
    "raw_huge_shape",
    "raw_bad_dtype_str",
    "raw_missing_data",
    "raw_int_map_key",
    "bytes_not_msgpack_c1",
    "bytes_empty_message",
    "bytes_trailing_bytes",
    "bytes_truncated",
    "bytes_top_level_list",
}


def golden(shared):
    """(fixture, bytes) of every binary frame that is stored."""
    folder = shared / "golden" / "wire"
    listed = json.loads((folder / "fixtures.json").read_text())["fixtures"]
    found = [(item, folder / item["file"]) for item in listed if item["file"].endswith(".bin")]
    return [(item, path.read_bytes()) for item, path in found if path.exists()]


def described(value):
    """A decoded value in the words of fixtures.json."""
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(value.tobytes()).hexdigest()
        return {
            "ndarray": True,
            "dtype": value.dtype.str,
            "shape": list(value.shape),
            "sha256_C_order": digest,
        }
    if isinstance(value, np.generic):
        return {"npgeneric": True, "dtype": value.dtype.str, "value": str(value.item())}
    if isinstance(value, dict):
        return {key: described(item) for key, item in value.items()}
    if isinstance(value, list):
        return [described(item) for item in value]
    return value


def openpi_packb(value):
    """openpi-client's encoder, as its documentation of the bytes has it: the independent side of the test."""

    def default(obj):
        if isinstance(obj, np.ndarray | np.generic) and obj.dtype.kind in "VOc":
            raise ValueError(f"Unsupported dtype: {obj.dtype}")
        if isinstance(obj, np.ndarray):
            head = {b"__ndarray__": True, b"data": obj.tobytes()}
            return {**head, b"dtype": obj.dtype.str, b"shape": obj.shape}
        if isinstance(obj, np.generic):
            return {b"__npgeneric__": True, b"data": obj.item(), b"dtype": obj.dtype.str}
        return obj

    return msgpack.packb(value, default=default)


def test_golden_frames_decode_equal_and_encode_byte_equal(shared):
    checked = 0
    for item, data in golden(shared):
        name = Path(item["file"]).stem
        if name.startswith(("raw_", "bytes_")):
            continue
        value = wire.decode(data)
        plain = "is_plain" in name  # np.float64 and np.str_ leave as Python's own
        assert plain or described(value) == item["content"], name
        assert wire.encode(value) == data, name
        checked += 1
    assert checked >= 35


def test_hostile_frames_are_refused(shared):
    refused = set()
    for item, data in golden(shared):
        name = Path(item["file"]).stem
        if name in HOSTILE:
            with pytest.raises(WireError):
                wire.decode_map(data)
            refused.add(name)
    assert refused == {Path(item["file"]).stem for item, _ in golden(shared)} & HOSTILE
    assert len(refused) >= 10


def test_markers_are_known_by_their_key_whatever_its_type_and_value(shared):
    files = {Path(item["file"]).stem: data for item, data in golden(shared)}
    for name in ("raw_ndarray_flag_false", "raw_str_keyed_marker"):
        value = wire.decode(files[name])
        assert isinstance(value, np.ndarray) and value.dtype == np.float32 and value.shape == (1,)


def test_the_documented_bytes_of_a_small_array():
    expected = """84 c40b 5f5f6e6461727261795f5f c3 c404 64617461 c408 0000803f00000040
                  c405 6474797065 a3 3c6634 c405 7368617065 91 02"""
    assert wire.encode(np.array([1, 2], "f4")) == bytes.fromhex(expected)


def test_msgpack_numpy_markers_are_read_and_its_objects_refused():
    array = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2], b"data": b"\0\0\x80\x3f" * 2}
    assert wire.decode(msgpack.packb(array)).tolist() == [1.0, 1.0]
    scalar = {"nd": False, "type": "<i8", "data": (7).to_bytes(8, "little")}
    assert wire.decode(msgpack.packb(scalar)) == 7
    for kind in (b"O", b"V"):
        with pytest.raises(WireError):
            wire.decode(msgpack.packb({**array, b"kind": kind}))


def test_arrays_are_read_only_views():
    array = wire.decode(wire.encode({"a": np.arange(3)}))["a"]
    assert not array.flags.writeable
    with pytest.raises(ValueError):
        array[0] = 1


def test_fortran_order_and_slices_are_sent_in_c_order():
    base = np.arange(12, dtype="f4").reshape(3, 4)
    for array in (np.asfortranarray(base), base[:, ::2], base.T, base[1:1]):
        assert wire.encode(array) == openpi_packb(array)
        np.testing.assert_array_equal(wire.decode(wire.encode(array)), array)


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array([1j]),
        np.zeros(1, "V8"),
        np.zeros(1, "f4,f4"),
        np.complex64(1),
        {1, 2},
        object(),
        2**64,
        {"s": "\ud800"},
        np.datetime64("2026-01-01"),
    ],
    ids=str,
)
def test_what_cannot_be_read_safely_is_not_sent(value):
    with pytest.raises(WireError):
        wire.encode({"a": value})


def marker(dtype="<f4", shape=(1,), data=b"\0" * 4):
    return msgpack.packb({b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape})


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("|O", [1], b"\0" * 8),
        ("<f4", [2], b"\0" * 4),
        ("<f4", [1], b"\0" * 8),
        ("<f4", [-1], b"\0" * 4),
        ("<f4", [2**62, 2**62, 0], b""),
        ("<f4", [0, 2**39], b""),
        ("<f4", [True], b"\0" * 4),
        ("<f4", [1.0], b"\0" * 4),
        ("<f4", "1", b"\0" * 4),
        ("<f4", [1] * 17, b"\0" * 4),
        ("<f4,<f4", [1], b"\0" * 8),
        ("(2,)<f4", [1], b"\0" * 8),
        ("<f16", [1], b"\0" * 16),
        ("|S0", [2**30], b""),
        ("<U1", [1], b"\xff\xff\xff\x7f"),
        ("<U1", [1], b"\x00\xd8\x00\x00"),
        ("|b1", [1], b"\x02"),
        ("<M8", [1], b"\1" * 8),
        ("float32", [1], b"\0" * 4),
        (b"<f4", [1], b"\0" * 4),
        ("<f4", [1], "text"),
        ("<f4", [1], [0, 0, 0, 0]),
    ],
)
def test_array_claims_are_checked_before_numpy_sees_them(dtype, shape, data):
    with pytest.raises(WireError):
        wire.decode(marker(dtype, shape, data))


@pytest.mark.parametrize(
    "message",
    [
        {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"},
        {b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"},
        {b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"},
        {b"__npgeneric__": True, b"data": 1, b"dtype": "|O"},
        {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [0], b"more": 1},
        {b"__ndarray__": True, "__ndarray__": True},
        {b"key": 1},
    ],
)
def test_malformed_markers_and_keys_are_refused(message):
    with pytest.raises(WireError):
        wire.decode(msgpack.packb(message))


def test_a_message_can_cost_no_more_than_its_limits():
    wire.decode(msgpack.packb([[0] * 2000] * 8))
    bombs = {
        "many items": msgpack.packb([[0] * 2000] * 9),
        "a long list": msgpack.packb([0] * 2049),
        "many empty lists": msgpack.packb([[[]] * 2000] * 9),
        "many empty maps": msgpack.packb([[{}] * 2000] * 9),
        "a list that claims 4 Gi items": b"\xdd\xff\xff\xff\xff",
        "nested claims": b"\xdc\x40\x00" * 1000,
        "depth": b"\x91" * 33 + b"\xc0",
        "depth of thousands": b"\x91" * 5000 + b"\xc0",
        "deep maps": b"\x81\xa1a" * 40 + b"\xc0",
        "an extension": b"\xd4\x01\x00",
        "a timestamp": b"\xd6\xff\0\0\0\0",
    }
    for name, bomb in bombs.items():
        with pytest.raises(WireError):
            wire.decode(bomb)
            pytest.fail(name)
    with pytest.raises(WireError, match="too large"):
        wire.decode(bytes(1001), wire.Limits(message_bytes=1000))
    assert wire.decode(b"\x91" * 32 + b"\xc0") is not None
    with pytest.raises(WireError):
        wire.decode("text")


def test_jpeg_is_read_only_where_it_was_agreed():
    pytest.importorskip("PIL")
    ramp = np.broadcast_to(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (64, 48, 3))
    with pytest.raises(WireError, match="agreed"):
        wire.encode({"image": Jpeg.from_array(ramp)})
    data = wire.encode({"image": Jpeg.from_array(ramp)}, jpeg=True)
    with pytest.raises(WireError, match="agreed"):
        wire.decode(data)
    image = wire.decode(data, jpeg=True)["image"].to_array()
    assert image.shape == ramp.shape and np.abs(image.astype(int) - ramp).max() <= 4
    for lie in (Jpeg(Jpeg.from_array(ramp).data, (48, 64, 3)), Jpeg(b"\xff\xd8\xff", (64, 48, 3))):
        with pytest.raises(WireError):
            lie.to_array()


numbers = st.sampled_from(["<f4", "<f8", "<f2", ">f4", "|u1", "<i2", "<i8", "<u8", "|b1", "<U3", "|S4"])
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | arrays.arrays(numbers, arrays.array_shapes(min_dims=0, min_side=0, max_side=4))
)
keys = st.text(max_size=6).filter(lambda key: key not in ("__ndarray__", "__npgeneric__", "__jpeg__", "nd"))
messages = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4)
)


def same(a, b):
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.tobytes() == b.tobytes()
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@settings(max_examples=300, deadline=None)
@given(messages)
def test_messages_survive_the_round_trip_and_are_openpis_bytes(message):
    data = wire.encode(message)
    assert data == openpi_packb(message)
    assert same(wire.decode(data), message)


@settings(max_examples=2000, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_wire_error(data):
    with contextlib.suppress(WireError):
        wire.decode(data, jpeg=True)


def test_the_fuzzer_finds_nothing_in_twenty_thousand_inputs():
    spec = importlib.util.spec_from_file_location("fuzz_wire", Path(__file__).with_name("fuzz_wire.py"))
    fuzz_wire = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz_wire)
    counts = fuzz_wire.fuzz(20_000, seed=7)
    assert counts["crash"] == 0
    assert counts["decoded"] > 500 and counts["message"] > 100, "the fuzzer must reach past the refusals"

"""Large arrays stay in the received bytes, and a message means what it meant without that."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wamserve.action_codec.errors import WireError
from wamserve.clients import in_place, wire

PICTURE = np.arange(200 * 200 * 3, dtype=np.uint32).astype(np.uint8).reshape(200, 200, 3)
CLAIM = b"\xc4\x04data\xc6\x00\x01\x00\x00"  # what large data begins with, here inside of something else


def marker(data, dtype="|u1", shape=None):
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape or [len(data)]}


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_large_arrays_are_views_of_the_message(kind):
    data = kind(
        wire.encode({"a": PICTURE, "small": np.ones(3, np.float32), "b": PICTURE + 1, "prompt": "go"})
    )
    received = np.frombuffer(data, np.uint8)
    value = wire.decode(data)
    assert list(value) == ["a", "small", "b", "prompt"] and value["prompt"] == "go"
    for name, expected in (("a", PICTURE), ("b", PICTURE + 1)):
        np.testing.assert_array_equal(value[name], expected)
        assert np.shares_memory(value[name], received) and not value[name].flags.writeable
    assert value["small"].tolist() == [1.0, 1.0, 1.0]


def test_numbers_that_lie_at_odd_addresses_are_aligned_when_they_come_out():
    for pad in range(8):
        array = wire.decode(wire.encode({"p" * pad: 0, "a": np.arange(70_000, dtype=np.float64)}))["a"]
        assert array.flags.aligned and not array.flags.writeable
        assert array.tobytes() == np.arange(70_000, dtype=np.float64).tobytes()


@pytest.mark.parametrize(
    "message",
    [
        {"a": CLAIM + bytes(2**17)},  # inside of other bytes
        {"a": CLAIM, "b": marker(bytes(2**17))},  # its length reaches into the next value
        {"a": [b"data", bytes(2**17)], "b": {"data": bytes(2**16)}},  # large, but no array's
        {"a": marker(CLAIM + bytes(2**17)), "b": marker(bytes(2**16) + CLAIM + bytes(2**16))},
    ],
    ids=["inside", "reaching", "no array", "array of it"],
)
def test_what_only_looks_like_large_data_is_read_as_what_it_is(message):
    def plain(value):
        if isinstance(value, np.ndarray):
            return value.tobytes()
        if isinstance(value, dict):
            return value[b"data"] if b"data" in value else {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else value

    assert plain(wire.decode(msgpack.packb(message))) == plain(message)


def test_large_data_is_checked_like_any_other():
    for bad in (marker(bytes(2**16), shape=[2**16 - 1]), marker(bytes(2**16), "|O", [2**13])):
        with pytest.raises(WireError):
            wire.decode(msgpack.packb({"a": bad}))
    with pytest.raises(WireError, match="keys must be text"):
        wire.decode(msgpack.packb({b"data": bytes(2**16)}))


def test_no_sender_can_claim_large_data_with_an_extension():
    stand_in = b"\xd8\x00" + bytes(12) + (0).to_bytes(4, "big")
    genuine = msgpack.packb(marker(bytes(2**16)))
    with pytest.raises(WireError):
        wire.decode(b"\x92" + genuine + stand_in)
    with pytest.raises(WireError):
        wire.decode(b"\x92" + stand_in + genuine)


values = st.recursive(
    st.integers(0, 99) | st.binary(max_size=40) | st.just(CLAIM[:-4] + b"\0\0\0\4abcd"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["data", "a", "b"]), inner, max_size=3)
        | st.binary(max_size=40).map(marker)
    ),
)


@settings(max_examples=500, deadline=None)
@given(values, st.binary(max_size=12), st.integers(0, 200))
def test_setting_aside_changes_no_message_and_no_refusal(value, noise, at):
    """Every length counts as large, and half of the messages are damaged."""
    # With 32-bit lengths throughout, as only large data has them otherwise.
    data = msgpack.packb(value).replace(b"\xc4\x04data\xc4", b"\xc4\x04data\xc6\0\0\0")
    data = data[:at] + noise + data[at + len(noise) :]

    def read():
        try:
            return repr(wire.decode(data))
        except WireError as error:
            return str(error)

    expected = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_place, "_LARGE", 0)
        assert read() == expected

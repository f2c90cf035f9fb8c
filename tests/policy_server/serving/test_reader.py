"""Our reader of large frames gives the bytes that websockets' own gives, however they arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.streams import StreamReader

from wamserve.policy_server.serving import reader as frames
from wamserve.policy_server.serving.reader import FrameReader, install


def read_all(reader, sizes, chunks) -> list[bytes]:
    """Reads `sizes` one after the other while `chunks` arrive."""
    arriving, out = iter(chunks), []
    for size in sizes:
        reading = reader.read_exact(size)
        try:
            while True:
                next(reading)
                reader.feed_data(next(arriving))
        except StopIteration as done:
            if done.value is None:
                break  # the bytes ran out
            out.append(bytes(done.value))
    return out


@pytest.fixture
def small_frames(monkeypatch):
    monkeypatch.setattr(frames, "_LARGE", 8)
    monkeypatch.setattr(frames, "_TOO_LARGE", 64)


@given(
    st.lists(st.integers(0, 100), max_size=8), st.lists(st.integers(1, 70), max_size=30), st.integers(0, 5)
)
def test_any_cutting_of_the_stream_gives_the_same_messages(sizes, cuts, before):
    stream = bytes(i % 251 for i in range(sum(cuts)))
    chunks, at = [], 0
    for cut in cuts:
        chunks.append(stream[at : at + cut])
        at += cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "_LARGE", 8)
        patch.setattr(frames, "_TOO_LARGE", 64)
        theirs, ours = StreamReader(), StreamReader()
        for reader in (theirs, ours):
            for chunk in chunks[:before]:
                reader.feed_data(chunk)
        install(ours)
        assert type(ours) is FrameReader
        assert read_all(ours, sizes, chunks[before:]) == read_all(theirs, sizes, chunks[before:])


def test_a_payload_cut_short_is_an_end_of_stream(small_frames):
    reader = FrameReader()
    reading = reader.read_exact(20)
    next(reading)
    reader.feed_data(b"12345")
    next(reading)
    reader.feed_eof()
    with pytest.raises(EOFError, match="15 bytes before the end of a payload of 20"):
        next(reading)


def test_a_claimed_size_over_the_bound_reserves_nothing():
    reader = FrameReader()
    next(reader.read_exact(64 * 2**20))
    assert reader._rest is None and len(reader.buffer) == 0


async def test_a_live_connection_reads_through_it(serving, talk):
    async with serving() as server, talk(server) as websocket:
        await websocket.recv()
        (conversation,) = server.conversations
        assert type(conversation.websocket.protocol.reader) is FrameReader

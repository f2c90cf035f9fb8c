"""Our reader of large frames gives the bytes that websockets' own gives, however they arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.streams import StreamReader

from wamserve.policy_server.serving import reader as frames
from wamserve.policy_server.serving.reader import FrameReader, Intake, install


class Connection:
    """Reads messages of these sizes, as websockets' connection does: a parser over its reader."""

    def __init__(self, reader, sizes) -> None:
        self.protocol, self.transport = self, self
        self.reader, self.receiver, self.messages = reader, self, []
        self.parser = self.parse(sizes)
        next(self.parser)

    def set_protocol(self, receiver) -> None:
        self.receiver = receiver

    def parse(self, sizes):
        for size in sizes:
            self.messages.append(bytes((yield from self.reader.read_exact(size))))
        while True:
            yield

    def data_received(self, data) -> None:
        self.reader.feed_data(data)
        next(self.parser)

    def arrive(self, data) -> None:
        """As a transport delivers, to either kind of receiver."""
        if self.receiver is self:
            self.data_received(data)
            return
        while data:
            buffer = self.receiver.get_buffer(-1)
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            self.receiver.buffer_updated(count)
            data = data[count:]


@pytest.fixture
def small_frames(monkeypatch):
    monkeypatch.setattr(frames, "_LARGE", 8)
    monkeypatch.setattr(frames, "_TOO_LARGE", 64)


@given(
    st.lists(st.integers(0, 100), max_size=8),
    st.lists(st.integers(1, 70), max_size=30),
    st.integers(0, 5),
    st.integers(1, 20),
)
def test_any_cutting_of_the_stream_gives_the_same_messages(sizes, cuts, before, small):
    stream = bytes(i % 251 for i in range(sum(cuts)))
    chunks, at = [], 0
    for cut in cuts:
        chunks.append(stream[at : at + cut])
        at += cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "_LARGE", 8)
        patch.setattr(frames, "_TOO_LARGE", 64)
        patch.setattr(frames, "_SMALL", small)
        theirs, ours, in_place = (Connection(StreamReader(), sizes) for _ in range(3))
        ours.reader.__class__ = FrameReader  # without its intake: bytes come by `feed_data`
        for number, chunk in enumerate(chunks):
            if number == before:
                install(in_place)
                assert type(in_place.reader) is FrameReader
            for connection in (theirs, ours, in_place):
                connection.arrive(chunk)
        assert theirs.messages == ours.messages == in_place.messages


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
    assert reader.rest is None and len(reader.buffer) == 0


async def test_a_live_connection_reads_through_it(serving, talk):
    async with serving() as server, talk(server) as websocket:
        await websocket.recv()
        (conversation,) = server.conversations
        assert type(conversation.websocket.protocol.reader) is FrameReader
        assert type(conversation.websocket.transport.get_protocol()) is Intake

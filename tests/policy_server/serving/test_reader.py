"""Our reader of large frames gives the bytes that websockets' own gives, however they arrive."""

from __future__ import annotations

import asyncio
import gc

import pytest
import serving_messages as messages
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol
from websockets.streams import StreamReader

from wamserve.policy_server.serving import reader as frames
from wamserve.policy_server.serving.reader import FrameReader, Intake, install
from wamserve.policy_server.serving.shm import Arena


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


class Live(Connection):
    """As it is in a server: websockets' own protocol, of which a connection takes whole messages."""

    def __init__(self, protocol) -> None:
        self.protocol, self.transport = protocol, self
        self.receiver, self.messages, self.fragments = self, [], []

    def data_received(self, data) -> None:
        self.protocol.receive_data(data)
        for frame in self.protocol.events_received():
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self.fragments.append(frame)
                if frame.fin:
                    message = b"".join(bytes(each.data) for each in self.fragments)
                    self.messages.append(message if self.receiver is self else self.receiver.message(message))
                    self.fragments = []


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


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_payload_cut_short_gives_its_memory_back_at_once(small_frames, no_collector):
    arena, reader = Arena(1 << 16), FrameReader()
    reader.room = arena.lend
    reading = reader.read_exact(20)
    next(reading)
    assert arena.used_bytes
    reader.feed_eof()
    with pytest.raises(EOFError) as kept:
        next(reading)
    assert kept.value.__traceback__ is not None and arena.used_bytes == 0


def test_messages_nobody_asks_for_any_more_give_their_memory_back(small_frames, no_collector):
    arena, connection = Arena(1 << 16), Live(Protocol(SERVER, max_size=90))
    intake = install(connection, arena.lend)
    frame = Frame(Opcode.BINARY, bytes(20)).serialize(mask=True)
    connection.arrive(Frame(Opcode.BINARY, b"x").serialize(mask=True) + frame)
    assert connection.messages.pop() == bytes(20)
    connection.protocol.receive_data(frame)  # read, and waits
    assert arena.used_bytes
    intake.end()
    assert arena.used_bytes == 0
    connection.protocol.receive_data(frame)
    assert arena.used_bytes == 0


def test_only_a_mask_is_kept_of_what_was_read(small_frames):
    reader = FrameReader()
    for size in (2, 4, 100):
        reader.feed_data(bytes(size))
        with pytest.raises(StopIteration):
            next(reader.read_exact(size))
        assert reader._mask == (bytes(4) if size == 4 else b"")


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


frame_kinds = st.tuples(
    st.sampled_from(["binary", "text", "ping", "two fragments", "unmasked", "reserved bit"]),
    st.integers(0, 100),
)


@given(st.lists(frame_kinds, max_size=6), st.lists(st.integers(1, 70), max_size=30), st.integers(1, 20))
def test_any_conversation_reads_as_websockets_reads_it(kinds, cuts, small):
    """Whole binary messages are unmasked in place, each from the second on; all the rest as ever."""
    payload = bytes(i * 7 % 251 for i in range(100))
    stream, whole = [], 0
    for kind, size in kinds:
        if kind == "two fragments":
            stream.append(Frame(Opcode.BINARY, payload[: size // 2], fin=False).serialize(mask=True))
            stream.append(Frame(Opcode.CONT, payload[: size - size // 2]).serialize(mask=True))
        elif kind == "unmasked":
            stream.append(Frame(Opcode.BINARY, payload[:size]).serialize(mask=False))
        elif kind == "reserved bit":
            masked = Frame(Opcode.BINARY, payload[:size]).serialize(mask=True)
            stream.append(bytes([masked[0] | 0x40]) + masked[1:])
        else:
            opcode = Opcode[kind.upper()]
            data = b"x" * size if kind == "text" else payload[:size]
            stream.append(Frame(opcode, data).serialize(mask=True))
        if kind in ("unmasked", "reserved bit"):
            break
        whole += bool(stream[:-1]) and kind == "binary" and 8 <= size <= 64
    joined = b"".join(stream)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "_LARGE", 8)
        patch.setattr(frames, "_TOO_LARGE", 64)
        patch.setattr(frames, "_SMALL", small)
        theirs, ours = (Live(Protocol(SERVER, max_size=90)) for _ in range(2))
        install(ours)
        at = 0
        for cut in [*cuts, len(joined)]:
            for connection in (theirs, ours):
                connection.arrive(joined[at : at + cut])
            at += cut
        assert [bytes(message) for message in ours.messages] == theirs.messages
        assert ours.protocol.state == theirs.protocol.state
        assert sum(isinstance(message, memoryview) for message in ours.messages) <= whole
        if theirs.protocol.parser_exc is None:
            assert sum(isinstance(message, memoryview) for message in ours.messages) == whole
        else:
            assert str(ours.protocol.parser_exc) == str(theirs.protocol.parser_exc)


async def test_a_frame_is_received_in_the_memory_that_the_engine_reads(serving, talk, monkeypatch):
    async with serving() as server, talk(server) as websocket:
        await websocket.recv()
        arena, places, prepare = server.engine.requests, [], server.prepare

        def looked_at(request):
            places.append({arena.place(view) for view in request.observation.images.values()})
            return prepare(request)

        monkeypatch.setattr(server, "prepare", looked_at)
        for _ in range(3):
            await websocket.send(messages.packed(messages.three_views()))
            assert isinstance(await websocket.recv(), bytes)
        assert all(None not in each and len(each) == 3 for each in places[1:])
        async with asyncio.timeout(5):
            while arena.used_bytes:  # the last reply is out before its request is forgotten
                await asyncio.sleep(0.01)

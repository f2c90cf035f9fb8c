"""Blocks of shared memory are disjoint, reused and never lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wamserve.clients.policy import Observation, Prediction, Request
from wamserve.policy_server.serving.frames import Reader, Writer
from wamserve.policy_server.serving.shm import Arena, ArenaFull


def test_what_one_mapping_writes_another_reads():
    ours = Arena(1 << 20)
    theirs = Arena(1 << 20, ours.fd)
    array = np.arange(10_000, dtype=np.float32).reshape(100, 100)
    start = ours.write(array[:, ::2])
    read = theirs.read(start, np.dtype("<f4"), (100, 50))
    np.testing.assert_array_equal(read, array[:, ::2])
    with pytest.raises(ValueError):
        read[0, 0] = 1.0


@given(st.lists(st.tuples(st.integers(1, 5000), st.booleans()), max_size=60))
def test_blocks_never_overlap_and_all_memory_comes_back(steps):
    arena = Arena(1 << 16)
    live: dict[int, int] = {}
    for size, free_one in steps:
        if free_one and live:
            start = next(iter(live))
            arena.free(start)
            del live[start]
            continue
        try:
            start = arena.allocate(size)
        except ArenaFull:
            continue
        assert all(start + size <= s or s + n <= start for s, n in live.items())
        live[start] = size
    for start in live:
        arena.free(start)
    assert arena.allocate(1 << 16) == 0
    arena.close()


def test_a_block_that_is_not_in_use_cannot_be_freed():
    arena = Arena(1 << 12)
    with pytest.raises(KeyError):
        arena.free(64)


def test_a_lent_block_is_freed_with_the_last_view_of_it():
    arena = Arena(1 << 16)
    block = arena.lend(1000)
    view = np.frombuffer(memoryview(block)[100:500], np.uint8).reshape(20, 20)
    assert arena.place(view) == 100 and arena.place(view[:, 1:]) is None
    assert arena.place(np.zeros(10)) is None
    del block
    assert arena.used_bytes == 1024
    del view
    assert arena.used_bytes == 0


def test_a_block_that_comes_back_while_another_is_sought_is_taken_back_later():
    arena = Arena(1 << 16)
    blocks = [arena.lend(1 << 10) for _ in range(6)]
    blocks[0] = blocks[2] = None

    class Collecting(list):
        """Iterating allocates, and so may run the garbage collector and through it a block's finalizer."""

        def __iter__(self):
            for place, span in enumerate(list(super().__iter__())):
                yield span
                if place == 1:
                    blocks[1] = None

    assert arena.used_bytes == 4 << 10
    arena._free = Collecting(arena._free)
    large = arena.lend(3 << 10)
    assert blocks[1] is None and arena.place(large) == 6 << 10
    assert arena.place(arena.lend(3 << 10)) == 0, "the three blocks that came back are one"
    del large
    blocks.clear()
    assert arena.used_bytes == 0 and arena._free == [(0, arena.size)]


def test_half_of_the_memory_stays_for_those_who_are_done():
    arena = Arena(1 << 16)
    lent = [arena.lend(1 << 14) for _ in range(3)]
    assert lent[1] is not None and lent[2] is None
    assert arena.allocate(1 << 15) == 1 << 15
    del lent
    assert arena.lend(1 << 15) is not None
    assert Arena(1 << 12).lend(1 << 12) is None


def test_what_lies_there_already_is_not_copied_and_held_until_it_was_read():
    arena = Arena(1 << 20)
    picture = arena.lend(120 * 160 * 3).reshape(120, 160, 3)
    picture[...] = 7
    writer = Writer(arena)
    packed = writer.request(Request(Observation({"wrist": picture}, {}), seed=1))
    assert not writer.blocks and arena.used_bytes == 120 * 160 * 3
    del picture
    assert (Reader(Arena(1 << 20, arena.fd)).request(packed).observation.images["wrist"] == 7).all()
    writer.free()
    assert arena.used_bytes == 0


def test_requests_and_predictions_survive_the_crossing_bit_by_bit():
    arena = Arena(1 << 22)
    observation = Observation(
        {"wrist": np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)},
        {"joint_position": np.linspace(-1, 1, 7, dtype=np.float32)},
        "do it",
        12.5,
    )
    request = Request(observation, prefix=np.ones((3, 8)), delay=2, seed=7, steps=4, session="s", step=9)
    writer = Writer(arena)
    back = Reader(arena).request(writer.request(request))
    np.testing.assert_array_equal(back.observation.images["wrist"], observation.images["wrist"])
    assert back.observation.state["joint_position"].tobytes() == observation.state["joint_position"].tobytes()
    np.testing.assert_array_equal(back.prefix, request.prefix)
    plain = ("mode", "delay", "seed", "steps", "guidance", "want_video", "session", "step")
    assert [getattr(back, name) for name in plain] == [getattr(request, name) for name in plain]
    assert (back.observation.instruction, back.observation.time) == ("do it", 12.5)
    writer.free()
    assert arena.used_bytes == 0
    video = np.full((4, 64, 64, 3), 9, np.uint8)
    result = Reader(arena, copy=True).prediction(Writer(arena).prediction(Prediction(None, video, 3)))
    np.testing.assert_array_equal(result.video, video)
    assert (result.chunk, result.seed) == (None, 3)

"""The player against rows computed by hand, on a virtual clock. Control period 0.1 s throughout."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wamserve.action_codec.errors import CodecError, PolicyError
from wamserve.action_codec.layout import Block, Layout
from wamserve.clients.player import ChunkPlayer, DelayTracker
from wamserve.clients.policy import ActionChunk, Observation
from wamserve.clients.reply_layout import reply_layout
from wamserve.embodiments import contract

PERIOD = 0.1
LAYOUT = Layout((Block("joint", 0, 1, "joint_abs"), Block("gripper", 1, 2, "gripper")))
OSC = Layout((Block("osc", 0, 6, "osc_delta"), Block("gripper", 6, 7, "gripper")))


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def chunk(start, *joints, gripper=0.0):
    """A chunk whose joint column is given and whose gripper column is constant."""
    return ActionChunk(np.array([[joint, gripper] for joint in joints], np.float32), start, PERIOD)


def observation(time, joint=0.0):
    return Observation({}, {"joint": np.array([joint], np.float32)}, "lift", time)


@pytest.fixture
def clock():
    return Clock()


def played(player, clock, *times):
    """(status, joint) at each time; None for no action."""
    out = []
    for now in times:
        clock.now = now
        due = player.due()
        out.append((due.status, None if due.action is None else round(float(due.action[0]), 6)))
    return out


def test_rows_are_played_at_their_times_and_nothing_before_the_first_chunk(clock):
    player = ChunkPlayer(LAYOUT, PERIOD, clock=clock)
    assert player.due().status == "waiting"
    assert player.push(chunk(0.0, 10, 11, 12))
    assert played(player, clock, 0.0, 0.1, 0.2) == [("playing", 10), ("playing", 11), ("playing", 12)]
    # A control loop that jitters by less than half a period still gets every row once.
    assert played(player, clock, 0.04, 0.06, 0.14) == [("playing", 10), ("playing", 11), ("playing", 11)]


def test_late_chunk_drops_rows_already_in_the_past(clock):
    player = ChunkPlayer(LAYOUT, PERIOD, clock=clock)
    clock.now = 0.25  # rows 0, 1, 2 were due at 0.0, 0.1, 0.2
    assert player.push(chunk(0.0, 10, 11, 12, 13, 14))
    assert player.late_rows == 3
    assert played(player, clock, 0.3, 0.4) == [("playing", 13), ("playing", 14)]
    due = player.due()
    assert (due.row, due.chunk, due.age) == (4, 1, pytest.approx(0.4))


def test_a_chunk_that_is_past_altogether_is_not_played(clock):
    player = ChunkPlayer(LAYOUT, PERIOD, clock=clock)
    clock.now = 1.0
    assert not player.push(chunk(0.0, 10, 11))
    assert (player.spent_on_arrival, player.accepted, player.due().status) == (1, 0, "waiting")


def test_a_chunk_overtaken_by_a_newer_observation_is_dropped(clock):
    player = ChunkPlayer(LAYOUT, PERIOD, clock=clock)
    clock.now = 0.2
    assert player.push(chunk(0.2, 20, 21, 22))
    assert not player.push(chunk(0.1, 10, 11, 12, 13, 14, 15))
    assert player.stale == 1
    assert played(player, clock, 0.3) == [("playing", 21)]


def test_switch_takes_over_at_the_row_for_now(clock):
    player = ChunkPlayer(LAYOUT, PERIOD, clock=clock)
    player.push(chunk(0.0, *range(10, 18)))
    assert played(player, clock, 0.3) == [("playing", 13)]
    clock.now = 0.4
    player.push(chunk(0.2, 20, 21, 22, 23))  # its row 2 is due at 0.4
    assert played(player, clock, 0.4, 0.5) == [("playing", 22), ("playing", 23)]


def test_blend_mixes_the_first_rows_linearly_and_never_the_gripper(clock):
    player = ChunkPlayer(LAYOUT, PERIOD, strategy="blend", blend_rows=3, clock=clock)
    player.push(chunk(0.0, *[0.0] * 10, gripper=0.0))
    clock.now = 0.4
    player.push(chunk(0.2, *[8.0] * 10, gripper=1.0))
    # Shares of the new chunk 1/4, 2/4, 3/4, then it alone.
    assert played(player, clock, 0.4, 0.5, 0.6, 0.7) == [
        ("playing", 2.0),
        ("playing", 4.0),
        ("playing", 6.0),
        ("playing", 8.0),
    ]
    grippers = []
    for clock.now in (0.4, 0.5, 0.6, 0.7):
        grippers.append(float(player.due().action[1]))
    assert set(grippers) <= {0.0, 1.0} and grippers[0] == 0.0 and grippers[-1] == 1.0


def test_ensemble_averages_every_chunk_that_has_a_row(clock):
    player = ChunkPlayer(LAYOUT, PERIOD, strategy="ensemble", decay=np.log(2.0), clock=clock)
    player.push(chunk(0.0, 0, 0, 0, 0))
    clock.now = 0.1
    player.push(chunk(0.1, 3, 3, 3, 3))
    # Weights 1 (oldest) and 1/2: (0 * 1 + 3 * 0.5) / 1.5 = 1, until the older one ends after 0.3.
    assert played(player, clock, 0.1, 0.3, 0.4) == [("playing", 1.0), ("playing", 1.0), ("playing", 3.0)]


def test_a_spent_chunk_is_held_then_stopped(clock):
    player = ChunkPlayer(LAYOUT, PERIOD, hold_seconds=0.25, clock=clock)
    player.push(chunk(0.0, 10, 11))
    assert played(player, clock, 0.1, 0.2, 0.39, 0.41) == [
        ("playing", 11),
        ("holding", 11),
        ("holding", 11),
        ("stopped", None),
    ]


def test_stop_gives_no_action_once_the_rows_are_spent(clock):
    player = ChunkPlayer(LAYOUT, PERIOD, when_spent="stop", clock=clock)
    player.push(chunk(0.0, 10, 11))
    assert played(player, clock, 0.1, 0.2) == [("playing", 11), ("stopped", None)]


def test_holding_a_command_means_zero_not_its_repetition(clock):
    player = ChunkPlayer(OSC, PERIOD, clock=clock)
    player.push(ActionChunk(np.array([[0.5, 0, 0, 0, 0, 0.3, 1.0]], np.float32), 0.0, PERIOD))
    clock.now = 0.1
    due = player.due()
    assert due.status == "holding"
    np.testing.assert_array_equal(due.action, [0, 0, 0, 0, 0, 0, 1])


def test_requests_carry_the_worst_recent_delay_in_whole_rows(clock):
    player = ChunkPlayer(LAYOUT, PERIOD, clock=clock)
    assert player.request(observation(0.0)).delay == 0
    for seen, arrived in ((0.0, 0.23), (1.0, 1.31), (2.0, 2.2)):
        clock.now = seen
        player.request(observation(seen))
        clock.now = arrived
        player.push(chunk(seen, *range(20)))
    assert player.delay.seconds == pytest.approx(0.31)
    assert player.request(observation(2.3)).delay == 4


def test_delay_tracker_forgets_and_rounds_up():
    tracker = DelayTracker(window=2, first=0.5)
    assert tracker.rows(0.1) == 5
    for seconds in (0.9, 0.2, 0.21):
        tracker.add(seconds)
    assert (tracker.seconds, tracker.rows(0.1)) == (0.21, 3)
    assert DelayTracker(first=0.3).rows(0.1) == 3  # 0.3 / 0.1 is a hair above 3 in floating point


def test_frozen_prefix_asks_with_the_rows_that_will_run_and_keeps_them(clock):
    tracker = DelayTracker(first=0.2)
    player = ChunkPlayer(LAYOUT, PERIOD, strategy="frozen_prefix", delay=tracker, clock=clock)
    first = player.request(observation(0.0))
    assert first.prefix is None and first.delay == 2  # nothing runs yet
    clock.now = 0.2
    player.push(chunk(0.0, *range(10, 20)))
    clock.now = 0.4
    request = player.request(observation(0.4))
    # Rows due at 0.4 and 0.5 run whatever the model says.
    np.testing.assert_array_equal(request.prefix, [[14, 0], [15, 0]])
    clock.now = 0.5
    # A server that did not keep to the prefix: its first two rows must not be played.
    player.push(chunk(0.4, 99, 98, 26, 27))
    assert played(player, clock, 0.5, 0.6, 0.7) == [("playing", 15), ("playing", 26), ("playing", 27)]


def test_frozen_prefix_respects_what_the_server_can_freeze(clock):
    tracker = DelayTracker(first=0.5)
    player = ChunkPlayer(
        LAYOUT, PERIOD, strategy="frozen_prefix", delay=tracker, max_prefix_rows=1, clock=clock
    )
    clock.now = 0.3
    player.push(chunk(0.0, *range(10, 20)))
    request = player.request(observation(0.3))
    assert request.prefix.tolist() == [[13, 0]] and request.delay == 3
    player.max_prefix_rows = 0
    assert player.request(observation(0.3)).prefix is None


def test_roll_forward_tells_the_state_at_arrival_and_starts_the_chunk_there(clock):
    player = ChunkPlayer(
        LAYOUT,
        PERIOD,
        strategy="roll_forward",
        delay=DelayTracker(first=0.2),
        state_of_row=lambda row: {"joint": row[:1]},
        clock=clock,
    )
    clock.now = 0.2
    player.push(chunk(0.0, *range(10, 20)))
    clock.now = 0.3
    request = player.request(observation(0.3, joint=12.5))
    # Rows 13 (due 0.3) and 14 (due 0.4) will have run by 0.5.
    assert request.observation.state["joint"].tolist() == [14.0]
    assert request.observation.state["joint"].dtype == np.float32
    assert request.observation.time == pytest.approx(0.5) and request.delay == 0
    clock.now = 0.4  # the answer is early: the old chunk runs on until the new one begins
    player.push(ActionChunk(chunk(0, 25, 26).actions, request.observation.time, PERIOD))
    assert played(player, clock, 0.4, 0.5, 0.6) == [("playing", 14), ("playing", 25), ("playing", 26)]
    # Both delays count from the observation: 0.2 for the first chunk, 0.1 for the second.
    assert player.delay.seconds == pytest.approx(0.2)
    for _ in range(9):
        player.delay.add(0.0)
    assert player.delay.seconds == pytest.approx(0.1)


def test_roll_forward_needs_to_know_what_a_row_leads_to(clock):
    with pytest.raises(PolicyError):
        ChunkPlayer(LAYOUT, PERIOD, strategy="roll_forward")
    player = ChunkPlayer(
        LAYOUT,
        PERIOD,
        strategy="roll_forward",
        state_of_row=lambda row: {"elbow": row},
        clock=clock,
    )
    clock.now = 0.1
    player.push(chunk(0.0, 1, 2, 3))
    with pytest.raises(PolicyError, match="elbow"):
        player.request(observation(0.1))


def test_rows_left_counts_from_the_row_due_now(clock):
    player = ChunkPlayer(LAYOUT, PERIOD, clock=clock)
    assert player.rows_left() == 0
    player.push(chunk(0.0, *range(8)))
    assert player.rows_left() == 8
    clock.now = 0.5
    assert player.rows_left() == 3
    clock.now = 2.0
    assert player.rows_left() == 0


@pytest.mark.parametrize(
    "bad",
    [
        ActionChunk(np.zeros((4, 3), np.float32), 0.0, PERIOD),
        ActionChunk(np.zeros((4, 2), np.float32), 0.0, 1 / 15),
        ActionChunk(np.full((4, 2), np.nan, np.float32), 0.0, PERIOD),
        ActionChunk(np.zeros((4, 2), np.float32), float("nan"), PERIOD),
    ],
    ids=["width", "period", "nan", "clock"],
)
def test_a_chunk_that_cannot_be_played_is_refused_and_changes_nothing(clock, bad):
    player = ChunkPlayer(LAYOUT, PERIOD, clock=clock)
    player.push(chunk(0.0, 1, 2, 3))
    with pytest.raises((CodecError, ValueError)):
        player.push(bad)
    assert played(player, clock, 0.1) == [("playing", 2)]
    assert player.accepted == 1


def test_reset_forgets_chunks_and_keeps_what_was_measured(clock):
    player = ChunkPlayer(LAYOUT, PERIOD, clock=clock)
    clock.now = 0.2
    player.push(chunk(0.0, 1, 2, 3, 4))
    player.reset()
    assert player.due().status == "waiting" and player.delay.seconds == pytest.approx(0.2)


def test_reply_layout_of_the_shipped_contracts():
    droid = reply_layout(contract.load("droid_lerobot").wire)
    assert [(b.kind, b.start, b.stop) for b in droid.blocks] == [("joint_abs", 0, 7), ("gripper", 7, 8)]
    osc = reply_layout(contract.load("panda_osc").wire)
    assert [(b.kind, b.start, b.stop) for b in osc.blocks] == [("osc_delta", 0, 6), ("gripper", 6, 7)]
    pusht = reply_layout(contract.load("pusht").wire)
    assert [(b.kind, b.start, b.stop) for b in pusht.blocks] == [("position_abs", 0, 2)]


@settings(max_examples=200, deadline=None)
@given(
    strategy=st.sampled_from(["switch", "blend", "ensemble", "frozen_prefix"]),
    # (steps from the previous event, steps the answer takes, rows of the chunk)
    events=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(1, 12)), max_size=12),
    jitter=st.floats(-0.4, 0.4),
)
def test_whatever_arrives_whenever_the_row_played_is_the_one_due_now(strategy, events, jitter):
    """Every chunk's joint is the control step its row belongs to, so all chunks agree about every time."""
    clock = Clock()
    player = ChunkPlayer(LAYOUT, PERIOD, strategy=strategy, clock=clock)
    arrivals, asked = [], 0
    for gap, delay, rows in events:
        asked += gap
        arrivals.append((asked + delay, asked, rows))
    arrivals.sort()
    last = None
    for step in range(asked + 24):
        for arrives, start, rows in arrivals:
            if arrives == step:
                clock.now = step * PERIOD
                told = np.array([[start + k, 0] for k in range(rows)])
                player.push(ActionChunk(told, start * PERIOD, PERIOD))
        clock.now = (step + jitter) * PERIOD
        due = player.due()
        if due.status == "playing":
            assert due.action[0] == pytest.approx(step)
            last = step
        elif due.status == "holding":
            assert due.action[0] <= min(step, step if last is None else last) + 1e-9
    assert player.accepted + player.stale + player.spent_on_arrival == len(events)

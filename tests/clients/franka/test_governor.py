"""No command leaves the limits, whatever is asked for; what is bent or refused is said."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wamserve.action_codec.errors import ContractError
from wamserve.clients.franka.governor import MotionRefused, SafetyGovernor, bounded_step
from wamserve.clients.franka.limits import ARMS, FR3, PANDA, PORTABLE, Box, SafetyLimits
from wamserve.embodiments.contract import load

CHAIN = load("droid_lerobot").wire.kinematics
PERIOD = 1 / 15
HOME = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])
LIMITS = SafetyLimits()


@pytest.fixture
def governor():
    out = SafetyGovernor(LIMITS, CHAIN, PERIOD)
    out.begin(HOME)
    return out


def assert_inside(limits, tool_at, before, after, seconds):
    """The stated limits of a position command, each by itself. Arrays [..., 7]."""
    assert np.isfinite(after).all()
    assert (after >= limits.low - 1e-9).all() and (after <= limits.high + 1e-9).all()
    moved = np.abs(after - before)
    assert moved.max() <= limits.step + 1e-9
    assert moved.max() <= limits.velocity * seconds + 1e-9
    for at in (before, after):
        down, up = limits.arm.velocity_at(at)
        assert ((after - before) >= down * seconds - 1e-9).all()
        assert ((after - before) <= up * seconds + 1e-9).all()
    points = tool_at(after)
    assert (points >= np.array(limits.workspace.low) - 1e-9).all()
    assert (points <= np.array(limits.workspace.high) + 1e-9).all()
    speed = np.linalg.norm(points - tool_at(before), axis=-1)
    assert speed.max() <= limits.tcp_speed * seconds + 1e-8


def random_wishes(rng, last, count):
    """Rows of every nastiness: near steps, far jumps, beyond the joints, huge."""
    scale = 10.0 ** rng.uniform(-4, 2, (count, 1))
    return np.where(
        rng.random((count, 1)) < 0.7,
        last + scale * rng.standard_normal((count, 7)),
        rng.uniform(-4.0, 4.0, (count, 7)),
    )


@pytest.mark.parametrize("name", ["portable", "panda", "fr3"])
def test_no_row_of_a_hundred_thousand_random_chunks_leaves_the_limits(name):
    rng = np.random.default_rng(7)
    limits = SafetyLimits(arm=ARMS[name], tcp_speed=0.5)
    governor = SafetyGovernor(limits, CHAIN, PERIOD)
    streams = 2500
    last = np.tile(HOME, (streams, 1))
    chunks = {"portable": 40, "panda": 3, "fr3": 3}[name]  # of 3 rows each: 1e5 chunks for the default
    moved = 0
    for _ in range(chunks):
        wish = random_wishes(rng, last, streams)
        for _ in range(3):
            bounded = bounded_step(limits, governor.tool_at, last, wish, PERIOD)
            assert_inside(limits, governor.tool_at, last, bounded.q, PERIOD)
            moved += int((np.abs(bounded.q - last).max(axis=1) > 1e-6).sum())
            last = bounded.q
            wish = wish + 0.02 * rng.standard_normal(wish.shape)
    assert moved > streams * chunks  # the bound is not a brake: most wishes move the arm


def test_the_governor_tells_each_command_as_the_batched_bound_does(governor):
    rng = np.random.default_rng(3)
    for _ in range(2000):
        last = governor.commanded
        wish = random_wishes(rng, last, 1)[0]
        command = governor.step(wish, last)
        assert_inside(LIMITS, governor.tool_at, last, command.q, PERIOD)
        np.testing.assert_array_equal(command.q, governor.commanded)
        if np.abs(wish - last).max() > LIMITS.row_jump:
            assert command.refused and np.array_equal(command.q, last)


numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(numbers, min_size=7, max_size=7), min_size=1, max_size=12), st.data())
def test_any_floats_at_all_leave_the_arm_inside_its_limits(rows, data):
    governor = SafetyGovernor(LIMITS, CHAIN, PERIOD)
    governor.begin(HOME)
    for row in rows:
        last = governor.commanded
        measured = last + data.draw(st.floats(-0.3, 0.3)) * np.ones(7)
        seconds = data.draw(st.floats(0.0, 5.0))
        command = governor.step(np.array(row), measured, seconds)
        assert_inside(LIMITS, governor.tool_at, last, command.q, min(seconds, PERIOD))


def test_a_step_is_cut_to_the_speed_and_says_so(governor):
    governor.limits = SafetyLimits(tcp_speed=10.0)
    wish = HOME.copy()
    wish[6] += 0.3
    command = governor.step(wish, HOME)
    assert command.q[6] - HOME[6] == pytest.approx(1.0 * PERIOD)  # 1 rad/s for 1/15 s
    (note,) = command.notes
    assert (note.action, note.reason, note.joint) == ("clamped", "speed", 6)
    assert note.value == pytest.approx(0.3) and note.limit == pytest.approx(PERIOD)


def test_the_tool_goes_no_faster_than_a_quarter_metre_a_second(governor):
    wish = HOME.copy()
    wish[0] += 0.06  # the base turns: the tool, about 0.45 m out, would move 0.4 m/s
    command = governor.step(wish, HOME)
    moved = np.linalg.norm(governor.tool_at(command.q) - governor.tool_at(HOME))
    assert moved == pytest.approx(0.25 * PERIOD, rel=0.02) and moved <= 0.25 * PERIOD
    assert [note.reason for note in command.notes] == ["tool speed"]


def test_a_wish_below_the_table_ends_above_it(governor):
    governor.limits = SafetyLimits(workspace=Box(high=(2.0, 0.45, 0.9)))
    for _ in range(200):
        wish = governor.commanded + np.array([0.0, 0.05, 0.0, 0.02, 0.0, 0.0, 0.0])
        command = governor.step(wish, governor.commanded)
    assert 0.02 <= governor.tool_at(command.q)[2] < 0.03
    assert "workspace" in [note.reason for note in command.notes]


def test_a_joint_stops_at_its_margin_and_the_note_names_joint_value_and_limit():
    limits = SafetyLimits(tcp_speed=10.0)
    governor = SafetyGovernor(limits, CHAIN, PERIOD)
    start = HOME.copy()
    start[6] = limits.high[6] - 0.01
    governor.begin(start)
    wish = start.copy()
    wish[6] += 0.2
    command = governor.step(wish, start)
    assert command.q[6] == pytest.approx(2.8973 - 0.1)
    (note,) = command.notes
    assert (note.reason, note.joint) == ("joint range", 6)
    assert note.value == pytest.approx(wish[6]) and note.limit == pytest.approx(2.7973)


def test_a_chunk_that_starts_elsewhere_is_refused(governor):
    rows = np.tile(HOME, (32, 1))
    rows[:, 2] += 0.21
    note = governor.check_chunk(rows, 0, 0.1)
    assert (note.reason, note.joint, note.limit) == ("first row", 2, 0.2)
    assert governor.check_chunk(rows - 0.02, 0, 0.1) is None


def test_the_row_that_would_be_played_is_the_one_that_is_checked(governor):
    rows = np.tile(HOME, (32, 1))
    rows[:4, 2] += 0.5  # already past
    assert governor.check_chunk(rows, 4, 0.3) is None
    assert governor.check_chunk(rows, 3, 0.3).reason == "first row"


def test_an_outlier_in_the_middle_of_a_chunk_refuses_the_chunk(governor):
    rows = np.tile(HOME, (32, 1))
    rows[17, 5] += 0.36
    note = governor.check_chunk(rows, 2, 0.2)
    assert (note.reason, note.joint) == ("row jump", 5)
    assert note.value == pytest.approx(0.36)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_refuse_the_chunk_and_hold_the_command(governor, value):
    rows = np.tile(HOME, (32, 1))
    rows[31, 3] = value
    assert governor.check_chunk(rows, 0, 0.1).reason == "not finite"
    command = governor.step(rows[31], HOME)
    assert command.refused and np.array_equal(command.q, HOME)


def test_a_spent_chunk_and_one_from_the_future_are_refused(governor):
    rows = np.tile(HOME, (32, 1))
    assert governor.check_chunk(rows, 32, 2.2).reason == "stale"
    assert governor.check_chunk(rows, 0, -0.5).reason == "from the future"
    assert governor.check_chunk(rows[:, :6], 0, 0.0).reason == "width"


def test_a_target_far_from_the_measured_arm_is_refused_though_near_the_command(governor):
    measured = HOME.copy()
    measured[1] -= 0.4  # the arm was held back
    command = governor.step(HOME + 0.01, measured)
    assert command.refused and command.notes[0].reason == "far from the arm"


def test_an_arm_that_stands_outside_is_not_moved_at_all():
    governor = SafetyGovernor(LIMITS, CHAIN, PERIOD)
    stretched = HOME.copy()
    stretched[3] = -0.2
    with pytest.raises(MotionRefused, match="joint 4 stands outside"):
        governor.begin(stretched)
    behind = HOME.copy()
    behind[0] = 2.5
    with pytest.raises(MotionRefused, match="outside the workspace"):
        governor.begin(behind)
    with pytest.raises(MotionRefused, match="not told where"):
        governor.step(HOME, HOME)


def test_the_tables_are_libfrankas_and_the_portable_one_is_inside_both():
    assert PORTABLE.low == (-2.7437, -1.7628, -2.8973, -3.0421, -2.8065, 0.5445, -2.8973)
    assert PORTABLE.high == (2.7437, 1.7628, 2.8973, -0.1518, 2.8065, 3.7525, 2.8973)
    assert PORTABLE.acceleration == (10.0, 7.5, 10.0, 10.0, 10.0, 10.0, 10.0)
    assert PORTABLE.jerk == (5000.0, 3750.0, 5000.0, 5000.0, 5000.0, 5000.0, 5000.0)
    contract = load("droid_lerobot").wire.joints
    assert (PORTABLE.low, PORTABLE.high) == (contract.low, contract.high)
    rng = np.random.default_rng(0)
    q = rng.uniform(PORTABLE.low, PORTABLE.high, (1000, 7))
    down, up = PORTABLE.velocity_at(q)
    for arm in (PANDA, FR3):
        theirs = arm.velocity_at(q)
        assert (down >= theirs[0]).all() and (up <= theirs[1]).all()


def test_the_fr3_slows_towards_a_joints_end():
    q = np.array(FR3.high)
    down, up = FR3.velocity_at(q)
    # joint 2, 1.7837 rad: -0.2 + sqrt(5.17 * 0.0081) = 0.00464 rad/s
    assert up[1] == pytest.approx(0.00464, abs=1e-5)
    assert down[1] == pytest.approx(-2.62)


def test_limits_beyond_the_arm_are_refused():
    with pytest.raises(ContractError, match="velocity limit does not fit the portable arm"):
        SafetyLimits(velocity=2.5)
    with pytest.raises(ContractError, match="acceleration"):
        SafetyLimits(acceleration=8.0)
    with pytest.raises(ContractError, match="margins leave no room"):
        SafetyLimits(margin_low=(3.0,) * 7)

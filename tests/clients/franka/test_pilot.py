"""The whole path from chunk to command on a virtual clock: bounded, timed, and always able to stop."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wamserve.action_codec.errors import ContractError
from wamserve.clients.franka.limits import SafetyLimits
from wamserve.clients.franka.pilot import Pilot
from wamserve.clients.franka.playhead import PolicyClock, Ramp
from wamserve.clients.franka.watchdog import Alarm
from wamserve.clients.policy import ActionChunk
from wamserve.embodiments.contract import load

spec = importlib.util.spec_from_file_location("franka_conftest", Path(__file__).with_name("conftest.py"))
common = sys.modules.setdefault("franka_conftest", importlib.util.module_from_spec(spec))
spec.loader.exec_module(common)
HOME, IMPEDANCE, PERIOD, POSITION, Flight = (
    common.HOME,
    common.IMPEDANCE,
    common.PERIOD,
    common.POSITION,
    common.Flight,
)


def swing(t, amplitude=0.1, seconds=4.0):
    """A slow sine of the last joint, at HOME for t = 0."""
    q = HOME.copy()
    q[6] += amplitude * np.sin(2 * np.pi * t / seconds)
    return q


def assert_commands_inside(flight):
    limits, path = flight.pilot.limits, np.array(flight.path)
    assert np.isfinite(path).all()
    assert (path >= limits.low - 1e-9).all() and (path <= limits.high + 1e-9).all()
    assert limits.workspace.outside(flight.pilot.governor.tool_at(path)).max() <= 1e-6
    period = flight.pilot.drive.period
    velocity = np.diff(path, axis=0) / period
    assert np.abs(velocity).max() <= limits.velocity + 1e-6
    down, up = limits.arm.velocity_at(path[1:])
    assert (velocity <= up + 1e-6).all() and (velocity >= down - 1e-6).all()
    assert np.abs(np.diff(path, axis=0)).max() <= limits.step + 1e-9
    if flight.pilot.drive.smooth:
        acceleration = np.diff(velocity, axis=0) / period
        assert np.abs(acceleration).max() <= limits.acceleration + 1e-3
        assert np.abs(np.diff(acceleration, axis=0)).max() / period <= limits.jerk * 1.001 + 1e-3


def test_a_target_is_told_one_lead_before_it_is_due(flight):
    f = flight()
    start = f.time
    f.pilot.offer(f.chunk(lambda t: swing(t)))
    for _ in range(20):
        decision = f.step()
        expected = swing(f.time - start + POSITION.lead)
        # Linear between rows 67 ms apart of a 4 s sine: at most (2 pi / 4)^2 * 0.1 / 8 * 0.067^2
        np.testing.assert_allclose(decision.wish, expected, atol=1.5e-4)


def test_the_gripper_is_told_the_row_for_now_not_the_led_one(flight):
    f = flight()
    gripper = (np.arange(32) >= 10).astype(float)
    f.pilot.offer(f.chunk(lambda t: HOME, gripper))
    seen = [f.step().gripper for _ in range(20)]  # step k is at k + 1 periods
    # Rows led past at the start are gone for the gripper too.
    assert seen == [None] * 2 + [0.0] * 7 + [1.0] * 11


def test_slow_motion_scales_time_and_leaves_targets_where_they_are(flight):
    f = flight(ramp=Ramp(start=0.25, chunks=3))
    start = f.time
    assert f.pilot.policy_clock.rate == 0.25
    f.pilot.offer(f.chunk(lambda t: swing(t)))
    for _ in range(8):
        decision = f.step()
    passed = 0.25 * (f.time - start)
    np.testing.assert_allclose(decision.wish, swing(passed + POSITION.lead), atol=2e-4)
    for rate in (0.5, 0.75, 1.0, 1.0):
        f.step()
        at = f.pilot.policy_clock() - start
        f.pilot.offer(f.chunk(lambda t, at=at: swing(t + at)))
        assert f.pilot.policy_clock.rate == rate


def test_policy_time_is_continuous_and_maps_frames_taken_before_a_change_of_rate():
    now = [10.0]
    clock = PolicyClock(lambda: now[0], 0.2)
    now[0] = 12.0
    assert clock() == pytest.approx(10.4)
    clock.set_rate(1.0)
    now[0] = 13.0
    assert clock() == pytest.approx(11.4)
    assert clock.at(11.0) == pytest.approx(10.2)
    assert clock.at(12.5) == pytest.approx(10.9)


@pytest.mark.parametrize("drive", [POSITION, IMPEDANCE], ids=["position", "impedance"])
@pytest.mark.parametrize("seed", range(3))
def test_adversarial_streams_never_leave_the_limits_and_end_in_a_stop(drive, seed):
    fly_adversarially(drive, seed, 400 if drive is POSITION else 60)


def test_a_hundred_thousand_adversarial_chunks_through_the_whole_pilot_stay_inside_the_limits():
    fly_adversarially(POSITION, 100, 100_000, most_steps=2)


def fly_adversarially(drive, seed, chunks, most_steps=8):
    rng = np.random.default_rng(seed)
    f = Flight(drive)
    taken = 0
    for _ in range(chunks):
        kind = rng.integers(8)
        here = f.pilot.governor.commanded
        walk = here + np.cumsum(0.08 * rng.standard_normal((32, 7)), axis=0)
        if kind == 1:
            walk[rng.integers(32)] = rng.choice([np.nan, np.inf, 1e300])
        if kind == 2:
            walk += rng.uniform(-1, 1, 7)
        if kind == 3:
            walk = here + np.linspace(0, 1, 32)[:, None] * rng.uniform(-6, 6, 7)
        if kind == 4:
            walk = np.where(rng.random((32, 7)) < 0.5, here - 0.17, here + 0.17)
        start = f.pilot.policy_clock() - rng.choice([0.0, 0.1, 0.5, 3.0, -1.0])
        chunk = f.chunk(walk, start=start)
        if kind == 5:
            chunk = ActionChunk(chunk.actions[:, :7], start, PERIOD)
        if kind == 6:
            chunk = ActionChunk(chunk.actions, float("nan"), PERIOD)
        taken += f.pilot.offer(chunk) is None
        for _ in range(int(rng.integers(1, most_steps)) * (1 if drive is POSITION else 8)):
            f.step()
    assert taken >= 5
    assert_commands_inside(f)
    last = f.run(9.0)
    assert last[-1].state == "stopped"
    assert_commands_inside(f)
    still = round(5.0 / drive.period)
    assert np.ptp(np.array(f.path[-still:]), axis=0).max() < 1e-12


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 31),
            st.integers(0, 7),
            st.floats(allow_nan=True, allow_infinity=True),
            st.floats(-3.0, 3.0),
            st.integers(1, 6),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_one_bad_number_anywhere_in_any_chunk_moves_nothing_out_of_bounds(edits):
    f = Flight()
    for row, column, value, late, steps in edits:
        chunk = f.chunk(lambda t: swing(t), start=f.pilot.policy_clock() - late)
        chunk.actions[row, column] = value
        f.pilot.offer(chunk)
        for _ in range(steps):
            f.step()
    assert_commands_inside(f)


def test_an_outlier_chunk_is_refused_and_the_one_before_plays_on(flight):
    f = flight()
    start = f.time
    f.pilot.offer(f.chunk(lambda t: swing(t)))
    f.run(0.4)
    outlier = f.chunk(lambda t: swing(t) + 0.35)
    note = f.pilot.offer(outlier)
    assert (note.reason, note.limit) == ("first row", 0.2)
    decision = f.step()
    assert decision.state == "playing" and decision.chunk == 1
    assert note in decision.notes
    np.testing.assert_allclose(decision.wish, swing(f.time - start + POSITION.lead), atol=1e-3)


def test_a_stall_of_the_server_is_played_over_and_a_long_one_holds_rests_and_stops(flight):
    f = flight()
    f.pilot.offer(f.chunk(lambda t: swing(t)))
    states = [d.state for d in f.run(8.0)]
    # The last row is led to at 31 periods less the lead: 1.9 s, kept for one period, held 0.3 s, rested 5 s.
    order = [s for s, before in zip(states, [None, *states], strict=False) if s != before]
    assert order == ["playing", "holding", "resting", "stopped"]
    assert states.index("holding") * PERIOD == pytest.approx(1.9, abs=0.1)
    assert (states.index("resting") - states.index("holding")) * PERIOD == pytest.approx(0.33, abs=0.07)
    assert (states.index("stopped") - states.index("holding")) * PERIOD == pytest.approx(5.0, abs=0.1)
    assert f.pilot.tally.stopped_by.startswith("chunk: stop")


def test_a_chunk_after_a_rest_takes_the_arm_on(flight):
    f = flight()
    f.pilot.offer(f.chunk(lambda t: swing(t)))
    assert f.run(3.0)[-1].state == "resting"
    here = f.path[-1]
    f.pilot.offer(f.chunk(lambda t: here + 0.05 * t))
    assert f.step().state == "playing"


@pytest.mark.parametrize("drive", [POSITION, IMPEDANCE], ids=["position", "impedance"])
def test_a_frozen_camera_or_a_silent_arm_holds_and_goes_on_after(flight, drive):
    f = flight(drive)
    f.pilot.offer(f.chunk(lambda t: swing(t)))
    f.camera_time = f.time
    assert f.run(0.45)[-1].state == "playing"
    held = f.run(0.6)
    assert held[-1].state == "holding" and held[-1].alarms[0].watchdog == "camera"
    assert np.allclose(f.path[-1], f.path[-2], atol=1e-6)
    f.camera_time = f.time + 10
    assert f.step().state == "playing"
    f.frozen_state = f.time
    assert [d.state for d in f.run(0.3)][-1] == "holding"


def test_an_arm_that_does_not_follow_is_stopped_after_a_tenth_of_a_second(flight):
    f = flight()
    f.pilot.offer(f.chunk(lambda t: HOME))
    f.step()
    f.sense = {"q_command": HOME + 0.31 * np.eye(7)[0]}
    assert f.step().state == "playing"
    f.time += 0.05
    assert f.step().state == "stopped"
    assert "tracking: stop 0.31 (limit 0.3) joint 1" in f.pilot.tally.stopped_by


def test_a_controller_that_goes_astray_with_the_arm_is_stopped_too(flight):
    f = flight()
    f.pilot.offer(f.chunk(lambda t: HOME))
    f.step()
    f.sense = {"command": HOME - 0.31 * np.eye(7)[4]}
    f.step()
    f.time += 0.05
    assert f.step().alarms[0].text() == "tracking: stop 0.31 (limit 0.3) joint 5"


def test_a_joint_faster_than_it_may_ever_be_told_stops_the_arm(flight):
    f = flight()
    f.pilot.offer(f.chunk(lambda t: HOME))
    f.sense = {"dq": 1.3 * np.eye(7)[5]}
    assert f.step().state == "playing"
    assert f.step().alarms[0].text() == "speed: stop 1.3 (limit 1.25)"


def test_three_late_control_steps_in_a_row_stop_the_arm_two_do_not(flight):
    f = flight()
    f.pilot.offer(f.chunk(lambda t: HOME))
    f.step()
    for _ in range(2):
        assert f.step(PERIOD + 0.031).state == "playing"
    f.step()
    for _ in range(2):
        assert f.step(PERIOD + 0.031).state == "playing"
    assert f.step(PERIOD + 0.031).state == "stopped"


def test_lost_control_cycles_warn_then_stop(flight):
    f = flight(IMPEDANCE)
    f.pilot.offer(f.chunk(lambda t: HOME))
    f.step()
    f.sense = {"success_rate": 0.94, "moving": True}
    decision = f.step()
    assert decision.state == "playing" and decision.alarms[0].severity == "warn"
    f.sense = {"success_rate": 0.89, "moving": True}
    assert f.step().state == "playing"
    assert f.run(0.15)[-1].state == "stopped"


def test_a_stop_is_final_and_keeps_its_first_reason(flight):
    f = flight(IMPEDANCE)
    f.pilot.offer(f.chunk(lambda t: swing(t, 0.2, 2.0)))
    f.run(0.4)
    f.pilot.stop(Alarm("stop", "operator", 0.0, 0.0, "space bar"))
    f.pilot.stop(Alarm("stop", "backend", 0.0, 0.0, "later"))
    f.run(0.5)
    f.pilot.offer(f.chunk(lambda t: f.path[-1]))
    assert f.step().state == "stopped"
    assert f.pilot.tally.stopped_by == "operator: stop space bar"
    assert_commands_inside(f)
    assert np.array_equal(f.path[-1], f.path[-2])


def test_contracts_of_other_robots_are_refused():
    for name in ("pusht", "libero", "robomind-franka-dual"):
        with pytest.raises(ContractError):
            Pilot(load(name), SafetyLimits(), POSITION, clock=lambda: 0.0)

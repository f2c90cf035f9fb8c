"""The gripper worker: newest wish wins, only changes are sent. And the unmodified Robotiq driver on a pty."""

import importlib.util
import sys
import threading
import time
from pathlib import Path

import pytest

from wamserve.action_codec.gripper import FRACTION_ONE_IS_CLOSED, FRACTION_ONE_IS_OPEN
from wamserve.clients.franka.gripper import DryRunHand, GripperFault, GripperWorker, RobotiqHand, hand_named

spec = importlib.util.spec_from_file_location("modbus_double", Path(__file__).with_name("modbus_double.py"))
double = sys.modules.setdefault("modbus_double", importlib.util.module_from_spec(spec))
spec.loader.exec_module(double)


class ScriptedHand:
    """Ends a motion when it is told to."""

    def __init__(self):
        self.begun, self.interrupts = [], 0
        self.end = threading.Event()
        self.broken = False

    def begin(self, is_open):
        if self.broken:
            raise OSError("cable out")
        self.begun.append(is_open)
        self.end.clear()

    def done(self):
        return self.end.is_set()

    def interrupt(self):
        self.interrupts += 1

    def opening(self):
        return float(self.begun[-1]) if self.begun else 1.0

    def close(self):
        pass


def until(condition, seconds=3.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.005)


@pytest.fixture
def worker():
    made = []

    def make(hand, meaning=FRACTION_ONE_IS_CLOSED, **options):
        made.append(GripperWorker(hand, meaning, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_policy_that_repeats_itself_sends_one_command(worker):
    hand = ScriptedHand()
    w = worker(hand)
    for _ in range(50):
        w.want(1.0)
    until(lambda: hand.begun == [False])
    hand.end.set()
    for _ in range(50):
        w.want(0.9)
    time.sleep(0.15)
    assert hand.begun == [False] and w.sent == 1


def test_a_newer_wish_interrupts_the_one_under_way(worker):
    hand = ScriptedHand()
    w = worker(hand)
    w.want(1.0)
    until(lambda: hand.begun == [False])
    w.want(0.0)
    until(lambda: hand.begun == [False, True])
    assert (hand.interrupts, w.interrupted) == (1, 1)


def test_a_wish_taken_back_while_the_hand_is_being_stopped_is_carried_out(worker):
    class SlowToStop(ScriptedHand):
        def interrupt(self):
            super().interrupt()
            w.want(1.0)  # closed again, before the worker looks

    hand = SlowToStop()
    w = worker(hand)
    w.want(1.0)
    until(lambda: hand.begun == [False])
    w.want(0.0)
    until(lambda: hand.begun == [False, False])


def test_wishes_between_the_two_bounds_change_nothing(worker):
    hand = ScriptedHand()
    w = worker(hand)
    hand.end.set()
    assert w.want(0.0) is True
    assert [w.want(v) for v in (0.45, 0.55, 0.59)] == [True] * 3  # open fraction 0.55 .. 0.41
    assert w.want(0.61) is False
    assert [w.want(v) for v in (0.55, 0.45, 0.41)] == [False] * 3
    assert w.want(0.39) is True


def test_the_contracts_polarity_decides_what_one_means(worker):
    hands = ScriptedHand(), ScriptedHand()
    for hand, meaning in zip(hands, (FRACTION_ONE_IS_OPEN, FRACTION_ONE_IS_CLOSED), strict=True):
        worker(hand, meaning).want(1.0)
    until(lambda: hands[0].begun and hands[1].begun)
    assert hands[0].begun == [True] and hands[1].begun == [False]


def test_a_number_that_is_none_keeps_the_hand(worker):
    hand = ScriptedHand()
    w = worker(hand)
    w.want(1.0)
    until(lambda: hand.begun == [False])
    assert w.want(float("nan")) is False
    assert w.want(float("inf")) is False


def test_a_motion_that_never_ends_is_given_up(worker):
    hand = ScriptedHand()
    w = worker(hand, timeout=0.2)
    w.want(1.0)
    until(lambda: w.timeouts == 1)
    assert "0.2 s" in w.fault
    w.want(0.0)
    until(lambda: hand.begun == [False, True])


def test_a_hand_that_fails_is_reported_and_tried_again(worker):
    hand = ScriptedHand()
    hand.broken = True
    w = worker(hand)
    w.want(1.0)
    until(lambda: "cable out" in w.fault)
    hand.broken = False
    until(lambda: hand.begun == [False])


def test_want_never_waits_for_the_hand(worker):
    hand = ScriptedHand()
    w = worker(hand)
    w.want(1.0)
    until(lambda: hand.begun)
    start = time.perf_counter()
    for k in range(200):
        w.want(float(k % 2))
    assert (time.perf_counter() - start) / 200 < 0.005


def test_names_that_are_no_gripper_are_refused():
    assert isinstance(hand_named("dry-run", ""), DryRunHand)
    with pytest.raises(GripperFault, match="robotiq:/dev/ttyUSB0"):
        hand_named("robotic", "")


@pytest.fixture
def robotiq():
    pytest.importorskip("robotiq2f")
    device = double.GripperDouble()
    yield device
    device.close()


def test_the_real_driver_activates_opens_and_closes_over_a_serial_line(robotiq, worker):
    hand = RobotiqHand(robotiq.port)
    assert robotiq.active
    w = worker(hand)
    assert w.opening == pytest.approx(1.0, abs=0.05)
    w.want(1.0)
    until(lambda: w.opening < 0.05)
    assert robotiq.goals == [230]  # fully closed in the driver's counts
    w.want(0.0)
    until(lambda: w.opening > 0.95)
    # 230 - 85 mm / 0.39 mm, the driver's own scale
    assert robotiq.goals == [230, 12] and w.sent == 2 and not w.fault


def test_closing_on_an_object_ends_the_motion_and_the_opening_says_so(robotiq, worker):
    robotiq.object_at = 120
    hand = RobotiqHand(robotiq.port)
    w = worker(hand)
    w.want(1.0)
    until(lambda: abs(w.opening - (230 - 120) * 0.39 / 85) < 0.01)
    time.sleep(0.2)
    assert w.timeouts == 0 and w.sent == 1


def test_a_serial_line_that_falls_silent_is_reported_and_comes_back(robotiq, worker):
    w = worker(RobotiqHand(robotiq.port))
    robotiq.silent = True
    until(lambda: "No communication" in w.fault, 5.0)
    robotiq.silent = False
    w.want(1.0)
    until(lambda: w.opening < 0.05, 5.0)


def test_no_device_is_an_error_that_says_what_to_type(tmp_path):
    pytest.importorskip("robotiq2f")
    with pytest.raises(GripperFault, match="no Robotiq gripper at /dev/nothing"):
        RobotiqHand("/dev/nothing")

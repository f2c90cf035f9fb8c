"""A virtual clock and a pilot on it."""

import numpy as np
import pytest

from wamserve.clients.franka.limits import SafetyLimits
from wamserve.clients.franka.pilot import Drive, Pilot
from wamserve.clients.franka.playhead import Ramp
from wamserve.clients.franka.watchdog import Sense
from wamserve.clients.policy import ActionChunk
from wamserve.embodiments.contract import load

HOME = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])
PERIOD = 1 / 15
POSITION = Drive("position", PERIOD, PERIOD + 0.1, smooth=False)
IMPEDANCE = Drive("impedance", 0.005, 0.1, smooth=True)


class Flight:
    """A pilot, its clock, and an arm that is where it was told (or where the test puts it)."""

    def __init__(self, drive=POSITION, limits=None, ramp=None, **options):
        smooth = {"acceleration": 4.0, "jerk": 100.0} if drive.smooth else {}
        self.time = 100.0
        self.pilot = Pilot(
            load("droid_lerobot"),
            limits or SafetyLimits(tcp_speed=5.0, **smooth),
            drive,
            clock=lambda: self.time,
            ramp=ramp or Ramp(chunks=0),
            **options,
        )
        self.q = HOME.copy()
        self.pilot.begin(self.q)
        self.path = [HOME.copy()]
        self.camera_time = None
        self.frozen_state = None
        self.sense = {}

    def step(self, advance=None):
        self.time += self.pilot.drive.period if advance is None else advance
        state_time = self.time if self.frozen_state is None else self.frozen_state
        sense = {
            "q": self.q,
            "q_command": self.q,
            "command": self.path[-1],
            "state_time": state_time,
            "camera_time": self.camera_time,
        }
        decision = self.pilot.step(Sense(**{**sense, **self.sense}))
        self.q = decision.q
        self.path.append(decision.q)
        return decision

    def run(self, seconds):
        return [self.step() for _ in range(round(seconds / self.pilot.drive.period))]

    def chunk(self, joints, gripper=0.0, start=None, period=PERIOD):
        """Joints [H, 7], or a function of seconds from the chunk's start."""
        start = self.pilot.policy_clock() if start is None else start
        rows = np.array([joints(k * PERIOD) for k in range(32)]) if callable(joints) else np.asarray(joints)
        column = np.broadcast_to(np.asarray(gripper, float).reshape(-1, 1), (len(rows), 1))
        return ActionChunk(np.concatenate([rows, column], axis=1), start, period)


@pytest.fixture
def flight():
    return Flight

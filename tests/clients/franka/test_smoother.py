"""The impedance backend's reference: velocity, acceleration and jerk stay bounded, and it can always stop."""

import time

import numpy as np
import pytest

from wamserve.clients.franka.governor import SafetyGovernor
from wamserve.clients.franka.limits import SafetyLimits
from wamserve.clients.franka.smoother import Smoother
from wamserve.embodiments.contract import load

pytest.importorskip("ruckig")
CHAIN = load("droid_lerobot").wire.kinematics
HOME = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0])
DT = 0.005


def pair(**limits):
    limits = SafetyLimits(**{"acceleration": 4.0, "jerk": 100.0, **limits})
    governor = SafetyGovernor(limits, CHAIN, DT)
    governor.begin(HOME)
    smoother = Smoother(limits, governor.tool_at, DT)
    smoother.begin(HOME)
    return limits, governor, smoother


def assert_bounded(limits, governor, path):
    """The stated limits of a reference [T, 7] every 5 ms, from its own differences."""
    assert np.isfinite(path).all()
    assert (path >= limits.low - 1e-9).all() and (path <= limits.high + 1e-9).all()
    velocity = np.diff(path, axis=0) / DT
    down, up = limits.arm.velocity_at(path[1:])
    assert (np.abs(velocity) <= limits.velocity + 1e-6).all()
    assert (velocity <= up + 1e-6).all() and (velocity >= down - 1e-6).all()
    acceleration = np.diff(velocity, axis=0) / DT
    assert np.abs(acceleration).max() <= limits.acceleration + 1e-3
    jerk = np.diff(acceleration, axis=0) / DT
    assert np.abs(jerk).max() <= limits.jerk * 1.001 + 1e-3
    points = governor.tool_at(path)
    assert limits.workspace.outside(points).max() <= 1e-6
    return np.linalg.norm(np.diff(points, axis=0), axis=1).max() / DT


def adversary(rng, kind, governor):
    """Targets at 200 Hz that no policy should send."""
    q = HOME.copy()
    while True:
        for _ in range(int(rng.integers(1, 30))):
            yield q
        if kind == "bang":
            q = np.where(rng.random(7) < 0.5, -3.0, 3.0)
        elif kind == "near":
            q = governor.commanded + rng.uniform(-0.3, 0.3, 7)
        elif kind == "hand over table":
            q = governor.commanded + np.array([0.0, 0.2, 0.0, -0.2 * rng.random(), 0.0, 0.0, 0.0])
        elif kind == "joints' ends":
            q = np.where(rng.random() < 0.8, governor.commanded + 0.3 * np.eye(7)[rng.integers(1, 7)], HOME)
        elif kind == "huge":
            q = 10.0 ** rng.uniform(-3, 6) * rng.standard_normal(7)


@pytest.mark.parametrize("kind", ["bang", "near", "hand over table", "joints' ends", "huge"])
@pytest.mark.parametrize("tcp_speed", [0.25, 5.0])
def test_no_stream_of_targets_leads_the_reference_out_of_its_limits(kind, tcp_speed):
    limits, governor, smoother = pair(tcp_speed=tcp_speed)
    rng = np.random.default_rng(11)
    targets = adversary(rng, kind, governor)
    path = [HOME]
    for _ in range(1200):
        command = governor.step(next(targets), governor.commanded if kind != "bang" else path[-1], DT)
        path.append(smoother.step(command.q).q)
    while not np.array_equal(path[-1], path[-2]) and len(path) < 2000:
        path.append(smoother.step(None).q)
    speed = assert_bounded(limits, governor, np.array(path))
    assert speed <= 1.1 * limits.tcp_speed
    assert len(path) < 2000  # a stream that stops ends in a stop


def test_it_brakes_to_rest_within_a_quarter_second_from_full_speed():
    _, _, smoother = pair(tcp_speed=5.0)
    target = HOME.copy()
    target[0] = 0.6
    path = [HOME] + [smoother.step(target).q for _ in range(90)]
    assert (path[-1] - path[-2])[0] / DT > 0.8
    for _ in range(90):
        path.append(smoother.step(None).q)
    still = np.abs(np.diff(np.array(path)[:, 0]))[-90:]
    # v / a + a / j = 0.25 + 0.04 s
    assert np.argmax(still < 1e-9) * DT <= 0.30


def test_a_target_that_jumps_is_reached_without_overshoot():
    _, _, smoother = pair(tcp_speed=5.0)
    target = HOME.copy()
    target[4] += 0.3
    path = np.array([smoother.step(target).q for _ in range(300)])
    assert path[:, 4].max() <= target[4] + 1e-9
    np.testing.assert_allclose(path[-1], target, atol=1e-9)


def test_a_step_costs_a_small_part_of_its_period():
    _, governor, smoother = pair()
    rng = np.random.default_rng(0)
    spent = []
    for _ in range(300):
        start = time.process_time()
        command = governor.step(governor.commanded + rng.uniform(-0.05, 0.05, 7), governor.commanded, DT)
        smoother.step(command.q)
        spent.append(time.process_time() - start)
    assert np.median(spent) < 0.5 * DT

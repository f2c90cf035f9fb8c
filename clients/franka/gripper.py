"""Grippers: a worker that always carries out the newest wish, and the hands it can drive.

A policy speaks 15 times a second and a hand takes a second per command: the worker sends only changes, and a
newer wish interrupts the one under way.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

import numpy as np

from wamserve.action_codec.errors import WamError
from wamserve.action_codec.gripper import Gripper, gripper_with_hysteresis
from wamserve.clients.franka.priority import ordinary


class GripperFault(WamError):
    """The hand does not answer or reports a fault."""


class Hand(Protocol):
    """A gripper that opens and closes. Called from the worker's thread only."""

    def begin(self, is_open: bool) -> None:
        """Starts to open or close; returns at once."""
        ...

    def done(self) -> bool:
        """Whether the last motion has ended, on an object or at its end."""
        ...

    def interrupt(self) -> None:
        """Ends the motion under way, so that another can begin."""
        ...

    def opening(self) -> float:
        """Measured, 0 closed .. 1 open."""
        ...

    def close(self) -> None: ...


class GripperWorker:
    """A thread that owns the hand. `want` and `opening` return at once."""

    def __init__(
        self,
        hand: Hand,
        meaning: Gripper,
        *,
        timeout: float = 3.0,
        poll: float = 0.02,
        open_above: float = 0.6,
        close_below: float = 0.4,
    ) -> None:
        """meaning: of the policy's gripper numbers. timeout: seconds a motion may take before it is given up.

        open_above, close_below: open fractions at which the hand changes; between them it keeps.
        """
        self.hand, self.meaning, self.timeout, self.poll = hand, meaning, timeout, poll
        self._bounds = (open_above, close_below)
        self._opening = hand.opening()
        self._wanted = self._opening >= 0.5
        self._asked = False  # whether a wish has ever come
        self._sent: bool | None = None  # None: nothing was sent yet, or it failed
        self._news = threading.Condition()
        self._closing = False
        self.sent = 0  # commands to the hand
        self.interrupted = 0
        self.timeouts = 0
        self.fault = ""  # the last one
        self._thread = threading.Thread(target=self._run, name="gripper", daemon=True)
        self._thread.start()

    def want(self, value: float) -> bool:
        """A number of the policy, through hysteresis; the hand is told of changes. Returns open or not."""
        if not np.isfinite(value):
            return self._wanted
        row = gripper_with_hysteresis(np.array([value]), self.meaning, self._wanted, *self._bounds)
        is_open = bool(row[0] == self.meaning.opened)
        with self._news:
            if is_open != self._wanted or not self._asked:
                self._wanted, self._asked = is_open, True
                self._news.notify()
        return is_open

    @property
    def opening(self) -> float:
        """0 closed .. 1 open, as last measured."""
        return self._opening

    def close(self) -> None:
        """Ends the thread; the hand keeps what it holds."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(self.timeout + 1.0)
        self.hand.close()

    def _run(self) -> None:
        ordinary()
        while not self._closing:
            with self._news:
                self._news.wait(0.1)
                asked, wanted = self._asked, self._wanted
            try:
                if asked and wanted != self._sent:
                    self._carry_out(wanted)
                self._opening = self.hand.opening()
            except Exception as error:  # a hand that fails does not take the arm's process with it
                self.fault = str(error)
                self._sent = None
                time.sleep(0.5)

    def _carry_out(self, is_open: bool) -> None:
        self.hand.begin(is_open)
        self._sent = is_open
        self.sent += 1
        deadline = time.monotonic() + self.timeout
        while not self.hand.done():
            self._opening = self.hand.opening()
            if self._wanted != is_open or self._closing:
                self.interrupted += 1
                self.hand.interrupt()
                self._sent = None  # it stands half way: even the same wish must be sent again
                return
            if time.monotonic() > deadline:
                self.timeouts += 1
                self.fault = f"no end of motion after {self.timeout:g} s"
                self.hand.interrupt()
                return
            time.sleep(self.poll)


class DryRunHand:
    """A hand on paper that takes `seconds` for its stroke."""

    def __init__(self, seconds: float = 0.6, opening: float = 1.0) -> None:
        self.seconds = seconds
        self._from = self._to = opening
        self._since = -1e9

    def begin(self, is_open: bool) -> None:
        self._from, self._to, self._since = self.opening(), float(is_open), time.monotonic()

    def done(self) -> bool:
        return self.opening() == self._to

    def interrupt(self) -> None:
        self._from = self._to = self.opening()

    def opening(self) -> float:
        moved = (time.monotonic() - self._since) / self.seconds
        return float(np.clip(self._to, self._from - moved, self._from + moved))

    def close(self) -> None: ...


class FrankaHand:
    """The arm's own hand, through franky. Closing is a grasp, so that it holds whatever it meets."""

    def __init__(self, host: str, *, speed: float = 0.1, force: float = 30.0) -> None:
        """speed: m/s. force: N. Raises GripperFault without a hand."""
        import franky

        self.speed, self.force = speed, force
        try:
            self._gripper: Any = franky.Gripper(host)
            self._widest = float(self._gripper.max_width) or 0.08
        except Exception as error:
            raise GripperFault(f"no Franka hand at {host}: {error}", fix="--gripper dry-run") from error
        self._moving: Any = None

    def begin(self, is_open: bool) -> None:
        if is_open:
            self._moving = self._gripper.open_async(self.speed)
        else:
            self._moving = self._gripper.grasp_async(0.0, self.speed, self.force, 0.08, 0.08)

    def done(self) -> bool:
        # Never get() before wait(): a motion that was stopped leaves its future open for ever.
        return self._moving is None or bool(self._moving.wait(0.0))

    def interrupt(self) -> None:
        self._gripper.stop()
        self._moving = None

    def opening(self) -> float:
        return float(np.clip(self._gripper.width / self._widest, 0.0, 1.0))

    def close(self) -> None:
        self._gripper = None


class RobotiqHand:
    """A Robotiq 2F-85 on a serial line, through robotiq2f."""

    def __init__(self, port: str, *, speed: float = 150.0, force: float = 60.0) -> None:
        """port: a device (/dev/ttyUSB0) or a serial number. speed: mm/s. force: N. Activates the hand."""
        from robotiq2f import robotiq2f as driver

        self.speed, self.force = speed, force
        finder = driver.LinuxFindTTYWithSerialNumber
        find = finder.find
        if port.startswith("/dev/"):  # the driver knows serial numbers only
            finder.find = lambda _self, _number: port
        try:
            self._driver: Any = driver.Robotiq2F85(port)
            # 50 ms, the default, is less than a busy control PC may take to read its serial port.
            self._driver.client.serial.timeout = 0.3
            self._widest = float(self._driver.MAX_OPENING)
            status = self._driver.read_status_sync()
            if not status.is_activated:
                self._driver.reset()
        except Exception as error:
            raise GripperFault(
                f"no Robotiq gripper at {port}: {error}", fix="--gripper robotiq:/dev/ttyUSB0"
            ) from error
        finally:
            finder.find = find

    def begin(self, is_open: bool) -> None:
        self._driver.go_to(self._widest if is_open else 0.0, self.speed, self.force)
        time.sleep(0.02)  # the status echoes the command one exchange later

    def done(self) -> bool:
        status = self._driver.read_status_sync()
        if any(vars(status.fault).values()):
            raise GripperFault(f"the Robotiq gripper reports {status.fault}")
        return not status.moving

    def interrupt(self) -> None: ...  # a newer position replaces the one under way

    def opening(self) -> float:
        return float(np.clip(self._driver.read_status_sync().opening / self._widest, 0.0, 1.0))

    def close(self) -> None:
        self._driver.close()


def hand_named(name: str, host: str) -> Hand:
    """ "dry-run", "franka" or "robotiq:PORT". GripperFault for another name."""
    if name == "dry-run":
        return DryRunHand()
    if name == "franka":
        return FrankaHand(host)
    kind, _, port = name.partition(":")
    if kind == "robotiq" and port:
        return RobotiqHand(port)
    raise GripperFault(f"no gripper {name!r}", expected="dry-run, franka, robotiq:/dev/ttyUSB0")

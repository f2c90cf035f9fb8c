"""The network loop, a process of its own: cameras and policy on one side, the arm's process on the other.

It may hang, starve or die: the arm's process then has no newer chunk, and its watchdogs do the rest.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from wamserve.action_codec.errors import ContractError, PolicyLate, WamError
from wamserve.clients.check import check_image
from wamserve.clients.client import PolicyClient
from wamserve.clients.franka.cameras import Camera, SimulatorCamera, camera_named
from wamserve.clients.policy import ActionChunk, Ledger, Observation, Prediction, Request
from wamserve.clients.session import Backoff, Endpoint, Timeouts
from wamserve.embodiments.contract import load

LOOK_SECONDS = 1 / 15  # between two reports of the pictures' age


@dataclass(frozen=True)
class NetworkPlan:
    """What the network loop is told at its start."""

    uri: str
    embodiment: str
    instruction: str
    cameras: dict[str, str]  # view name -> spec of camera_named
    replan_rows: int = 8  # control steps between questions
    request_seconds: float = 5.0
    session: str = "franka"
    jpeg_quality: int | None = None
    options: dict[str, Any] = field(default_factory=dict)  # further fields of Endpoint, as token


# To the arm's process:
@dataclass(frozen=True)
class Ask:
    """Phrase a request for pictures taken at `time`."""

    time: float  # wall clock
    number: int


@dataclass(frozen=True)
class Look:
    """How old the pictures are."""

    time: float  # wall clock of the oldest camera's newest picture


@dataclass(frozen=True)
class Got:
    """An answer."""

    chunk: ActionChunk
    number: int
    observed: float  # wall clock of the pictures
    round_trip_ms: float
    ledger: Ledger
    seed: int


@dataclass(frozen=True)
class Trouble:
    """No answer, and why."""

    text: str
    time: float
    fatal: bool = False  # trying again would not help


@dataclass(frozen=True)
class Ready:
    """Connected, cameras running."""

    server: str
    period: float
    max_prefix_rows: int


# From the arm's process: Pose now and then, Request as the answer to Ask, None to end.
@dataclass(frozen=True, eq=False)
class Pose:
    """Where the arm is, for simulated cameras."""

    q: np.ndarray  # [7] rad
    opening: float
    time: float  # wall clock


class NetworkLoop:
    """Asks, shows pictures, passes chunks on. One connection, one question at a time."""

    def __init__(self, plan: NetworkPlan, pipe: Connection) -> None:
        self.plan, self.pipe = plan, pipe
        self.contract = load(plan.embodiment)
        self._ended = False
        self._pose: Pose | None = None
        self._number = 0
        self._sending = threading.Lock()
        sizes = {image.name: (image.width, image.height) for image in self.contract.wire.images}
        missing = sorted(set(sizes) - set(plan.cameras))
        if missing:
            raise WamError(
                f"no camera for view {', '.join(missing)}",
                seen=", ".join(plan.cameras) or "none",
                expected=", ".join(sizes),
                fix=f"--cameras {missing[0]}=v4l2:/dev/video0",
            )
        self.cameras: dict[str, Camera] = {
            name: camera_named(plan.cameras[name], *size) for name, size in sizes.items()
        }
        timeouts = Timeouts(connect=5.0, request=plan.request_seconds, close=0.5)
        self.client = PolicyClient(
            Endpoint(
                plan.uri,
                contract=self.contract,
                timeouts=timeouts,
                backoff=Backoff(attempts=1),
                jpeg_quality=plan.jpeg_quality,
                **plan.options,
            )
        )

    def run(self) -> None:
        threading.Thread(target=self._watch_cameras, name="look", daemon=True).start()
        self._connect()
        period = 1.0 / self.contract.wire.rate_hz
        next_ask = 0.0
        while not self._ended:
            self._read_messages(max(0.01, min(next_ask - time.monotonic(), 0.05)))
            oldest = self._oldest()
            if oldest is None or time.monotonic() < next_ask:
                continue
            started = time.monotonic()
            try:
                self._question(oldest)
                next_ask = started + self.plan.replan_rows * period
            except ContractError:
                raise
            except WamError as error:
                self._tell(Trouble(str(error), time.monotonic()))
                if isinstance(error, PolicyLate):
                    continue  # asked again at once: the pictures are old
                next_ask = time.monotonic() + 0.25

    def _connect(self) -> None:
        while not self._ended:
            try:
                self.client.connect()
                hello = self.client.hello
                assert hello is not None
                self._tell(Ready(hello.server, hello.period, hello.max_prefix_rows))
                return
            except ContractError:  # two ends that mean different robots
                raise
            except WamError as error:
                self._tell(Trouble(str(error), time.monotonic()))
                self._read_messages(0.5)

    def _oldest(self) -> float | None:
        """Wall clock of the oldest view's picture; None while a camera has none."""
        frames = [camera.latest() for camera in self.cameras.values()]
        times = [frame.time for frame in frames if frame is not None]
        return min(times) if len(times) == len(frames) else None

    def _watch_cameras(self) -> None:
        """A thread, so that the pictures' age is known while an answer is awaited."""
        while not self._ended:
            pose = self._pose
            for camera in self.cameras.values():
                if isinstance(camera, SimulatorCamera) and pose is not None:
                    camera.see(pose.q, pose.opening, pose.time)
            oldest = self._oldest()
            if oldest is not None:
                self._tell(Look(oldest))
            time.sleep(LOOK_SECONDS)

    def _question(self, oldest: float) -> None:
        images = {}
        for name, camera in self.cameras.items():
            frame = camera.latest()
            assert frame is not None
            images[name] = frame.image
        for image in self.contract.wire.images:
            check_image(image, images[image.name])
        self._number += 1
        self._tell(Ask(oldest, self._number))
        request = self._await_request()
        if request is None:
            return
        shown = dataclasses.replace(request.observation, images=images, instruction=self.plan.instruction)
        start = time.monotonic()
        prediction: Prediction = self.client.infer(
            dataclasses.replace(request, observation=shown, session=self.plan.session)
        )
        if prediction.chunk is None:
            raise WamError("the policy answered without actions")
        took = 1e3 * (time.monotonic() - start)
        self._tell(Got(prediction.chunk, self._number, oldest, took, prediction.ledger, prediction.seed))

    def _await_request(self) -> Request | None:
        deadline = time.monotonic() + 1.0
        while not self._ended and time.monotonic() < deadline:
            if (request := self._read_messages(0.05)) is not None:
                return request
        return None

    def _read_messages(self, seconds: float) -> Request | None:
        """Waits up to `seconds` for the arm's process; the newest request among what it said."""
        request: Request | None = None
        try:
            while self.pipe.poll(seconds):
                message = self.pipe.recv()
                if message is None:
                    self._ended = True
                elif isinstance(message, Pose):
                    self._pose = message
                else:
                    request = message
                seconds = 0.0
        except (EOFError, OSError):
            self._ended = True
        return request

    def _tell(self, message: object) -> None:
        try:
            with self._sending:
                self.pipe.send(message)
        except (BrokenPipeError, OSError):
            self._ended = True

    def close(self) -> None:
        for camera in self.cameras.values():
            camera.close()
        self.client.close()


def run_network(plan: NetworkPlan, pipe: Connection) -> None:
    """Body of the network process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the arm process's; it says when to end
    loop: NetworkLoop | None = None
    try:
        loop = NetworkLoop(plan, pipe)
        loop.run()
    except Exception as error:
        pipe.send(Trouble(f"{type(error).__name__}: {error}", time.monotonic(), fatal=True))
        raise SystemExit(1) from None
    finally:
        if loop is not None:
            loop.close()


def blank_observation(state: dict[str, np.ndarray], time: float) -> Observation:
    """What the arm's process knows of an observation; the network loop adds pictures and instruction."""
    return Observation({}, state, "", time)

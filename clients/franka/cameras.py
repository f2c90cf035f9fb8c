"""Cameras behind one small protocol: the newest picture, and when it was taken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from wamserve.action_codec.errors import WamError


class CameraFault(WamError):
    """A camera that is not there or gives no pictures."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture."""

    image: np.ndarray  # uint8 [H, W, 3] RGB
    time: float  # seconds on the wall clock, when it was taken as well as the device tells

    def age(self, now: float) -> float:
        return now - self.time


class Camera(Protocol):
    """Gives its newest picture without waiting."""

    def latest(self) -> Frame | None:
        """None before the first picture."""
        ...

    def close(self) -> None: ...


class Grabber:
    """A camera from a blocking read: a thread keeps the newest picture. A read that fails is tried again."""

    def __init__(self, read: Callable[[], np.ndarray | None], release: Callable[[], None]) -> None:
        """read: the next picture, RGB; None where there is none yet."""
        self._read, self._release = read, release
        self._latest: Frame | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def latest(self) -> Frame | None:
        return self._latest

    def close(self) -> None:
        self._closing = True
        self._thread.join(2.0)
        self._release()

    def _run(self) -> None:
        while not self._closing:
            try:
                image = self._read()
            except Exception:
                image = None
            if image is None:
                time.sleep(0.01)
            else:
                self._latest = Frame(image, time.monotonic())


def v4l2_camera(device: str, width: int, height: int, rate_hz: float = 30.0) -> Grabber:
    """A USB camera through OpenCV. device: "0" or "/dev/video0"."""
    import cv2

    capture = cv2.VideoCapture(int(device) if device.isdigit() else device, cv2.CAP_V4L2)
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
    capture.set(cv2.CAP_PROP_FPS, rate_hz)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # a queue in the driver would make every picture old
    if not capture.isOpened():
        raise CameraFault(f"camera {device!r} cannot be opened", fix="v4l2-ctl --list-devices")

    def read() -> np.ndarray | None:
        good, image = capture.read()
        return np.ascontiguousarray(image[:, :, ::-1]) if good else None

    return Grabber(read, capture.release)


def realsense_camera(serial: str, width: int, height: int, rate_hz: int = 30) -> Grabber:
    """An Intel RealSense's colour stream. serial: as printed on it; "" takes any."""
    import pyrealsense2 as rs

    pipeline, config = rs.pipeline(), rs.config()
    if serial:
        config.enable_device(serial)
    config.enable_stream(rs.stream.color, width, height, rs.format.rgb8, rate_hz)
    try:
        pipeline.start(config)
    except RuntimeError as error:
        raise CameraFault(f"RealSense {serial or 'camera'} does not start: {error}") from error

    def read() -> np.ndarray | None:
        return np.array(pipeline.wait_for_frames(1000).get_color_frame().get_data())

    return Grabber(read, pipeline.stop)


def video_camera(path: str, rate_hz: float | None = None) -> Grabber:
    """A video file played at its rate, over and over."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        rate = rate_hz or float(stream.average_rate or 15)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    if not frames:
        raise CameraFault(f"no picture in {path}")
    begin = time.monotonic()
    shown = -1

    def read() -> np.ndarray | None:
        nonlocal shown
        number = int((time.monotonic() - begin) * rate)
        if number == shown:
            return None
        shown = number
        return frames[number % len(frames)]

    return Grabber(read, lambda: None)


class SimulatorCamera:
    """Pictures of a simulated scene that mirrors the arm, rendered on demand."""

    def __init__(self, render: Callable[[np.ndarray, float], np.ndarray]) -> None:
        """render: joints [7] rad and gripper opening 0 .. 1 -> uint8 [H, W, 3] RGB."""
        self._render = render
        self._seen: Frame | None = None

    def see(self, joints: np.ndarray, opening: float, time: float) -> None:
        """Takes the picture of the arm as it was at `time` (wall clock)."""
        self._seen = Frame(self._render(joints, opening), time)

    def latest(self) -> Frame | None:
        return self._seen

    def close(self) -> None: ...


class GreyCamera:
    """No camera: a grey picture that is always new. For dry runs and tests."""

    def __init__(self, width: int, height: int) -> None:
        self._image = np.full((height, width, 3), 128, np.uint8)

    def latest(self) -> Frame | None:
        return Frame(self._image, time.monotonic())

    def close(self) -> None: ...


def camera_named(spec: str, width: int, height: int) -> Camera:
    """ "v4l2:/dev/video0", "realsense:SERIAL", "file:CLIP.mp4", "sim:module:function" or "grey".

    The function of "sim" is called with (width, height) and gives a renderer for SimulatorCamera.
    """
    kind, _, rest = spec.partition(":")
    if kind == "v4l2" and rest:
        return v4l2_camera(rest, width, height)
    if kind == "realsense":
        return realsense_camera(rest, width, height)
    if kind == "file" and rest:
        return video_camera(rest)
    if kind == "sim" and ":" in rest:
        module, function = rest.split(":", 1)
        make: Any = getattr(import_module(module), function)
        return SimulatorCamera(make(width, height))
    if kind == "grey":
        return GreyCamera(width, height)
    raise CameraFault(
        f"no camera {spec!r}",
        expected="v4l2:/dev/video0, realsense:SERIAL, file:CLIP.mp4, sim:module:function, grey",
    )

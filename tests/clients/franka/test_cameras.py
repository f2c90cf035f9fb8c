"""Cameras: the newest picture and its age, from a file, a failing device and a simulator."""

import time

import numpy as np
import pytest

from wamserve.clients.franka.cameras import (
    CameraFault,
    Grabber,
    GreyCamera,
    SimulatorCamera,
    camera_named,
    v4l2_camera,
)


def until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.005)


def test_the_newest_picture_is_given_without_waiting_and_ages():
    pictures = [np.full((4, 6, 3), n, np.uint8) for n in range(3)]
    camera = Grabber(lambda: pictures.pop(0) if pictures else None, lambda: None)
    until(lambda: not pictures and camera.latest() is not None and camera.latest().image[0, 0, 0] == 2)
    first = camera.latest()
    time.sleep(0.1)
    assert camera.latest() is first  # frozen, and it shows:
    assert first.age(time.monotonic()) >= 0.1
    camera.close()


def test_a_device_that_fails_is_tried_again_and_its_last_picture_grows_old():
    working = [True]

    def read():
        if not working[0]:
            raise OSError("unplugged")
        time.sleep(0.005)
        return np.zeros((4, 6, 3), np.uint8)

    camera = Grabber(read, lambda: None)
    until(lambda: camera.latest() is not None)
    working[0] = False
    time.sleep(0.25)
    assert camera.latest().age(time.monotonic()) > 0.2
    working[0] = True
    until(lambda: camera.latest().age(time.monotonic()) < 0.1)
    camera.close()


def test_a_video_file_plays_at_its_rate_over_and_over(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 36, "yuv420p"
        for level in (40, 120, 200):
            picture = np.full((36, 64, 3), level, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    camera = camera_named(f"file:{path}", 64, 36)
    seen, deadline = [], time.monotonic() + 0.7
    while time.monotonic() < deadline:
        frame = camera.latest()
        level = 0 if frame is None else round(frame.image.mean() / 80.0 - 0.5)
        if frame is not None and (not seen or seen[-1] != level):
            seen.append(level)
        time.sleep(0.005)
    camera.close()
    assert seen[:4] == [0, 1, 2, 0] and len(seen) >= 8  # 14 pictures in 0.7 s, a slow machine shows fewer


def test_a_simulators_picture_is_as_old_as_the_pose_it_shows():
    seen = []
    camera = SimulatorCamera(lambda q, opening: seen.append((q.tolist(), opening)) or np.zeros((2, 2, 3)))
    assert camera.latest() is None
    camera.see(np.arange(7.0), 0.5, 12.0)
    assert camera.latest().time == 12.0
    assert seen == [([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.5)]


def test_a_grey_camera_has_the_size_of_its_view():
    frame = GreyCamera(64, 36).latest()
    assert frame.image.shape == (36, 64, 3) and frame.age(time.monotonic()) < 1.0


def test_a_device_that_is_not_there_says_how_to_find_one():
    pytest.importorskip("cv2")
    with pytest.raises(CameraFault, match="v4l2-ctl --list-devices"):
        v4l2_camera("/dev/video99", 640, 360)

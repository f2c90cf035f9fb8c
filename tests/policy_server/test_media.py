"""Pictures, videos, actions and recorded episodes, from disk and back."""

import json

import numpy as np
import pytest

from wamserve.action_codec.errors import RequestError
from wamserve.embodiments.contract import load
from wamserve.policy_server.clip import clip_from_episode, clip_from_video, pair_cameras
from wamserve.policy_server.media import (
    camera_keys,
    episode_video,
    read_actions,
    read_image,
    read_states,
    read_video,
    write_actions,
    write_video,
)


def film(count, height=48, width=64):
    """Frames of one flat colour each, so that a codec keeps them and an index is read off the picture."""
    return np.stack(
        [np.full((height, width, 3), (10 * i + 5, 128, 250 - 10 * i), np.uint8) for i in range(count)]
    )


def numbers(frames):
    return np.round((frames[:, :, :, 0].mean(axis=(1, 2)) - 5) / 10).astype(int).tolist()


def test_a_picture_comes_back_as_rgb_whatever_it_was(tmp_path):
    from PIL import Image

    Image.fromarray(np.array([[[10, 20, 30, 0]]], np.uint8), "RGBA").save(tmp_path / "a.png")
    Image.fromarray(np.array([[7]], np.uint8)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[10, 20, 30]]]
    assert read_image(tmp_path / "grey.png").tolist() == [[[7, 7, 7]]]
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "absent.png"):
        with pytest.raises(RequestError, match=f"no picture can be read from .*{name}"):
            read_image(tmp_path / name)


def test_frames_are_picked_by_start_count_and_stride(tmp_path):
    file = write_video(tmp_path / "film.mp4", film(20), 15)
    frames, rate = read_video(file)
    assert rate == 15 and frames.shape == (20, 48, 64, 3) and numbers(frames) == list(range(20))
    assert numbers(read_video(file, start=3, count=4, stride=5)[0]) == [3, 8, 13, 18]
    with pytest.raises(
        RequestError, match="is too short; seen: 4 frames from frame 3 at stride 5; expected: 5"
    ):
        read_video(file, start=3, count=5, stride=5)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(RequestError, match="no video can be read"):
        read_video(tmp_path / "bad.mp4")


def test_a_fractional_rate_and_odd_sizes_can_be_written(tmp_path):
    frames, rate = read_video(write_video(tmp_path / "odd.mp4", film(5, 49, 65), 2.5))
    assert rate == 2.5 and frames.shape == (5, 48, 64, 3)


def test_actions_survive_json_and_npz(tmp_path):
    rows = np.random.default_rng(0).normal(size=(4, 3))
    files = write_actions(tmp_path / "out", rows, ["x", "y", "gripper"], 15.0, seed=3)
    for file in files:
        np.testing.assert_array_equal(read_actions(file), rows)
    assert json.loads(files[0].read_text())["columns"] == ["x", "y", "gripper"]
    assert int(np.load(files[1])["seed"]) == 3
    for name, text in (("a.json", "[1, 2]"), ("b.json", "{}"), ("c.json", "not json")):
        (tmp_path / name).write_text(text)
        with pytest.raises(RequestError, match="no action"):
            read_actions(tmp_path / name)


def test_a_pickle_is_not_read_as_actions(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(RequestError, match="no actions can be read"):
        read_actions(tmp_path / "evil.npy")


def test_states_come_from_json(tmp_path):
    (tmp_path / "state.json").write_text('{"joint_position": [0, 1], "gripper_position": [0.5]}')
    states = read_states(tmp_path / "state.json")
    assert states["joint_position"].dtype == np.float32 and states["gripper_position"].tolist() == [0.5]
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(RequestError, match="no states can be read"):
        read_states(tmp_path / "list.json")


def test_a_video_is_thinned_to_the_contracts_rate_or_refused(tmp_path):
    pusht = load("pusht")  # 10 Hz, 16 rows
    fast = write_video(tmp_path / "fast.mp4", film(24).repeat(3, axis=0)[:60], 30)
    assert numbers(clip_from_video(pusht, fast, start=6)) == list(range(2, 19))
    odd = write_video(tmp_path / "odd.mp4", film(20), 15)
    with pytest.raises(
        RequestError, match=r"seen: 15 frames per second; expected: a multiple of 10; try: ffmpeg"
    ):
        clip_from_video(pusht, odd)


def test_cameras_are_paired_only_where_there_is_no_choice():
    droid, pusht = load("droid_lerobot"), load("pusht")
    assert pair_cameras(pusht, ["cam"], None) == {"top": "cam"}
    with pytest.raises(
        RequestError, match=r"which camera is which view of droid_lerobot is not known.*--camera wrist=KEY"
    ):
        pair_cameras(droid, ["a", "b", "c"], None)
    pairs = {"wrist": "a", "exterior_1": "b", "exterior_2": "c"}
    assert pair_cameras(droid, ["a", "b", "c"], pairs) == pairs
    with pytest.raises(RequestError, match="is not known"):
        pair_cameras(droid, ["a", "b"], pairs)


def test_a_recorded_episode_becomes_frames_rows_and_states(shared):
    root = shared / "data/episodes/bridge_lerobot_example"
    bridge = load("bridge_orig_lerobot")
    clip = clip_from_episode(bridge, root, start=5, instruction="Put the pot to the left.")
    assert clip.frames.shape == (17, 480, 640, 3) and clip.actions.shape == (16, 10)
    assert np.array_equal(clip.frames, read_video(episode_video(root, camera_keys(root)[0]).file, 5, 17)[0])
    golden = np.load(shared / "golden/actions/bridge_orig_lerobot.npz")
    name = next(k for k in golden.files if golden[k].shape == (28, 10) and "norm" not in k)
    np.testing.assert_allclose(clip.actions, golden[name][5:21], atol=5e-6)
    assert clip.observation.state["eef_pos"].shape == (3,)
    assert np.linalg.norm(clip.observation.state["eef_quat"]) == pytest.approx(1, abs=1e-5)


def test_an_episode_of_another_rate_is_thinned_by_the_contracts_stride(shared):
    root = shared / "data/episodes/umi_lerobot_example"
    clip = clip_from_episode(load("umi"), root, start=4)
    assert clip.observation.instruction == "cup arrangement"  # the data set's own words
    file = episode_video(root, camera_keys(root)[0]).file
    assert np.array_equal(clip.frames, read_video(file, 12, 17, stride=3)[0])


def test_only_one_of_three_droid_views_is_refused(shared):
    with pytest.raises(RequestError, match="which camera is which view"):
        clip_from_episode(load("droid_lerobot"), shared / "data/episodes/droid_lerobot_example")
    with pytest.raises(RequestError, match="has no camera 'x'"):
        episode_video(shared / "data/episodes/droid_lerobot_example", "x")

"""Real episodes pass their contract's check; each convention broken on purpose is named by it."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from wamserve.action_codec.errors import CodecError, ContractError
from wamserve.embodiments import episodes
from wamserve.embodiments.adapters import encode
from wamserve.embodiments.check import check_model_actions, check_path, check_recording
from wamserve.embodiments.contract import load
from wamserve.embodiments.units import chunk_normalizer

pytest.importorskip("pyarrow")

EPISODES = {
    "droid_lerobot": "droid_lerobot_example",
    "droid_lerobot_midtrain": "droid_lerobot_example",
    "bridge_orig_lerobot": "bridge_lerobot_example",
    "umi": "umi_lerobot_example",
    "robomind-franka": "robomind_lerobot_example/franka",
    "hand_pose": "human_hand_pose_lerobot_example",
}


def recorded(shared, name):
    return episodes.read(shared / "data" / "episodes" / EPISODES[name])


def with_model(embodiment, **changes):
    return dataclasses.replace(embodiment, model=dataclasses.replace(embodiment.model, **changes))


def found(recording, embodiment):
    return {finding.name for finding in check_recording(recording, embodiment)}


@pytest.mark.parametrize("name", [name for name in EPISODES if name != "hand_pose"])
def test_real_episodes_are_not_suspicious(shared, name):
    assert check_recording(recorded(shared, name), load(name)) == []


def test_the_hands_turn_faster_than_their_quantiles_and_nothing_else(shared):
    findings = check_recording(recorded(shared, "hand_pose"), load("hand_pose"))
    assert [finding.what for finding in findings] == ["rotations are large for this normalizer"]


def test_published_model_space_rows_are_model_space(shared):
    actions = shared / "data" / "episodes" / "actions"
    assert check_path(actions / "umi.json", load("umi")) == []
    assert check_path(actions / "av_traj_left.json", load("av")) == []


def test_raw_rows_sold_as_model_rows_are_found(shared):
    recording = recorded(shared, "bridge_orig_lerobot")
    encoded = encode(load("bridge_orig_lerobot"), recording.columns)
    assert check_model_actions(encoded.model.values, load("bridge_orig_lerobot")) == []
    (finding,) = check_model_actions(encoded.raw.values, load("bridge_orig_lerobot"))
    assert finding.name == "model_space" and "these are raw actions" in finding.what


@pytest.mark.parametrize(
    ("name", "stride"), [("umi", 1), ("robomind-franka", 1), ("umi", 9), ("robomind-franka", 6)]
)
def test_a_wrong_stride_is_found(shared, name, stride):
    assert "scale" in found(recorded(shared, name), with_model(load(name), stride=stride))


def test_the_other_domains_normalizer_is_found(shared):
    """droid_lerobot and robomind-franka share an id; their figures do not fit one another."""
    droid = load("droid_lerobot_midtrain")
    wrong = with_model(droid, normalizer=load("robomind-franka").model.normalizer)
    assert "scale" in found(recorded(shared, "droid_lerobot_midtrain"), wrong)


@pytest.mark.parametrize(
    "name", ["droid_lerobot", "droid_lerobot_midtrain", "bridge_orig_lerobot", "robomind-franka"]
)
def test_a_flipped_gripper_is_found(shared, name):
    embodiment = load(name)
    flip = {"one_is_open": "one_is_closed", "one_is_closed": "one_is_open"}
    gripper = embodiment.model.blocks[-1]
    source = gripper.gripper_source
    flipped = dataclasses.replace(source, polarity=flip[source.polarity])
    blocks = (*embodiment.model.blocks[:-1], dataclasses.replace(gripper, gripper_source=flipped))
    assert "gripper_polarity" in found(recorded(shared, name), with_model(embodiment, blocks=blocks))


def test_a_gripper_in_another_unit_is_found(shared):
    recording = recorded(shared, "umi")
    key = "observation.state.right_gripper_width_m"
    millimetres = dataclasses.replace(
        recording, columns={**recording.columns, key: 1000 * recording.columns[key]}
    )
    assert "gripper_range" in found(millimetres, load("umi"))


@pytest.mark.parametrize("name", ["droid_lerobot_midtrain", "bridge_orig_lerobot", "robomind-franka"])
def test_hands_that_do_not_point_down_are_found(shared, name):
    embodiment = load(name)
    track = embodiment.model.tracks[0]
    turned = np.array(track.frame_transform) @ np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    wrong = dataclasses.replace(track, frame_transform=tuple(map(tuple, turned)))
    assert "approach" in found(recorded(shared, name), with_model(embodiment, tracks=(wrong,)))


def test_a_forgotten_bridge_frame_is_found(shared):
    embodiment = load("bridge_orig_lerobot")
    bare = dataclasses.replace(
        embodiment.model.tracks[0],
        tool_offset=tuple(map(tuple, np.eye(4))),
        frame_transform=tuple(map(tuple, np.eye(3))),
    )
    assert "approach" in found(
        recorded(shared, "bridge_orig_lerobot"), with_model(embodiment, tracks=(bare,))
    )


def test_a_swapped_quaternion_is_found(shared):
    """UMI writes wxyz; read as xyzw the hand turns about the wrong axes, and too far."""
    embodiment = load("umi")
    swapped = dataclasses.replace(embodiment.model.tracks[0], rotation_format="quat_xyzw")
    data = recorded(shared, "umi")
    right = encode(embodiment, data.columns).raw.values
    wrong = encode(with_model(embodiment, tracks=(swapped,)), data.columns).raw.values
    assert np.abs(right - wrong).max() > 1e-2


def test_timestamps_that_contradict_the_rate_are_found(shared):
    recording = recorded(shared, "bridge_orig_lerobot")
    slow = dataclasses.replace(recording, timestamps=2 * recording.timestamps)
    findings = check_recording(slow, load("bridge_orig_lerobot"))
    assert [f.name for f in findings] == ["rate"] and "2.50 Hz by timestamps" in findings[0].seen
    gap = recording.timestamps.copy()
    gap[10:] += 1.0
    (finding,) = check_recording(dataclasses.replace(recording, timestamps=gap), load("bridge_orig_lerobot"))
    assert finding.what == "1 rows follow at another interval" and "after row 9" in finding.seen


def test_another_native_rate_is_found(shared):
    recording = dataclasses.replace(recorded(shared, "umi"), rate_hz=20)
    assert "rate" in found(recording, load("umi"))


def test_windows_over_two_episodes_are_found(shared):
    recording = recorded(shared, "bridge_orig_lerobot")
    mixed = recording.episode_of_row.copy()
    mixed[15:] = 1
    (finding,) = check_recording(
        dataclasses.replace(recording, episode_of_row=mixed), load("bridge_orig_lerobot")
    )
    assert finding.name == "crossing" and "[0, 1]" in finding.seen
    jumped = recording.frame_index.copy()
    jumped[15:] = np.arange(14)
    (finding,) = check_recording(
        dataclasses.replace(recording, frame_index=jumped), load("bridge_orig_lerobot")
    )
    assert finding.name == "crossing" and "14 then 0 at row 14" in finding.seen
    longer = dataclasses.replace(recording, declared_rows=40)
    assert "crossing" in found(longer, load("bridge_orig_lerobot"))


def test_joints_in_degrees_are_found(shared):
    recording = recorded(shared, "droid_lerobot")
    key = "action.joint_position"
    degrees = dataclasses.replace(
        recording, columns={**recording.columns, key: np.degrees(recording.columns[key])}
    )
    assert "joints" in found(degrees, load("droid_lerobot"))


def test_an_episode_shorter_than_a_chunk_is_found(shared):
    recording = recorded(shared, "bridge_orig_lerobot")
    short = dataclasses.replace(
        recording,
        columns={name: values[:10] for name, values in recording.columns.items()},
        timestamps=recording.timestamps[:10],
        episode_of_row=recording.episode_of_row[:10],
        frame_index=recording.frame_index[:10],
        declared_rows=10,
    )
    assert "short" in found(short, load("bridge_orig_lerobot"))


def test_no_window_of_a_real_episode_leaves_it(shared):
    embodiment = load("umi")
    episode = episodes.at_control_rate(recorded(shared, "umi"), embodiment)
    assert len(episode) == 139 and episode.rows[:3].tolist() == [0.0, 3.0, 6.0]
    found = list(episodes.chunks(episode, embodiment))
    assert [start for start, _ in found] == list(range(139 - 16))
    whole = encode(embodiment, episode.columns).raw.values
    for start, chunk in found[:: len(found) // 5]:
        np.testing.assert_allclose(chunk.values, whole[start : start + 16], atol=1e-12)


def copied(shared, tmp_path, name):
    target = tmp_path / "copy"
    source = shared / "data" / "episodes" / EPISODES[name]
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("videos", "*.mp4"))
    return target


def test_a_broken_rate_is_refused_with_the_reason(shared, tmp_path):
    root = copied(shared, tmp_path, "bridge_orig_lerobot")
    info = json.loads((root / "meta" / "info.json").read_text())
    (root / "meta" / "info.json").write_text(json.dumps({**info, "fps": 29.97}))
    with pytest.raises(ContractError) as error:
        episodes.read(root)
    assert "no whole number of rows per second; seen: 29.97; expected: an integer fps" in str(error.value)


def test_a_rate_the_contract_does_not_know_is_refused(shared):
    with pytest.raises(ContractError) as error:
        episodes.at_control_rate(recorded(shared, "robomind-franka"), load("droid_lerobot"))
    assert "seen: 30 Hz; expected: 15 Hz" in str(error.value)


def test_version_two_folders_read_the_same(shared, tmp_path):
    """LeRobot v2: one parquet per episode and meta/episodes.jsonl."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = copied(shared, tmp_path, "bridge_orig_lerobot")
    table = pq.read_table(root / "data" / "chunk-000" / "file-000.parquet")
    (root / "data" / "chunk-000" / "file-000.parquet").unlink()
    for index in (0, 1):
        numbered = table.set_column(0, "episode_index", pa.array([index] * len(table)))
        pq.write_table(numbered, root / "data" / "chunk-000" / f"episode_{index:06d}.parquet")
    shutil.rmtree(root / "meta" / "episodes")
    lines = [json.dumps({"episode_index": index, "length": len(table)}) for index in (0, 1)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(lines))
    second = episodes.read(root, 1)
    assert second.index == 1 and second.declared_rows == len(second) == 29
    np.testing.assert_array_equal(
        second.columns["action"], recorded(shared, "bridge_orig_lerobot").columns["action"]
    )
    with pytest.raises(ContractError, match=r"no episode 2; seen: episodes 0 \.\. 1"):
        episodes.read(root, 2)


def test_a_folder_without_meta_is_no_data_set(tmp_path):
    with pytest.raises(ContractError, match="is no LeRobot data set"):
        episodes.read(tmp_path)


def test_columns_of_another_robot_are_refused_by_name(shared):
    with pytest.raises(CodecError, match=r"column 'observation\.state' is missing"):
        check_recording(recorded(shared, "umi"), load("bridge_orig_lerobot"))


def test_contracts_that_would_fit_are_named(shared):
    with pytest.raises(CodecError, match=r"try: --embodiment bridge_orig_lerobot$"):
        check_recording(recorded(shared, "bridge_orig_lerobot"), load("umi"))


def test_poses_that_the_data_set_lacks_are_asked_for_and_the_rest_is_checked(shared):
    recording, embodiment = recorded(shared, "robomind-franka"), load("robomind-ur")
    grip, poses = check_recording(recording, embodiment)
    assert poses.name == "poses" and poses.what.startswith("body.attachment_site: poses that")
    # The Franka's seventh joint stands where this robot has its gripper.
    assert grip.name == "gripper_range" and grip.seen == "-0.112 .. 0.835"


def test_poses_stored_as_sixteen_numbers_are_read(shared):
    embodiment, rows = load("robomind-ur"), 40
    poses = np.tile(np.eye(4), (rows, 1, 1))
    poses[:, 0, 3] = 0.01 * np.arange(rows)
    columns = {"actions.joint_position": np.zeros((rows, 7))}
    flat = encode(embodiment, {**columns, "body.attachment_site": poses.reshape(rows, 16)})
    whole = encode(embodiment, {**columns, "body.attachment_site": poses})
    np.testing.assert_array_equal(flat.raw.values, whole.raw.values)


@pytest.mark.parametrize("rate", [None, True, 0, -15, "15", float("nan"), float("inf"), 29.97])
def test_a_rate_that_is_no_whole_number_is_refused(rate):
    with pytest.raises(ContractError, match="the rate is no whole number of rows per second; seen: "):
        episodes.whole_rate(rate, "here")


SPOILT = [
    ("meta/info.json", b"{", r"info\.json is not JSON"),
    ("data/chunk-000/file-000.parquet", b"hello", r"file-000\.parquet is not parquet"),
]


@pytest.mark.parametrize(("file", "content", "message"), SPOILT, ids=["info", "parquet"])
def test_a_spoilt_file_is_named(shared, tmp_path, file, content, message):
    root = copied(shared, tmp_path, "bridge_orig_lerobot")
    (root / file).write_bytes(content)
    with pytest.raises(ContractError, match=message):
        episodes.read(root)


def test_tables_that_are_no_episodes_are_refused_by_what_they_lack(shared, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = copied(shared, tmp_path, "bridge_orig_lerobot")
    path = root / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path)
    ragged = table["action"].to_pylist()
    ragged[3] = ragged[3][:5]
    ragged = table.set_column(table.schema.get_field_index("action"), "action", pa.array(ragged))
    for spoilt, message in (
        (table.slice(0, 0), "holds no rows; seen: 1 files"),
        (table.drop_columns(["episode_index"]), "has no column 'episode_index'"),
        (table.drop_columns(["timestamp"]), "has no column 'timestamp'"),
        (ragged, "column 'action' has rows of different lengths"),
    ):
        pq.write_table(spoilt, path)
        with pytest.raises(ContractError, match=message):
            episodes.read(root)


def test_the_normalizer_without_its_clamp_is_what_scales_are_judged_by(shared):
    embodiment = load("droid_lerobot_midtrain")
    recording = recorded(shared, "droid_lerobot_midtrain")
    every_sixth = with_model(embodiment, stride=6)
    assert np.abs(encode(every_sixth, recording.columns).model.values).max() <= 1.0
    assert chunk_normalizer(embodiment.model).actions.clamp
    assert "scale" in found(recording, every_sixth)

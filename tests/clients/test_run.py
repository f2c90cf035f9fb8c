"""`wam run` on a recorded DROID episode and in a gymnasium environment, against small servers."""

import json
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import servers
from servers import HELLO, Server

import wam
from wamserve.action_codec.errors import ContractError, PolicyLate, RequestError
from wamserve.clients import wam_v1
from wamserve.clients.background import BackgroundPolicy
from wamserve.clients.live import RunLog
from wamserve.clients.player import ChunkPlayer, Due
from wamserve.clients.policy import ActionChunk, Ledger, Observation, Prediction, Request
from wamserve.clients.recorded import RecordedEpisode, RecordedMap, needed
from wamserve.clients.reply_layout import reply_layout
from wamserve.clients.run import joint_state_of_row, run
from wamserve.embodiments import contract

VIEWS = {"exterior_2": "observation.image.exterior_image_2_left"}
STATES = {
    "joint_position": "observation.state.joint_positions",
    "gripper_position": "observation.state.gripper_position",
}
ACTIONS = ("action.joint_position", "action.gripper_position")


@pytest.fixture
def droid(shared):
    pytest.importorskip("av")
    pytest.importorskip("pyarrow")
    folder = shared / "data" / "episodes" / "droid_lerobot_example"
    if not folder.is_dir():
        pytest.skip("no DROID episode")
    return folder


def test_a_recorded_episode_is_read_frame_by_row(droid):
    episode = RecordedEpisode(droid, None, RecordedMap(VIEWS, STATES, ACTIONS), "put the cup on the plate")
    assert (episode.rate_hz, len(episode)) == (15, 722)
    moments = episode.moments()
    first, second = next(moments), next(moments)
    image = first.observation.images["exterior_2"]
    assert image.shape == (360, 640, 3) and image.dtype == np.uint8 and image.std() > 10
    assert first.observation.time == 0.0 and second.observation.time == pytest.approx(1 / 15, abs=1e-6)
    stored = episode.recording.columns
    np.testing.assert_allclose(
        first.observation.state["joint_position"], stored[STATES["joint_position"]][0], rtol=1e-6
    )
    assert first.action.shape == (8,) and first.action[7] == stored[ACTIONS[1]][0].item()
    assert sum(1 for _ in moments) == 720


def lerobot_folder(root, version, lengths=(6, 5)):
    """A LeRobot folder of grey frames: row k of episode e shows 40 e + 20 + 5 k. v3 shares one video file."""
    av = pytest.importorskip("av")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (root / "meta").mkdir(parents=True)
    v3 = version == "v3.0"
    video_path = (
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if v3
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    )
    features = {"cam": {"dtype": "video"}, "state": {"dtype": "float32", "shape": [1]}}
    info = {"codebase_version": version, "fps": 10, "chunks_size": 1000, "features": features}
    (root / "meta" / "info.json").write_text(json.dumps({**info, "video_path": video_path}))
    frames = [[40 * e + 20 + 5 * k for k in range(length)] for e, length in enumerate(lengths)]

    def write(path, values):
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width = stream.height = 64
            stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
            for value in values:
                grey = np.full((64, 64, 3), value, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(stream.encode(None))

    if v3:
        write(root / "videos/cam/chunk-000/file-000.mp4", [value for episode in frames for value in episode])
    rows = {name: [] for name in ("episode_index", "frame_index", "timestamp", "state")}
    episodes = []
    for e, length in enumerate(lengths):
        if not v3:
            write(root / f"videos/chunk-000/cam/episode_{e:06d}.mp4", frames[e])
        for k in range(length):
            for name, value in zip(rows, (e, k, k / 10, float(10 * e + k)), strict=True):
                rows[name].append(value)
        episodes.append({"episode_index": e, "tasks": [f"task {e}"], "length": length})
    (root / "data/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(rows), root / "data/chunk-000/file-000.parquet")
    if v3:
        begin = 0.0
        for episode in episodes:
            episode |= {"videos/cam/chunk_index": 0, "videos/cam/file_index": 0}
            episode["videos/cam/from_timestamp"], begin = begin, begin + episode["length"] / 10
        (root / "meta/episodes/chunk-000").mkdir(parents=True)
        table = {name: [episode[name] for episode in episodes] for name in episodes[0]}
        pq.write_table(pa.table(table), root / "meta/episodes/chunk-000/file-000.parquet")
    else:
        lines = (json.dumps(episode) for episode in episodes)
        (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_every_episode_gets_its_own_frames_rows_and_task(tmp_path, version):
    folder = lerobot_folder(tmp_path / "set", version)
    for index, length in ((0, 6), (1, 5)):
        episode = RecordedEpisode(folder, index, RecordedMap({"top": "cam"}, {"s": "state"}, ("state",)))
        assert episode.instruction == f"task {index}"
        moments = list(episode.moments())
        seen = [int(moment.observation.images["top"].mean().round()) for moment in moments]
        np.testing.assert_allclose(seen, [40 * index + 20 + 5 * k for k in range(length)], atol=2)
        assert [moment.observation.state["s"].tolist() for moment in moments] == [
            [10 * index + k] for k in range(length)
        ]


def test_a_wrong_column_or_video_is_refused_with_what_there_is(tmp_path):
    folder = lerobot_folder(tmp_path / "set", "v3.0")
    with pytest.raises(RequestError, match="expected: state"):
        RecordedEpisode(folder, None, RecordedMap({}, {"s": "joints"}))
    with pytest.raises(RequestError, match="expected: cam"):
        RecordedEpisode(folder, None, RecordedMap({"top": "front"}, {}))
    (folder / "videos/cam/chunk-000/file-000.mp4").unlink()
    with pytest.raises(RequestError, match=r"file-000\.mp4"):
        next(RecordedEpisode(folder, None, RecordedMap({"top": "cam"}, {})).moments())


def test_an_episode_without_a_task_needs_an_instruction(droid):
    with pytest.raises(RequestError, match="--instruction"):
        RecordedEpisode(droid, None, RecordedMap({}, {}))


def serving(name, behave):
    """A wam.v1 server of a shipped contract; `behave(request)` gives the actions [H, D]."""
    embodiment = contract.load(name)
    hello = replace(
        HELLO,
        embodiment=name,
        wire=asdict(embodiment.wire),
        wire_sha256=embodiment.wire_hash,
        model_sha256=embodiment.model_hash,
        period=1 / embodiment.wire.rate_hz,
        chunk_rows=embodiment.wire.chunk,
    )

    def behaviour(socket):
        servers.welcome(socket, hello)
        for message in servers.requests(socket):
            if isinstance(message, wam_v1.Reset):
                socket.send(wam_v1.encode_reply(wam_v1.Done(message.request_id)))
                continue
            chunk = ActionChunk(behave(message.request), message.request.observation.time, hello.period)
            prediction = Prediction(chunk, ledger=Ledger(denoise_ms=50.0, forwards=8))
            socket.send(wam_v1.encode_reply(wam_v1.Reply(message.request_id, 1, prediction)))

    return behaviour


def test_replay_paces_a_recording_and_reports_rate_latency_age_and_error(droid, tmp_path, capsys):
    episode = RecordedEpisode(droid, None, RecordedMap(VIEWS, STATES, ACTIONS), "x")
    stored = episode.recording.columns
    recorded = np.concatenate([stored[name].reshape(len(episode), -1) for name in ACTIONS], 1)
    asked = []

    def behave(request):
        asked.append(request)
        time.sleep(0.1)
        rows = recorded[request.step : request.step + 32].copy()
        rows[:, :7] += 0.08  # rad: what the report must find
        return rows.astype(np.float32)

    out = tmp_path / "report.json"
    with Server(serving("droid_lerobot", behave)) as server:
        code = run(
            server.uri,
            episode=droid,
            images={view: VIEWS["exterior_2"] for view in ("wrist", "exterior_1", "exterior_2")},
            states=STATES,
            actions=ACTIONS,
            instruction="put the cup on the plate",
            embodiment="droid_lerobot",
            replan=6,
            steps=24,
            json=out,
        )
    assert code == 0
    report = json.loads(out.read_text())
    assert report["steps"] == 24 and report["answers"] >= 2
    assert 5.0 < report["rate_hz"] < 16.5, "never faster than the robot; slower only on a busy machine"
    assert report["round_trip_ms_p50"] > 100
    assert report["infer_ms_p50"] == 50.0 and report["forwards"] == 8
    assert report["late_rows"] >= 2, "100 ms are more than one row at 15 Hz"
    assert report["action_error"] == pytest.approx(0.08 * 7 / 8, abs=1e-4)
    assert report["statuses"]["playing"] >= 10 and report["statuses"]["waiting"] >= 1
    asked_at = [request.step for request in asked]
    assert asked_at[0] == 0 and min(np.diff(asked_at)) >= 6
    assert asked[0].observation.instruction == "put the cup on the plate"
    assert "droid_lerobot" in capsys.readouterr().out


def test_a_recording_that_waits_is_answered_at_every_question(tmp_path, monkeypatch):
    """States and actions of the recording are 10 e + k; the server answers with the state it was shown."""
    folder = lerobot_folder(tmp_path / "set", "v3.0", lengths=(3, 12))
    out = tmp_path / "report.json"
    pusht = contract.load("pusht")
    asked = []

    def behave(request):
        asked.append(float(request.observation.state[pusht.wire.states[0].name][0]))
        rows = asked[-1] + np.arange(pusht.wire.chunk, dtype=np.float32)
        return np.repeat(rows[:, None], 2, 1)

    with Server(serving("pusht", behave)) as server:
        run(
            server.uri,
            episode=folder,
            index=1,
            images={pusht.wire.images[0].name: "cam"},
            states={pusht.wire.states[0].name: "state"},
            actions=("state", "state"),
            replan=4,
            wait=True,
            json=out,
        )
    report = json.loads(out.read_text())
    assert asked == [10.0, 14.0, 18.0]
    assert (report["steps"], report["answers"], report["action_error"]) == (12, 3, 0.0)


def test_gym_runs_an_environment_to_its_end(capsys):
    pytest.importorskip("gymnasium")
    pytest.importorskip("gym_pusht")
    embodiment = contract.load("pusht")
    view, state = embodiment.wire.images[0].name, embodiment.wire.states
    states = {each.name: "agent_pos" for each in state}

    def behave(request):
        return np.full((embodiment.wire.chunk, 2), 100.0, np.float32)

    words = ["--gym", "gym_pusht/PushT-v0", "--gym-import", "gym_pusht"]
    words += ["--gym-options", "obs_type", "pixels_agent_pos", "--images", view, "pixels", "--states"]
    words += [word for pair in states.items() for word in pair]
    words += ["--instruction", "push the T", "--steps", "20", "--charge-ms", "200"]
    with Server(serving("pusht", behave)) as server:
        code = wam.main(["run", server.uri, *words])
    out = capsys.readouterr().out
    assert code == 0 and "success: no" in out and "steps         20" in out


def test_run_wants_exactly_one_thing_to_run_against():
    for both in ({}, {"episode": "x", "gym": "y"}):
        with pytest.raises(RequestError, match="--gym"):
            run("ws://127.0.0.1:1", **both)


def test_run_refuses_a_server_of_another_contract():
    hello = replace(HELLO, embodiment="droid_lerobot", wire_sha256="another")
    with Server(lambda socket: servers.welcome(socket, hello)) as server:
        with pytest.raises(ContractError, match="not ours"):
            run(server.uri, gym="gym_pusht/PushT-v0")
        with pytest.raises(ContractError):
            run(server.uri, gym="gym_pusht/PushT-v0", embodiment="pusht")


def test_rolled_joints_are_the_rows_without_its_grippers():
    row = np.arange(8.0)
    state = joint_state_of_row(contract.load("droid_lerobot"))(row)
    assert state["joint_position"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    with pytest.raises(ContractError):
        joint_state_of_row(contract.load("panda_osc"))


class Slow:
    def __init__(self, seconds, error=None):
        self.seconds, self.error = seconds, error

    def infer(self, request):
        time.sleep(self.seconds)
        if self.error:
            raise self.error
        return Prediction(seed=request.seed)

    def reset(self, session=""):
        pass


def test_background_asks_once_at_a_time_and_never_blocks():
    request = Request(Observation({}, {}), seed=3)
    with BackgroundPolicy(Slow(0.2)) as asking:
        start = time.monotonic()
        assert asking.free and asking.ask(request)
        assert not asking.free and not asking.ask(request) and asking.take() is None
        assert time.monotonic() - start < 0.1
        time.sleep(0.3)
        assert not asking.free, "an answer that was not taken holds its place"
        assert asking.take().seed == 3 and asking.round_trip_ms >= 200
        assert asking.free and asking.take() is None


def test_background_hands_on_the_policys_error_once():
    with BackgroundPolicy(Slow(0.0, PolicyLate("too late"))) as asking:
        asking.ask(Request(Observation({}, {})))
        time.sleep(0.1)
        with pytest.raises(PolicyLate):
            asking.take()
        assert asking.free


def test_the_log_counts_late_ticks_and_the_oldest_observation():
    layout = reply_layout(contract.load("droid_lerobot").wire)
    log = RunLog("test", 0.1, ChunkPlayer(layout, 0.1))
    for trip in (10.0, 20.0, 30.0):
        log.answer(trip, Ledger(denoise_ms=5.0, forwards=8))
    log.step(Due("waiting"))
    log.step(Due("playing", np.zeros(8), 1, 0, age=0.2), lateness=0.04, error=1.0)
    log.step(Due("holding", np.zeros(8), 1, 9, age=0.7), lateness=0.06, error=2.0)
    log.failure(PolicyLate("x"))
    report = log.report()
    assert (report.round_trip_ms_p50, report.infer_ms_p50, report.forwards) == (20.0, 5.0, 8)
    assert (report.late_ticks, report.chunk_age_ms_max, report.action_error) == (1, 700.0, 1.5)
    assert report.statuses == {"waiting": 1, "playing": 1, "holding": 1}
    assert report.failures == {"PolicyLate": 1}
    assert any("1 PolicyLate" in line for line in report.lines())


def test_a_module_that_the_robot_lacks_is_named_with_its_remedy():
    with pytest.raises(RequestError, match="pip install no_such_module"):
        needed("no_such_module", "tests")

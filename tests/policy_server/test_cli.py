"""`wam infer` and `wam check parity` as a user types them, on real clips and recorded reference calls."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import wam
from wamserve.embodiments.contract import HERE, load
from wamserve.policy_server.cli import _actions
from wamserve.policy_server.media import read_actions, read_video, write_video
from wamserve.policy_server.rows import RowCodec


@pytest.fixture(autouse=True, scope="module")
def one_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAMSERVE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def infer(shared, tmp_path):
    """infer(mode, embodiment, ...) -> the folder it wrote, by two steps of a tiny pipeline."""

    def run(mode, embodiment, *words, flavour="nano", code=0):
        out = tmp_path / f"{mode}"
        line = ["infer", str(shared / f"golden/model/tiny-{flavour}"), "--card", "random-weights"]
        line += [
            "--mode",
            mode,
            "--embodiment",
            str(embodiment),
            "--steps",
            "2",
            "--out",
            str(out),
            *map(str, words),
        ]
        assert wam.main(line) == code
        return out

    return run


@pytest.fixture
def smaller(tmp_path):
    """smaller("umi") -> the same contract on the 256 tier, so that two cores answer in seconds."""

    def make(name):
        text = (HERE / "contracts" / f"{name}.toml").read_text()
        file = tmp_path / f"{name}.toml"
        file.write_text(re.sub(r'tier = "480"', 'tier = "256"', text))
        return file

    return make


CLIPS = {
    "bridge_orig_lerobot": "bridge_lerobot_example",
    "umi": "umi_lerobot_example",
    "hand_pose": "human_hand_pose_lerobot_example",
}


def check_dynamics(name, folder, shared, infer, embodiment, modes=("fd", "id")):
    model = load(name).model
    episode = shared / "data/episodes" / folder
    if "fd" in modes:
        out = infer("fd", embodiment, "--episode", episode, "--instruction", "Do what is shown.")
        frames, rate = read_video(out / "video.mp4")
        assert rate == model.rate_hz and len(frames) == model.chunk + 1 and frames.shape[1] % 16 == 0
    if "id" in modes:
        out = infer("id", embodiment, "--episode", episode, "--start", 3, flavour="edge")
        actions = read_actions(out / "actions.json")
        assert actions.shape == (model.chunk, model.width) and np.isfinite(actions).all()
        about = json.loads((out / "actions.json").read_text())
        assert about["rate_hz"] == model.rate_hz and about["units"] == "raw action rows"


@pytest.mark.parametrize("name", CLIPS)
def test_forward_and_inverse_dynamics_run_on_recorded_episodes(name, shared, infer, smaller):
    modes = ("fd",) if name == "hand_pose" else ("fd", "id")
    check_dynamics(name, CLIPS[name], shared, infer, smaller(name), modes)


def test_forward_and_inverse_dynamics_run_on_a_driving_clip(shared, infer, smaller):
    """Actions in model space (metres times 1.35) and a picture; then the 61 frames of a drive."""
    episodes, av = shared / "data/episodes", smaller("av")
    actions = episodes / "actions/av_traj_left.json"
    picture = ("--image", episodes / "images/av_0.jpg")
    out = infer(
        "fd", av, *picture, "--actions", actions, "--actions-in", "model", "--instruction", "Turn left."
    )
    frames, rate = read_video(out / "video.mp4")
    assert rate == 10 and frames.shape == (61, 176, 320, 3)
    out = infer("id", av, "--video", episodes / "videos/av_0.mp4", flavour="edge")
    assert read_actions(out / "actions.npz").shape == (60, 9)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CLIPS)
def test_dynamics_run_on_recorded_episodes_at_the_contracts_own_size(name, shared, infer):
    modes = ("fd",) if name == "hand_pose" else ("fd", "id")
    check_dynamics(name, CLIPS[name], shared, infer, name, modes)


def test_a_policy_answers_a_picture_and_a_state_from_disk(infer, tmp_path, capsys):
    from PIL import Image

    Image.fromarray(np.full((128, 128, 3), 200, np.uint8)).save(tmp_path / "top.png")
    (tmp_path / "state.json").write_text('{"agent_pos": [256.0, 100.0]}')
    words = ["--image", tmp_path / "top.png", "--state", tmp_path / "state.json", "--seed", 3]
    out = infer("policy", "pusht", *words, "--instruction", "Push the T.", "--want-video")
    first, *files = capsys.readouterr().out.splitlines()
    assert first.startswith("random-weights as pusht, policy, unipc 2 steps, shift 5") and "cpu" in first
    assert [Path(f).name for f in files] == ["actions.json", "actions.npz", "video.mp4", "request.json"]
    about = json.loads((out / "actions.json").read_text())
    assert about["columns"] == ["x", "y"] and about["seed"] == 3 and len(about["actions"]) == 16
    record = json.loads((out / "request.json").read_text())
    assert record["sampling"]["steps"] == 2 and record["ledger"]["forwards"] == 4
    again = infer("policy", "pusht", *words, "--instruction", "Push the T.")
    # without a video the last layer computes fewer tokens: the same numbers up to rounding
    np.testing.assert_allclose(read_actions(again / "actions.npz"), np.array(about["actions"]), rtol=1e-4)


def test_mistakes_are_one_line_and_exit_code_1(infer, tmp_path, capsys):
    film = write_video(tmp_path / "film.mp4", np.zeros((40, 64, 64, 3), np.uint8), 10)
    cases = [
        (("policy", "pusht"), "one source of pictures is needed; seen: none; expected: --image, --video or"),
        (("policy", "pusht", "--video", film, "--image", film), "seen: --image, --video"),
        (("policy", "pusht", "--video", film, "--instruction", "x"), "state 'agent_pos' is missing"),
        (("id", "pusht", "--video", film, "--start", 30), "is too short"),
        (("policy", "pusht", "--video", film), "a policy needs a task; try: --instruction"),
        (
            ("policy", "pusht", "--image", tmp_path / "none.png", "--instruction", "x"),
            "no picture can be read",
        ),
        (
            ("id", "pusht", "--image", film),
            "reads a whole clip; seen: --image; expected: --video or --episode, 17",
        ),
        (("id", "pusht", "--video", film, "--out", film), "no folder can be made at"),
        (
            ("id", "pusht", "--video", film, "--device", "gpu"),
            "no device 'gpu' here; expected: auto, cpu, cuda",
        ),
        (("policy", "pushed", "--video", film), "no embodiment 'pushed'"),
        (("fd", "pusht", "--video", film, "--actions", film), "no actions can be read"),
    ]
    for words, text in cases:
        infer(*words, code=1)
        error = capsys.readouterr().err
        assert text in error and "Traceback" not in error


def test_parity_with_every_recorded_call_passes(shared, capsys):
    model = shared / "golden/model"
    calls = [file for file in sorted(model.glob("*.npz")) if not file.stem.endswith("_layers")]
    assert len(calls) >= 5
    for file in calls:
        folder = model / f"tiny-{file.stem.split('_')[0]}"
        assert wam.main(["check", "parity", str(folder), "--against", str(file)]) == 0, file.stem
        last = capsys.readouterr().out.splitlines()[-1]
        assert re.fullmatch(r"pass: max \|Δ\| \d\.\de-0[567] \(.*\) <= 2e-05", last)


def test_parity_fails_for_other_weights_and_other_files(shared, tmp_path, capsys):
    model = shared / "golden/model"
    line = ["check", "parity", str(model / "tiny-edge"), "--against"]
    assert wam.main([*line, str(model / "nano_policy.npz")]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAIL: max |Δ| ")
    (tmp_path / "empty.npz").touch()
    (tmp_path / "torn.npz").write_bytes((model / "edge_id.npz").read_bytes()[:9000])
    np.save(tmp_path / "one.npy", np.zeros(3))
    for file, seen in (
        (model / "nano_layers.npz", "no array 'step0/vision_in'"),
        (tmp_path / "absent.npz", "FileNotFoundError"),
        (tmp_path / "empty.npz", "EOFError"),
        (tmp_path / "torn.npz", "BadZipFile"),
        (tmp_path / "one.npy", "no archive"),
    ):
        assert wam.main([*line, str(file)]) == 1
        error = capsys.readouterr().err
        assert "is no recorded call" in error and seen in error and "Traceback" not in error


@pytest.mark.parametrize("flavour", ["nano", pytest.param("edge", marks=pytest.mark.slow)])
def test_parity_with_diffusers_passes(flavour, shared, capsys):
    assert wam.main(["check", "parity", str(shared / f"golden/model/tiny-{flavour}")]) == 0
    text = capsys.readouterr().out
    for output in ("policy latents", "policy actions", "fd latents", "id actions"):
        assert output in text
    assert text.splitlines()[-1].startswith("pass: ")


def test_rows_in_model_space_taken_for_robot_units_are_noticed(shared, capsys):
    """umi.json holds normalized rows: read as metres they would move the hand many times too far."""
    umi = SimpleNamespace(contract=load("umi"), codec=RowCodec(load("umi")))
    file = shared / "data/episodes/actions/umi.json"
    model = read_actions(file)[:16]
    np.testing.assert_array_equal(_actions(umi, file, "raw"), model)
    assert "rot6d columns of 'eef' are" in capsys.readouterr().err
    raw = _actions(umi, file, "model")
    assert "rot6d" not in capsys.readouterr().err
    np.testing.assert_allclose(umi.codec.model_from_raw(raw), model, atol=1e-9)
    assert np.abs(raw[:, :3]).max() < 0.1 * np.abs(model[:, :3]).max()

"""What each kind of client sends and must get back, byte for byte, without sockets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import serving_messages as messages
from hypothesis import given, settings
from hypothesis import strategies as st

from wamserve.action_codec.errors import (
    ContractError,
    PolicyOverloaded,
    PolicyUnavailable,
    RequestError,
    WamError,
)
from wamserve.clients import wire
from wamserve.clients.policy import ActionChunk, Prediction
from wamserve.embodiments.contract import load
from wamserve.policy_server.serving.dialects.base import Ask, Forget, Timing
from wamserve.policy_server.serving.dialects.plain import Plain, PlainRules
from wamserve.policy_server.serving.served import Served

DROID = Served.from_plain(Served.of(load("droid_lerobot")))
LIBERO = Served.from_plain(Served.of(load("libero")))
MIDTRAIN = Served.from_plain(Served.of(load("droid_lerobot_midtrain")))
TIMING = Timing(212.5, None)


def plain(served=DROID, path="/", bearer=False, **rules) -> Plain:
    return Plain(served, PlainRules(**rules), path, bearer)


def ask(dialect: Plain, fields: dict) -> Ask:
    heard = dialect.receive(messages.packed(fields))
    assert isinstance(heard, Ask)
    return heard


def prediction(actions: np.ndarray, **rest) -> Prediction:
    return Prediction(ActionChunk(actions, 0.0, 1 / 15), **rest)


def reply(dialect: Plain, asked: Ask, actions: np.ndarray, timing=TIMING, **rest) -> bytes:
    (frame,) = dialect.reply(asked, prediction(actions, **rest), timing).frames
    return frame


@pytest.fixture
def golden(shared):
    folder = shared / "golden" / "wire"
    listed = {f["file"]: f for f in json.loads((folder / "fixtures.json").read_text())["fixtures"]}

    def read(name: str):
        path = folder / name
        if not path.exists():
            pytest.skip(f"{name} is not among the reference data here")
        assert name in listed
        return path.read_bytes()

    return read


# --- the first frame -------------------------------------------------------------------------------------


def test_metadata_is_an_empty_map_on_the_plain_path(golden):
    assert plain().greet().frames == (golden("01_meta_empty.bin"),)


def test_roboarena_path_gets_exactly_the_six_keys(golden):
    frame = plain(Served(), path="/roboarena").greet().frames[0]
    assert wire.decode(frame) == wire.decode(golden("02_meta_roboarena_default.bin"))
    assert frame == golden("02_meta_roboarena_default.bin")


def test_metadata_asks_roboarena_clients_for_the_contracts_cameras():
    assert wire.decode(plain(metadata="roboarena").greet().frames[0]) == {
        "image_resolution": [360, 640],
        "needs_wrist_camera": True,
        "n_external_cameras": 2,
        "needs_stereo_camera": False,
        "needs_session_id": False,
        "action_space": "joint_position",
    }


# --- requests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "served", "dialect", "images", "state"),
    [
        ("03_req_robolab_cosmos3.bin", DROID, "cosmos", {"canvas"}, {"joint_position", "gripper_position"}),
        ("04_req_robolab_cosmos3_session.bin", DROID, "cosmos", {"canvas"}, None),
        ("05_req_cosmos3_three_views.bin", DROID, "cosmos", {"wrist", "exterior_1", "exterior_2"}, None),
        ("06_req_cosmos3_history3.bin", DROID, "cosmos", {"canvas"}, None),
        (
            "07_req_cosmos3_midtrain.bin",
            MIDTRAIN,
            "cosmos",
            {"canvas"},
            {"eef_pos", "eef_quat", "gripper_position"},
        ),
        ("09_req_roboarena_full.bin", DROID, "roboarena", {"wrist", "exterior_1", "exterior_2"}, None),
        ("13_req_openpi_libero.bin", LIBERO, "openpi-libero", {"agentview", "wrist"}, set()),
        ("14_req_dreamzero.bin", DROID, "roboarena", {"wrist", "exterior_1", "exterior_2"}, None),
    ],
)
def test_golden_requests_are_recognised(golden, name, served, dialect, images, state):
    connection = plain(served)
    heard = connection.receive(golden(name))
    assert connection.name == dialect
    assert set(heard.request.observation.images) == images
    if state is not None:
        assert set(heard.request.observation.state) == state
    assert heard.request.mode == "policy"


def test_three_views_carry_the_contracts_names():
    fields = messages.three_views()
    images = ask(plain(), fields).request.observation.images
    np.testing.assert_array_equal(images["exterior_2"], fields["observation/exterior_image_2_left"])
    np.testing.assert_array_equal(images["wrist"], fields["observation/wrist_image_left"])


def test_roboarena_counts_its_exteriors_from_zero():
    fields = messages.roboarena()
    images = ask(plain(), fields).request.observation.images
    np.testing.assert_array_equal(images["exterior_1"], fields["observation/exterior_image_0_left"])
    np.testing.assert_array_equal(images["exterior_2"], fields["observation/exterior_image_1_left"])


def test_a_composed_image_beats_raw_views_as_in_the_reference():
    heard = ask(plain(), messages.three_views() | messages.cosmos())
    assert set(heard.request.observation.images) == {"canvas"}


def test_of_history_rows_the_newest_that_the_contract_uses_are_taken():
    joints = np.stack([messages.JOINTS - 0.02, messages.JOINTS - 0.01, messages.JOINTS])
    fields = messages.cosmos(
        **{
            "observation/joint_position": joints,
            "observation/gripper_position": np.array([0.1, 0.2, 0.3], np.float32),
        }
    )
    state = ask(plain(), fields).request.observation.state
    np.testing.assert_array_equal(state["joint_position"], messages.JOINTS)
    np.testing.assert_allclose(state["gripper_position"], [0.3])


def test_steps_count_per_session_and_start_again_after_reset():
    dialect = plain()
    first, second = messages.roboarena(session_id="a"), messages.roboarena(session_id="b")
    steps = [ask(dialect, fields).request.step for fields in (first, first, second, first)]
    assert steps == [0, 1, 0, 2]
    dialect.receive(messages.packed({"endpoint": "reset", "session_id": "a"}))
    assert [ask(dialect, fields).request.step for fields in (first, second)] == [0, 1]


def test_seed_and_steps_of_a_request_are_taken():
    request = ask(plain(), messages.cosmos(seed=5, sampling_params={"num_inference_steps": 2})).request
    assert (request.seed, request.steps) == (5, 2)


# --- replies ---------------------------------------------------------------------------------------------


def test_cosmos_replies_equal_the_recorded_ones(golden):
    dialect = plain()
    asked = ask(dialect, messages.cosmos())
    recorded = wire.decode(golden("20_resp_cosmos3_first.bin"))["action"]
    assert reply(dialect, asked, recorded) == golden("20_resp_cosmos3_first.bin")
    assert reply(dialect, asked, recorded, Timing(211.0, 214.25)) == golden("21_resp_cosmos3_next.bin")
    video = wire.decode(golden("22_resp_cosmos3_video_small.bin"))["video"]
    frame = reply(dialect, asked, recorded, Timing(500.0, None), video=video)
    assert frame == golden("22_resp_cosmos3_video_small.bin")


def test_robolab_gets_float32_rows_whatever_the_policy_computes_in():
    dialect = plain()
    frame = reply(dialect, ask(dialect, messages.cosmos()), np.asfortranarray(np.ones((32, 8))))
    action = wire.decode(frame)["action"]
    assert action.dtype == np.float32 and action.flags.c_contiguous


def test_openpi_replies_equal_the_recorded_ones(golden):
    libero = plain(LIBERO)
    asked = ask(libero, messages.openpi_libero())
    recorded = golden("24_resp_openpi_libero.bin")
    frame = reply(libero, asked, wire.decode(recorded)["actions"])
    expected = wire.decode(recorded)
    expected["policy_timing"] = {"infer_ms": 212.5}
    expected["server_timing"] = {"infer_ms": 212.5}
    assert frame == wire.encode(expected)
    droid = plain(Served(), openpi_reads="position")
    asked = ask(droid, messages.openpi_droid())
    keys = list(wire.decode(reply(droid, asked, np.zeros((10, 8)))))
    assert keys == list(wire.decode(golden("23_resp_openpi_droid.bin")))


def test_roboarena_reply_is_actions_and_nothing_else(golden):
    dialect = plain(roboarena_rows=1)
    asked = ask(dialect, messages.roboarena())
    recorded = golden("25_resp_roboarena.bin")
    rows = np.concatenate([wire.decode(recorded)["actions"], np.ones((31, 8), np.float32)])
    assert reply(dialect, asked, rows) == recorded


def test_roboarena_reset_answers_in_text_and_names_the_sessions(golden):
    dialect = plain()
    heard = dialect.receive(golden("10_req_roboarena_reset.bin"))
    assert heard == Forget(("38DSA3hd3",), golden("31_roboarena_reset_ok.txt").decode())
    many = dialect.receive(messages.packed({"endpoint": "reset", "session_ids": ["a", "b"]}))
    assert many.sessions == ("a", "b")


def test_vllm_omni_path_gives_a_bare_array_typed_errors_and_a_binary_reset(golden):
    dialect = plain(path="/v1/realtime/robot/openpi")
    asked = ask(dialect, messages.cosmos())
    recorded = golden("26_resp_vllm_omni_ndarray.bin")
    assert reply(dialect, asked, wire.decode(recorded)) == recorded
    assert dialect.fail(ValueError("x")).frames[0] == messages.packed(
        {"type": "error", "message": "the server failed on this request"}
    )
    assert dialect.receive(messages.packed({"endpoint": "reset"})).reply == golden(
        "28_resp_vllm_omni_reset.bin"
    )


def _str_keyed(fields: dict) -> bytes:
    import msgpack

    def default(array):
        return {"__ndarray__": True, "data": array.tobytes(), "dtype": array.dtype.str, "shape": array.shape}

    return msgpack.packb(fields, default=default)


def test_a_client_with_str_keyed_markers_is_answered_in_kind():
    import msgpack

    dialect = plain()
    asked = dialect.receive(_str_keyed(messages.cosmos()))
    assert asked.request.observation.images["canvas"].shape == (540, 640, 3)
    actions = np.arange(256, dtype=np.float32).reshape(32, 8)
    answer = msgpack.unpackb(reply(dialect, asked, actions))
    assert set(answer["action"]) == {"__ndarray__", "data", "dtype", "shape"}
    assert answer["action"]["data"] == actions.tobytes()


def test_timing_can_be_left_out_so_that_replies_repeat_to_the_byte():
    dialect = plain(timing=False)
    asked = ask(dialect, messages.cosmos())
    rows = np.zeros((32, 8), np.float32)
    assert reply(dialect, asked, rows, Timing(1.0, None)) == reply(dialect, asked, rows, Timing(2.0, 3.0))


# --- refusals --------------------------------------------------------------------------------------------


def test_openpi_droid_is_refused_where_replies_are_positions():
    with pytest.raises(ContractError, match=r"velocities.*joint_targets"):
        plain().receive(messages.packed(messages.openpi_droid()))


def test_openpi_droid_gets_ten_rows_where_the_contract_declares_velocities(monkeypatch):
    dialect = plain()
    monkeypatch.setattr(Served, "reply_form", "joint_velocities")
    asked = ask(dialect, messages.openpi_droid())
    assert wire.decode(reply(dialect, asked, np.zeros((32, 8))))["actions"].shape == (10, 8)


def test_two_views_are_served_once_the_operator_says_that_they_drive_positions():
    asked = ask(plain(openpi_reads="position"), messages.openpi_droid(np.float32))
    assert set(asked.request.observation.images) == {"wrist", "exterior_1"}


def test_robolab_is_refused_by_a_contract_with_fewer_rows_than_it_executes():
    contract = Served.of(load("droid_lerobot"))
    contract["contract"]["wire"]["chunk"] = contract["contract"]["model"]["chunk"] = 16
    served = Served.from_plain(contract | {"wire_sha256": ""})
    with pytest.raises(ContractError, match=r"32 rows.*16 rows"):
        plain(served).receive(messages.packed(messages.cosmos()))


@pytest.mark.parametrize(
    ("fields", "served"),
    [
        (messages.openpi_libero(), DROID),
        (messages.cosmos(), LIBERO),
        (messages.midtrain(), DROID),
        (messages.cosmos(), MIDTRAIN),
        (messages.roboarena(), LIBERO),
    ],
)
def test_a_client_that_executes_something_else_is_refused(fields, served):
    with pytest.raises(ContractError):
        plain(served).receive(messages.packed(fields))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": None}, "'prompt' is missing"),
        ({"prompt": b"bytes"}, "'prompt' is missing or not text"),
        ({"observation/joint_position": "seven"}, "joint_position' is not numbers"),
        ({"observation/joint_position": np.zeros((2, 3, 7), np.float32)}, "is not numbers"),
        ({"observation/gripper_position": np.array(["a"])}, "gripper_position' is not numbers"),
        ({"session_id": 7}, "'session_id' is not a short text"),
        ({"endpoint": "kill"}, "unknown endpoint"),
        ({"seed": -1}, "'seed' is not a whole number"),
        ({"seed": 1.5}, "'seed' is not a whole number"),
        ({"observation/image": [1, 2]}, "not an image"),
    ],
)
def test_a_wrong_field_is_named(changes, words):
    with pytest.raises(RequestError, match=words):
        plain().receive(messages.packed(messages.cosmos(**changes)))


def test_an_unknown_client_is_told_what_is_expected():
    with pytest.raises(RequestError, match="no known client"):
        plain().receive(messages.packed({"video.front": np.zeros(3)}))


@pytest.mark.parametrize("kind", ["openpi", "session", "bearer"])
def test_errors_come_as_each_client_reads_them(kind):
    dialect = plain(bearer=kind == "bearer")
    ask(dialect, messages.cosmos(**({"session_id": "robolab-episode-0-env-0"} if kind == "session" else {})))
    out = dialect.fail(RequestError("no such robot"))
    assert out.close is None
    (frame,) = out.frames
    if kind == "openpi":
        assert frame == "no such robot"
    else:
        assert wire.decode(frame) == {"type": "error", "message": "no such robot"}


def test_errors_carry_no_file_paths():
    out = plain().fail(ValueError("/root/secret/model.py line 3"))
    assert out.frames == ("the server failed on this request",)


def test_overload_closes_plain_wires_with_1013_and_no_text():
    out = plain().fail(PolicyOverloaded("the queue is full"))
    assert (out.frames, out.close) == ((), 1013)


def test_a_dead_engine_costs_the_request_and_not_the_socket():
    out = plain().fail(PolicyUnavailable("the engine process died (signal SIGKILL)"))
    assert out.close is None and len(out.frames) == 1


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=9)
    | st.sampled_from(
        [np.zeros((3, 4, 3), np.uint8), np.zeros(7, np.float32), np.array(["x"]), np.float32(1)]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from(
    [
        *messages.three_views(),
        *messages.midtrain(),
        *messages.openpi_libero(),
        *messages.roboarena(),
        "session_id",
        "session_ids",
        "seed",
        "sampling_params",
    ]
)


def test_an_endpoint_that_is_no_word_is_refused_by_name():
    with pytest.raises(RequestError, match="unknown endpoint; seen: ndarray; expected: infer or reset"):
        plain().receive(messages.packed({"endpoint": np.zeros((2, 2), np.uint8)}))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.dictionaries(_KEYS, _VALUES, max_size=9), max_size=3), st.sampled_from(["/", "/roboarena"])
)
def test_no_map_of_known_keys_raises_anything_but_our_own_errors(frames, path):
    dialect = plain(path=path)
    for fields in frames:
        try:
            heard = dialect.receive(messages.packed(fields))
        except WamError as error:
            assert dialect.fail(error).frames
        else:
            assert isinstance(heard, Ask | Forget)

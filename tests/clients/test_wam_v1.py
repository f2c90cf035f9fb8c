"""The wam.v1 messages survive the wire, and malformed ones are refused by name."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wamserve.action_codec import errors
from wamserve.clients import wam_v1, wire
from wamserve.clients.policy import ActionChunk, Ledger, Observation, Prediction, Request
from wamserve.embodiments import contract

ARRAY = np.arange(16, dtype=np.float32).reshape(2, 8)
IMAGE = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)


def equal(a, b):
    """Equality through dataclasses, maps and arrays."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(
            equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return a == b


full_request = Request(
    Observation({"wrist": IMAGE, "left": IMAGE}, {"joint": np.zeros(7), "h": np.zeros((3, 1))}, "lift", 1.25),
    mode="policy",
    actions=ARRAY,
    video=IMAGE[None],
    prefix=ARRAY[:1],
    delay=3,
    seed=0,
    steps=4,
    guidance=1.5,
    want_video=True,
    session="robot 1",
    step=96,
    deadline_ms=250.0,
)


@pytest.mark.parametrize(
    "message",
    [
        wam_v1.Open(),
        wam_v1.Open("aa", {"rate_hz": 15, "views": ["wrist"]}, "robot 1.0", True),
        wam_v1.Infer(1, Request(Observation({}, {}))),
        wam_v1.Infer(2**62, full_request),
        wam_v1.Infer(3, full_request, stream=True),
        wam_v1.Reset(4),
        wam_v1.Reset(5, "robot 1"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_a_client_says_arrives(message):
    assert equal(wam_v1.decode_request(wam_v1.encode_request(message)), message)


@pytest.mark.parametrize(
    "message",
    [
        wam_v1.Loading("compile", 0.5),
        wam_v1.Hello("wamserve 1", "droid_lerobot", "a", "b", 1 / 15, 32),
        wam_v1.Hello(
            *("wamserve 1", "droid_lerobot", "a", "b", 1 / 15, 32, {"reply": {"form": "x"}}, {"steps": 4}),
            *(("policy", "fd", "id"), (1, 8), (1.0, 5.0), 8, True, True, True, True, 2**20, 4),
        ),
        wam_v1.Opened("c7"),
        wam_v1.Done(3),
        wam_v1.Reply(1, 9, Prediction(ActionChunk(ARRAY, 1.25, 0.05, 2), IMAGE[None], 7, Ledger(1, 2, 3))),
        wam_v1.Reply(1, 9, Prediction(video=IMAGE[None])),
        wam_v1.Reply(1, 9, Prediction(ActionChunk(ARRAY, 1.25, 0.05)), video_follows=True, stream=True),
        wam_v1.Video(1, IMAGE[None]),
        wam_v1.Failure("late", "too late", 4),
        wam_v1.Failure("refused", "differs", None, ("rate_hz: 15 here, 10 there",), 100.0),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_a_server_says_arrives(message):
    assert equal(wam_v1.decode_reply(wam_v1.encode_reply(message)), message)


names = st.text(min_size=1, max_size=8).filter(lambda name: not name.startswith("__") and name != "nd")
requests = st.builds(
    Request,
    observation=st.builds(
        Observation,
        images=st.dictionaries(names, st.just(IMAGE), max_size=3),
        state=st.dictionaries(names, st.just(ARRAY[0]), max_size=3),
        instruction=st.text(max_size=20),
        time=st.floats(allow_nan=False, allow_infinity=False),
    ),
    mode=st.sampled_from(["policy", "fd", "id"]),
    prefix=st.none() | st.just(ARRAY),
    delay=st.integers(0, 2**62),
    seed=st.none() | st.integers(0, 2**62),
    steps=st.none() | st.integers(0, 100),
    guidance=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    want_video=st.booleans(),
    session=st.text(max_size=8),
    step=st.integers(0, 2**62),
    deadline_ms=st.none() | st.floats(min_value=1e-3, max_value=1e9),
)


@settings(max_examples=200, deadline=None)
@given(requests, st.integers(0, 2**62), st.booleans())
def test_every_request_survives_the_wire(request, request_id, stream):
    message = wam_v1.Infer(request_id, request, stream)
    assert equal(wam_v1.decode_request(wam_v1.encode_request(message)), message)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"guidnace": 2.0}, "guidnace"),
        ({"wam": "shutdown"}, "unknown wam.v1 message"),
        ({"wam": None}, "wam"),
        ({"id": -1}, "id"),
        ({"id": True}, "id"),
        ({"id": "1"}, "id"),
        ({"mode": "video"}, "mode"),
        ({"images": {"wrist": [1, 2]}}, "wrist"),
        ({"images": {"wrist": np.zeros((1, 3, 4, 3), np.uint8)}}, "wrist"),
        ({"state": {"joint": "0"}}, "joint"),
        ({"state": {"joint": np.array(["a"])}}, "joint"),
        ({"prefix": np.zeros(8)}, "prefix"),
        ({"prefix": np.zeros((1, 8), int)}, "prefix"),
        ({"video": np.zeros((1, 4, 4, 3))}, "video"),
        ({"delay": 1.5}, "delay"),
        ({"seed": -1}, "seed"),
        ({"guidance": float("nan")}, "guidance"),
        ({"deadline_ms": 0.0}, "deadline_ms"),
        ({"time": float("inf")}, "time"),
        ({"session": 5}, "session"),
        ({"want_video": 1}, "want_video"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_malformed_request_is_refused_by_the_name_of_its_field(change, words):
    fields = wire.decode_map(wam_v1.encode_request(wam_v1.Infer(1, full_request)))
    with pytest.raises(errors.WireError, match=words):
        wam_v1.request_from_map({**fields, **change})
    assert wam_v1.request_id_of({**fields, "mode": "video"}) == 1


def test_a_newer_servers_fields_are_passed_over_and_a_newer_clients_are_not():
    reply = wire.decode_map(wam_v1.encode_reply(wam_v1.Done(1)))
    assert wam_v1.reply_from_map({**reply, "news": 1}) == wam_v1.Done(1)
    reset = wire.decode_map(wam_v1.encode_request(wam_v1.Reset(1)))
    with pytest.raises(errors.WireError):
        wam_v1.request_from_map({**reset, "news": 1})


def test_an_id_is_found_in_what_is_no_message():
    for fields in (None, [1], {"id": "1"}, {"id": -1}, {"id": True}, {"id": 2**63}, {}):
        assert wam_v1.request_id_of(fields) is None
    assert wam_v1.request_id_of({"id": 7, "rubbish": 1}) == 7


@pytest.mark.parametrize(
    "error",
    [
        errors.PolicyLate("a"),
        errors.PolicyOverloaded("b"),
        errors.PolicyUnavailable("c"),
        errors.PolicyError("d"),
        errors.RequestError("e"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_crosses_the_wire_as_itself(error):
    failure = wam_v1.decode_reply(wam_v1.encode_reply(wam_v1.failure_from(error, 3)))
    there = wam_v1.error_from(failure)
    assert type(there) is type(error) and str(there) == str(error) and failure.request_id == 3


def test_a_servers_own_mistake_leaks_nothing():
    failure = wam_v1.failure_from(KeyError("/root/secret/weights.safetensors"), 1)
    assert failure.kind == "failed" and "secret" not in failure.message


def test_differing_fields_are_named_with_both_values():
    ours = {"rate_hz": 15, "reply": {"form": "joint_targets", "width": 8}, "views": ("wrist", "left")}
    same = {"rate_hz": 15, "reply": {"form": "joint_targets", "width": 8}, "views": ["wrist", "left"]}
    assert wam_v1.differing_fields(ours, same) == []
    theirs = {"rate_hz": 10, "reply": {"form": "joint_targets", "width": 7}, "views": ["wrist"]}
    assert wam_v1.differing_fields(ours, theirs) == [
        "rate_hz: 15 here, 10 there",
        "reply.width: 8 here, 7 there",
        "views: ['wrist', 'left'] here, ['wrist'] there",
    ]
    assert wam_v1.differing_fields({}, {"rate_hz": 15}) == ["rate_hz: None here, 15 there"]


def test_named_items_are_compared_by_name():
    droid = dataclasses.asdict(contract.load("droid_lerobot").wire)
    other = dataclasses.asdict(contract.load("droid_lerobot").wire)
    other["images"] = [
        {**image, "height": 180} if image["name"] == "wrist" else image for image in other["images"]
    ]
    assert wam_v1.differing_fields(droid, other) == ["images.wrist.height: 360 here, 180 there"]
    assert wam_v1.differing_fields(droid, wire.decode(wire.encode(droid))) == []
    lines = wam_v1.differing_fields(droid, dataclasses.asdict(contract.load("pusht").wire))
    assert all(len(line) < 220 for line in lines) and any(line.startswith("images.top") for line in lines)

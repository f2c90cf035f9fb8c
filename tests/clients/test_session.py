"""A conversation without a socket: frames in, frames out, and nothing accepted out of turn."""

import numpy as np
import pytest
import servers

from wamserve.action_codec.errors import PolicyError, WireError
from wamserve.clients import wam_v1, wire
from wamserve.clients.plain import COSMOS, ROBOARENA
from wamserve.clients.policy import Observation, Prediction, Request
from wamserve.clients.session import Endpoint, Session, error_from_close

URI = "ws://127.0.0.1:1"


def opened():
    session = Session(Endpoint(URI), wam_v1.SUBPROTOCOL)
    session.handshake(wam_v1.encode_reply(servers.HELLO))
    session.handshake(wam_v1.encode_reply(wam_v1.Opened()))
    assert session.ready
    return session


def request(seed=1):
    return Request(Observation({}, {"gripper_position": np.array([0.5])}, "lift", 2.0), seed=seed)


def test_the_opening_is_loading_hello_open_opened():
    session = Session(Endpoint(URI), wam_v1.SUBPROTOCOL)
    assert session.handshake(wam_v1.encode_reply(wam_v1.Loading("weights", 0.1))) is None
    reply = session.handshake(wam_v1.encode_reply(servers.HELLO))
    assert isinstance(wam_v1.decode_request(reply), wam_v1.Open) and not session.ready
    assert session.handshake(wam_v1.encode_reply(wam_v1.Opened("c1"))) is None
    assert session.ready and session.hello == servers.HELLO


@pytest.mark.parametrize(
    "frames",
    [
        [wam_v1.Opened()],
        [servers.HELLO, servers.HELLO],
        [wam_v1.Done(1)],
    ],
    ids=["opened first", "hello twice", "an answer"],
)
def test_an_opening_out_of_order_is_refused(frames):
    session = Session(Endpoint(URI), wam_v1.SUBPROTOCOL)
    with pytest.raises(WireError, match="out of order"):
        for message in frames:
            session.handshake(wam_v1.encode_reply(message))


def test_a_text_frame_in_the_opening_is_a_refusal():
    for endpoint, subprotocol in ((Endpoint(URI), wam_v1.SUBPROTOCOL), (Endpoint(URI, plain=COSMOS), None)):
        with pytest.raises(PolicyError, match="go away"):
            Session(endpoint, subprotocol).handshake("go away")


def test_ids_count_up_over_infers_observes_and_resets():
    session = opened()
    ids = [session.ask(request())[0], session.ask_reset("s")[0], session.ask(request(), stream=True)[0]]
    assert ids == [1, 2, 3]


def test_a_frame_that_could_not_be_encoded_takes_no_id():
    session = opened()
    with pytest.raises(WireError):
        session.ask(Request(Observation({}, {"state": np.array([1j])})))
    assert session.ask(request())[0] == 1


def test_video_belongs_to_its_own_reply_and_to_no_other():
    session = opened()
    video = np.zeros((1, 2, 2, 3), np.uint8)
    with pytest.raises(WireError, match="no reply"):
        session.read(wam_v1.encode_reply(wam_v1.Video(1, video)))
    for request_id in (1, 2):
        prediction = Prediction(servers.prediction(request(seed=request_id)).chunk)
        session.read(wam_v1.encode_reply(wam_v1.Reply(request_id, 1, prediction, video_follows=True)))
    answer = session.read(wam_v1.encode_reply(wam_v1.Video(1, video)))
    assert answer.request_id == 1 and answer.prediction.chunk.actions[0, 0] == 1 and not answer.more


def test_replies_whose_video_never_comes_do_not_pile_up():
    session = opened()
    for request_id in range(100):
        reply = wam_v1.Reply(request_id, 1, servers.prediction(request()), video_follows=True)
        session.read(wam_v1.encode_reply(reply))
    assert len(session._before_video) <= 8


def test_a_plain_server_that_speaks_unasked_is_not_believed():
    session = Session(Endpoint(URI, plain=COSMOS), None)
    session.handshake(wire.encode({}))
    frame = wire.encode({"action": np.zeros((32, 8), np.float32)})
    with pytest.raises(WireError, match="without being asked"):
        session.read(frame)
    session.ask(Request(request().observation))
    assert session.read(frame).prediction.chunk.start == 2.0
    with pytest.raises(WireError):
        session.read(frame)


def test_a_traceback_in_place_of_a_reset_is_an_error():
    session = Session(Endpoint(URI, plain=ROBOARENA), None)
    session.handshake(wire.encode({}))
    session.ask_reset("s")
    answer = session.read("Traceback (most recent call last):\n  File x\nKeyError: 'prompt'\n")
    assert isinstance(answer.error, PolicyError) and "KeyError: 'prompt'" in str(answer.error)
    session.ask_reset("s")
    assert session.read("reset successful").error is None


def test_addresses_and_closing_codes_say_what_they_mean():
    with pytest.raises(PolicyError, match="ws://HOST"):
        Endpoint("127.0.0.1:8000")
    with pytest.raises(PolicyError, match="JPEG"):
        Endpoint(URI, plain=COSMOS, jpeg_quality=90)
    assert "without a closing word" in str(error_from_close(None, ""))
    assert type(error_from_close(1008, "contract")) is PolicyError

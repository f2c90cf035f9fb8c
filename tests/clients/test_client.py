"""Both clients against servers that are silent, late, dying, closing, refusing - and good."""

import asyncio
import dataclasses
import shutil
import ssl
import subprocess
import threading
import time

import numpy as np
import pytest
import servers
from servers import HELLO, Server
from websockets.datastructures import Headers
from websockets.http11 import Response

from wamserve.action_codec.errors import (
    ContractError,
    PolicyError,
    PolicyLate,
    PolicyOverloaded,
    PolicyUnavailable,
    RequestError,
    WireError,
)
from wamserve.clients import wam_v1, wire
from wamserve.clients.async_client import AsyncPolicyClient
from wamserve.clients.client import PolicyClient
from wamserve.clients.plain import COSMOS, ROBOARENA, VLLM_OMNI, plain_request
from wamserve.clients.policy import Observation, Policy, Request
from wamserve.clients.session import Backoff, Timeouts
from wamserve.embodiments import contract

QUICK = Timeouts(connect=2.0, warm=2.0, request=0.8, close=0.2)
TWICE = Backoff(attempts=2, first=0.01)


class Blocking:
    """The asyncio client behind the blocking one's face, so that every test runs on both."""

    def __init__(self, uri, sleep=None, **options):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.client = AsyncPolicyClient(uri, **options)

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def infer(self, request, on_actions=None):
        return self._run(self.client.infer(request, on_actions))

    def reset(self, session=""):
        return self._run(self.client.reset(session))

    def connect(self):
        return self._run(self.client.connect())

    @property
    def hello(self):
        return self.client.hello

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._run(self.client.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()


@pytest.fixture(params=[PolicyClient, Blocking], ids=["sync", "asyncio"])
def client_of(request):
    """client_of(server, ...): a client with short timeouts."""
    open_clients = []

    def make(server, **options):
        options = {"timeouts": QUICK, "backoff": TWICE, **options}
        client = request.param(getattr(server, "uri", server), **options)
        open_clients.append(client)
        return client

    yield make
    for client in open_clients:
        client.__exit__()


def ask(seed=1, **fields):
    image = np.full((6, 8, 3), 128, np.uint8)
    state = {"joint_position": np.zeros(7, np.float32), "gripper_position": np.array([seed / 10], "f4")}
    return Request(Observation({"canvas": image}, state, "lift the cube", 12.5), seed=seed, **fields)


def observed(request):
    """The request's observation with the arm at a pose that a Panda can reach."""
    state = {**request.observation.state, "joint_position": np.array([0, 0, 0, -1.5, 0, 1.5, 0], np.float32)}
    return dataclasses.replace(request.observation, state=state)


def plain_ask(gripper=1):
    return dataclasses.replace(ask(gripper), seed=None)


def first(prediction):
    return float(prediction.chunk.actions[0, 0])


# --- good servers ----------------------------------------------------------------------------------------


def test_an_answer_comes_back_whole(client_of):
    with Server(servers.echo) as server:
        client = client_of(server)
        prediction = client.infer(ask(7))
        assert first(prediction) == 7 and prediction.seed == 7
        assert prediction.chunk.start == 12.5 and prediction.chunk.period == 1 / 15
        assert prediction.ledger.forwards == 8 and prediction.ledger.infer_ms == 3.0
        client.reset("s")
        assert first(client.infer(ask(8))) == 8
        assert server.connections == 1
        assert client.hello.embodiment == "droid_lerobot"


def test_the_sync_client_is_a_policy():
    assert isinstance(PolicyClient("ws://127.0.0.1:1"), Policy)


def test_a_plain_server_gets_its_dialect_and_no_subprotocol(client_of):
    with Server(servers.plain_echo, wam=False) as server:
        client = client_of(server, plain=COSMOS)
        prediction = client.infer(plain_ask(3))
        assert first(prediction) == pytest.approx(3)
        assert prediction.chunk.actions.shape == (32, 8) and prediction.chunk.start == 12.5
        assert prediction.ledger.infer_ms == 2.5
        client.reset()  # says nothing on this wire
        assert first(client.infer(plain_ask(4))) == pytest.approx(4)
        assert "Sec-WebSocket-Protocol" not in server.headers[0]
        assert "Sec-WebSocket-Extensions" not in server.headers[0]


def test_the_cosmos_request_is_robolabs_bytes(shared):
    """The request of RoboLab's own client, rebuilt from a Request."""
    data = (shared / "golden" / "wire" / "03_req_robolab_cosmos3.bin").read_bytes()
    fields = wire.decode_map(data)
    request = Request(
        Observation(
            {"canvas": fields["observation/image"]},
            {
                "joint_position": fields["observation/joint_position"],
                "gripper_position": fields["observation/gripper_position"],
            },
            fields["prompt"],
        )
    )
    assert wire.encode(plain_request(COSMOS, request)) == data


def test_a_plain_wire_refuses_what_it_cannot_say(client_of):
    with Server(servers.plain_echo, wam=False) as server:
        client = client_of(server, plain=COSMOS)
        for request in (ask(1), ask(1, steps=2), dataclasses.replace(plain_ask(), prefix=np.zeros((1, 8)))):
            with pytest.raises(RequestError, match="cannot carry"):
                client.infer(request)
        knowing = client_of(server, plain=dataclasses.replace(COSMOS, ignore=("seed",)))
        assert first(knowing.infer(ask(2))) == pytest.approx(2)


def test_a_server_without_wam_v1_needs_a_declared_dialect(client_of):
    with Server(servers.plain_echo, wam=False) as server, pytest.raises(ContractError, match="plain=COSMOS"):
        client_of(server).infer(plain_ask())


def test_actions_come_before_the_video(client_of):
    video = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    seen = []

    def behaviour(socket):
        servers.welcome(socket)
        for message in servers.requests(socket):
            prediction = servers.prediction(message.request)
            reply = wam_v1.Reply(message.request_id, 1, prediction, video_follows=True)
            socket.send(wam_v1.encode_reply(reply))
            while not seen:
                time.sleep(0.01)
            socket.send(wam_v1.encode_reply(wam_v1.Video(message.request_id, video)))

    with Server(behaviour) as server:
        prediction = client_of(server).infer(ask(5, want_video=True), on_actions=seen.append)
        np.testing.assert_array_equal(prediction.video, video)
        assert first(prediction) == 5 and first(seen[0]) == 5 and seen[0].video is None


def test_jpeg_goes_over_the_wire_only_where_both_agree(client_of):
    pytest.importorskip("PIL")
    with Server(servers.echo) as server:
        assert first(client_of(server, jpeg_quality=90).infer(ask(3))) == 3

    def without(socket):
        servers.welcome(socket, dataclasses.replace(HELLO, jpeg=False))

    with Server(without) as server, pytest.raises(ContractError, match="JPEG"):
        client_of(server, jpeg_quality=90).infer(ask(3))


# --- contracts, tokens, TLS ------------------------------------------------------------------------------


def test_a_differing_wire_half_is_refused_with_its_fields(client_of):
    droid = contract.load("droid_lerobot")
    half = dataclasses.asdict(droid.wire)
    served = {**half, "rate_hz": 10, "reply": {**half["reply"], "form": "pose_targets"}}
    hello = dataclasses.replace(HELLO, wire=served, wire_sha256="other")
    with Server(lambda socket: servers.welcome(socket, hello)) as server:
        with pytest.raises(ContractError) as caught:
            client_of(server, contract=droid).infer(ask())
        assert "rate_hz: 15 here, 10 there" in str(caught.value)
        assert "reply.form: 'joint_targets' here, 'pose_targets' there" in str(caught.value)
        assert server.connections == 1, "a mismatch is not tried again"


def test_the_same_contract_is_declared_to_the_server(client_of):
    droid = contract.load("droid_lerobot")
    opens = []

    def behaviour(socket):
        hello = dataclasses.replace(HELLO, wire=dataclasses.asdict(droid.wire), wire_sha256=droid.wire_hash)
        opens.append(servers.welcome(socket, hello))
        for message in servers.requests(socket):
            socket.send(servers.answer(message))

    image, state = np.full((540, 640, 3), 128, np.uint8), dict(ask().observation.state)
    state["joint_position"] = np.array([0, 0, 0, -1.5, 0, 1.5, 0], np.float32)
    fits = Request(Observation({"canvas": image}, state, "lift the cube"), seed=4)
    with Server(behaviour) as server:
        client = client_of(server, contract=droid)
        assert first(client.infer(fits)) == 4
        with pytest.raises(RequestError, match="joint_position"):  # refused here: nothing is sent
            state["joint_position"] = state["joint_position"] * 57.3
            client.infer(fits)
        assert first(client.infer(dataclasses.replace(fits, observation=observed(fits), seed=6))) == 6
    assert opens[0].wire_sha256 == droid.wire_hash and opens[0].wire["rate_hz"] == 15


def test_a_server_that_refuses_the_contract_is_believed(client_of):
    def behaviour(socket):
        socket.send(wam_v1.encode_reply(HELLO))
        socket.recv()
        failure = wam_v1.Failure("refused", "wire halves differ", differing=("rate_hz: 15 here, 10 there",))
        socket.send(wam_v1.encode_reply(failure))
        socket.close(1008)

    with Server(behaviour) as server:
        with pytest.raises(ContractError, match="rate_hz"):
            client_of(server).infer(ask())
        assert server.connections == 1


@pytest.mark.parametrize("scheme", ["Bearer", "Api-Key"])
def test_the_token_travels_in_the_upgrade(client_of, scheme):
    def check(socket, request):
        if request.headers.get("Authorization") != f"{scheme} secret":
            return socket.respond(401, "no")
        return None

    with Server(servers.echo, process_request=check) as server:
        assert first(client_of(server, token="secret", token_scheme=scheme).infer(ask(2))) == 2
        with pytest.raises(PolicyError, match="token"):
            client_of(server, token="guess", token_scheme=scheme).infer(ask())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls_is_verified(client_of, tmp_path):
    own = certificate(tmp_path)
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(*own)
    with Server(servers.echo, ssl=server_side) as server:
        trusting = ssl.create_default_context(cafile=str(own[0]))
        assert first(client_of(server, tls=trusting).infer(ask(6))) == 6
        with pytest.raises(PolicyUnavailable, match=r"(?i)certificate"):
            client_of(server).infer(ask())


def certificate(folder):
    """A self-signed certificate for 127.0.0.1 and its key."""
    certificate_file, key_file = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        + ["-keyout", str(key_file), "-out", str(certificate_file)],
        check=True,
        capture_output=True,
    )
    return certificate_file, key_file


# --- typed errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("late", PolicyLate),
        ("overloaded", PolicyOverloaded),
        ("refused", RequestError),
        ("unavailable", PolicyUnavailable),
        ("failed", PolicyError),
    ],
)
def test_a_failure_is_its_own_error_and_costs_only_its_request(client_of, kind, error):
    def behaviour(socket):
        servers.welcome(socket)
        for number, message in enumerate(servers.requests(socket)):
            failure = wam_v1.Failure(kind, "because", message.request_id)
            socket.send(servers.answer(message) if number else wam_v1.encode_reply(failure))

    with Server(behaviour) as server:
        client = client_of(server)
        with pytest.raises(error, match="because"):
            client.infer(ask())
        assert first(client.infer(ask(9))) == 9
        assert server.connections == 1


def test_actions_that_are_not_numbers_are_refused(client_of):
    def behaviour(socket):
        servers.welcome(socket)
        for message in servers.requests(socket):
            bad = servers.prediction(message.request, value=np.nan)
            socket.send(wam_v1.encode_reply(wam_v1.Reply(message.request_id, 1, bad)))

    with Server(behaviour) as server, pytest.raises(PolicyError, match="row 0, column 0"):
        client_of(server).infer(ask())


# --- time ------------------------------------------------------------------------------------------------


def test_a_silent_server_is_left_after_the_timeout(client_of):
    with Server(servers.silent) as server:
        start = time.monotonic()
        with pytest.raises(PolicyLate):
            client_of(server).infer(ask())
        assert 0.75 < time.monotonic() - start < 4.0


def test_a_late_reply_is_never_taken_for_the_next_one(client_of):
    def behaviour(socket):
        servers.welcome(socket)
        for number, message in enumerate(servers.requests(socket)):
            if number == 0:
                time.sleep(1.1)  # past the client's 0.8 s
            socket.send(servers.answer(message))

    with Server(behaviour, behaviour) as server:
        client = client_of(server)
        with pytest.raises(PolicyLate):
            client.infer(ask(1))
        client.endpoint = dataclasses.replace(
            getattr(client, "client", client).endpoint, timeouts=dataclasses.replace(QUICK, request=5.0)
        )
        if isinstance(client, Blocking):
            client.client.endpoint = client.endpoint
        for seed in (2, 3, 4):
            assert first(client.infer(ask(seed))) == seed


def test_a_reply_to_an_earlier_request_is_passed_over(client_of):
    def behaviour(socket):
        servers.welcome(socket)
        for message in servers.requests(socket):
            stale = wam_v1.Reply(10_000, 1, servers.prediction(message.request, value=-1))
            socket.send(wam_v1.encode_reply(stale))
            socket.send(servers.answer(message))

    with Server(behaviour) as server:
        client = client_of(server)
        assert [first(client.infer(ask(seed))) for seed in (1, 2, 3)] == [1, 2, 3]


def test_a_late_plain_reply_costs_the_connection_not_the_next_answer(client_of):
    def behaviour(socket):
        socket.send(wire.encode({}))
        for number, frame in enumerate(socket):
            gripper = float(wire.decode_map(frame)["observation/gripper_position"][0])
            if number == 0 and gripper < 0.15:
                time.sleep(1.1)
            socket.send(wire.encode({"action": np.full((32, 8), 10 * gripper, np.float32)}))

    with Server(behaviour, wam=False) as server:
        client = client_of(server, plain=COSMOS)
        with pytest.raises(PolicyLate):
            client.infer(plain_ask(1))
        assert [round(first(client.infer(plain_ask(n)))) for n in (2, 3)] == [2, 3]
        assert server.connections == 2


def test_the_clients_patience_is_the_servers_deadline(client_of):
    deadlines = []

    def behaviour(socket):
        servers.welcome(socket)
        for message in servers.requests(socket):
            deadlines.append(message.request.deadline_ms)
            socket.send(servers.answer(message))

    with Server(behaviour) as server:
        client = client_of(server)
        client.infer(ask())
        client.infer(ask(deadline_ms=50.0))
    assert deadlines == [pytest.approx(760.0), 50.0]


def test_a_cold_server_is_waited_for_and_tells_its_progress(client_of):
    def behaviour(socket):
        for fraction in (0.2, 0.7):
            socket.send(wam_v1.encode_reply(wam_v1.Loading("weights", fraction)))
            time.sleep(0.3)
        servers.echo(socket)

    progress = []
    with Server(behaviour) as server:
        assert first(client_of(server, on_loading=progress.append).infer(ask(4))) == 4
    assert progress == [wam_v1.Loading("weights", 0.2), wam_v1.Loading("weights", 0.7)]


def test_a_server_that_never_gets_warm_is_left(client_of):
    with Server(servers.mute) as server:
        with pytest.raises(PolicyLate, match="warm"):
            client_of(server, timeouts=dataclasses.replace(QUICK, warm=0.3)).infer(ask())
        assert server.connections == 1


# --- loss ------------------------------------------------------------------------------------------------


def test_a_server_that_dies_mid_reply_is_dialled_again(client_of):
    with Server(servers.dying_mid_reply, servers.echo) as server:
        assert first(client_of(server).infer(ask(5))) == 5
        assert server.connections == 2


def test_a_plain_server_that_dies_mid_reply_is_dialled_again(client_of):
    with Server(servers.dying_mid_reply, servers.plain_echo, wam=False) as server:
        assert first(client_of(server, plain=COSMOS).infer(plain_ask(5))) == pytest.approx(5)
        assert server.connections == 2


@pytest.mark.parametrize(
    ("code", "error"), [(1011, PolicyUnavailable), (1012, PolicyUnavailable), (1013, PolicyOverloaded)]
)
@pytest.mark.parametrize("wam", [True, False], ids=["wam.v1", "plain"])
def test_closing_without_a_word_is_retried_then_typed(client_of, code, error, wam):
    question = ask(3) if wam else plain_ask(3)
    plain = None if wam else COSMOS
    good = servers.echo if wam else servers.plain_echo
    with Server(servers.closing(code), good, wam=wam) as server:
        assert first(client_of(server, plain=plain).infer(question)) == pytest.approx(3)
    with Server(servers.closing(code), wam=wam) as server:
        with pytest.raises(error, match=str(code)):
            client_of(server, plain=plain).infer(question)
        assert server.connections == 2


def test_a_text_frame_on_a_plain_wire_is_the_servers_error(client_of):
    def behaviour(socket):
        socket.send(wire.encode({}))
        socket.recv()
        socket.send("Traceback (most recent call last): ValueError: no such key")
        socket.close(1011, "Internal server error. Traceback included in previous frame.")

    with Server(behaviour, servers.plain_echo, wam=False) as server:
        client = client_of(server, plain=COSMOS)
        with pytest.raises(PolicyError, match="no such key"):
            client.infer(plain_ask())
        time.sleep(0.1)  # the close arrives
        assert first(client.infer(plain_ask(2))) == pytest.approx(2)


def test_bytes_that_are_no_message_cost_the_connection(client_of):
    def behaviour(socket):
        servers.welcome(socket)
        socket.recv()
        socket.send(b"\xc1")
        socket.recv()

    with Server(behaviour, servers.echo) as server:
        client = client_of(server)
        with pytest.raises(WireError):
            client.infer(ask())
        assert first(client.infer(ask(2))) == 2
        assert server.connections == 2


def test_nobody_listening_is_unavailable_after_the_attempts(client_of):
    with Server(servers.echo) as server:
        uri = server.uri
    start = time.monotonic()
    with pytest.raises(PolicyUnavailable, match="no connection"):
        client_of(uri).infer(ask())
    assert time.monotonic() - start < 3


def test_a_server_that_comes_back_is_found_again(client_of):
    with Server(servers.echo) as server:
        client = client_of(server, backoff=Backoff(attempts=8, first=0.05))
        assert first(client.infer(ask(1))) == 1
        port = server.port
    late_start = threading.Timer(0.2, lambda: restarted.append(Server(servers.echo, port=port).__enter__()))
    restarted = []
    late_start.start()
    try:
        assert first(client.infer(ask(2))) == 2
    finally:
        late_start.join()
        for server in restarted:
            server.__exit__()


def test_backoff_doubles_up_to_its_bound():
    backoff = Backoff(first=0.25, factor=2.0, most=3.0)
    assert [backoff.delay(n) for n in range(1, 7)] == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0]


def test_http_errors_say_what_they_are(client_of):
    for status, error in ((404, PolicyError), (503, PolicyUnavailable)):
        response = Response(status, "no", Headers())
        with (
            Server(servers.echo, process_request=lambda *_, r=response: r) as server,
            pytest.raises(error, match=str(status)),
        ):
            client_of(server).infer(ask())


def test_a_server_that_stops_reading_does_not_block_a_send_for_ever():
    def behaviour(socket):
        socket.send(wire.encode({}))
        stop.wait(10)  # the receive buffer fills

    stop = threading.Event()
    with Server(behaviour, wam=False, max_queue=1) as server:
        client = PolicyClient(server.uri, plain=COSMOS, timeouts=QUICK, backoff=Backoff(attempts=1))
        big = np.zeros((3000, 4000, 3), np.uint8)
        request = Request(Observation({"canvas": big}, {}, "lift"))
        start = time.monotonic()
        with pytest.raises((PolicyUnavailable, PolicyLate)):
            client.infer(request)
        assert time.monotonic() - start < 5
        stop.set()
        client.close()


# --- other plain dialects --------------------------------------------------------------------------------


def test_roboarena_says_endpoint_session_and_resets_in_text(client_of):
    seen = []

    def behaviour(socket):
        socket.send(wire.encode({"image_resolution": [224, 224]}))
        for frame in socket:
            message = wire.decode_map(frame)
            seen.append({key: message[key] for key in ("endpoint", "session_id")})
            if message["endpoint"] == "reset":
                socket.send("reset successful")
            else:
                socket.send(wire.encode({"actions": np.ones((2, 8), np.float32)}))

    with Server(behaviour, wam=False) as server:
        client = client_of(server, plain=ROBOARENA)
        state = {"joint_position": np.zeros(7)}
        request = Request(Observation({"wrist": np.zeros((4, 4, 3), np.uint8)}, state, "lift"), session="s 1")
        assert client.infer(request).chunk.actions.shape == (2, 8)
        client.reset("s 1")
        assert client.connect() == {"image_resolution": [224, 224]}
    assert seen == [
        {"endpoint": "infer", "session_id": "s 1"},
        {"endpoint": "reset", "session_id": "s 1"},
    ]


def test_vllm_omni_answers_with_a_bare_array_and_errors_in_a_map(client_of):
    def behaviour(socket):
        socket.send(wire.encode({}))
        socket.recv()
        socket.send(wire.encode(np.full((32, 8), 4, np.float32)))
        socket.recv()
        socket.send(wire.encode({"type": "error", "message": "Internal inference error"}))
        socket.recv()

    with Server(behaviour, wam=False) as server:
        client = client_of(server, plain=VLLM_OMNI)
        assert first(client.infer(plain_ask())) == 4
        with pytest.raises(PolicyError, match="Internal inference error"):
            client.infer(plain_ask())


def test_another_dialects_reply_is_not_guessed_at(client_of):
    def behaviour(socket):
        socket.send(wire.encode({}))
        socket.recv()
        socket.send(wire.encode({"actions": np.zeros((10, 8))}))  # openpi's: perhaps velocities
        socket.recv()

    with Server(behaviour, wam=False) as server, pytest.raises(WireError, match="dialect"):
        client_of(server, plain=COSMOS).infer(plain_ask())


# --- asyncio only ----------------------------------------------------------------------------------------


async def test_concurrent_requests_are_matched_by_id_out_of_order():
    def behaviour(socket):
        servers.welcome(socket)
        waiting = []
        for message in servers.requests(socket):
            waiting.append(message)
            if len(waiting) == 8:
                for held in reversed(waiting):
                    socket.send(servers.answer(held))
                waiting.clear()

    with Server(behaviour) as server:
        async with AsyncPolicyClient(server.uri, timeouts=dataclasses.replace(QUICK, request=5.0)) as client:
            answers = await asyncio.gather(*(client.infer(ask(seed)) for seed in range(8)))
            assert [first(answer) for answer in answers] == list(range(8))
            assert server.connections == 1


async def test_plain_requests_take_turns():
    with Server(servers.plain_echo, wam=False) as server:
        async with AsyncPolicyClient(server.uri, plain=COSMOS, timeouts=QUICK) as client:
            answers = await asyncio.gather(*(client.infer(plain_ask(n)) for n in range(1, 6)))
            assert [round(first(answer)) for answer in answers] == [1, 2, 3, 4, 5]


async def test_a_cancelled_plain_request_does_not_shift_the_answers():
    def behaviour(socket):
        socket.send(wire.encode({}))
        for frame in socket:
            gripper = float(wire.decode_map(frame)["observation/gripper_position"][0])
            time.sleep(0.2)
            socket.send(wire.encode({"action": np.full((32, 8), 10 * gripper, np.float32)}))

    with Server(behaviour, wam=False) as server:
        async with AsyncPolicyClient(server.uri, plain=COSMOS, timeouts=QUICK) as client:
            await client.connect()
            task = asyncio.create_task(client.infer(plain_ask(1)))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert round(first(await client.infer(plain_ask(2)))) == 2

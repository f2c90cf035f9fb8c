"""Small websocket servers for client tests: one function per behaviour, each connection in a thread."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from wamserve.clients import wam_v1, wire
from wamserve.clients.policy import ActionChunk, Ledger, Prediction

HELLO = wam_v1.Hello(
    server="test 1",
    embodiment="droid_lerobot",
    wire_sha256="served",
    model_sha256="model",
    period=1 / 15,
    chunk_rows=4,
    wire={"rate_hz": 15, "reply": {"form": "joint_targets"}},
    streaming=True,
    jpeg=True,
    video=True,
)


def prediction(request, value=None):
    """Four rows; the first number is the seed asked for, so that a crossed reply shows."""
    actions = np.zeros((4, 8), np.float32)
    actions[0, 0] = request.seed if value is None else value
    chunk = ActionChunk(actions, request.observation.time, 1 / 15)
    return Prediction(chunk, seed=request.seed or 0, ledger=Ledger(denoise_ms=3.0, forwards=8))


def answer(infer):
    """The reply to an infer or observe."""
    return wam_v1.encode_reply(
        wam_v1.Reply(infer.request_id, infer.request_id, prediction(infer.request), stream=infer.stream)
    )


def welcome(socket, hello=HELLO):
    """The opening as a wam.v1 server does it; the client's open."""
    socket.send(wam_v1.encode_reply(hello))
    opened = wam_v1.decode_request(socket.recv())
    socket.send(wam_v1.encode_reply(wam_v1.Opened("c1")))
    return opened


def requests(socket):
    """The client's messages after the opening."""
    for frame in socket:
        yield wam_v1.decode_request(frame, jpeg=True)


def echo(socket):
    """A good wam.v1 server."""
    welcome(socket)
    for message in requests(socket):
        if isinstance(message, wam_v1.Reset):
            socket.send(wam_v1.encode_reply(wam_v1.Done(message.request_id)))
        else:
            socket.send(answer(message))


def plain_echo(socket):
    """A good cosmos server: metadata, then an action per request; the first number is 10 x gripper."""
    socket.send(wire.encode({}))
    for frame in socket:
        request = wire.decode_map(frame)
        actions = np.zeros((32, 8), np.float32)
        actions[0, 0] = 10 * float(np.ravel(request["observation/gripper_position"])[0])
        socket.send(wire.encode({"action": actions, "server_timing": {"infer_ms": 2.5}}))


class Server:
    """`with Server(behaviour, ...) as server: PolicyClient(server.uri)`.

    The n-th connection runs the n-th behaviour, later ones the last.
    """

    def __init__(self, *behaviours, wam=True, port=0, **options):
        self.connections = 0
        self.headers = []
        self._behaviours = behaviours
        self._lock = threading.Lock()
        options.setdefault("subprotocols", [wam_v1.SUBPROTOCOL] if wam else None)
        self._server = serve(
            self._handle, "127.0.0.1", port, compression=None, max_size=None, close_timeout=0.2, **options
        )
        self.port = self._server.socket.getsockname()[1]
        scheme = "wss" if "ssl" in options else "ws"
        self.uri = f"{scheme}://127.0.0.1:{self.port}"

    def _handle(self, socket):
        with self._lock:
            behaviour = self._behaviours[min(self.connections, len(self._behaviours) - 1)]
            self.connections += 1
            self.headers.append(socket.request.headers)
        with contextlib.suppress(ConnectionClosed):
            behaviour(socket)

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._server.shutdown()
        self._thread.join(5)


def closing(code, reason=""):
    """Takes one request and closes with this code instead of answering."""

    def behaviour(socket):
        welcome(socket) if socket.subprotocol else socket.send(wire.encode({}))
        socket.recv()
        socket.close(code, reason)

    return behaviour


def dying_mid_reply(socket):
    """Sends the head of a reply frame and cuts the TCP connection."""
    welcome(socket) if socket.subprotocol else socket.send(wire.encode({}))
    socket.recv()
    socket.socket.sendall(b"\x82\x7e\x10\x00" + b"\x84" * 100)  # binary, 4096 B announced, 100 sent
    socket.socket.shutdown(2)


def silent(socket):
    """Takes requests and says nothing."""
    welcome(socket) if socket.subprotocol else socket.send(wire.encode({}))
    for _ in socket:
        pass


def mute(socket):
    """Completes the upgrade and never says a word."""
    for _ in socket:
        pass


def not_reading(socket):
    """Stops reading from the socket after the opening."""
    socket.send(wire.encode({}))
    socket.recv_bufsize = 1
    time.sleep(3)

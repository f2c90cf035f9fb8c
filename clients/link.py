"""Link: one open websocket to a policy server, blocking, and the errors that a broken one means."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import ExitStack
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from wamserve.action_codec.errors import PolicyError, PolicyUnavailable, WireError
from wamserve.clients.session import Answer, Endpoint, Session, error_from_close, late


class Link:
    """One open connection and its session: dial, then exchange frames, all within timeouts."""

    def __init__(self, endpoint: Endpoint, **options: Any) -> None:
        """Connects and completes the opening, waiting for a cold server. PolicyError or ContractError."""
        self.endpoint = endpoint
        self.usable = True  # False once an answer may still be under way, or a message could not be read
        self._stack = ExitStack()
        try:
            self.socket: ClientConnection = self._stack.enter_context(
                connect(endpoint.uri, **{**endpoint.connect_options(), **options})
            )
            _bound_sends(self.socket.socket, endpoint.timeouts.request)
            self.session = Session(endpoint, self.socket.subprotocol)
            start = time.monotonic()
            while not self.session.ready:
                frame = self.receive(start, endpoint.timeouts.warm, "waiting for the model to be warm")
                if (reply := self.session.handshake(frame)) is not None:
                    self.socket.send(reply)
        except BaseException as error:
            self.close()
            raise connection_error(error, endpoint) from error

    def receive(self, start: float, seconds: float, what: str) -> bytes | str:
        """The next frame; PolicyLate `seconds` after `start` (time.monotonic)."""
        try:
            return self.socket.recv(timeout=max(start + seconds - time.monotonic(), 0.0))
        except TimeoutError as error:
            self.usable = False
            raise late(seconds, what) from error

    def read(self, frame: bytes | str) -> Answer:
        """What a received frame says; after one that says nothing the link is not used again."""
        try:
            return self.session.read(frame)
        except WireError:
            self.usable = False
            raise

    def close(self) -> None:
        """Says goodbye and hangs up, within the close timeout."""
        self._stack.close()


def connection_error(error: BaseException, endpoint: Endpoint) -> BaseException:
    """The typed error for what the socket or the websocket library raised."""
    if isinstance(error, ConnectionClosed):
        said = error.rcvd
        return error_from_close(said.code if said else None, said.reason if said else "")
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        if status in (401, 403):
            return PolicyError("the server refused the token", seen=f"HTTP {status}", fix="token=...")
        if status in (429, 503):
            return PolicyUnavailable("the server takes no connection now", seen=f"HTTP {status}")
        return PolicyError("not a policy server", seen=f"HTTP {status} at {endpoint.uri}")
    if isinstance(error, InvalidHandshake):
        return PolicyError(f"no websocket at {endpoint.uri}: {error}")
    if isinstance(error, TimeoutError):
        return PolicyUnavailable(
            f"no connection to {endpoint.uri}", seen=f"nothing within {endpoint.timeouts.connect:g} s"
        )
    if isinstance(error, OSError | WebSocketException | EOFError):
        return PolicyUnavailable(f"no connection to {endpoint.uri}: {error}", fix="wam serve")
    return error


def _bound_sends(sock: socket.socket, seconds: float) -> None:
    """A peer that stops reading must not block a send for ever; the kernel's own timeout needs no thread."""
    whole, part = divmod(seconds, 1.0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(whole), int(part * 1e6)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

"""What the server answers to plain HTTP: health, readiness, metrics, and what is served."""

from __future__ import annotations

import asyncio
import dataclasses
import http
import json
from typing import TYPE_CHECKING

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

if TYPE_CHECKING:
    from wamserve.policy_server.serving.app import Server

_OPEN = ("/healthz", "/readyz")  # probes carry no token and learn nothing but up or down


def page(server: Server, request: Request) -> Response | None:
    """The answer to an HTTP request, or None where it is a websocket upgrade that may go on."""
    path = request.path.partition("?")[0]
    if path == "/healthz":
        return _text(200, "OK\n")
    if path == "/readyz":
        return _json(200 if server.ready else 503, readiness(server))
    if not server.tokens.accepts(request.headers.get("Authorization")):
        response = _text(401, "a valid token is needed: Authorization: Bearer TOKEN\n")
        response.headers["WWW-Authenticate"] = "Bearer"
        return response
    if path == "/metrics":
        server.metrics.tasks.set(len(asyncio.all_tasks()))
        server.metrics.shared_bytes.set(server.engine.requests.used_bytes)
        return _response(200, "text/plain; version=0.0.4; charset=utf-8", server.metrics.text())
    if path == "/info":
        return _json(200, info(server))
    if server.draining:
        return _text(503, "the server is shutting down\n")
    if len(server.conversations) >= server.settings.max_connections:
        return _text(503, "too many connections\n")
    return None


def readiness(server: Server) -> dict[str, object]:
    engine = server.engine
    return {
        "state": "draining" if server.draining else engine.state,
        "stage": engine.stage,
        "fraction": round(engine.fraction, 3),
        "restarts": engine.restarts,
        "error": str(engine.error) if engine.error is not None and not server.ready else None,
    }


def info(server: Server) -> dict[str, object]:
    served = server.engine.served
    rules = server.scheduler.rules
    return {
        "server": server.version,
        "state": server.engine.state,
        "served": dataclasses.asdict(served) if served is not None else None,
        "limits": {
            "max_message_bytes": server.settings.limits.message_bytes,
            "max_connections": server.settings.max_connections,
            "max_in_flight": server.settings.max_in_flight,
            **dataclasses.asdict(rules),
        },
    }


def _text(status: int, body: str) -> Response:
    return _response(status, "text/plain; charset=utf-8", body.encode())


def _json(status: int, body: object) -> Response:
    return _response(status, "application/json", json.dumps(body, default=list).encode() + b"\n")


def _response(status: int, kind: str, body: bytes) -> Response:
    headers = Headers([("Content-Type", kind), ("Content-Length", str(len(body))), ("Connection", "close")])
    return Response(status, http.HTTPStatus(status).phrase, headers, body)

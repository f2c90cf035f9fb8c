"""A server in this process with a test policy in its engine process, and the ways tests talk to it."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from wamserve.policy_server.serving.app import Server, Settings
from wamserve.policy_server.serving.engine import EngineSpec

HERE = Path(__file__).parent


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


policies = _load("serving_policies")
messages = _load("serving_messages")


@pytest.fixture
def serving():
    """`async with serving("echo", {"embodiment": …}, **settings) as server`, ready unless told otherwise."""

    @asynccontextmanager
    async def start(policy="echo", arguments=None, *, wait=True, rules=None, engine=None, **settings):
        spec = EngineSpec(policies.spec(policy), arguments or {}, backoff_s=0.05, **(engine or {}))
        server = Server(spec, Settings(port=0, drain_s=5.0, **settings), rules)
        async with server:
            if wait:
                async with asyncio.timeout(60):
                    await server.engine.ready.wait()
            yield server

    return start


@pytest.fixture
def talk():
    """`async with talk(server, path="/") as websocket`, as a plain client connects."""

    def start(server, path="/", **options):
        return connect(server.url + path, compression=None, max_size=None, **options)

    return start


@pytest.fixture
def get():
    """`status, body = await get(server, "/readyz")`."""

    def fetch(server, path, headers=None):
        url = server.url.replace("ws", "http", 1) + path
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, headers=headers or {}), timeout=10
            ) as reply:
                return reply.status, reply.read().decode(), dict(reply.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), dict(error.headers)

    async def call(server, path, headers=None):
        return await asyncio.to_thread(fetch, server, path, headers)

    return call

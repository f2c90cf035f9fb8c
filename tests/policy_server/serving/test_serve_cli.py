"""`wam serve` as a person meets it: its lines, its exit codes, its warnings."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys

import pytest
import serving_policies as policies

from wamserve.action_codec.errors import RequestError
from wamserve.policy_server import serve


@pytest.fixture
def wam():
    """`process = wam("serve", …)`; whatever is left of it is stopped at the end."""
    started = []

    def start(*words):
        process = subprocess.Popen([sys.executable, "-m", "wam", *words], stdout=-1, stderr=-1, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def served(wam, *words, policy="echo", arguments=None):
    return wam("serve", "--port", "0", "--factory", policies.spec(policy),
               "--factory-args", json.dumps(arguments or {}), *words)  # fmt: skip


def test_first_line_says_what_is_served_and_the_last_where(wam):
    process = served(wam, arguments={"embodiment": "droid_lerobot"})
    first = process.stdout.readline()
    assert first.startswith("serving droid_lerobot, weights eeeeeeeeeeee, contract ")
    assert "sampler echo" in first and "on cpu" in first
    assert process.stdout.readline().startswith("ready at ws://127.0.0.1:")
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "") and "draining" in error


def test_a_policy_that_cannot_load_is_exit_code_1_with_its_reason(wam):
    process = served(wam, policy="broken")
    out, error = process.communicate(timeout=60)
    assert process.returncode == 1 and out == ""
    assert "the checkpoint is not there; try: wam serve CHECKPOINT" in error


def test_a_public_host_without_token_is_warned_about(wam):
    process = served(wam, "--host", "0.0.0.0")
    assert process.stdout.readline().startswith("serving ")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert "WARNING: 0.0.0.0 is reachable from the network and no token is set" in error


@pytest.mark.parametrize(("words", "complaint"), [
    (["--random-weights", "--token-file", "/nowhere/token"], "the token file cannot be read"),
    (["--random-weights", "--tls-cert", "/nowhere/cert.pem"], "TLS needs both files"),
    (["--factory-args", "[1"], "--factory-args is not a JSON object"),
    (["org/name", "--random-weights"], "--random-weights takes no checkpoint"),
])  # fmt: skip
def test_what_cannot_be_served_is_said_before_anything_starts(wam, words, complaint):
    process = wam("serve", *words)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and complaint in error


def test_a_taken_port_is_said_in_one_line(wam):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = served(wam, "--port", str(taken.getsockname()[1]))
        out, error = process.communicate(timeout=60)
    assert process.returncode == 1 and out == "" and "Traceback" not in error
    assert "cannot listen on 127.0.0.1:" in error and "another --port" in error


def test_without_a_checkpoint_the_shipped_one_is_served_or_the_alternative_named(monkeypatch, tmp_path):
    from wamserve.action_codec.errors import CheckpointError

    monkeypatch.setattr(serve, "default_checkpoint", lambda: tmp_path)
    assert serve.policy_factory(None, False) == (serve.FACTORY, {"checkpoint": str(tmp_path)})
    monkeypatch.setattr(serve, "default_checkpoint", lambda: None)
    with pytest.raises(CheckpointError, match="wam serve --random-weights"):
        serve.policy_factory(None, False)
    assert serve.policy_factory(None, True) == (serve.RANDOM_FACTORY, {})


def test_both_loaders_exist_and_take_what_serve_passes():
    import inspect

    from wamserve.policy_server.serving.engine_process import find_factory

    for spec in (serve.FACTORY, serve.RANDOM_FACTORY):
        parameters = inspect.signature(find_factory(spec)).parameters
        takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        assert takes_any or {"device", "dtype", "deterministic", "seed", "embodiment", "card"} <= set(
            parameters
        )


@pytest.mark.slow
def test_random_weights_answer_a_robolab_request(wam, tmp_path):
    import serving_messages as messages
    from websockets.sync.client import connect

    from wamserve.clients import wire

    process = wam("serve", "--port", "0", "--random-weights", "--deterministic")
    assert process.stdout.readline().startswith("serving droid_lerobot, weights ")
    url = process.stdout.readline().split()[-1]
    frames = []
    for fields in (messages.cosmos(seed=1), messages.three_views(seed=1), messages.cosmos(seed=1)):
        with connect(url, compression=None, max_size=None) as websocket:
            websocket.recv()
            websocket.send(messages.packed(fields))
            frames.append(websocket.recv())
    assert wire.decode(frames[0])["action"].shape == (32, 8)
    assert frames[0] == frames[2] != frames[1]


def test_prompts_to_warm_come_from_a_file_or_a_suite(tmp_path):
    file = tmp_path / "day.txt"
    file.write_text("open the door\n")
    assert serve.warm_list(str(file)) == str(file)
    assert serve.warm_list("two_cubes") == ["lift the red cube", "lift the green cube"]
    with pytest.raises(RequestError, match="no file of that name, and no suite"):
        serve.warm_list("nonsense")

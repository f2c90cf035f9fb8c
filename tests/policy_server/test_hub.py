"""Downloading by Hub id, against a Hub on loopback that serves commits, ranges, cuts and flipped bits."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from wamserve.action_codec.errors import CheckpointError
from wamserve.policy_server.world_model.checkpoint import open_checkpoint
from wamserve.policy_server.world_model.hub import fetch, hub_id
from wamserve.policy_server.world_model.random_weights import write_random_checkpoint

SHARD = "transformer/diffusion_pytorch_model-00002-of-00002.safetensors"


@dataclass
class LoopbackHub:
    """What the server holds and how it misbehaves."""

    url: str = ""
    commits: dict[str, dict[str, Path]] = field(default_factory=dict)  # repository -> commit -> folder
    refs: dict[str, dict[str, str]] = field(default_factory=dict)  # repository -> branch -> commit
    cut_after: dict[str, int] = field(
        default_factory=dict
    )  # file name -> bytes sent before the connection drops
    corrupt: set[str] = field(default_factory=set)  # files sent with one bit flipped
    gets: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range) of every file request

    def add(self, repo: str, commit: str, folder: Path, branch: str = "main") -> None:
        self.commits.setdefault(repo, {})[commit] = folder
        self.refs.setdefault(repo, {})[branch] = commit


def is_large(path: Path) -> bool:
    return path.suffix == ".safetensors"


def blob_id(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


def handler(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def commit(self, repo, revision):
            return hub.refs[repo].get(revision, revision if revision in hub.commits[repo] else None)

        def refuse(self, code):
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def json(self, value):
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = self.path.split("?")[0]
            api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            repo, revision = (api[1], api[3]) if api else (file[1], file[2]) if file else ("", "")
            if repo not in hub.commits:
                return self.refuse("RepoNotFound")
            commit = self.commit(repo, revision)
            if commit is None:
                return self.refuse("RevisionNotFound")
            root = hub.commits[repo][commit]
            if api and api[2] == "revision":
                return self.json({"id": repo, "sha": commit, "siblings": []})
            if api:
                return self.json([self.entry(p, root) for p in sorted(root.rglob("*")) if p.is_file()])
            target = root / file[3]
            if not target.is_file():
                return self.refuse("EntryNotFound")
            return self.send_file(target, file[3], commit, body)

        def entry(self, path, root):
            size = path.stat().st_size
            entry = {
                "type": "file",
                "path": path.relative_to(root).as_posix(),
                "size": size,
                "oid": blob_id(path),
            }
            if is_large(path):
                sha = hashlib.sha256(path.read_bytes()).hexdigest()
                entry["lfs"] = {"oid": sha, "size": size, "pointerSize": 134}
            return entry

        def send_file(self, target, name, commit, body):
            data = target.read_bytes()
            etag = hashlib.sha256(data).hexdigest() if is_large(target) else blob_id(target)
            wanted = self.headers.get("Range")
            start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
            if body:
                hub.gets.append((name, wanted))
            if name in hub.corrupt:
                data = data[:-1] + bytes([data[-1] ^ 1])
            self.send_response(206 if wanted else 200)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(data) - start))
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if not body:
                return
            cut = hub.cut_after.pop(name, None)
            self.wfile.write(data[start : None if cut is None else start + cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()

    return Handler


@contextmanager
def serve():
    hub = LoopbackHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub():
    with serve() as hub:
        yield hub


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Two commits of one repository that differ in their weights."""
    root = tmp_path_factory.mktemp("published")
    return {
        "1" * 40: write_random_checkpoint(root / "old", "tiny-edge", seed=1, shards=2),
        "2" * 40: write_random_checkpoint(root / "new", "tiny-edge", seed=2, shards=2),
    }


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("WAMSERVE_CACHE", str(tmp_path / "wamserve"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # what the client keeps of a cut reply comes in whole pieces of this size
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 25_000)


def publish(hub, published):
    hub.add("acme/tiny", "1" * 40, published["1" * 40], branch="v1")
    hub.add("acme/tiny", "2" * 40, published["2" * 40], branch="main")


def test_an_id_is_opened_like_a_folder(hub, published, monkeypatch):
    publish(hub, published)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    checkpoint = open_checkpoint("acme/tiny")
    assert checkpoint.revision == "2" * 40
    assert checkpoint.tensors.keys() == open_checkpoint(published["2" * 40]).tensors.keys()


def test_a_revision_pins_the_commit_whatever_main_says(hub, published, tmp_path):
    publish(hub, published)
    by_tag, commit = fetch("acme/tiny", "v1", endpoint=hub.url, cache_dir=tmp_path)
    by_commit, _ = fetch("acme/tiny", "1" * 40, endpoint=hub.url, cache_dir=tmp_path)
    newest, _ = fetch("acme/tiny", endpoint=hub.url, cache_dir=tmp_path)
    assert commit == "1" * 40 and by_commit == by_tag
    assert (by_tag / SHARD).read_bytes() == (published["1" * 40] / SHARD).read_bytes()
    assert (newest / SHARD).read_bytes() == (published["2" * 40] / SHARD).read_bytes()


def test_a_cut_connection_resumes_with_a_range_and_the_bytes_are_right(hub, published, tmp_path):
    publish(hub, published)
    hub.cut_after[SHARD] = 100_000
    folder, _ = fetch("acme/tiny", endpoint=hub.url, cache_dir=tmp_path)
    assert [wanted for name, wanted in hub.gets if name == SHARD] == [None, "bytes=100000-"]
    assert (folder / SHARD).read_bytes() == (published["2" * 40] / SHARD).read_bytes()


def test_a_second_start_downloads_nothing(hub, published, tmp_path):
    publish(hub, published)
    fetch("acme/tiny", endpoint=hub.url, cache_dir=tmp_path)
    before = len(hub.gets)
    fetch("acme/tiny", endpoint=hub.url, cache_dir=tmp_path)
    assert len(hub.gets) == before


def test_what_serving_does_not_read_stays_on_the_hub(hub, published, tmp_path):
    root = tmp_path / "with_reasoner"
    write_random_checkpoint(root, "tiny-edge")
    for extra in ("vision_encoder", "sound_tokenizer"):
        (root / extra).mkdir()
        (root / extra / "model.safetensors").write_bytes(b"large")
    hub.add("acme/omni", "3" * 40, root)
    folder, _ = fetch("acme/omni", endpoint=hub.url, cache_dir=tmp_path / "cache")
    assert {p.name for p in folder.iterdir()} == {
        "model_index.json", "transformer", "vae", "text_tokenizer", "scheduler",
    }  # fmt: skip


def test_a_flipped_bit_is_found_by_checksum(hub, published, tmp_path):
    publish(hub, published)
    hub.corrupt.add(SHARD)
    with pytest.raises(CheckpointError, match=r"00002-of-00002.safetensors is damaged.*try: rm "):
        fetch("acme/tiny", endpoint=hub.url, cache_dir=tmp_path)


def test_a_flipped_bit_in_a_small_file_is_found_too(hub, published, tmp_path):
    publish(hub, published)
    hub.corrupt.add("transformer/config.json")
    with pytest.raises(CheckpointError, match=r"transformer/config.json is damaged"):
        fetch("acme/tiny", endpoint=hub.url, cache_dir=tmp_path)


def test_unknown_names_and_revisions_are_said_plainly(hub, published, tmp_path):
    publish(hub, published)
    with pytest.raises(
        CheckpointError, match="no checkpoint acme/none: neither a folder here nor a model at"
    ):
        fetch("acme/none", endpoint=hub.url, cache_dir=tmp_path)
    with pytest.raises(CheckpointError, match="acme/tiny has no revision 'v9'"):
        fetch("acme/tiny", "v9", endpoint=hub.url, cache_dir=tmp_path)


def test_an_absent_hub_is_said_plainly(tmp_path):
    with pytest.raises(
        CheckpointError,
        match=r"acme/tiny is no folder here, and .*@main could not be downloaded from http://127.0.0.1:9",
    ):
        fetch("acme/tiny", endpoint="http://127.0.0.1:9", cache_dir=tmp_path)


def test_ids_are_told_from_paths():
    assert hub_id("nvidia/Cosmos3-Nano@v1.2") == ("nvidia/Cosmos3-Nano", "v1.2")
    assert hub_id("nvidia/Cosmos3-Nano") == ("nvidia/Cosmos3-Nano", "main")
    assert hub_id("./nvidia/Cosmos3-Nano") is None and hub_id("/data/x") is None and hub_id("tiny") is None

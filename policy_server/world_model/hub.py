"""Download a checkpoint by its Hugging Face id, pinned to a commit and checked against its checksums."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from wamserve.action_codec.errors import CheckpointError
from wamserve.policy_server.progress import Progress, silent

# What serving reads. The reasoner's vision_encoder/ and sound_tokenizer/ stay on the Hub.
FILES = ("model_index.json", "policy_card.toml", "transformer/*", "vae/*", "text_tokenizer/*", "scheduler/*")
_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def hub_id(source: str) -> tuple[str, str] | None:
    """(`org/name`, revision) of an id like `nvidia/Cosmos3-Nano@v1.2`; None if it cannot be one."""
    match = _ID.fullmatch(source)
    return (match["repo"], match["revision"] or "main") if match else None


def fetch(
    repo: str,
    revision: str = "main",
    *,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    progress: Progress = silent,
) -> tuple[Path, str]:
    """The local folder of `repo` at `revision`, and the commit it is pinned to.

    Interrupted downloads continue where they stopped, within a call and across calls. Every file is
    compared with the checksum that names it: sha256 for large files, git's sha1 for small ones. `endpoint`
    defaults to $HF_ENDPOINT, then huggingface.co; offline, a complete earlier download is used.
    Raises CheckpointError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = endpoint or os.environ.get("HF_ENDPOINT")
    where = endpoint or "https://huggingface.co"
    try:
        folder = Path(
            snapshot_download(
                repo, revision=revision, endpoint=endpoint, cache_dir=cache_dir, allow_patterns=list(FILES)
            )
        )
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repo} is gated: accept its licence at {where}/{repo}", fix="hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repo} has no revision {revision!r}", expected="a branch, a tag or a full commit hash"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"no checkpoint {repo}: neither a folder here nor a model at {where}",
            fix="the path of a local folder, or `hf auth login` for a private model",
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{repo} is no folder here, and {repo}@{revision} could not be downloaded from {where}",
            seen=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'}",
            fix="run the command again; finished parts are kept",
        ) from error
    verify(folder, progress)
    return folder, folder.name


def verify(folder: Path, progress: Progress = silent) -> None:
    """Compare every file of a Hub snapshot with the checksum its blob is named by.

    A file found good is not read again until it changes. Raises CheckpointError for a damaged one.
    """
    memory = Path(os.environ.get("WAMSERVE_CACHE", "~/.cache/wamserve")).expanduser() / "verified"
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    total, done = sum(file.stat().st_size for file in files), 0
    for file in files:
        blob = file.resolve()
        state = blob.stat()
        stamp = memory / hashlib.sha256(f"{blob}:{state.st_size}:{state.st_mtime_ns}".encode()).hexdigest()
        if not stamp.is_file():
            seen = _checksum(blob)
            if seen is not None and seen != blob.name:
                raise CheckpointError(
                    f"{file.relative_to(folder)} is damaged: its checksum differs",
                    seen=seen,
                    expected=blob.name,
                    fix=f"rm {blob} and run the command again",
                )
            try:
                memory.mkdir(parents=True, exist_ok=True)
                stamp.touch()
            except OSError:  # a read-only home costs the next start a second check
                pass
        done += state.st_size
        progress(done, total)


def _checksum(blob: Path) -> str | None:
    """The checksum of the kind the blob's name is, or None if its name is no checksum."""
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", blob.name):
        digest = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        return None
    with blob.open("rb") as stream:
        while part := stream.read(8 << 20):
            digest.update(part)
    return digest.hexdigest()

"""A checkpoint on disk: what it holds, whether it fits the network, and its weights into the network.

Two layouts are read. `diffusers`: model_index.json, transformer/ (config.json and shards), vae/,
text_tokenizer/, scheduler/. `framework`: the same folder with transformer shards under cosmos-framework's
own key names, e.g. `net.language_model.model.layers.0.self_attn.q_proj_moe_gen.weight`.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wamserve.action_codec.errors import CheckpointError
from wamserve.policy_server.progress import Progress, silent
from wamserve.policy_server.world_model.config import WorldModelConfig
from wamserve.policy_server.world_model.names import KEEP_FP32, diffusers_name_from_framework, is_unused
from wamserve.policy_server.world_model.safetensors_index import StoredTensor, read_index

if TYPE_CHECKING:
    import torch
    from torch import nn

Layout = Literal["diffusers", "framework"]
PIPELINE_CLASS = "Cosmos3OmniPipeline"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint folder. Opening reads headers and configs, no weights."""

    folder: Path
    source: str  # what the user typed: a path or org/name[@revision]
    revision: str | None  # commit of the Hub, None for a local folder
    layout: Layout
    index: Mapping[str, Any]  # model_index.json
    config: WorldModelConfig  # transformer/config.json
    tensors: Mapping[str, StoredTensor]  # diffusers parameter name -> where it lies; unused weights left out

    @property
    def vae_folder(self) -> Path:
        return self.part("vae", "config.json")

    @property
    def tokenizer_folder(self) -> Path:
        return self.part("text_tokenizer", "tokenizer_config.json")

    @property
    def native_flow(self) -> bool:
        """Whether the checkpoint asks for the native flow schedule."""
        return bool(self.index.get("use_native_flow_schedule", False))

    @cached_property
    def scheduler(self) -> Mapping[str, Any]:
        """scheduler/scheduler_config.json, empty if the checkpoint has none."""
        file = self.folder / "scheduler" / "scheduler_config.json"
        return _read_json(file) if file.is_file() else {}

    def part(self, name: str, marker: str) -> Path:
        """A sub-folder that must be there. Raises CheckpointError."""
        folder = self.folder / name
        if not (folder / marker).is_file():
            held = sorted(p.name for p in self.folder.iterdir())
            raise CheckpointError(
                f"the checkpoint has no {name}/{marker}",
                seen=", ".join(held),
                expected=f"{name}/ as diffusers saves it",
            )
        return folder

    @property
    def nbytes(self) -> int:
        """Bytes on disk of the weights that are used."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def open_checkpoint(source: str | Path, progress: Progress = silent) -> Checkpoint:
    """Open a local folder, or download `org/name[@revision]` from the Hub first.

    Raises CheckpointError when it is no Cosmos 3 checkpoint, or a shard is missing or cut short.
    """
    folder, revision = Path(source).expanduser(), None
    if not folder.is_dir():
        from wamserve.policy_server.world_model.hub import fetch, hub_id

        wanted = hub_id(str(source))
        if wanted is None:
            raise CheckpointError(
                f"no checkpoint at {source}",
                expected="a folder, or a Hugging Face id org/name[@revision]",
                fix="nvidia/Cosmos3-Nano-Policy-DROID",
            )
        folder, revision = fetch(*wanted, progress=progress)
    index = _read_json(folder / "model_index.json")
    if index.get("_class_name") != PIPELINE_CLASS:
        raise CheckpointError(
            f"{source} is a checkpoint of another model",
            seen=f"model_index.json of {index.get('_class_name', 'no class')}",
            expected=PIPELINE_CLASS,
        )
    config = WorldModelConfig.from_dict(_read_json(folder / "transformer" / "config.json"))
    stored = read_index(folder / "transformer")
    layout: Layout = "diffusers" if "proj_in.weight" in stored else "framework"
    tensors: dict[str, StoredTensor] = {}
    for key, tensor in stored.items():
        name = diffusers_name_from_framework(key) if layout == "framework" else key
        if is_unused(name, config.num_hidden_layers):
            continue
        if name in tensors:
            raise CheckpointError(f"two tensors are both {name}", seen=f"{tensors[name].key}, {key}")
        tensors[name] = tensor
    return Checkpoint(folder, str(source), revision, layout, index, config, tensors)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        held = (
            ", ".join(sorted(p.name for p in file.parent.iterdir()))
            if file.parent.is_dir()
            else "no such folder"
        )
        raise CheckpointError(
            f"{file.parent} has no {file.name}",
            seen=held or "an empty folder",
            expected="diffusers layout: model_index.json, transformer/, vae/, text_tokenizer/, scheduler/",
        )
    try:
        read = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON", seen=str(error)) from error
    if not isinstance(read, dict):
        raise CheckpointError(f"{file} is no JSON object", seen=type(read).__name__, expected="{...}")
    return read


def check_fit(
    expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, StoredTensor], what: str = "the network"
) -> None:
    """Compare names and shapes; every difference goes into one CheckpointError."""
    problems = {
        "missing": [name for name in expected if name not in stored],
        "extra": [_origin(name, stored[name]) for name in stored if name not in expected],
        "mis-shaped": [
            f"{_origin(name, stored[name])} is {list(stored[name].shape)}, not {list(shape)}"
            for name, shape in expected.items()
            if name in stored and stored[name].shape != tuple(shape)
        ],
        "in a format that is not read (F32, BF16, F16 and F64 are)": [
            f"{_origin(name, stored[name])} is {stored[name].dtype}"
            for name in expected
            if name in stored and stored[name].dtype not in ("F32", "BF16", "F16", "F64")
        ],
    }
    if not any(problems.values()):
        return
    lines = [f"the weights do not fit {what}"]
    for kind, names in problems.items():
        if names:
            lines.append(f"  {len(names)} {kind}:")
            lines.extend(f"    {name}" for name in names[:8])
            lines.extend([f"    and {len(names) - 8} more"] if len(names) > 8 else [])
    raise CheckpointError("\n".join(lines))


def _origin(name: str, tensor: StoredTensor) -> str:
    return name if name == tensor.key else f"{name} (stored as {tensor.key})"


def load_weights(
    network: nn.Module,
    checkpoint: Checkpoint,
    device: torch.device | str,
    dtype: torch.dtype,
    progress: Progress = silent,
) -> None:
    """Stream the weights into `network`, whose parameters may still be on the meta device.

    Names and shapes are compared before the first byte is read. Shards are memory-mapped and visited one
    after the other; each tensor goes straight to `device` in `dtype` (time_embedder stays fp32), so host
    memory peaks near one shard plus what stays on the CPU.
    """
    import torch
    from safetensors import safe_open

    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict(keep_vars=True).items()}
    check_fit(expected, checkpoint.tensors, f"the network that {checkpoint.source} describes")
    done, total = 0, checkpoint.nbytes
    progress(0, total)
    for file, names in _by_file(checkpoint.tensors):
        with safe_open(file, framework="pt", device="cpu") as shard:
            for name in names:
                target = torch.float32 if name.startswith(KEEP_FP32) else dtype
                value = shard.get_tensor(checkpoint.tensors[name].key)
                _place(network, name, value.to(device=device, dtype=target, copy=True))
                done += checkpoint.tensors[name].nbytes
                progress(done, total)


def _place(network: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put `value` at `name`, replacing a meta tensor or whatever was there; gradients stay as declared."""
    from torch import nn

    owner_name, _, leaf = name.rpartition(".")
    owner = network.get_submodule(owner_name)
    if leaf in owner._parameters:
        declared = owner._parameters[leaf]
        needs_grad = declared is not None and declared.requires_grad
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=needs_grad)
    else:
        owner._buffers[leaf] = value


def untrained_domain(checkpoint: Checkpoint, domain: int) -> bool:
    """Whether an action head's biases are all exactly zero, in and out, as initialisation leaves them.

    Training moves a bias with the first gradient, and no gradient ever reaches a domain without data.
    """
    for name in ("action_proj_in.bias.weight", "action_proj_out.bias.weight"):
        tensor = checkpoint.tensors.get(name)
        if tensor is None or domain >= tensor.shape[0]:
            return False  # a misfit is reported where names and shapes are compared
        row = tensor.nbytes // tensor.shape[0]
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start + domain * row)
            if any(byte not in (0x00, 0x80) for byte in stream.read(row)):  # 0x80: the sign of -0.0
                return False
    return True


def weights_hash(checkpoint: Checkpoint, cache: Path | None = None, progress: Progress = silent) -> str:
    """sha256 of every used tensor's name, dtype, shape and bytes: the same in either layout and sharding.

    Remembered in `cache` (default: $WAMSERVE_CACHE or ~/.cache/wamserve) under the shards' paths, sizes
    and modification times.
    """
    files = sorted({tensor.file for tensor in checkpoint.tensors.values()})
    stamp = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = hashlib.sha256(json.dumps([stamp, sorted(checkpoint.tensors)]).encode()).hexdigest()
    folder = cache or Path(os.environ.get("WAMSERVE_CACHE", "~/.cache/wamserve")).expanduser()
    remembered = folder / "weights_hash" / key
    if remembered.is_file() and re.fullmatch(r"[0-9a-f]{64}", text := remembered.read_text().strip()):
        return text
    digest = hash_tensors(checkpoint.tensors, progress)
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        partial = remembered.with_suffix(f".{os.getpid()}")
        partial.write_text(digest)
        partial.replace(remembered)
    except OSError:  # a read-only home costs the next start a re-hash, nothing else
        pass
    return digest


def hash_tensors(tensors: Mapping[str, StoredTensor], progress: Progress = silent) -> str:
    """sha256 over (name, dtype, shape, sha256 of the bytes) in order of names."""
    total, done = sum(tensor.nbytes for tensor in tensors.values()), 0
    digests: dict[str, str] = {}
    for file, names in _by_file(tensors):
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            view = memoryview(data)
            for name in names:
                tensor = tensors[name]
                with view[tensor.start : tensor.end] as span:
                    digests[name] = hashlib.sha256(span).hexdigest()
                done += tensor.nbytes
                progress(done, total)
            view.release()
    rows = [[name, tensors[name].dtype, list(tensors[name].shape), digests[name]] for name in sorted(tensors)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _by_file(tensors: Mapping[str, StoredTensor]) -> Iterable[tuple[Path, list[str]]]:
    grouped: dict[Path, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        grouped[tensor.file].append(name)
    for file in sorted(grouped):
        yield file, sorted(grouped[file], key=lambda name: tensors[name].start)

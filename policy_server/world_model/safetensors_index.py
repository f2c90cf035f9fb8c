"""Which tensors lie where in a folder of safetensors shards, read from the headers alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from wamserve.action_codec.errors import CheckpointError

if TYPE_CHECKING:
    import torch

BYTES_OF_DTYPE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4}
MAX_HEADER = 100 << 20  # the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as it lies on disk."""

    file: Path
    key: str  # the name inside the file
    dtype: str  # safetensors spelling: F32, BF16, ...
    shape: tuple[int, ...]
    start: int  # byte offset in the file
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def torch_dtype(self) -> torch.dtype:
        """Raises CheckpointError for a dtype that holds no weights."""
        import torch

        kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        if self.dtype not in kinds:
            raise CheckpointError(
                f"tensor {self.key} holds no weights", seen=self.dtype, expected=", ".join(kinds)
            )
        return kinds[self.dtype]


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one shard.

    Raises CheckpointError when the file is cut short or is no safetensors file; no tensor data is read.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size + 1
        if length > min(max(size - 8, 0), MAX_HEADER):
            raise CheckpointError(
                f"{file.name} is no whole safetensors file",
                seen=f"{size} bytes whose header claims {length} bytes",
                fix=f"delete {file} and download it again",
            )
        try:
            entries = json.loads(stream.read(length))
        except ValueError as error:
            raise CheckpointError(
                f"{file.name} is no safetensors file: its header is not JSON",
                fix=f"delete {file} and download it again",
            ) from error
    tensors = {}
    for key, entry in entries.items():
        if key == "__metadata__":
            continue
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        shape = tuple(entry["shape"])
        tensors[key] = StoredTensor(file, key, entry["dtype"], shape, start, end)
        width = BYTES_OF_DTYPE.get(entry["dtype"])
        if width is not None and end - start != width * prod(shape):
            raise CheckpointError(
                f"{file.name}: tensor {key} is damaged",
                seen=f"{end - start} bytes",
                expected=f"{width * prod(shape)} bytes for {entry['dtype']} {list(shape)}",
            )
    whole = max((tensor.end for tensor in tensors.values()), default=8 + length)
    if size != whole:
        raise CheckpointError(
            f"{file.name} is truncated" if size < whole else f"{file.name} is longer than its header says",
            seen=f"{size} bytes",
            expected=f"{whole} bytes",
            fix=f"delete {file} and download it again",
        )
    return tensors


def read_index(folder: Path) -> Mapping[str, StoredTensor]:
    """Every tensor of a folder: by its `*.safetensors.index.json` if there is one, else of all its shards.

    Raises CheckpointError for a missing shard, a shard without a tensor that the index promises, or a
    tensor that two shards hold.
    """
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) > 1:
        raise CheckpointError(
            f"{folder} has several safetensors indexes",
            seen=", ".join(p.name for p in indexes),
            expected="one",
        )
    if not indexes:
        shards = sorted(folder.glob("*.safetensors"))
        if not shards:
            held = (
                ", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "no such folder"
            )
            raise CheckpointError(
                f"no weights in {folder}", seen=held or "an empty folder", expected="*.safetensors shards"
            )
        tensors: dict[str, StoredTensor] = {}
        for shard in shards:
            for key, tensor in read_header(shard).items():
                if key in tensors:
                    raise CheckpointError(
                        f"tensor {key} lies in two shards", seen=f"{tensors[key].file.name}, {shard.name}"
                    )
                tensors[key] = tensor
        return tensors
    weight_map: dict[str, str] = json.loads(indexes[0].read_text())["weight_map"]
    names = sorted(set(weight_map.values()))
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{len(absent)} of {len(names)} shards are missing in {folder}",
            seen=f"no {', '.join(absent[:4])}{' ...' if len(absent) > 4 else ''}",
            fix="download the checkpoint again; finished shards are kept",
        )
    headers = {name: read_header(folder / name) for name in names}
    broken = [key for key, name in weight_map.items() if key not in headers[name]]
    if broken:
        raise CheckpointError(
            f"{indexes[0].name} promises tensors its shards do not hold",
            seen=f"{len(broken)} absent, e.g. {broken[0]} from {weight_map[broken[0]]}",
        )
    return {key: headers[name][key] for key, name in weight_map.items()}

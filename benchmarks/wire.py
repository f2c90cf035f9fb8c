"""What our codec costs beside openpi's on the same bytes: `python benchmarks/wire.py [--rounds 400]`.

The peer is openpi_client.msgpack_numpy where that package is installed; otherwise its 20 lines as published
in 0.1.2, restated here. Both run in turns in one process, so that a busy machine slows both alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from wamserve.clients import wire


def peer() -> tuple[str, Callable[[Any], bytes], Callable[[bytes], Any]]:
    """(name, pack, unpack) of openpi's codec."""
    try:
        from openpi_client import msgpack_numpy

        return "openpi-client", msgpack_numpy.Packer().pack, msgpack_numpy.unpackb
    except ImportError:
        pass

    def pack_array(obj: Any) -> Any:
        if isinstance(obj, np.ndarray | np.generic) and obj.dtype.kind in ("V", "O", "c"):
            raise ValueError(f"Unsupported dtype: {obj.dtype}")
        if isinstance(obj, np.ndarray):
            head = {b"__ndarray__": True, b"data": obj.tobytes()}
            return {**head, b"dtype": obj.dtype.str, b"shape": obj.shape}
        if isinstance(obj, np.generic):
            return {b"__npgeneric__": True, b"data": obj.item(), b"dtype": obj.dtype.str}
        return obj

    def unpack_array(obj: Any) -> Any:
        if b"__ndarray__" in obj:
            return np.ndarray(buffer=obj[b"data"], dtype=np.dtype(obj[b"dtype"]), shape=tuple(obj[b"shape"]))
        if b"__npgeneric__" in obj:
            return np.dtype(obj[b"dtype"]).type(obj[b"data"])
        return obj

    packer = msgpack.Packer(default=pack_array)
    return (
        "openpi 0.1.2 (restated)",
        packer.pack,
        lambda data: msgpack.unpackb(data, object_hook=unpack_array),
    )


def messages() -> dict[str, Any]:
    """The requests and the reply of a DROID station."""
    rng = np.random.default_rng(0)
    state = {
        "observation/joint_position": np.zeros(7, np.float32),
        "observation/gripper_position": np.zeros(1, np.float32),
        "prompt": "Pick up the banana and place it in the bowl",
    }
    views = ("wrist_image_left", "exterior_image_1_left", "exterior_image_2_left")
    return {
        "request, canvas 540x640": {
            "observation/image": rng.integers(0, 256, (540, 640, 3), dtype=np.uint8),
            **state,
        },
        "request, three 360x640 views": {
            **{f"observation/{view}": rng.integers(0, 256, (360, 640, 3), dtype=np.uint8) for view in views},
            **state,
        },
        "reply, 32 rows": {"action": np.zeros((32, 8), np.float32), "server_timing": {"infer_ms": 212.5}},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=400)
    rounds = parser.parse_args().rounds
    name, pack, unpack = peer()
    print(f"median microseconds of {rounds} interleaved rounds; peer: {name}")
    print(f"{'message':30} {'what':7} {'ours':>8} {'peer':>8} {'ratio':>6}")
    for title, message in messages().items():
        data = wire.encode(message)
        assert data == pack(message), "the two codecs must write the same bytes"
        jobs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "encode": (lambda m=message: wire.encode(m), lambda m=message: pack(m)),  # type: ignore[misc]
            "decode": (lambda d=data: wire.decode(d), lambda d=data: unpack(d)),  # type: ignore[misc]
        }
        totals = [0.0, 0.0]
        for what, pair in jobs.items():
            seconds: tuple[list[float], list[float]] = ([], [])
            for _ in range(rounds):
                for job, spent in zip(pair, seconds, strict=True):
                    start = time.perf_counter()
                    job()
                    spent.append(time.perf_counter() - start)
            ours, theirs = (1e6 * statistics.median(spent) for spent in seconds)
            totals[0] += ours
            totals[1] += theirs
            print(f"{title:30} {what:7} {ours:8.1f} {theirs:8.1f} {ours / theirs:6.2f}")
        print(f"{title:30} {'both':7} {totals[0]:8.1f} {totals[1]:8.1f} {totals[0] / totals[1]:6.2f}")


if __name__ == "__main__":
    main()

"""A mutating fuzzer for the wire decoder: `python tests/clients/fuzz_wire.py --inputs 1000000 --seed 0`.

With `--atheris` (pip install atheris) the inputs are chosen by libFuzzer, guided by the decoder's coverage.

Seeds are well-formed messages of every kind; each input is one of them after a few random edits that know
where msgpack's headers are likely to be. The decoder may return a value or raise WireError; anything else is
a finding, written out with the bytes that cause it. A returned value must survive being touched.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

import msgpack
import numpy as np

from wamserve.action_codec.errors import WireError
from wamserve.clients import wam_v1, wire
from wamserve.clients.jpeg import Jpeg
from wamserve.clients.policy import ActionChunk, Observation, Prediction, Request

# Bytes that mean something to msgpack: type headers, length headers, marker letters, dtype letters.
TOKENS = (
    [bytes([byte]) for byte in (0x80, 0x81, 0x84, 0x90, 0x91, 0xC0, 0xC1, 0xC2, 0xC3, 0xCA, 0xCB, 0xFF)]
    + [b"\xc4\x08", b"\xc5\x10\x00", b"\xc6\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff"]
    + [
        b"\xde\x00\x02",
        b"\xdf\x7f\xff\xff\xff",
        b"\xd4\x01\x00",
        b"\xc7\x04\xff",
        b"\xd6\xff\x00\x00\x00\x00",
    ]
    + [b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\0" * 7, b"\xcb\x7f\xf8" + b"\0" * 6, b"\x91" * 40]
    + [msgpack.packb(text) for text in ("|O", "<f4", "<c8", "|V8", "<U0", "<U2", "|S0", "|b1", "<M8[s]")]
    + [msgpack.packb(text) for text in ("<f4,<f4", "(2,)<f4", "object", "<i8", ">f2", "nd", "__jpeg__")]
    + [msgpack.packb(key) for key in (b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape")]
)


def seeds() -> list[bytes]:
    """Small well-formed messages that reach every branch of the decoder."""
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    values: list[object] = [
        {"observation/image": image, "observation/joint_position": np.zeros(7, "f4"), "prompt": "lift"},
        {"actions": np.zeros((2, 8), "f8"), "server_timing": {"infer_ms": 1.5}},
        {"a": np.float32(1.5), "b": np.int64(5), "c": np.bool_(True), "d": np.float16(1)},
        {"text": np.array(["hi", "é"]), "raw": np.array([b"ab"]), "when": np.array(["2026-01-01"], "M8[D]")},
        {"flags": np.array([True, False]), "empty": np.zeros((0, 8), ">f4"), "point": np.array(1, "u8")},
        {"nested": {"list": [1, -2, 2.5, None, True, b"x", "y", [[[]]]]}},
        {"__ndarray__": True, "data": b"\0\0\0\0", "dtype": "<f4", "shape": [1]},
        {"nd": True, "type": "<f4", "kind": "", "shape": [1], "data": b"\0\0\0\0"},
        {b"nd": False, b"type": "<f8", b"data": b"\0" * 8},
    ]
    frames = [wire.encode(value) for value in values]
    frames.append(wire.encode({"image": Jpeg(b"\xff\xd8\xff\xd9", (4, 4, 3))}, jpeg=True))
    request = Request(Observation({"canvas": image}, {"joint": np.zeros(7)}, "lift"), prefix=np.zeros((1, 8)))
    frames.append(wam_v1.encode_request(wam_v1.Infer(1, request)))
    frames.append(wam_v1.encode_request(wam_v1.Open("ab", {"rate_hz": 15})))
    prediction = Prediction(ActionChunk(np.zeros((2, 8), "f4"), 0.0, 1 / 15), video=image[None])
    frames.append(wam_v1.encode_reply(wam_v1.Reply(1, 1, prediction)))
    frames.append(wam_v1.encode_reply(wam_v1.Failure("late", "too late", 1)))
    return frames


def mutated(frame: bytes, corpus: list[bytes], rng: random.Random) -> bytes:
    """`frame` after one to four edits."""
    data = bytearray(frame)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        at = rng.randrange(len(data) + 1)
        edit = rng.randrange(8)
        if edit == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif edit == 1 and data:
            data[at % len(data)] = rng.randrange(256)
        elif edit == 2:
            data[at:at] = rng.choice(TOKENS)
        elif edit == 3:
            token = rng.choice(TOKENS)
            data[at : at + len(token)] = token
        elif edit == 4:
            del data[at : at + rng.randrange(1, 9)]
        elif edit == 5:
            data[at:at] = data[at : at + rng.randrange(1, 33)]
        elif edit == 6:
            del data[at:]
        else:
            other = rng.choice(corpus)
            start = rng.randrange(len(other))
            data[at : at + rng.randrange(17)] = other[start : start + rng.randrange(1, 33)]
    return bytes(data)


def touch(value: object) -> None:
    """Reads all of a decoded value, as careless code would."""
    if isinstance(value, dict):
        for key, item in value.items():
            assert isinstance(key, str)
            touch(item)
    elif isinstance(value, list):
        for item in value:
            touch(item)
    elif isinstance(value, np.ndarray):
        assert value.dtype.kind in "biufUSmM" and not value.flags.writeable
        repr(value)
        value.copy().tolist()
    elif isinstance(value, Jpeg):
        assert len(value.shape) == 3
    else:
        assert value is None or isinstance(value, bool | int | float | str | bytes | np.generic)


def decode_all(data: bytes) -> str:
    """Runs every decoder on the bytes; says what came of it. Raises whatever is not a WireError."""
    try:
        value = wire.decode(data, jpeg=True)
    except WireError:
        outcome = "refused"
    else:
        outcome = "decoded"
        touch(value)
    for decode in (wam_v1.decode_request, wam_v1.decode_reply):
        try:
            decode(data)
        except WireError:
            continue
        outcome = "message"
    return outcome


def fuzz(inputs: int, seed: int, findings: Path | None = None) -> Counter[str]:
    """Counts of outcomes; "crash" must be zero. The bytes of a crash are written to `findings`."""
    rng, counts = random.Random(seed), Counter[str]()
    originals = seeds()
    corpus = list(originals)
    for number in range(inputs):
        # Mutants that still decode are mutated further: that is where the corners are.
        data = mutated(rng.choice(corpus), corpus, rng)
        try:
            outcome = decode_all(data)
        except Exception as error:
            outcome = "crash"
            print(f"input {number}: {type(error).__name__}: {error}\n  {data.hex()}", file=sys.stderr)
            if findings is not None:
                findings.mkdir(parents=True, exist_ok=True)
                (findings / f"{seed}-{number}.bin").write_bytes(data)
        counts[outcome] += 1
        if outcome != "refused" and len(data) < 2000 and rng.random() < 0.05:
            if len(corpus) < 2000:
                corpus.append(data)
            else:
                corpus[rng.randrange(len(originals), 2000)] = data
    return counts


def fuzz_guided(inputs: int, seed: int, corpus: Path) -> None:
    """The same check under libFuzzer, which ends the process and writes out the input of a finding."""
    import atheris

    atheris.instrument_func(decode_all)
    for module in (wire, wam_v1):
        for name in dir(module):
            function = getattr(module, name)
            if getattr(function, "__module__", "") == module.__name__ and hasattr(function, "__code__"):
                setattr(module, name, atheris.instrument_func(function))
    for name in ("_count", "list", "map", "_jpeg"):
        setattr(wire._Budget, name, atheris.instrument_func(getattr(wire._Budget, name)))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(frame)

    def one(data: bytes) -> None:
        decode_all(data)

    arguments = [sys.argv[0], f"-atheris_runs={inputs}", f"-seed={seed + 1}", "-max_len=1024", str(corpus)]
    atheris.Setup(arguments, one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=None)
    parser.add_argument("--atheris", type=Path, metavar="CORPUS", default=None)
    args = parser.parse_args()
    if args.atheris is not None:
        fuzz_guided(args.inputs, args.seed, args.atheris)
    start = time.monotonic()
    counts = fuzz(args.inputs, args.seed, args.findings)
    seconds = time.monotonic() - start
    print(f"{args.inputs} inputs in {seconds:.0f} s, seed {args.seed}: {dict(counts)}")
    return 1 if counts["crash"] else 0


if __name__ == "__main__":
    sys.exit(main())

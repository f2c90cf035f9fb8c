"""The engine's side of the pipe: loads a policy, answers batches, one rank per process.

Started by `engine.Engine` as `python -m wamserve.policy_server.serving.engine_process SOCKET IN OUT SIZES`.
The policy is made by a factory "module:function" (or "file.py:function") called with keyword arguments; a
factory that takes `progress` gets a callback (stage, fraction). Torch is imported there, never here.

A policy may offer, beside `infer` and `infer_batch`:
    describe() -> dict    what is served: the fields of `served.Served`
    warm_up() -> None     called once before the server says it is ready
    draw_ahead(seed)      called between requests with the seed that one to come will have
    on_step               an attribute, which is set to a function (done, steps): each call between the steps
                          of a long inference is a sign of life (watchdog.py)
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import inspect
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from wamserve.clients.policy import Policy, Prediction, Request, infer_batch
from wamserve.policy_server.serving.channel import Channel
from wamserve.policy_server.serving.frames import Reader, Writer, pack_error
from wamserve.policy_server.serving.memory import keep_freed_memory
from wamserve.policy_server.serving.shm import Arena

logger = logging.getLogger("wamserve.engine")


def find_factory(spec: str) -> Callable[..., Policy]:
    """The function that "module:function" or "path/to/file.py:function" names."""
    source, _, name = spec.rpartition(":")
    if source.endswith(".py"):
        location = importlib.util.spec_from_file_location("wamserve_engine_factory", source)
        if location is None or location.loader is None:
            raise ImportError(f"no module at {source}")
        module = importlib.util.module_from_spec(location)
        sys.modules[location.name] = module
        location.loader.exec_module(module)
    else:
        module = importlib.import_module(source)
    function: Callable[..., Policy] = getattr(module, name)
    return function


class EngineProcess:
    """One rank: owns the policy, reads requests from one arena and writes predictions to the other."""

    def __init__(self, channel: Channel, requests: Arena, replies: Arena) -> None:
        self.channel = channel
        self.requests = requests
        self.replies = replies
        self.policy: Policy
        self.rank = 0
        self._spoke = 0.0  # when the last sign of life went out
        self._written: dict[int, Writer] = {}  # batch -> blocks serving has not read yet

    def load(self, message: dict[str, Any]) -> None:
        self.rank = message["rank"]
        os.environ.update(message["env"])
        factory = find_factory(message["factory"])
        kwargs = dict(message["kwargs"])
        if "progress" in inspect.signature(factory).parameters:
            kwargs["progress"] = self.progress
        self.progress("loading", 0.0)
        self.policy = factory(**kwargs)
        if hasattr(self.policy, "on_step"):
            self.policy.on_step = self.alive
        self.progress("warm up", 0.0)
        if hasattr(self.policy, "warm_up"):
            self.policy.warm_up()
        served = self.policy.describe() if hasattr(self.policy, "describe") else {}
        # Everything loaded so far lives as long as the process: no collection needs to walk it again.
        gc.collect()
        gc.freeze()
        self.channel.send({"type": "ready", "served": dict(served), "gpu_bytes": gpu_bytes()})

    def progress(self, stage: str, fraction: float) -> None:
        self.channel.send({"type": "progress", "stage": stage, "fraction": float(fraction)})

    def alive(self, done: int, steps: int) -> None:
        """A step of an inference is done. Said once a second at most: short inferences are silent."""
        now = time.monotonic()
        if now - self._spoke > 1.0:
            self._spoke = now
            self.channel.send({"type": "alive"})

    def run(self) -> None:
        while (message := self.channel.receive()) is not None:
            kind = message["type"]
            if kind == "batch":
                for batch in message["read"]:
                    if (writer := self._written.pop(batch, None)) is not None:
                        writer.free()
                self.answer(message)
                self.draw_ahead(message["next_seeds"])
            elif kind == "ping":
                self.channel.send({"type": "pong"})
            elif kind == "reset":
                self.policy.reset(message["session"])
            elif kind == "load":
                self.load(message)
            # "expect": a batch is about to come. To be awake is all it asks.

    def answer(self, message: dict[str, Any]) -> None:
        reader = Reader(self.requests)
        requests = [reader.request(packed) for packed in message["requests"]]
        start = time.perf_counter()
        results = self._infer(requests)
        infer_ms = 1e3 * (time.perf_counter() - start)
        if self.rank != 0:
            # Serving reuses the frames of a batch once every rank is done with them.
            self.channel.send({"type": "done", "batch": message["batch"], "results": None})
            return
        writer = Writer(self.replies)
        packed = [
            writer.prediction(result) if isinstance(result, Prediction) else {"error": pack_error(result)}
            for result in results
        ]
        if writer.blocks:
            self._written[message["batch"]] = writer
        self.channel.send(
            {
                "type": "done",
                "batch": message["batch"],
                "results": packed,
                "infer_ms": infer_ms,
                "gpu_bytes": gpu_bytes(),
            }
        )

    def draw_ahead(self, seeds: list[int]) -> None:
        """Prepares for requests to come until one is here."""
        draw_ahead = getattr(self.policy, "draw_ahead", None)
        for seed in seeds:
            if draw_ahead is None or not self.channel.idle():
                return
            try:
                draw_ahead(seed)
            except Exception:
                logger.warning("drawing ahead failed", exc_info=True)
                return

    def _infer(self, requests: list[Request]) -> list[Prediction | Exception]:
        """Answers in order. A batch that fails is repeated one by one: a bad request costs only itself."""
        try:
            return list(infer_batch(self.policy, requests))
        except Exception as error:
            logger.warning("inference failed", exc_info=True)
            if len(requests) == 1:
                return [error]
        results: list[Prediction | Exception] = []
        for request in requests:
            results += self._infer([request])
        return results


def gpu_bytes() -> int:
    """Memory torch holds on its GPU; 0 where there is none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.memory_reserved())


def die_with_parent() -> None:
    """Asks Linux to kill this process when serving goes, even in the middle of a kernel launch."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> int:
    die_with_parent()
    keep_freed_memory()
    # What a policy prints goes to stderr; the server's stdout has two lines that programs read.
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, format="engine %(levelname)s %(message)s")
    # Both may go to the whole process group; serving drains first, then closes the channel.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    control, requests, replies, request_bytes, reply_bytes = map(int, sys.argv[1:6])
    channel = Channel(socket.socket(fileno=control))
    process = EngineProcess(channel, Arena(request_bytes, requests), Arena(reply_bytes, replies))
    try:
        process.run()
    except (BrokenPipeError, ConnectionResetError):
        return 0
    except Exception as error:
        logger.exception("the engine failed")
        channel.send({"type": "failed", "error": pack_error(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

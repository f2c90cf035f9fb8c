"""`wam serve`: a policy behind a websocket, and `wam replay`: recorded conversations sent again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from wamserve.policy_server.engine.options import EngineOptions

if TYPE_CHECKING:
    from wamserve.policy_server.serving.app import Server

FACTORY = "wamserve.policy_server.load:load_policy"
RANDOM_FACTORY = "wamserve.policy_server.load:random_policy"


def default_checkpoint() -> Path | None:
    """The small Panda model the project ships; None where this installation has none."""
    folder = Path(__file__).resolve().parents[1] / "checkpoints" / "panda-small"
    return folder if (folder / "model_index.json").is_file() else None


def serve(
    checkpoint: Annotated[str | None, tyro.conf.Positional] = None,
    /,
    embodiment: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    random_weights: bool = False,
    card: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    deterministic: bool = False,
    seed: int = 0,
    max_batch: int = 8,
    batch_wait_ms: float | Literal["auto"] = "auto",
    max_queue: int = 64,
    max_connections: int = 512,
    max_in_flight: int = 8,
    max_rate: float = 500.0,
    max_message_mb: int = 64,
    metadata: Literal["empty", "roboarena"] = "empty",
    openpi_reads: Literal["velocity", "position"] = "velocity",
    roboarena_rows: int = 0,
    jpeg: bool = False,
    token_file: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    record: Path | None = None,
    drain_s: float = 30.0,
    ranks: int = 1,
    max_restarts: int = 10,
    hung_after_s: float = 600.0,
    engine: Annotated[EngineOptions, tyro.conf.arg(name="")] = EngineOptions(),  # noqa: B008
    plain: bool = False,
    warm_prompts: str | None = None,
    factory: str | None = None,
    factory_args: str = "{}",
) -> int:
    """Serve a policy to openpi, RoboLab, RoboArena, LIBERO and wam clients.

    Args:
        checkpoint: Folder or Hugging Face id; without one, the small model the project ships.
        embodiment: Contract to serve, where the checkpoint was trained for several (wam ls embodiments).
        host: Address to listen on. Anything but loopback should come with --token-file.
        port: TCP port; 0 takes any free one.
        random_weights: Serve a tiny untrained network: right shapes, meaningless numbers.
        card: Policy card file or shipped card, where the checkpoint brings none.
        device: As torch names it; "auto" is CUDA where there is one.
        dtype: fp32, bf16 or fp16; "auto" is bf16 on CUDA and fp32 on a CPU.
        deterministic: Equal seeds give equal bytes, whatever other clients do: one fixed batch shape.
        seed: Of the seeds that follow from a request's session and step.
        max_batch: Requests of equal shape that share one forward pass.
        batch_wait_ms: How long a request waits for company while the engine is free and others are connected;
            "auto": for clients that usually return so soon that all gain; a lone client never waits.
        max_queue: Requests that wait for the engine before the next one is told "overloaded".
        max_connections: Websockets open at once.
        max_in_flight: Requests of one wam.v1 connection that wait at once.
        max_rate: Requests per second of one connection; 0 is no limit.
        max_message_mb: Largest frame a client may send, in MiB.
        metadata: First frame for plain clients: nothing, or RoboArena's six keys. The path /roboarena always
            gets the latter.
        openpi_reads: What two-view openpi clients do with `actions`; refused unless the contract agrees.
        roboarena_rows: Rows of a RoboArena reply, all of which its client executes; 0 is the whole chunk.
        jpeg: Let wam.v1 clients send JPEG images.
        token_file: Accepted tokens, one per line.
        tls_cert: Certificate chain, PEM.
        tls_key: Its private key, PEM.
        record: Folder for every frame that crosses the wire; wam replay reads it.
        drain_s: How long requests in flight may take after SIGTERM.
        ranks: Engine processes that run each batch in step, one per GPU.
        engine: How the network is run; every switch is exact but quantize (docs/topics/latency.md).
        plain: Run it by the plain path, without buffers and graphs.
        warm_prompts: Instructions to read before the first request: a file, one per line, or an evaluation's
            suite or task (libero_spatial, robosuite/Lift).
        max_restarts: Engine deaths in a row after which the server gives up.
        hung_after_s: How long the engine may be silent within a batch, from one denoising step to the next,
            before it is taken for hung and restarted; 0 is for ever.
        factory: "module:function" that makes the policy; for policies of your own.
        factory_args: Its keyword arguments, or further ones of the loader, as JSON.
    """
    from wamserve.action_codec.errors import RequestError
    from wamserve.clients.wire import Limits
    from wamserve.policy_server.serving.app import Server, Settings
    from wamserve.policy_server.serving.auth import Tokens, exposure_warning, tls_context
    from wamserve.policy_server.serving.dialects.plain import PlainRules
    from wamserve.policy_server.serving.engine import EngineSpec
    from wamserve.policy_server.serving.memory import keep_freed_memory
    from wamserve.policy_server.serving.scheduler import BatchRules
    from wamserve.policy_server.serving.watchdog import Patience

    try:
        kwargs: dict[str, Any] = dict(json.loads(factory_args))
    except (ValueError, TypeError) as error:
        raise RequestError("--factory-args is not a JSON object", seen=factory_args[:80]) from error
    if factory is None:
        factory, named = policy_factory(checkpoint, random_weights)
        common = {"device": device, "dtype": dtype, "deterministic": deterministic, "seed": seed}
        kwargs = named | common | ({"embodiment": embodiment} if embodiment is not None else {}) | kwargs
        if card is not None:
            kwargs["card"] = card
        if warm_prompts is not None:
            kwargs["warm_prompts"] = warm_list(warm_prompts)
        if not plain:
            ranks = max(ranks, 2) if engine.cfg_parallel else ranks
            kwargs = {"engine": asdict(engine)} | kwargs
    limits = Limits(message_bytes=max_message_mb * 2**20)
    tokens = Tokens.from_file(token_file) if token_file is not None else Tokens()
    settings = Settings(
        host=host,
        port=port,
        plain=PlainRules(metadata, openpi_reads, roboarena_rows, not deterministic, limits),
        limits=limits,
        jpeg=jpeg,
        max_connections=max_connections,
        max_in_flight=max_in_flight,
        max_rate=max_rate,
        drain_s=drain_s,
        seed=seed,
        tokens=tokens,
        tls=tls_context(tls_cert, tls_key),
        record=record,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("wamserve.websockets").setLevel(logging.WARNING)
    if warning := exposure_warning(host, tokens, settings.tls is not None):
        print(warning, file=sys.stderr, flush=True)
    if hung_after_s < 0:
        raise RequestError("no time to wait", seen=f"--hung-after-s {hung_after_s:g}", expected=">= 0")
    patience = Patience(batch_s=hung_after_s)
    spec = EngineSpec(factory, kwargs, ranks, max_restarts=max_restarts, patience=patience)
    keep_freed_memory()
    rules = BatchRules(max_batch, None if batch_wait_ms == "auto" else batch_wait_ms, max_queue)
    return asyncio.run(_serve(lambda terminal: Server(spec, settings, rules, terminal.changed)))


def policy_factory(checkpoint: str | None, random_weights: bool) -> tuple[str, dict[str, Any]]:
    """Which loader makes the policy, and of what. Raises CheckpointError where nothing is named to serve."""
    from wamserve.action_codec.errors import CheckpointError

    if random_weights and checkpoint is not None:
        raise CheckpointError("--random-weights takes no checkpoint", seen=checkpoint)
    if random_weights:
        return RANDOM_FACTORY, {}
    if checkpoint is None:
        shipped = default_checkpoint()
        if shipped is None:
            raise CheckpointError(
                "no checkpoint given, and this installation ships none",
                expected="a folder or a Hugging Face id",
                fix="wam serve CHECKPOINT, or wam serve --random-weights to try the wire",
            )
        checkpoint = str(shipped)
    return FACTORY, {"checkpoint": checkpoint}


def warm_list(named: str) -> str | list[str]:
    """The path of a file of instructions, or those of an evaluation's suite. Raises RequestError.

    The front door is asked in a process of its own: this room knows no suites, and serving no simulators.
    """
    from wamserve.action_codec.errors import RequestError

    if Path(named).is_file():
        return str(Path(named).resolve())
    command = [sys.executable, "-m", "wam", "ls", "instructions", "--", named]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        seen = done.stderr.strip().splitlines()
        raise RequestError(
            f"--warm-prompts {named}: no file of that name, and no suite",
            seen=seen[-1] if seen else None,
            fix="a text file with one instruction per line",
        )
    return done.stdout.splitlines()


class Terminal:
    """What a person sees of an engine: progress on stderr; what is served and where on stdout."""

    def __init__(self) -> None:
        self._last = ""
        self.url = ""

    def changed(self, engine: Any) -> None:
        if engine.state == "ready":
            print(engine.served.line(), flush=True)
            print(f"ready at {self.url}", flush=True)
            return
        tenths = int(10 * engine.fraction)
        words = (engine.stage or engine.state) + (f" {10 * tenths} %" if tenths else "")
        if words != self._last:
            print(words.strip(), file=sys.stderr, flush=True)
            self._last = words


async def _serve(make: Callable[[Terminal], Server]) -> int:
    """Runs a server until a signal or until its engine has failed for good."""
    from wamserve.policy_server.serving.memory import tidy

    terminal = Terminal()
    server = make(terminal)
    await server.start()
    terminal.url = server.url
    loop = asyncio.get_running_loop()
    stopping: list[asyncio.Task[None]] = []

    def stop() -> None:
        if not stopping:
            print("draining", file=sys.stderr, flush=True)
            stopping.append(loop.create_task(server.stop()))

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop)
    over = asyncio.ensure_future(server.engine.over.wait())
    stopped = asyncio.ensure_future(server.wait_stopped())
    tidying = asyncio.ensure_future(tidy())
    await asyncio.wait({over, stopped}, return_when=asyncio.FIRST_COMPLETED)
    failed = server.engine.state == "failed"
    if failed:
        stop()
    await stopped
    over.cancel()
    tidying.cancel()
    with contextlib.suppress(NotImplementedError):
        loop.remove_signal_handler(signal.SIGTERM)
    if failed:
        print(f"wam serve: {server.engine.error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def replay(
    folder: Annotated[Path, tyro.conf.Positional],
    /,
    uri: str = "ws://127.0.0.1:8000",
    token: str | None = None,
    tolerance: float = 0.0,
    timeout_s: float = 60.0,
) -> int:
    """Send recorded requests again and compare the replies; exits 1 where an action differs.

    Args:
        folder: What wam serve --record wrote.
        uri: The server to ask.
        token: Bearer token, where it wants one.
        tolerance: Largest difference of any number that still counts as equal. 0 fits --deterministic.
        timeout_s: How long one reply may take.
    """
    from wamserve.policy_server.serving.replay import replay_folder

    return replay_folder(folder, uri, token, tolerance, timeout_s)

"""Prometheus metrics of one server, in a registry of its own."""

from __future__ import annotations

from dataclasses import fields

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from wamserve.clients.policy import Ledger

STAGES = tuple(item.name for item in fields(Ledger) if item.name.endswith("_ms"))
_MS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 60000)


class Metrics:
    """Counters, gauges and histograms, named in docs/howto/serve.md."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "wam_requests", "Requests by what became of them.", ["dialect", "outcome"], registry=registry
        )
        self.stage_ms = Histogram(
            "wam_stage_ms", "Milliseconds per stage of a request.", ["stage"], buckets=_MS, registry=registry
        )
        self.total_ms = Histogram(
            "wam_request_ms", "From the last byte received to the reply sent.", buckets=_MS, registry=registry
        )
        self.batch_size = Histogram(
            "wam_batch_size", "Requests per batch.", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self.forwards = Counter("wam_forwards", "Denoiser forwards of answered requests.", registry=registry)
        self.queue_depth = Gauge("wam_queue_depth", "Requests that wait for the engine.", registry=registry)
        self.connections = Gauge("wam_connections", "Open websockets.", registry=registry)
        self.engine_ready = Gauge("wam_engine_ready", "1 while the engine takes batches.", registry=registry)
        self.engine_restarts = Gauge("wam_engine_restarts", "Restarts so far.", registry=registry)
        self.tasks = Gauge("wam_tasks", "Coroutines alive in the serving process.", registry=registry)
        self.shared_bytes = Gauge(
            "wam_shared_bytes", "Frames in shared memory, on their way to the engine.", registry=registry
        )
        self.gpu_bytes = Gauge(
            "wam_gpu_memory_bytes", "Memory the engine holds on its GPU.", registry=registry
        )

        self._stages = [(stage, self.stage_ms.labels(stage.removesuffix("_ms"))) for stage in STAGES]

    def batch(self, size: int, gpu_bytes: int) -> None:
        self.batch_size.observe(size)
        self.gpu_bytes.set(gpu_bytes)

    def answered(self, dialect: str, ledger: Ledger, reply_ms: float, total_ms: float) -> None:
        """`reply_ms` is known only after the ledger has left."""
        self.requests.labels(dialect, "ok").inc()
        for stage, histogram in self._stages:
            histogram.observe(reply_ms if stage == "reply_ms" else getattr(ledger, stage))
        self.forwards.inc(ledger.forwards)
        self.total_ms.observe(total_ms)

    def failed(self, dialect: str, outcome: str) -> None:
        self.requests.labels(dialect, outcome).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)

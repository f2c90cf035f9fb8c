"""What happened in a run, on disk: events as they come (JSONL), numbers in parts (npz), a report."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wamserve.clients.franka.priority import ordinary

PART_SECONDS = 60.0  # a killed run loses at most so much of its numbers


class Recorder:
    """Takes rows and events from the control loop without making it wait; a thread writes them.

    RUN/events.jsonl: chunks, refusals, clamps, alarms, answers. RUN/steps-000.npz: one row per control step.
    RUN/chunks-000.npz: raw chunks as they came. RUN/report.json.
    """

    def __init__(self, folder: Path | None) -> None:
        """folder: made here, and refused where it exists; None keeps the numbers in memory only."""
        self.folder = folder
        self._rows: list[Mapping[str, Any]] = []
        self._chunks: list[Mapping[str, Any]] = []
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._parts: list[dict[str, np.ndarray]] = []
        self._swap = threading.Lock()
        self._thread: threading.Thread | None = None
        if folder is not None:
            folder.mkdir(parents=True)
            self._thread = threading.Thread(target=self._write, name="recorder", daemon=True)
            self._thread.start()

    def step(self, row: Mapping[str, Any]) -> None:
        """One control step: numbers and arrays, the same names every time."""
        self._rows.append(row)

    def chunk(self, number: int, start: float, actions: np.ndarray, refused: str) -> None:
        """A chunk as it came. start: seconds of policy time."""
        self._chunks.append({"number": number, "start": start, "actions": actions, "refused": refused})

    def event(self, kind: str, **values: Any) -> None:
        """Something worth a line."""
        self._events.put({"time": time.monotonic(), "kind": kind, **values})

    def steps(self) -> dict[str, np.ndarray]:
        """Every row so far, name -> [T, ...]."""
        with self._swap:
            parts = [*self._parts, _stacked(self._rows)]
        parts = [part for part in parts if part]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def close(self, report: Mapping[str, Any]) -> None:
        """Writes what is left, and the report."""
        if self.folder is None or self._thread is None:
            return
        self._events.put(None)
        self._thread.join(30.0)
        (self.folder / "report.json").write_text(json.dumps(report, indent=2, default=_plain))

    def _write(self) -> None:
        ordinary()
        assert self.folder is not None
        part_due = time.monotonic() + PART_SECONDS
        with open(self.folder / "events.jsonl", "w") as file:
            ended = False
            while not ended:
                try:
                    event = self._events.get(timeout=1.0)
                    ended = event is None
                    if event is not None:
                        file.write(json.dumps(event, default=_plain) + "\n")
                except queue.Empty:
                    file.flush()
                if ended or time.monotonic() > part_due:
                    self._write_part()
                    part_due = time.monotonic() + PART_SECONDS

    def _write_part(self) -> None:
        assert self.folder is not None
        with self._swap:
            # The lists are swapped, not copied: the control loop appends to the fresh ones.
            rows, self._rows = self._rows, []
            chunks, self._chunks = self._chunks, []
            number = len(self._parts)
            part = _stacked(rows)
            self._parts += [part] if part else []
        if part:
            np.savez_compressed(self.folder / f"steps-{number:03d}.npz", **part)  # type: ignore[arg-type]
        if chunks:
            np.savez_compressed(
                self.folder / f"chunks-{number:03d}.npz",
                number=np.array([chunk["number"] for chunk in chunks]),
                start=np.array([chunk["start"] for chunk in chunks]),
                refused=np.array([chunk["refused"] for chunk in chunks]),
                **{f"actions_{chunk['number']}": chunk["actions"] for chunk in chunks},
            )


def _stacked(rows: list[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return str(value)

"""Stages of a long command: each is done once, resumed where it stopped, timed over all its attempts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

Log = Callable[[str], None]
Work = Callable[[Log], object]


@dataclass(frozen=True)
class Progress:
    """What is known of one stage."""

    seconds: float = 0.0  # of wall clock, over all attempts
    finished: bool = False


class Stages:
    """The stages whose progress lies in `folder`, a JSON file each. Each is run by one process at a time."""

    def __init__(self, folder: Path, log: Log) -> None:
        self.folder, self.log = folder, log

    def run(self, name: str, work: Work) -> None:
        """Does `work` unless it was finished before. It gets a log, whose every line also saves the time.

        A stage is finished when `work` returns: what it made must lie on disk by then, and an attempt that
        was cut short must not keep the next one from going on.
        """
        before = self.progress(name)
        if before.finished:
            self.log(f"{name}: finished before, {before.seconds / 60:.1f} min")
            return
        began = time.monotonic()

        def save(finished: bool) -> None:
            self._write(name, Progress(before.seconds + time.monotonic() - began, finished))

        def tell(line: str) -> None:
            save(finished=False)
            self.log(f"{name}: {line}")

        tell("begins" if not before.seconds else f"goes on after {before.seconds / 60:.1f} min")
        work(tell)
        save(finished=True)
        self.log(f"{name}: finished, {self.progress(name).seconds / 60:.1f} min")

    def progress(self, name: str) -> Progress:
        file = self._file(name)
        return Progress(**json.loads(file.read_text())) if file.exists() else Progress()

    def minutes(self, *names: str) -> float:
        """Of wall clock, all `names` together."""
        return sum(self.progress(name).seconds for name in names) / 60

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _write(self, name: str, progress: Progress) -> None:
        file = self._file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(progress)))
        partial.replace(file)

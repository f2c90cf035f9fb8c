"""The run directory: what was asked, what happened, and all that a metric needs to be computed again.

    RUN/
      run.json            see RunInfo: protocol card with its hash, resolved configuration, status
      episodes.sqlite     tables `episodes` and `chunks` (SCHEMA); one transaction per finished episode
      episodes/KEY.npz    the recording of one episode, in place before its row is

A recording holds, with T control steps, N chunks, H rows per chunk:
    actions        [T, A]     raw rows in the units of the contract's reply, as sent to the task
    action_chunk   [T]        index of the chunk each row came from; -1: the task's hold row
    sim_states     [T+1, S]   float64; Task.restore(row) then Task.render() gives the frame again
    progress       [T+1]      partial credit; NaN where the task has none
    state/NAME     [T+1, D]   the robot's own sensing
    chunk_step     [N]        control step of the observation a chunk answers
    chunk_ready    [N]        first control step at which it could be used
    chunk_actions  [N, H, A]  the whole chunk, as predicted
    view/NAME      [N, h, w, 3] uint8, what the policy saw, by view name
    video          [N, F, h, w, 3] uint8, what the policy imagined, where video was asked for
Row 0 of the [T+1] arrays is the state after reset and settling. `view` and `video` are absent where
nothing was seen or imagined.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wamserve.action_codec.errors import RunError
from wamserve.sim_eval.protocol import ProtocolCard
from wamserve.sim_eval.task import ChunkRow, Episode

FORMAT = 1
TEMPORARY = ".tmp"  # of files that are not in place yet

SCHEMA = """
CREATE TABLE IF NOT EXISTS episodes (
    id             INTEGER PRIMARY KEY,
    task           TEXT    NOT NULL,  -- TaskSpec.name
    init           INTEGER NOT NULL,  -- index of the initial state
    repeat         INTEGER NOT NULL,  -- rollout of that initial state
    seed           INTEGER NOT NULL,
    instruction    TEXT    NOT NULL,
    success        INTEGER NOT NULL,  -- 0 or 1
    steps          INTEGER NOT NULL,  -- control steps taken
    final_progress REAL,              -- partial credit in [0, 1], NULL where the task has none
    max_progress   REAL,
    wall_s         REAL    NOT NULL,
    sim_s          REAL    NOT NULL,
    render_s       REAL    NOT NULL,
    policy_s       REAL    NOT NULL,
    recording      TEXT    NOT NULL,  -- path of the .npz relative to the run directory
    finished_at    REAL    NOT NULL,  -- unix seconds
    UNIQUE (task, init, repeat)
);
CREATE TABLE IF NOT EXISTS chunks (
    episode     INTEGER NOT NULL REFERENCES episodes(id),
    chunk       INTEGER NOT NULL,  -- 0, 1, ... within the episode
    step        INTEGER NOT NULL,  -- control step of the observation
    ready       INTEGER NOT NULL,  -- first control step at which the answer could be used
    seed        INTEGER NOT NULL,
    latency_ms  REAL    NOT NULL,  -- charged on the virtual clock
    wall_ms     REAL    NOT NULL,  -- measured around the policy call
    infer_ms    REAL    NOT NULL,
    queue_ms    REAL    NOT NULL,
    forwards    INTEGER NOT NULL,
    batch       INTEGER NOT NULL,
    rows_used   INTEGER NOT NULL,
    PRIMARY KEY (episode, chunk)
);
"""


@dataclass(frozen=True)
class RunInfo:
    """What run.json holds."""

    protocol: ProtocolCard
    protocol_sha256: str
    config: Mapping[str, Any]  # resolved command-line configuration
    status: str  # "running" or "finished"
    episodes_planned: int
    created_at: float  # unix seconds
    source: str = "wam eval"  # who made the episodes; importers write their own name


@dataclass(frozen=True)
class EpisodeRow:
    """One row of `episodes`, in the table's column order."""

    id: int
    task: str
    init: int
    repeat: int
    seed: int
    instruction: str
    success: bool
    steps: int
    final_progress: float | None
    max_progress: float | None
    wall_s: float
    sim_s: float
    render_s: float
    policy_s: float
    recording: str  # relative path; "" where an importer had no recording
    finished_at: float

    @property
    def key(self) -> tuple[str, int, int]:
        return self.task, self.init, self.repeat


class RunStore:
    """One run directory. Readers and one writer may have it open together."""

    def __init__(self, path: Path, info: RunInfo) -> None:
        self.path, self.info = path, info
        self._db = sqlite3.connect(path / "episodes.sqlite", timeout=60, isolation_level=None)
        # A rollback journal, not WAL: it also works on network disks, and one writer needs no more.
        self._db.execute("PRAGMA journal_mode=DELETE")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(SCHEMA)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunStore:
        """A run that exists, finished or not."""
        path = Path(path)
        if not (path / "run.json").is_file():
            raise RunError(f"{path} is not a run directory", seen="no run.json", fix="wam eval ... --run DIR")
        data = json.loads((path / "run.json").read_text())
        if data.get("format") != FORMAT:
            raise RunError(f"{path}/run.json has another format", seen=data.get("format"), expected=FORMAT)
        info = RunInfo(
            protocol=ProtocolCard.from_json(data["protocol"]),
            **{k: data[k] for k in RunInfo.__dataclass_fields__ if k != "protocol"},
        )
        return cls(path, info)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        protocol: ProtocolCard,
        config: Mapping[str, Any],
        episodes_planned: int,
        source: str = "wam eval",
    ) -> RunStore:
        """A fresh run directory, or the unfinished or finished one of the very same protocol."""
        path = Path(path)
        if (path / "run.json").is_file():
            (path / "episodes").mkdir(exist_ok=True)
            run = cls.open(path)
            different = run.info.protocol.differences(protocol, policy=True)
            if different:
                raise RunError(
                    f"{path} holds a run of another protocol",
                    seen="; ".join(f"{k}: {a!r} there, {b!r} asked" for k, (a, b) in different.items()),
                    fix="another --run directory",
                )
            return run
        # A process that died before run.json was in place left an empty folder, or a temporary file in it.
        if path.is_dir() and not all(_is_temporary(inner) for inner in path.iterdir()):
            raise RunError(f"{path} is not empty and not a run", fix="another --run directory")
        path.mkdir(parents=True, exist_ok=True)
        info = RunInfo(protocol, protocol.sha256, config, "running", episodes_planned, time.time(), source)
        _write_info(path, info)
        (path / "episodes").mkdir(exist_ok=True)
        return cls(path, info)

    @property
    def finished(self) -> bool:
        return self.info.status == "finished"

    def done(self) -> set[tuple[str, int, int]]:
        """(task, init, repeat) of every finished episode."""
        return set(self._db.execute("SELECT task, init, repeat FROM episodes"))

    def add(self, episode: Episode) -> None:
        """Stores one finished episode: recording first, then all its rows in one transaction."""
        if self.finished:
            raise RunError(
                f"{self.path} is finished and is never written again", fix="another --run directory"
            )
        item = episode.item
        name = ""
        if episode.recording:
            arrays: dict[str, Any] = dict(episode.recording)
            name = f"episodes/{item.task.replace('/', '.')}-{item.init:05d}-{item.repeat:03d}.npz"
            _write_atomic(self.path / name, lambda f: np.savez_compressed(f, **arrays))
        values = (
            *(item.task, item.init, item.repeat, item.seed, episode.instruction, int(episode.success)),
            *(episode.steps, episode.final_progress, episode.max_progress),
            *(episode.wall_s, episode.sim_s, episode.render_s, episode.policy_s, name, time.time()),
        )
        self._db.execute("BEGIN IMMEDIATE")
        try:
            cursor = self._db.execute(f"INSERT INTO episodes VALUES (NULL{', ?' * len(values)})", values)
            self._db.executemany(
                f"INSERT INTO chunks VALUES (?, ?{', ?' * 10})",
                [
                    (cursor.lastrowid, i, c.step, c.ready, c.seed, c.latency_ms, c.wall_ms)
                    + (c.infer_ms, c.queue_ms, c.forwards, c.batch, c.rows_used)
                    for i, c in enumerate(episode.chunks)
                ],
            )
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # Ctrl-C may fall between the commit and here
                self._db.execute("ROLLBACK")
            raise

    def finish(self) -> None:
        """Marks the run finished; refuses while episodes are missing."""
        count = len(self.done())
        if count == 0:
            raise RunError(f"{self.path} has no finished episode", expected=self.info.episodes_planned)
        if count < self.info.episodes_planned:
            raise RunError(
                f"{self.path} is unfinished",
                seen=f"{count} episodes",
                expected=self.info.episodes_planned,
                fix="the same wam eval command: it resumes",
            )
        self.info = replace(self.info, status="finished")
        _write_info(self.path, self.info)

    def episodes(self) -> list[EpisodeRow]:
        """Finished episodes in (task, init, repeat) order, whatever order they finished in."""
        rows = self._db.execute("SELECT * FROM episodes ORDER BY task, init, repeat").fetchall()
        return [EpisodeRow(*(*row[:6], bool(row[6]), *row[7:])) for row in rows]

    def chunks(self, episode_id: int) -> list[ChunkRow]:
        """The questions of one episode, in order."""
        rows = self._db.execute(
            "SELECT step, ready, seed, latency_ms, wall_ms, infer_ms, queue_ms, forwards, batch, rows_used"
            " FROM chunks WHERE episode = ? ORDER BY chunk",
            (episode_id,),
        )
        return [ChunkRow(*row) for row in rows]

    def recording(self, row: EpisodeRow) -> dict[str, np.ndarray]:
        """The arrays named at the top of this module; {} where an importer had none."""
        if not row.recording:
            return {}
        with np.load(self.path / row.recording, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def recordings(self) -> Iterator[tuple[EpisodeRow, dict[str, np.ndarray]]]:
        for row in self.episodes():
            yield row, self.recording(row)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _write_info(path: Path, info: RunInfo) -> None:
    data = {"format": FORMAT, **{k: getattr(info, k) for k in RunInfo.__dataclass_fields__}}
    data["protocol"] = info.protocol.to_json()
    text = json.dumps(data, indent=2, default=str).encode()
    _write_atomic(path / "run.json", lambda f: f.write(text))


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".run.json.") and path.suffix == TEMPORARY


def _write_atomic(path: Path, write: Any) -> None:
    """`path` is either absent, old or complete, whenever the process dies."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)

"""One queue for all connections: who goes next, with whom, and who is told that it waited too long.

Pure: no sockets, no clock of its own. `scheduler.py` feeds it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

from wamserve.action_codec.errors import PolicyOverloaded
from wamserve.clients.policy import Request


def shape_key(request: Request) -> Hashable:
    """Requests with equal keys may share a forward pass: equal shapes, equal number of steps."""

    def form(arrays: object) -> Hashable:
        return tuple((name, a.shape, a.dtype.str) for name, a in sorted(dict(arrays).items()))  # type: ignore[call-overload]

    extras = {"actions": request.actions, "video": request.video, "prefix": request.prefix}
    return (
        request.mode,
        form(request.observation.images),
        form(request.observation.state),
        form({name: array for name, array in extras.items() if array is not None}),
        request.steps,
        request.guidance,
        request.want_video,
    )


@dataclass(eq=False)
class Job:
    """One request in the queue."""

    request: Request
    client: Hashable  # the connection: clients take turns
    arrived: float  # seconds, the scheduler's clock: last byte received; deadlines count from here
    queued: float = 0.0  # when it had been decoded and joined the queue
    stream: Hashable = None  # session whose newest observation wins; None: every request counts
    next_seed: int | None = None  # of the client's next request, where it is known already

    @property
    def late_at(self) -> float:
        """Its deadline; infinity where it has none."""
        deadline_ms = self.request.deadline_ms
        return float("inf") if deadline_ms is None else self.arrived + deadline_ms / 1e3

    @cached_property
    def key(self) -> Hashable:
        """Asked for only when there is company."""
        return shape_key(self.request)


class Batcher:
    """First come first served within a client, turn by turn between clients, equal shapes together."""

    def __init__(self, max_batch: int, max_queue: int) -> None:
        self.max_batch = max_batch
        self.max_queue = max_queue
        # Clients in the order of their turns; each with its jobs in order of arrival.
        self._lines: OrderedDict[Hashable, deque[Job]] = OrderedDict()
        self._streams: dict[Hashable, Job] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def offer(self, job: Job) -> Job | None:
        """Queues `job`; returns the older job of its stream that it replaces, if one waits.

        Raises PolicyOverloaded when the queue is full.
        """
        old = self._streams.get(job.stream) if job.stream is not None else None
        if old is None and self._length >= self.max_queue:
            raise PolicyOverloaded(
                "the queue is full", seen=f"{self._length} requests wait", expected=f"< {self.max_queue}"
            )
        if old is not None:
            # The newer observation takes the older one's place, so that a fast sender gains no turn.
            line = self._lines[old.client]
            line[line.index(old)] = job
        else:
            self._lines.setdefault(job.client, deque()).append(job)
            self._length += 1
        if job.stream is not None:
            self._streams[job.stream] = job
        return old

    def withdraw(self, job: Job) -> bool:
        """Takes a job out of the queue; False when it is not there (any more)."""
        line = self._lines.get(job.client)
        if line is None or job not in line:
            return False
        line.remove(job)
        self._forget(job)
        return True

    def late(self, now: float) -> list[Job]:
        """Takes out the jobs whose deadline has passed."""
        late = [job for line in self._lines.values() for job in line if job.late_at <= now]
        for job in late:
            self.withdraw(job)
        return late

    def clients(self) -> int:
        """How many connections have a request waiting."""
        return len(self._lines)

    def waits(self, client: Hashable) -> bool:
        """True when that connection has a request waiting."""
        return client in self._lines

    def oldest(self) -> float | None:
        """Arrival of the job that waits longest."""
        return min([line[0].arrived for line in self._lines.values()]) if self._lines else None

    def full(self) -> bool:
        """True when a batch of `max_batch` can leave."""
        return self._length >= self.max_batch and len(self.next()) == self.max_batch

    def take(self) -> list[Job]:
        """The next batch: the client whose turn it is decides the shape, others with that shape join."""
        batch = self.next()
        for job in batch:
            self._lines[job.client].remove(job)
            self._forget(job)
            if job.client in self._lines:
                self._lines.move_to_end(job.client)
        return batch

    def clear(self) -> list[Job]:
        """Empties the queue and returns what waited."""
        jobs = [job for line in self._lines.values() for job in line]
        self._lines.clear()
        self._streams.clear()
        self._length = 0
        return jobs

    def next(self) -> list[Job]:
        """What `take` would give now."""
        lines = list(self._lines.values())
        batch: list[Job] = []
        # Lap after lap, one job per client and lap; a client's jobs keep their order.
        for place in range(max(map(len, lines), default=0)):
            for line in lines:
                if len(batch) == self.max_batch:
                    return batch
                joins = place < len(line) and (not batch or line[place].key == batch[0].key)
                if joins and all(job in batch for job in list(line)[:place]):
                    batch.append(line[place])
        return batch

    def _forget(self, job: Job) -> None:
        self._length -= 1
        if job.stream is not None and self._streams.get(job.stream) is job:
            del self._streams[job.stream]
        if not self._lines[job.client]:
            del self._lines[job.client]

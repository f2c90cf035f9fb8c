"""Whom a batch waits for: clients that usually come back so soon that everybody gains by it.

Pure: no sockets, no clock of its own. `scheduler.py` feeds it.

n requests could leave now, m more clients are expected within w seconds, and the engine takes t(k) for k.
Leaving now, the n wait t(n), and the m, who come at w, wait until t(n) + t(m). Staying, all are answered at
w + t(n + m). Summed over the requests, staying saves

    (n + m) t(n) + m t(m) - (n + m) t(n + m) - (n + m) w

seconds. Where a batch takes as long as a single request, that is m t - (n + m) w: one waits for one while
w < t / 2. Where time grows with the batch there is nothing to gain, and nobody waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

_HABIT = 8  # how many returns of a client, and runs of a batch size, are remembered
_MARGIN = 1.25  # on a client's usual pause
_SHARE = 0.5  # of its run: a batch waits no longer, whatever the sum says


class Company:
    """Learns clients' pauses and the engine's times; `wait_until` decides."""

    def __init__(self) -> None:
        self._pauses: dict[Hashable, deque[float]] = {}  # client -> s from an answer to its next request
        self._answered: dict[Hashable, float] = {}  # when, of clients that have not come back yet
        self._due: dict[Hashable, float] = {}  # by when they are usually back
        self._times: dict[int, deque[float]] = {}  # batch size -> seconds of its last runs

    def arrived(self, client: Hashable, now: float) -> None:
        self._due.pop(client, None)
        answered = self._answered.pop(client, None)
        if answered is not None:
            self._pauses.setdefault(client, deque(maxlen=_HABIT)).append(now - answered)

    def answered(self, client: Hashable, now: float) -> None:
        self._answered[client] = now
        if pauses := self._pauses.get(client):
            # The longest of its last pauses, but of eight the third longest: an episode's end is no habit.
            self._due[client] = now + _MARGIN * sorted(pauses)[-1 - len(pauses) // 4]

    def left(self, client: Hashable) -> None:
        for known in (self._pauses, self._answered, self._due):
            known.pop(client, None)

    def ran(self, size: int, seconds: float) -> None:
        """The first run of a size is no measure: it may have made buffers, graphs or kernels."""
        if size not in self._times:
            self._times[size] = deque(maxlen=_HABIT)
        else:
            self._times[size].append(seconds)

    def seconds(self, size: int) -> float | None:
        """What a batch of `size` takes: the best of late, or on the line through the nearest known sizes."""
        known = sorted(each for each, times in self._times.items() if times)
        if not known:
            return None
        low = max((each for each in known if each <= size), default=known[0])
        high = min((each for each in known if each >= size), default=known[-1])
        if size > known[-1]:
            low = known[0]
        first, last = min(self._times[low]), min(self._times[high])
        slope = max(0.0, last - first) / (high - low) if high > low else 0.0
        return first + slope * max(0, size - low)

    def wait_until(
        self, now: float, since: float, size: int, room: int, leave_by: float = float("inf")
    ) -> float:
        """When a batch of `size` that could have left at `since` should leave; `now`: at once.

        room: how many more it takes. leave_by: when its first deadline falls.
        """
        for client in [client for client, at in self._due.items() if at <= now]:
            del self._due[client]  # late: not waited for until it has been back
        alone = self.seconds(size)
        if not self._due or alone is None:
            return now
        most, until = 0.0, now
        for more, at in enumerate(sorted(self._due.values())[:room], start=1):
            rest, whole = self.seconds(more), self.seconds(size + more)
            assert rest is not None and whole is not None
            if at > since + _SHARE * alone or at + whole > leave_by:
                break
            saved = (size + more) * (alone - whole - (at - now)) + more * rest
            if saved > most:
                most, until = saved, at
        return until

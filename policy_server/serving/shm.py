"""Shared memory between serving and engine: one writer allocates blocks, the other process reads them."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from bisect import insort
from collections import deque

import numpy as np

_ALIGN = 64  # a cache line, and what any dtype needs


class ArenaFull(MemoryError):
    """No free block is large enough."""


class Arena:
    """Anonymous memory known by a file descriptor, so that it has no name to leak or to guess.

    A memfd rather than /dev/shm: containers cap the latter at 64 MB and kill a writer that passes it.
    Pages cost nothing until touched; the lowest free block is always taken, so the touched part stays small.
    """

    def __init__(self, size: int, fd: int | None = None) -> None:
        if fd is None:
            fd = _anonymous_file()
            os.ftruncate(fd, size)
        self.fd = fd
        self.size = size
        self._memory = mmap.mmap(fd, size)
        self._free: list[tuple[int, int]] = [(0, size)]  # (start, end), sorted, never adjacent
        self._used: dict[int, int] = {}  # start -> end
        self._lent = 0  # bytes of blocks that `lend` gave away
        # (start, bytes) of lent blocks nobody looks into any more. Finalizers run in any thread, and between
        # any two lines here: they only append.
        self._returned: deque[tuple[int, int]] = deque()
        self._address = _address(np.frombuffer(self._memory, np.uint8, 1))

    @property
    def used_bytes(self) -> int:
        self._take_back()
        return sum(end - start for start, end in self._used.items())

    def allocate(self, nbytes: int) -> int:
        """Offset of a free block. Raises ArenaFull."""
        self._take_back()
        need = max(_ALIGN, -(-nbytes // _ALIGN) * _ALIGN)
        for index, (start, end) in enumerate(self._free):
            if end - start >= need:
                if end - start == need:
                    del self._free[index]
                else:
                    self._free[index] = (start + need, end)
                self._used[start] = start + need
                return start
        raise ArenaFull(f"no free block of {nbytes} bytes among {self.size}")

    def free(self, start: int) -> None:
        """Returns a block; freeing what is not in use is an error of the caller."""
        insort(self._free, (start, self._used.pop(start)))
        merged: list[tuple[int, int]] = []
        for block in self._free:
            if merged and merged[-1][1] == block[0]:
                merged[-1] = (merged[-1][0], block[1])
            else:
                merged.append(block)
        self._free = merged

    def write(self, array: np.ndarray) -> int:
        """Copies `array` into a new block, C order. Raises ArenaFull."""
        start = self.allocate(array.nbytes)
        np.copyto(self._view(start, array.dtype, array.shape), array)
        return start

    def lend(self, nbytes: int) -> np.ndarray | None:
        """A new block to fill, [nbytes] uint8; it is freed with the last array or view that looks into it.

        None once half of the memory is lent: who begins to fill blocks must not starve who is done.
        """
        self._take_back()
        if self._lent + nbytes > self.size // 2:
            return None
        try:
            start = self.allocate(nbytes)
        except ArenaFull:
            return None
        self._lent += nbytes
        block = self._view(start, np.dtype(np.uint8), (nbytes,))
        weakref.finalize(block, self._returned.append, (start, nbytes)).atexit = False
        return block

    def _take_back(self) -> None:
        while self._returned:
            start, nbytes = self._returned.popleft()
            self._lent -= nbytes
            self.free(start)

    def place(self, array: np.ndarray) -> int | None:
        """Where `array` lies in this memory, as `read` takes it; None where it does not."""
        start = _address(array) - self._address
        within = 0 <= start <= self.size - array.nbytes
        return start if within and array.flags.c_contiguous and array.flags.aligned else None

    def read(self, start: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        """Read-only view of a block; it holds until the writer frees the block."""
        view = self._view(start, dtype, shape)
        view.flags.writeable = False
        return view

    def _view(self, start: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        return np.ndarray(shape, dtype, self._memory, start)

    def close(self) -> None:
        """Closes the descriptor; the mapping goes with the last array that looks into it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("wamserve-frames", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())

"""A Robotiq 2F-85 at the other end of a pseudo terminal: Modbus RTU, slave 9, registers 1000 and 2000."""

from __future__ import annotations

import os
import pty
import select
import struct
import threading
import time
import tty

SLAVE, WRITE, READ = 9, 16, 4


def crc16(data: bytes) -> bytes:
    """Modbus CRC, low byte first."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0xA001 if crc & 1 else crc >> 1
    return struct.pack("<H", crc)


class GripperDouble:
    """Positions in counts: 0 open, 255 closed. `object_at` stops a closing hand at that count."""

    def __init__(self, counts_per_second: float = 400.0, object_at: int | None = None) -> None:
        self.speed, self.object_at = counts_per_second, object_at
        self.active = False
        self.silent = False  # answers nothing, as with the cable out
        self.position, self.goal, self.since = 3.0, 3, time.monotonic()
        self.goals: list[int] = []
        self.frames = 0
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        self.port = os.ttyname(slave)
        self._slave = slave
        self._closing = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        self._thread.join(2)
        os.close(self._master)
        os.close(self._slave)

    def _move(self) -> None:
        now = time.monotonic()
        reach = self.speed * (now - self.since)
        self.since = now
        end = self.goal
        if self.object_at is not None and end > self.object_at >= self.position:
            end = self.object_at
        self.position += min(max(end - self.position, -reach), reach)

    def _status(self) -> list[int]:
        self._move()
        reached = abs(self.position - self.goal) < 0.5
        blocked = self.object_at is not None and abs(self.position - self.object_at) < 0.5 and not reached
        object_bits = 2 if blocked and self.goal > self.position else 3 if reached else 0
        going = 1 if self.active else 0
        status = (1 if self.active else 0) | going << 3 | (3 if self.active else 0) << 4 | object_bits << 6
        return [status << 8, self.goal, round(self.position) << 8]

    def _serve(self) -> None:
        buffer = b""
        while not self._closing:
            ready, _, _ = select.select([self._master], [], [], 0.05)
            if not ready:
                buffer = b""  # a silent interval ends a frame
                continue
            buffer += os.read(self._master, 256)
            length = self._length(buffer)
            if length is not None and len(buffer) >= length:
                frame, buffer = buffer[:length], buffer[length:]
                if not self.silent:
                    os.write(self._master, self._answer(frame))

    def _length(self, buffer: bytes) -> int | None:
        if len(buffer) < 8:
            return None
        return 8 if buffer[1] == READ else 9 + buffer[6]

    def _answer(self, frame: bytes) -> bytes:
        assert frame[0] == SLAVE and frame[-2:] == crc16(frame[:-2])
        self.frames += 1
        address, count = struct.unpack(">HH", frame[2:6])
        if frame[1] == READ:
            assert (address, count) == (2000, 3)
            body = bytes([SLAVE, READ, 2 * count]) + struct.pack(f">{count}H", *self._status())
            return body + crc16(body)
        assert frame[1] == WRITE and address == 1000
        words = struct.unpack(f">{count}H", frame[7:-2])
        self._move()
        self.active = bool(words[0] >> 8 & 1)
        if self.active and words[0] >> 8 & 8:
            self.goal = words[1] & 255
            self.goals.append(self.goal)
        body = frame[:6]
        return body + crc16(body)

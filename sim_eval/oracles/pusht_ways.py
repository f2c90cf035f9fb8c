"""Ways round PushT's block: the shortest one that keeps the finger off it.

All points are px in the block's frame: origin in its centre of gravity, y towards the stem's end. A way leads
from corner to corner of an outline round the T, `nodes` [6, 2], which the field's edges may have pressed in.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# The convex corners of the T; [6, 2] px, body.
CORNERS = np.array([(-60, -45), (60, -45), (60, -15), (15, 75), (-15, 75), (-60, -15)], dtype=np.float64)
BARS = np.array([(-73, -58, 73, -2), (-28, -28, 28, 88)], dtype=np.float64)  # what the finger's centre avoids
# Corners of the way round the block, [6, 2] px: 30 px off, so that a careless follower does not graze it.
ROUND = CORNERS + 30.0 * np.array([(-1, -1), (1, -1), (1, 0.8), (0.9, 1), (-0.9, 1), (-1, 0.8)])


@njit(cache=True)
def turned(x: float, y: float, angle: float) -> tuple[float, float]:
    c, s = math.cos(angle), math.sin(angle)
    return c * x - s * y, s * x + c * y


@njit(cache=True)
def blocked(ax: float, ay: float, bx: float, by: float) -> bool:
    """Whether the straight way from a to b leads through the block."""
    dx, dy = bx - ax, by - ay
    dx = dx if abs(dx) > 1e-9 else 1e-9
    dy = dy if abs(dy) > 1e-9 else 1e-9
    for r in range(2):
        u, v = (BARS[r, 0] - ax) / dx, (BARS[r, 2] - ax) / dx
        w, z = (BARS[r, 1] - ay) / dy, (BARS[r, 3] - ay) / dy
        if max(min(u, v), min(w, z), 0.0) < min(max(u, v), max(w, z), 1.0) - 1e-6:
            return True
    return False


@njit(cache=True)
def outside(x: float, y: float) -> tuple[float, float]:
    """The nearest point that is not in the block."""
    for r in range(2):
        a, b, c, d = x - BARS[r, 0], BARS[r, 2] - x, y - BARS[r, 1], BARS[r, 3] - y
        least = min(a, b, c, d)
        if least > 0:
            if least == a:
                x = BARS[r, 0] - 0.01
            elif least == b:
                x = BARS[r, 2] + 0.01
            elif least == c:
                y = BARS[r, 1] - 0.01
            else:
                y = BARS[r, 3] + 0.01
    return x, y


@njit(cache=True)
def straight_to(x: float, y: float, nodes: np.ndarray) -> np.ndarray:
    """[6] px to the corners of the way round, inf where the block is between."""
    out = np.full(6, np.inf)
    for i in range(6):
        if not blocked(x, y, nodes[i, 0], nodes[i, 1]):
            out[i] = math.hypot(x - nodes[i, 0], y - nodes[i, 1])
    return out


@njit(cache=True)
def ways_round(nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shortest ways between the corners: [6, 6] px, and [6, 6] the corner that comes next."""
    px, following = np.empty((6, 6)), np.empty((6, 6), np.int64)
    for i in range(6):
        px[i] = straight_to(nodes[i, 0], nodes[i, 1], nodes)
        following[i] = np.arange(6)
        if blocked(nodes[i, 0], nodes[i, 1], nodes[i, 0] + 1e-3, nodes[i, 1]):
            px[i, i] = np.inf
    for k in range(6):
        for i in range(6):
            for j in range(6):
                if px[i, k] + px[k, j] < px[i, j] - 1e-9:
                    px[i, j], following[i, j] = px[i, k] + px[k, j], following[i, k]
    return px, following


@njit(cache=True)
def way_to(
    x: float, y: float, starts: np.ndarray, qx: float, qy: float, nodes: np.ndarray, ways: np.ndarray
) -> tuple[float, int, int]:
    """Length [px] of the way to q, and its first and last corner; -1 where it is straight."""
    if not blocked(x, y, qx, qy):
        return math.hypot(x - qx, y - qy), -1, -1
    ends = straight_to(qx, qy, nodes)
    best, first, last = np.inf, -1, -1
    for i in range(6):
        for j in range(6):
            length = starts[i] + ways[i, j] + ends[j]
            if length < best:
                best, first, last = length, i, j
    return best, first, last


@njit(cache=True)
def along_way(
    x: float,
    y: float,
    qx: float,
    qy: float,
    first: int,
    last: int,
    nodes: np.ndarray,
    following: np.ndarray,
    ahead: float,
) -> tuple[float, float, float]:
    """The point `ahead` px along the way to q, or q; and what is left of `ahead` there [px]."""
    left, node = ahead, first
    while True:
        final = node < 0
        zx, zy = (qx, qy) if final else (nodes[node, 0], nodes[node, 1])
        step = math.hypot(zx - x, zy - y)
        if step >= left:
            return x + (zx - x) * left / step, y + (zy - y) * left / step, 0.0
        if final:
            return qx, qy, left - step
        left, x, y = left - step, zx, zy
        node = -1 if node == last else following[node, last]

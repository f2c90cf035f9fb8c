"""Where PushT's finger should go next, as a function of where finger and block are and of nothing else.

The finger touches without friction, so a push on a face moves the block along the face's normal and turns
it by the lever at which it acts. That makes a push, and a plan of two, a formula: all pairs of pushes on
eight places of the T are compared by the time they take, and the finger follows the first push of the best.
Following a plan makes the rest of it cheaper, so it is kept without being remembered.

Frames: "body" is the block's, origin in its centre of gravity, y towards the stem's end; "goal" is the same
frame of the block on target. Errors (ex, ey, turn) [px, px, rad], in goal, are what the block has yet to do.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from wamserve.sim_eval.oracles.pusht_ways import (
    CORNERS,
    ROUND,
    along_way,
    outside,
    straight_to,
    turned,
    way_to,
    ways_round,
)

FINGER = 15.0  # px, radius
GYRATION = 3000.0  # px^2: moment over mass; a push of s px at lever l turns the block by s l / GYRATION rad
# Places to push: direction x, y; the finger's coordinate along it at contact; the range of its coordinate
# along the face; the sign that makes that coordinate a lever. Bar top, stem end, under the bar right and
# left, stem left and right, bar ends left and right.
PLACES = np.array(
    [
        (0, 1, -60, -56, 56, 1),
        (0, -1, -90, -12, 12, -1),
        (0, -1, 0, 34, 56, -1),
        (0, -1, 0, -56, -34, -1),
        (1, 0, -30, 1, 66, -1),
        (-1, 0, -30, 1, 66, 1),
        (1, 0, -75, -42, -18, -1),
        (-1, 0, -75, -42, -18, 1),
    ],
    dtype=np.float64,
)
KINDS = 3  # ways to choose a push's lever and length at a place
STANDOFF = 14.0  # px between finger and face before a push
LANE = 8.0  # px to the side of its place from which the finger may push
AHEAD, PUSH_AHEAD = 32.0, 24.0  # px from the finger to its target, which sets its speed
BEYOND = 3.0  # px past a push's end to aim for, so that it is reached
SPEED, PUSH_SPEED = 14.4, 9.6  # px per control step that this gives
APPROACH = 5.0  # control steps lost in stopping before a push
SWITCH = 9.0  # control steps that one more push costs
FAR_TURN = 0.5  # rad; beyond, the block is turned at its stem, which leaves little to choose
OTHERWISE = (60.0, 25.0)  # control steps per rad, and at most, that turning it elsewhere is held to cost
SMALL = 0.06  # share of the remaining way below which an error is left for later
DONE_PX, DONE_RAD = 0.7, 0.008
FIELD = (2.0, 510.0)  # px, where the finger's centre may be; walls do not stop it
WALLS = (7.0, 504.0)  # px, where the block's corners may be


@njit(cache=True)
def next_target(finger: np.ndarray, block: np.ndarray, goal: np.ndarray, between: np.ndarray) -> np.ndarray:
    """The finger's next target [2] px. Where nothing is left to do, the finger stays.

    finger [2] px; block and goal [3]: px, px, rad of the centre of gravity; between: ways_between_places().
    """
    turn = (goal[2] - block[2] + math.pi) % (2 * math.pi) - math.pi
    ex, ey = turned(goal[0] - block[0], goal[1] - block[1], -goal[2])
    px, py = turned(finger[0] - block[0], finger[1] - block[1], -block[2])
    stay = np.array([finger[0], finger[1]])
    if math.hypot(ex, ey) < DONE_PX and abs(turn) < DONE_RAD:
        return stay
    nodes = np.empty((6, 2))
    for i in range(6):
        nodes[i, 0], nodes[i, 1] = kept_in(ROUND[i, 0], ROUND[i, 1], block)
    ways, following = ways_round(nodes)
    ox, oy = outside(px, py)
    starts = straight_to(ox, oy, nodes)
    out_now = outside_walls(ex, ey, turn, goal)
    best, place, lever, length = np.inf, -1, 0.0, 0.0
    qx, qy, first, last = 0.0, 0.0, -1, -1
    for c in range(len(PLACES)):
        for kind in range(KINDS):
            arm, s = push(c, kind, ex, ey, turn)
            if s < 0.5 + SMALL * (abs(ex) + abs(ey)):
                continue
            x, y = spot(c, arm, 0.0)
            kx, ky = kept_in(x, y, block)
            if abs(kx - x) + abs(ky - y) > 1e-6:
                continue
            x, y = spot(c, arm, STANDOFF)
            x, y = kept_in(x, y, block)
            way, i, j = way_to(ox, oy, starts, x, y, nodes, ways)
            ax, ay, left = after(c, arm, s, ex, ey, turn)
            cost = way / SPEED + APPROACH * (1 - math.exp(-max(way - STANDOFF, 0.0) / 15)) + push_time(arm, s)
            if place_for(turn) != c:
                cost += min(OTHERWISE[0] * max(abs(turn) - FAR_TURN, 0.0), OTHERWISE[1])
            cost += max(outside_walls(ax, ay, left, goal) - out_now, 0.0)
            if cost < best:
                cost += rest_time(c, ax, ay, left, between)
            if cost < best:
                best, place, lever, length = cost, c, arm, s
                qx, qy, first, last = x, y, i, j
    if place < 0:
        return stay
    dx, dy = PLACES[place, 0], PLACES[place, 1]
    side = lever * PLACES[place, 5]
    gap = PLACES[place, 2] - (px * dx + py * dy)
    off = abs(side - (px if dx == 0 else py))
    if -12 < gap < STANDOFF + 6 and off < LANE:
        ahead = min(PUSH_AHEAD, max(gap, 0.0) + finger_way(lever, length) + BEYOND) * (1 - (off / LANE) ** 2)
        tx, ty = (side, py + dy * ahead) if dx == 0 else (px + dx * ahead, side)
    else:
        tx, ty, unspent = along_way(px, py, qx, qy, first, last, nodes, following, AHEAD)
        tx, ty = tx + dx * unspent / 2, ty + dy * unspent / 2  # on into the push, without a stop
    tx, ty = kept_in(tx, ty, block)
    tx, ty = turned(tx, ty, block[2])
    return np.array([tx + block[0], ty + block[1]])


@njit(cache=True)
def kept_in(x: float, y: float, block: np.ndarray) -> tuple[float, float]:
    """The nearest point of the field; both in body."""
    x, y = turned(x, y, block[2])
    x = min(max(x + block[0], FIELD[0]), FIELD[1]) - block[0]
    y = min(max(y + block[1], FIELD[0]), FIELD[1]) - block[1]
    return turned(x, y, -block[2])


@njit(cache=True)
def place_for(turn: float) -> int:
    """The side of the stem from which a push turns the block by `turn`."""
    return 5 if turn > 0 else 4


@njit(cache=True)
def push(place: int, kind: int, ex: float, ey: float, turn: float) -> tuple[float, float]:
    """Lever and length [px] of a push: kind 0 turns fast, 1 turns and moves, 2 only moves.

    The length is negative where there is no such push.
    """
    dx, dy, sign = PLACES[place, 0], PLACES[place, 1], PLACES[place, 5]
    a, b = PLACES[place, 3] * sign, PLACES[place, 4] * sign
    low, high = min(a, b), max(a, b)
    if kind == 0:
        lever = high if turn > 0 else low
        return (lever, GYRATION * turn / lever) if lever * turn > 0 else (0.0, -1.0)
    if kind == 1:
        if abs(turn) > 2.0:
            return 0.0, -1.0
        length = ex * dx + ey * dy  # of the chord; the arc is longer
        if abs(turn) > 1e-6:
            length /= max(math.sin(abs(turn)) / abs(turn), 0.3)
        if length < 1e-3:
            return 0.0, -1.0
        return min(max(GYRATION * turn / length, low), high), length
    dx, dy = turned(dx, dy, -turn)
    return min(max(0.0, low), high), ex * dx + ey * dy


@njit(cache=True)
def after(
    place: int, lever: float, length: float, ex: float, ey: float, turn: float
) -> tuple[float, float, float]:
    """The errors that a push leaves. The centre of gravity goes along an arc of `length` px."""
    half = length * lever / GYRATION / 2
    chord = length * (math.sin(half) / half if abs(half) > 1e-6 else 1.0)
    dx, dy = turned(PLACES[place, 0], PLACES[place, 1], half - turn)
    return ex - chord * dx, ey - chord * dy, turn - 2 * half


@njit(cache=True)
def finger_way(lever: float, length: float) -> float:
    return length * (1 + lever * lever / GYRATION)


@njit(cache=True)
def push_time(lever: float, length: float) -> float:
    return 2 + finger_way(lever, length) / PUSH_SPEED


@njit(cache=True)
def rest_time(place: int, ex: float, ey: float, turn: float, between: np.ndarray) -> float:
    """Control steps from the end of a push at `place` to the goal, with the best second push or none."""
    best = leftover_time(ex, ey, turn)
    for c in range(len(PLACES)):
        for kind in range(KINDS):
            lever, length = push(c, kind, ex, ey, turn)
            if length < 0.5 + SMALL * (abs(ex) + abs(ey)):
                continue
            time = between[place, c] / SPEED + APPROACH + push_time(lever, length)
            if time < best:
                ax, ay, left = after(c, lever, length, ex, ey, turn)
                best = min(best, time + leftover_time(ax, ay, left))
    return best


@njit(cache=True)
def leftover_time(ex: float, ey: float, turn: float) -> float:
    """Control steps that errors will cost: the way left, and pushes for what in it is not small."""
    ex, ey, turn = abs(ex), abs(ey), abs(turn)
    far = SMALL * (ex + ey) + 6 * turn
    pushes = 2 - math.exp(-ex / (4 + far)) - math.exp(-ey / (4 + far))
    pushes += 2 * (1 - math.exp(-turn / (0.06 + far / 50)))
    return SWITCH * pushes + (ex + ey + 120 * turn) / PUSH_SPEED


@njit(cache=True)
def outside_walls(ex: float, ey: float, turn: float, goal: np.ndarray) -> float:
    """px by which a corner of the block would stick out of the field."""
    x0, y0 = turned(ex, ey, goal[2])
    worst = 0.0
    for i in range(6):
        x, y = turned(CORNERS[i, 0], CORNERS[i, 1], goal[2] - turn)
        x, y = x + goal[0] - x0, y + goal[1] - y0
        worst = max(worst, WALLS[0] - x, x - WALLS[1], WALLS[0] - y, y - WALLS[1])
    return worst


@njit(cache=True)
def spot(place: int, lever: float, gap: float) -> tuple[float, float]:
    """The finger's centre [px, body] `gap` px before it touches."""
    along, side = PLACES[place, 2] - gap, lever * PLACES[place, 5]
    if PLACES[place, 0] == 0:
        return side, along * PLACES[place, 1]
    return along * PLACES[place, 0], side


@njit(cache=True)
def ways_between_places() -> np.ndarray:
    """[8, 8] px from the middle of one place to before the middle of another."""
    out = np.zeros((len(PLACES), len(PLACES)))
    ways, _ = ways_round(ROUND)
    for i in range(len(PLACES)):
        x, y = spot(i, PLACES[i, 5] * (PLACES[i, 3] + PLACES[i, 4]) / 2, 5.0)
        starts = straight_to(x, y, ROUND)
        for j in range(len(PLACES)):
            qx, qy = spot(j, PLACES[j, 5] * (PLACES[j, 3] + PLACES[j, 4]) / 2, STANDOFF)
            out[i, j] = way_to(x, y, starts, qx, qy, ROUND, ways)[0]
    return out

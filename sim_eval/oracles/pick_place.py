"""A scripted pick-and-place oracle: a function of what a simulator knows, with no memory of its own.

It answers the same wherever it is asked from, at any replan horizon, alone or batched, and it recovers:
an arm pushed off its path, an object dropped or a grasp that failed only change the state it looks at.

All positions are of the grip site, in world metres, so the planner knows nothing of objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from wamserve.action_codec.errors import RequestError
from wamserve.action_codec.gripper import FRACTION_ONE_IS_CLOSED, gripper_from_gripper
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval.oracles.kinematics import joints_for_pose

HOVER = 0.07  # m above the grasp before descending
NEAR = 0.008  # m
ALIGNED = 0.005  # m off the grasp's axis before going down
OPEN_M = 0.08
WIDTH_PER_S = 0.20  # m/s, how fast the hand closes and opens, measured in robosuite
TOLD = 0.2  # per control step: robosuite ramps its gripper command
STUCK = 0.05  # m above the grasp at which an arm that no longer sinks closes where it is
SQUEEZE_S = 0.35  # from touch to a firm grip
SPEED = 0.35  # m/s of a planned joint path
TURN = 1.5  # rad/s
JOINT_LAG = 0.1  # s behind its targets: 2 / sqrt(kp), kp = 400, critically damped
OSC_METRES, OSC_RADIANS = 0.05, 0.5  # one unit of an OSC command
OSC_OMEGA = np.sqrt(150.0)  # rad/s: OSC is a critically damped pull to its goal, kp = 150


@dataclass(frozen=True)
class Scene:
    """What the planner looks at; the keys a task offers as privileged state."""

    joints: np.ndarray  # [7] rad
    eef_pos: np.ndarray  # [3]
    eef_vel: np.ndarray  # [3] m/s
    finger_axis: np.ndarray  # [2] unit, from the right finger to the left
    gripper_width: float  # m
    gripper_told: float  # -1 .. 1: where the fingers have been sent, 1 closed; moves by TOLD a step
    base_pos: np.ndarray  # [3] of the arm
    grasp_pos: np.ndarray  # [3] where the grip site must be to grasp the object
    grasp_axis: np.ndarray  # [2] unit, finger axis to grasp along; its sign means nothing
    object_width: float  # m between the fingers when they hold it
    grasped: bool
    travel_z: float  # height at which the object is carried, or to which it is lifted
    place_pos: np.ndarray  # [3] where the grip site must be to let go; NaN: only lift
    placed: bool  # the object is where it should be
    turn_vel: float = 0.0  # rad/s about z, known only inside a plan
    held_s: float = 0.0  # since the fingers touched, known only inside a plan

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], prefix: str = "privileged/") -> Scene:
        scalars = ("gripper_width", "gripper_told", "object_width", "travel_z")
        flags = ("grasped", "placed")
        fields = [f for f in cls.__dataclass_fields__ if f not in ("turn_vel", "held_s")]
        missing = [name for name in fields if prefix + name not in state]
        if missing:
            raise RequestError(
                "the oracle needs privileged state", seen=", ".join(state), expected=", ".join(missing)
            )
        values = {name: np.asarray(state[prefix + name], dtype=np.float64) for name in fields}
        return cls(
            **{k: v for k, v in values.items() if k not in scalars + flags},  # type: ignore[arg-type]
            **{k: float(values[k].item()) for k in scalars},  # type: ignore[arg-type]
            **{k: bool(values[k].item() > 0.5) for k in flags},  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Want:
    """What the hand should do now."""

    pos: np.ndarray  # [3]
    axis: np.ndarray  # [2]
    closed: bool


def decide(s: Scene) -> Want:
    """The next goal of the hand, from the state alone."""
    here, axis = s.eef_pos, s.finger_axis
    lifting = bool(np.isnan(s.place_pos).any())
    if s.grasped:
        if lifting:
            return Want(np.array([here[0], here[1], s.travel_z]), axis, True)
        off = float(np.linalg.norm((s.place_pos - here)[:2]))
        stalled = abs(s.eef_vel[2]) < 0.01 and here[2] < s.place_pos[2] + 0.02
        if off < 2 * NEAR and (s.placed or here[2] < s.place_pos[2] + 0.006 or stalled):
            return Want(here, axis, False)
        if off < 1.5 * NEAR or (off < 3 * NEAR and here[2] < s.travel_z - 0.06):
            return Want(s.place_pos - [0.0, 0.0, 0.015], axis, True)  # beyond it: no creeping at the end
        if here[2] < s.travel_z - 0.06:
            return Want(np.array([*here[:2], s.travel_z]), axis, True)
        return Want(np.array([*s.place_pos[:2], s.travel_z]), axis, True)
    letting_go = bool(np.linalg.norm((s.place_pos - here)[:2]) < 3 * NEAR and here[2] < s.place_pos[2] + 0.03)
    if s.placed or letting_go:
        free = s.gripper_width > s.object_width + 0.012 or s.gripper_told < -0.9
        rise = 0.08 if free else 0.0
        return Want(here + [0.0, 0.0, rise], axis, False)
    above = here[2] - s.grasp_pos[2]
    off = float(np.linalg.norm((s.grasp_pos - here)[:2]))
    turn = abs(turn_between(axis, s.grasp_axis))
    low = above < HOVER - 0.02
    told_open = s.gripper_told < -0.95
    if above < STUCK and s.gripper_width < max(s.object_width - 0.012, 0.0015):
        return Want(s.grasp_pos + [0.0, 0.0, 2 * HOVER], axis, True)  # closed on nothing: leave, then retry
    if above < STUCK and off < 3 * NEAR and not told_open:  # closing: see it through
        return Want(here, axis, True)
    if above >= STUCK and not told_open:  # open before going down
        return Want(s.grasp_pos + [0.0, 0.0, HOVER], s.grasp_axis, False)
    if not ((off < ALIGNED and turn < 0.08) or (low and off < 2 * NEAR and turn < 0.2)):
        if above < 0.03 and off > 0.03:  # rise before crossing the table
            return Want(np.array([*here[:2], s.grasp_pos[2] + HOVER]), s.grasp_axis, False)
        return Want(s.grasp_pos + [0.0, 0.0, HOVER], s.grasp_axis, False)
    stalled = abs(s.eef_vel[2]) < 0.02 and above < STUCK
    return Want(s.grasp_pos, s.grasp_axis, above < 0.009 or stalled)


def turn_between(axis: np.ndarray, wanted: np.ndarray) -> float:
    """Signed angle [rad] about z, at most a quarter turn, from a finger axis to the line `wanted`."""
    wanted = wanted if float(axis @ wanted) > 0 else -wanted
    return float(np.arctan2(axis[0] * wanted[1] - axis[1] * wanted[0], axis @ wanted))


def plan(scene: Scene, contract: Embodiment, rows: int, gain: float = 0.8) -> np.ndarray:
    """Raw action rows [rows, A] of the contract's reply: the script run forward on a model of the arm."""
    wire, period = contract.wire, 1.0 / contract.wire.rate_hz
    (gripper,) = wire.reply.grippers
    out = np.zeros((rows, wire.reply.width))
    joints = scene.joints
    if wire.reply.form == "joint_targets":
        # The arm trails its targets: go on from where they were, or every new plan begins with a stop.
        scene = replace(scene, eef_pos=scene.eef_pos + JOINT_LAG * scene.eef_vel)
    for i in range(rows):
        want = decide(scene)
        if wire.reply.form == "osc_deltas":
            command = osc_command(scene, want, gain)
            out[i, :6] = command
            moved = _osc_response(scene, command, period)
        else:
            moved = _path_response(scene, want, period)
            if wire.kinematics is None or wire.joints is None:
                raise RequestError("the oracle needs the contract's kinematics", seen=contract.name)
            target = np.eye(4)
            target[:3, :3] = rotation_of_hand(moved.finger_axis)
            target[:3, 3] = moved.eef_pos - scene.base_pos
            joints = joints_for_pose(wire.kinematics, wire.joints, joints, target)
            out[i, :7] = joints
        out[i, gripper.index] = gripper_from_gripper(
            float(want.closed), FRACTION_ONE_IS_CLOSED, gripper.meaning
        )
        scene = _after(moved, scene, want, period)
    return out


def osc_command(scene: Scene, want: Want, gain: float) -> np.ndarray:
    """OSC delta [6] toward a goal: base-frame translation, then rotation vector."""
    command = np.zeros(6)
    gap = want.pos - scene.eef_pos
    # The goal is set anew from where the arm is at every step: small commands drown in joint friction.
    gains = np.where(np.abs(gap) < 0.01, 2.5 * gain, gain)
    command[:3] = np.clip(gap / OSC_METRES * gains, -1, 1)
    command[5] = np.clip(turn_between(scene.finger_axis, want.axis) / OSC_RADIANS * 0.6, -1, 1)
    return command


def rotation_of_hand(finger_axis: np.ndarray) -> np.ndarray:
    """Grip site's rotation [3, 3] pointing straight down: x is minus the finger axis."""
    x = np.array([-finger_axis[0], -finger_axis[1], 0.0])
    z = np.array([0.0, 0.0, -1.0])
    return np.stack([x, np.cross(z, x), z], axis=1)


def _osc_response(s: Scene, command: np.ndarray, period: float) -> Scene:
    """Exact response over one period of x'' = w^2 (goal - x) - 2 w x', the goal set anew from where it is."""
    w = OSC_OMEGA
    decay = np.exp(-w * period)

    def respond(goal: np.ndarray, velocity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rate = velocity - w * goal  # x(t) = goal - (goal - rate t) e^{-wt}, x(0) = 0
        moved = goal + (-goal + rate * period) * decay
        return moved, (rate - w * (-goal + rate * period)) * decay

    step, velocity = respond(command[:3] * OSC_METRES, s.eef_vel)
    turn, turn_vel = respond(command[5:6] * OSC_RADIANS, np.array([s.turn_vel]))
    return replace(
        s,
        eef_pos=s.eef_pos + step,
        eef_vel=velocity,
        finger_axis=_turned(s.finger_axis, float(turn[0])),
        turn_vel=float(turn_vel[0]),
    )


def _path_response(s: Scene, want: Want, period: float) -> Scene:
    """A position-controlled arm: it goes straight to the goal, no faster than SPEED and TURN."""
    gap = want.pos - s.eef_pos
    step = 0.6 * gap
    length = float(np.linalg.norm(step))
    if length > SPEED * period:
        step = step * (SPEED * period / length)
    turn = turn_between(s.finger_axis, want.axis)
    turn = min(max(turn, -TURN * period), TURN * period)
    return replace(
        s,
        eef_pos=s.eef_pos + step,
        eef_vel=step / period,
        finger_axis=_turned(s.finger_axis, turn),
    )


def _after(moved: Scene, before: Scene, want: Want, period: float) -> Scene:
    """The hand and the object after a row: fingers move at their speed, a held object moves along."""
    told = min(max(before.gripper_told + (TOLD if want.closed else -TOLD), -1.0), 1.0)
    if want.closed:
        gap = np.abs(moved.eef_pos - moved.grasp_pos)
        at_object = float(np.hypot(gap[0], gap[1])) < 0.02 and gap[2] < 0.03
        stop = moved.object_width if at_object or moved.grasped else 0.0
        width = max(moved.gripper_width - WIDTH_PER_S * period, stop)
        held = before.held_s + period if width <= stop + 1e-9 else 0.0
        grasped = before.grasped or (stop > 0 and held > SQUEEZE_S)
    else:
        sent = OPEN_M * (1.0 - told) / 2.0  # fingers that squeeze an object open late
        width, held = max(moved.gripper_width, min(moved.gripper_width + WIDTH_PER_S * period, sent)), 0.0
        grasped = before.grasped and width < moved.object_width + 0.01
    grasp_pos, placed = moved.grasp_pos, before.placed
    if grasped:
        grasp_pos = grasp_pos + (moved.eef_pos - before.eef_pos)
    elif before.grasped and not np.isnan(moved.place_pos).any():
        placed = bool(np.linalg.norm(moved.eef_pos - moved.place_pos) < 0.02)
    return replace(
        moved,
        gripper_width=width,
        gripper_told=told,
        held_s=held,
        grasped=grasped,
        grasp_pos=grasp_pos,
        placed=placed,
    )


def _turned(axis: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([c * axis[0] - s * axis[1], s * axis[0] + c * axis[1]])

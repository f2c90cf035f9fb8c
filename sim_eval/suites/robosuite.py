"""robosuite tasks with a Panda: Lift, Stack, PickPlaceCan, Door, and two cubes told apart by instruction."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from wamserve.action_codec.errors import TaskError
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval.render import Cameras, Profile, choose_gl
from wamserve.sim_eval.suites import panda
from wamserve.sim_eval.task import TaskSpec

choose_gl()
logging.disable(logging.WARNING)  # robosuite warns of missing private macros on every import
import mujoco  # noqa: E402
import robosuite  # noqa: E402
from robosuite.controllers import load_composite_controller_config  # noqa: E402

from wamserve.sim_eval.suites.two_cubes import TwoCubes  # noqa: E402

logging.disable(logging.NOTSET)
logging.getLogger("robosuite_logs").setLevel(logging.WARNING)

Scene = dict[str, np.ndarray]
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand", "frontview": "frontview"}
HAND_REACH, HAND_DEPTH = 0.09, 0.05  # m: where an open hand around one cube meets the centre of another
CAN_NEARER = 0.075  # m from the middle of the can's quarter of the bin; a can is 5 cm wide
JOINT_KP = 400.0  # tracks a 3 s sine within 0.03 rad; robosuite's 50 within 0.10


@dataclass(frozen=True)
class Entry:
    """One task of the suite."""

    env: str | type  # robosuite's name of the environment, or its class
    instruction: str
    seconds: float  # until an episode counts as failed
    scene: Callable[[Any], Scene]  # what an oracle needs beyond the arm itself
    extra: dict[str, Any] | None = None  # arguments of the environment


def _cube_scene(env: Any, body: int, cube: Any, lift: float, other: int | None = None) -> Scene:
    """Grasp a cube at its centre, the fingers as the arm holds them at home, however the cube is turned.

    An open hand fits around its diagonal, and closing turns it. So the joints follow from where the cube is
    and not from its edges, which a small picture hardly shows.
    """
    position = np.array(env.sim.data.body_xpos[body])
    beside = None if other is None else (env.sim.data.body_xpos[other] - position)[:2]
    return {
        "grasp_pos": position - [0.0, 0.0, 0.002],
        "grasp_axis": _free_axis(beside),
        "object_width": np.array([2 * float(cube.size[2])]),
        "grasped": np.array([float(panda.holds(env, cube))]),
        "travel_z": np.array([lift]),
        "place_pos": np.full(3, np.nan),
        "placed": np.zeros(1),
    }


def _free_axis(beside: np.ndarray | None) -> np.ndarray:
    """Finger axis [2]: the table's y, or 60 degrees from it and away from a neighbour [2] m in the way."""
    if beside is None or not (abs(beside[1]) < HAND_REACH and abs(beside[0]) < HAND_DEPTH):
        return np.array([0.0, 1.0])
    side = -1.0 if beside[0] * beside[1] > 0 else 1.0
    return np.array([side * np.sin(np.pi / 3), np.cos(np.pi / 3)])


def _lift(env: Any) -> Scene:
    return _cube_scene(env, env.cube_body_id, env.cube, env.table_offset[2] + 0.16)


def _stack(env: Any) -> Scene:
    scene = _cube_scene(
        env, env.cubeA_body_id, env.cubeA, env.table_offset[2] + 0.18, other=env.cubeB_body_id
    )
    below = np.array(env.sim.data.body_xpos[env.cubeB_body_id])
    on_top = float(env.cubeA.size[2] + env.cubeB.size[2])
    scene["place_pos"] = below + [0.0, 0.0, on_top - 0.002]
    gap = np.array(env.sim.data.body_xpos[env.cubeA_body_id]) - below - [0.0, 0.0, on_top]
    scene["placed"] = np.array([float(np.linalg.norm(gap[:2]) < 0.02 and abs(gap[2]) < 0.006)])
    return scene


def _can(env: Any) -> Scene:
    body, can = env.obj_body_id["Can"], env.objects[env.object_id]
    position = np.array(env.sim.data.body_xpos[body])
    bin_pos = np.array(env.target_bin_placements[env.object_id])
    base = env.sim.data.body_xpos[env.sim.model.body_name2id("robot0_base")]
    nearer = (base - bin_pos)[:2] / np.linalg.norm((base - bin_pos)[:2])  # the middle is out of reach
    width = 2 * float(can.horizontal_radius)
    inside = not env.not_in_bin(position, env.object_id)
    return {
        "grasp_pos": position + [0.0, 0.0, 0.01],
        "grasp_axis": panda.finger_axis(env),  # round: any direction does
        "object_width": np.array([width]),
        "grasped": np.array([float(panda.holds(env, can))]),
        "travel_z": np.array([bin_pos[2] + 0.26]),
        "place_pos": bin_pos + [*(CAN_NEARER * nearer), 0.10],
        "placed": np.array([float(inside)]),
    }


def _two(color: str) -> Callable[[Any], Scene]:
    def scene(env: Any) -> Scene:
        body, cube = (env.cubeA_body_id, env.cubeA) if color == "red" else (env.cubeB_body_id, env.cubeB)
        return _cube_scene(env, body, cube, env.table_offset[2] + 0.16)

    return scene


TASKS = {
    "Lift": Entry("Lift", "lift the cube", 8.0, _lift),
    "Stack": Entry("Stack", "stack the red cube on the green cube", 16.0, _stack),
    "PickPlaceCan": Entry("PickPlaceCan", "put the can in the bin", 20.0, _can),
    "Door": Entry("Door", "open the door", 20.0, lambda env: {}),
}
TWO_CUBES = {
    color: Entry(TwoCubes, f"lift the {color} cube", 8.0, _two(color), {"target": color})
    for color in ("red", "green")
}
CONTRACTS = ("panda_joint", "panda_osc")


def task_names(suite: str) -> list[str]:
    return [f"{suite}/{name}" for name in (TWO_CUBES if suite == "two_cubes" else TASKS)]


def instruction(name: str) -> str:
    return entry_of(name).instruction


def entry_of(name: str) -> Entry:
    suite, _, task = name.partition("/")
    return (TWO_CUBES if suite == "two_cubes" else TASKS)[task]


def make(name: str, contract: Embodiment, profile: Profile) -> RobosuiteTask:
    return RobosuiteTask(name, entry_of(name), contract, profile)


class RobosuiteTask:
    """A robosuite environment as a Task; joint targets or OSC deltas, as the contract's reply says."""

    def __init__(self, name: str, entry: Entry, contract: Embodiment, profile: Profile) -> None:
        wire = contract.wire
        self.wire = wire
        self._entry, self._contract, self._profile = entry, contract, profile
        make_env: Any = robosuite.make if isinstance(entry.env, str) else _make_class
        self._env = make_env(
            entry.env,
            robots="Panda",
            controller_configs=_controller(contract),
            control_freq=wire.rate_hz,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            hard_reset=False,
            ignore_done=True,
            horizon=10**9,
            reward_shaping=False,
            seed=0,
            **(entry.extra or {}),
        )
        self._arm = panda.Arm(self._env, contract)
        self._cameras: Cameras | None = None
        missing = [image.name for image in wire.images if image.name not in CAMERAS]
        if missing:
            raise TaskError(f"{name} has no such camera", seen=missing, expected=", ".join(CAMERAS))
        self.spec = TaskSpec(
            name=name,
            instruction=entry.instruction,
            contract=contract.name,
            rate_hz=wire.rate_hz,
            max_steps=round(entry.seconds * wire.rate_hz),
            settle_steps=0,
            views=tuple((image.name, image.height, image.width) for image in wire.images),
            image_orientation=panda.one_orientation(contract),
            states=tuple((state.name, state.dim) for state in wire.states),
            action_width=wire.reply.width,
            init_states="seeded",
            init_count=None,
            simulator=f"robosuite {robosuite.__version__}, mujoco {mujoco.__version__}",
            render_profile=profile,
        )

    def reset(self, init: int, seed: int) -> None:
        env = self._env
        env.rng = np.random.default_rng(seed)
        sampler = env.placement_initializer if hasattr(env, "placement_initializer") else None
        if sampler is not None:
            sampler.rng = env.rng
            for inner in getattr(sampler, "samplers", {}).values():
                inner.rng = env.rng
        self._arm.forget()
        mujoco.mj_resetData(env.sim.model._model, env.sim.data._data)
        env.reset()
        self._arm.refresh()

    def step(self, action: np.ndarray) -> None:
        self._env.step(self._arm.command(action))
        self._arm.refresh()

    def render(self) -> dict[str, np.ndarray]:
        images = self._contract.wire.images
        if self._cameras is None:
            sim = self._env.sim
            self._cameras = Cameras(
                sim.model._model,
                sim.data._data,
                self._profile,
                max(image.height for image in images),
                max(image.width for image in images),
            )
        return {
            image.name: self._cameras.render(
                CAMERAS[image.name], image.height, image.width, image.orientation
            )
            for image in images
        }

    def state(self) -> dict[str, np.ndarray]:
        return self._arm.state()

    def privileged(self) -> dict[str, np.ndarray]:
        scene = self._entry.scene(self._env)
        return {**self._arm.privileged(), **scene} if scene else {}

    def hold(self) -> np.ndarray:
        return self._arm.hold()

    def success(self) -> bool:
        return bool(self._env._check_success())

    def progress(self) -> float:
        return float("nan")

    def sim_state(self) -> np.ndarray:
        return np.array(self._env.sim.get_state().flatten(), dtype=np.float64)

    def restore(self, sim_state: np.ndarray) -> None:
        self._env.sim.set_state_from_flattened(sim_state)
        self._env.sim.forward()

    def close(self) -> None:
        if self._cameras is not None:
            self._cameras.close()
            self._cameras = None


def _make_class(cls: Any, robots: str, **kwargs: Any) -> Any:
    return cls(robots=robots, **kwargs)


def _controller(contract: Embodiment) -> dict[str, Any]:
    config: dict[str, Any] = load_composite_controller_config(controller=None, robot="Panda")
    part = config["body_parts"]["right"]
    reply, joints = contract.wire.reply, contract.wire.joints
    if reply.form == "osc_deltas":
        return config
    if reply.form != "joint_targets" or joints is None:
        raise TaskError(
            "a Panda here takes joint targets or OSC deltas", seen=f"{contract.name}: {reply.form}"
        )
    config["body_parts"]["right"] = {
        "type": "JOINT_POSITION",
        "input_type": "absolute",
        "input_min": list(joints.low),
        "input_max": list(joints.high),
        "output_min": list(joints.low),
        "output_max": list(joints.high),
        "kp": JOINT_KP,
        "damping_ratio": 1.0,
        "impedance_mode": "fixed",
        "kp_limits": [0, 1000],
        "damping_ratio_limits": [0, 10],
        "qpos_limits": None,
        "interpolation": None,
        "ramp_ratio": 0.2,
        "gripper": part["gripper"],
    }
    return config

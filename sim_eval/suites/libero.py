"""LIBERO: spatial, object, goal, 10 and 90, with their published initial states."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from wamserve.action_codec.errors import ContractError, TaskError
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval.render import Cameras, Profile
from wamserve.sim_eval.suites import libero_boot, panda
from wamserve.sim_eval.task import TaskSpec

CONTRACTS = ("libero",)
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
# Policy steps after settling, as the original code and openpi count them; LeRobot gives spatial 280.
MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
SETTLE = 10  # steps of no motion and an open hand: objects come to rest
ORACLE_SUITES = ("libero_spatial", "libero_object")
WIDE = 0.072  # m; a wider object is pinched at its rim
AROUND = 0.03  # m from the hand to where the object should be held: what is in it is the object
# Objects are lifted this far above where they lay: over the edge of a container, or onto something low.
LIFT_ON, LIFT_IN, DROP = 0.22, 0.30, 0.08


def task_names(suite: str) -> list[str]:
    return [f"{suite}/{i}" for i in range(len(libero_boot.task_map()[suite]))]


def instruction(name: str) -> str:
    suite, _, index = name.partition("/")
    return libero_boot.language(libero_boot.task_map()[suite][int(index)])


def make(name: str, contract: Embodiment, profile: Profile) -> LiberoTask:
    return LiberoTask(name, contract, profile)


class LiberoTask:
    """One LIBERO task. Fixtures are placed by a fixed seed, since an initial state does not hold them."""

    def __init__(self, name: str, contract: Embodiment, profile: Profile) -> None:
        suite, _, index = name.partition("/")
        stem = libero_boot.task_map()[suite][int(index)]
        problems = libero_boot.boot()
        import libero.libero.envs.bddl_utils as bddl
        import mujoco
        import robosuite

        self.wire = wire = contract.wire
        self._contract, self._profile, self._mujoco = contract, profile, mujoco
        path = libero_boot.package() / "bddl_files" / suite / f"{stem}.bddl"
        try:
            problem = bddl.get_problem_info(str(path))["problem_name"]
            np.random.seed(0)  # LIBERO draws placements from numpy's global generator
            self._env: Any = problems[problem](
                str(path),
                robots=["Panda"],
                controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
                gripper_types="default",
                initialization_noise=None,
                use_camera_obs=False,
                has_renderer=False,
                has_offscreen_renderer=False,
                control_freq=wire.rate_hz,
                horizon=10**9,
                ignore_done=True,
                hard_reset=False,
            )
        except (FileNotFoundError, ValueError) as error:
            raise TaskError(f"{name} cannot be built", seen=str(error)[:300], fix=libero_boot.FIX) from None
        self._arm = panda.Arm(self._env, contract)
        self._inits = libero_boot.init_states(suite, stem)
        self._cameras: Cameras | None = None
        self._grasp: _Grasp | None = None
        self._fresh = True
        missing = [image.name for image in wire.images if image.name not in CAMERAS]
        if missing or wire.reply.form != "osc_deltas":
            raise ContractError(
                f"LIBERO does not speak {contract.name}",
                seen=f"views {missing}, reply {wire.reply.form}",
                expected="agentview, wrist; osc_deltas",
            )
        self.spec = TaskSpec(
            name=name,
            instruction=libero_boot.language(stem),
            contract=contract.name,
            rate_hz=wire.rate_hz,
            max_steps=MAX_STEPS[suite],
            settle_steps=SETTLE,
            views=tuple((image.name, image.height, image.width) for image in wire.images),
            image_orientation=panda.one_orientation(contract),
            states=tuple((state.name, state.dim) for state in wire.states),
            action_width=wire.reply.width,
            init_states=f"{stem}.pruned_init",
            init_count=len(self._inits),
            simulator=(
                f"robosuite {robosuite.__version__}, mujoco {mujoco.__version__},"
                f" hf-libero {version('hf-libero')}, assets {libero_boot.assets_digest()}"
            ),
            render_profile=profile,
        )

    def reset(self, init: int, seed: int) -> None:
        if not 0 <= init < len(self._inits):
            raise TaskError(
                f"{self.spec.name} has no initial state {init}", expected=f"0 .. {len(self._inits) - 1}"
            )
        env = self._env
        self._fresh = False
        np.random.seed(0)
        self._arm.forget()
        self._mujoco.mj_resetData(env.sim.model._model, env.sim.data._data)
        env.reset()
        env.sim.set_state_from_flattened(self._inits[init])
        env.sim.forward()
        self._arm.reset_goal()
        env._post_process()
        env._update_observables(force=True)
        rest = self.hold()
        for gripper in self.wire.reply.grippers:
            rest[gripper.index] = gripper.meaning.opened
        for _ in range(SETTLE):
            env.step(self._arm.command(rest))
        self._arm.refresh()
        self._grasp = None

    def step(self, action: np.ndarray) -> None:
        if self._grasp is None and self.spec.name.partition("/")[0] in ORACLE_SUITES:
            self._grasp = _Grasp.of(self._env)  # from the state after settling, whoever asks later
        self._env.step(self._arm.command(action))
        self._arm.refresh()

    def render(self) -> dict[str, np.ndarray]:
        images = self.wire.images
        if self._cameras is None:
            sim = self._env.sim
            self._cameras = Cameras(
                sim.model._model,
                sim.data._data,
                self._profile,
                max(image.height for image in images),
                max(image.width for image in images),
            )
        render = self._cameras.render
        return {i.name: render(CAMERAS[i.name], i.height, i.width, i.orientation) for i in images}

    def state(self) -> dict[str, np.ndarray]:
        return self._arm.state()

    def privileged(self) -> dict[str, np.ndarray]:
        if self.spec.name.partition("/")[0] not in ORACLE_SUITES:
            return {}
        if self._grasp is None:
            self._grasp = _Grasp.of(self._env)
        return {**self._arm.privileged(), **self._grasp.scene(self._env, self.success())}

    def hold(self) -> np.ndarray:
        return self._arm.hold()

    def success(self) -> bool:
        return bool(self._env._check_success())

    def progress(self) -> float:
        return float("nan")

    def sim_state(self) -> np.ndarray:
        return np.array(self._env.sim.get_state().flatten(), dtype=np.float64)

    def restore(self, sim_state: np.ndarray) -> None:
        if self._fresh:
            self.reset(0, 0)  # places the fixtures
        self._env.sim.set_state_from_flattened(sim_state)
        self._env.sim.forward()
        self._env._post_process()

    def close(self) -> None:
        if self._cameras is not None:
            self._cameras.close()
            self._cameras = None


@dataclass(frozen=True)
class _Grasp:
    """How the goal's object is to be taken and where it goes; fixed at the start of an episode."""

    target: str  # the object
    place: str  # object or site it goes to
    offset: np.ndarray  # [3] m from the object's body to the middle of its shape
    rim: np.ndarray  # [3] m from there to where the fingers close
    axis: np.ndarray  # [2] finger axis
    width: float  # m between the fingers when they hold it
    grasp_z: float  # m, grip height relative to the body
    bottom: float  # m, lowest point of the object when the episode began
    height: float  # m

    @classmethod
    def of(cls, env: Any) -> _Grasp:
        _, target, place = env.parsed_problem["goal_state"][0]
        body = np.array(env.sim.data.body_xpos[env.obj_body_id[target]])
        points = _shape(env, target)
        low, high = points.min(0), points.max(0)
        angles = np.linspace(0, np.pi, 36, endpoint=False)
        across = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # [36, 2] directions
        widths = np.ptp(points[:, :2] @ across.T, axis=0)
        narrow = int(np.argmin(widths))
        axis, width, rim = across[narrow], float(widths[narrow]), np.zeros(3)
        if width > WIDE:
            nearer = 1.0 if axis @ (np.array([-0.3, 0.0]) - body[:2]) > 0 else -1.0  # to the robot
            rim[:2] = axis * (width / 2 - 0.004) * nearer
            width = 0.008
        return cls(
            target,
            place,
            (low + high) / 2 - body,
            rim,
            axis,
            width,
            float(max(low[2] + 0.003, high[2] - 0.035) - body[2]),
            float(low[2]),
            float(high[2] - low[2]),
        )

    def scene(self, env: Any, placed: bool) -> dict[str, np.ndarray]:
        sim = env.sim
        body = np.array(sim.data.body_xpos[env.obj_body_id[self.target]])
        middle = body + self.offset
        grasp = np.array([*(middle + self.rim)[:2], body[2] + self.grasp_z])
        grip = np.array(sim.data.site_xpos[sim.model.site_name2id(panda.grip_site(env))])
        # A rim between the fingers often touches one of them beside its pad, which LIBERO calls no grasp.
        around = float(np.linalg.norm(grip - grasp)) < AROUND and panda.stopped_short(env)
        grasped = around or panda.holds(env, env.objects_dict[self.target])
        held = (grip if grasped else grasp) - middle  # from the object's middle to the hand
        site = self.place in env.object_sites_dict
        if site:
            goal = np.array(sim.data.site_xpos[sim.model.site_name2id(self.place)])
            travel = self.bottom + LIFT_IN
            height = travel - DROP
        else:
            goal = np.array(sim.data.body_xpos[env.obj_body_id[self.place]])
            travel = self.bottom + LIFT_ON
            height = goal[2] + 0.03 + self.height / 2 + held[2]
        return {
            "grasp_pos": grasp,
            "grasp_axis": self.axis,
            "object_width": np.array([self.width]),
            "grasped": np.array([float(grasped)]),
            "travel_z": np.array([travel]),
            "place_pos": np.array([goal[0] + held[0], goal[1] + held[1], height]),
            "placed": np.array([float(placed)]),
        }


def _shape(env: Any, name: str) -> np.ndarray:
    """World points [N, 3] that span an object's collision shapes."""
    import mujoco

    model, data = env.sim.model._model, env.sim.data._data
    inside = {env.obj_body_id[name]}
    for body in range(model.nbody):
        if model.body_parentid[body] in inside:
            inside.add(body)
    box = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], dtype=np.float64)
    points = []
    for geom in range(model.ngeom):
        if model.geom_bodyid[geom] not in inside or model.geom_group[geom] != 0:
            continue
        kind, size = model.geom_type[geom], model.geom_size[geom]
        if kind == mujoco.mjtGeom.mjGEOM_MESH:
            mesh = model.geom_dataid[geom]
            first = model.mesh_vertadr[mesh]
            corners = model.mesh_vert[first : first + model.mesh_vertnum[mesh]]
        elif kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
            corners = box * [size[0], size[0], size[1]]
        elif kind == mujoco.mjtGeom.mjGEOM_SPHERE:
            corners = box * size[0]
        else:
            corners = box * size
        points.append(corners @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
    return np.concatenate(points)

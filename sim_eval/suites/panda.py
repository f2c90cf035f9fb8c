"""The Panda of a robosuite-like environment, spoken to in the units of its contract."""

from __future__ import annotations

from typing import Any

import numpy as np

from wamserve.action_codec.errors import ContractError
from wamserve.action_codec.gripper import (
    FRACTION_ONE_IS_CLOSED,
    SIGN_ONE_IS_CLOSED,
    gripper_from_gripper,
)
from wamserve.embodiments.contract import Embodiment

OPEN_M = 0.08  # opening of the Panda hand, both fingers together
THIN = 0.003  # m: fingers closer than this hold nothing
RESTING = 0.005  # m/s of a finger that has been stopped


def one_orientation(contract: Embodiment) -> str:
    """The orientation all of a contract's images share."""
    seen = sorted({image.orientation for image in contract.wire.images})
    if len(seen) != 1:
        raise ContractError(f"{contract.name}: simulators here deliver one image orientation", seen=seen)
    return seen[0]


def _prefix(env: Any) -> str:
    """robosuite 1.5 names parts "gripper0_right_*", 1.4 "gripper0_*"."""
    return "gripper0_right_" if "gripper0_right_grip_site" in env.sim.model.site_names else "gripper0_"


def grip_site(env: Any) -> str:
    return f"{_prefix(env)}grip_site"


def hand(env: Any) -> Any:
    """robosuite's gripper model of the only arm."""
    gripper = env.robots[0].gripper
    return gripper["right"] if isinstance(gripper, dict) else gripper


def told_closed(env: Any) -> float:
    """Where the fingers have been sent so far: -1 open .. 1 closed. The command ramps, 0.2 a step."""
    return float(hand(env).current_action[-1])


def holds(env: Any, geoms: Any) -> bool:
    """Both fingers touch the object and have been told to close for long enough to press on it."""
    return told_closed(env) > 0.7 and bool(env._check_grasp(hand(env), geoms))


def stopped_short(env: Any) -> bool:
    """The fingers were told to close and came to rest with something between them."""
    prefix, sim = _prefix(env), env.sim
    left, right = (sim.model.get_joint_qpos_addr(f"{prefix}finger_joint{i}") for i in (1, 2))
    speeds = [sim.data.get_joint_qvel(f"{prefix}finger_joint{i}") for i in (1, 2)]
    apart = float(sim.data.qpos[left] - sim.data.qpos[right])
    return told_closed(env) > 0.99 and apart > THIN and max(map(abs, speeds)) < RESTING


def finger_axis(env: Any) -> np.ndarray:
    """Unit direction [2] in the table plane from the right finger to the left."""
    prefix, sim = _prefix(env), env.sim
    left = sim.data.body_xpos[sim.model.body_name2id(f"{prefix}leftfinger")]
    right = sim.data.body_xpos[sim.model.body_name2id(f"{prefix}rightfinger")]
    axis = np.array(left - right)[:2]
    return axis / max(float(np.linalg.norm(axis)), 1e-9)


class Arm:
    """Reads the arm's states by their contract names and turns reply rows into environment actions."""

    def __init__(self, env: Any, contract: Embodiment) -> None:
        self._env, self._wire = env, contract.wire
        (self._gripper,) = contract.wire.reply.grippers
        sim, prefix = env.sim, _prefix(env)
        self._site = sim.model.site_name2id(f"{prefix}grip_site")
        self._site_name = f"{prefix}grip_site"
        self._joints = list(env.robots[0]._ref_joint_pos_indexes)
        self._joint_velocities = list(env.robots[0]._ref_joint_vel_indexes)
        self._fingers = [sim.model.get_joint_qpos_addr(f"{prefix}finger_joint{i}") for i in (1, 2)]
        known = self.state()
        for state in contract.wire.states:
            if state.name not in known or known[state.name].size != state.dim:
                raise ContractError(
                    f"the simulated Panda has no state {state.name!r} of {state.dim} numbers",
                    expected=", ".join(f"{k}[{v.size}]" for k, v in self._all_states().items()),
                )

    def forget(self) -> None:
        """Controller and gripper as after construction: an episode must not know the one before."""
        gripper = hand(self._env)
        gripper.current_action = np.zeros_like(gripper.current_action)

    def reset_goal(self) -> None:
        """The controller holds where the arm is now, after its state was set from outside."""
        robot = self._env.robots[0]
        composite = getattr(robot, "composite_controller", None)
        controller = composite.part_controllers["right"] if composite else robot.controller
        controller.update(force=True)
        controller.reset_goal()

    def refresh(self) -> None:
        """Positions of bodies and cameras as of now: MuJoCo leaves those of one substep ago.

        Done after every step, so that what is seen and felt does not depend on who looked before. Forces
        and warm starts stay untouched.
        """
        import mujoco

        model, data = self._env.sim.model._model, self._env.sim.data._data
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)

    def command(self, action: np.ndarray) -> np.ndarray:
        """A reply row [A] -> the environment's action: joints inside their limits, gripper -1 open .. +1."""
        reply = self._wire.reply
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (reply.width,) or not np.isfinite(action).all():
            raise ContractError(
                "not an action row", seen=f"{action.shape} {action}", expected=f"[{reply.width}]"
            )
        out = action.copy()
        column = self._gripper.index
        out[column] = gripper_from_gripper(action[column], self._gripper.meaning, SIGN_ONE_IS_CLOSED, "clip")
        if reply.form == "joint_targets" and self._wire.joints is not None:
            out[:7] = np.clip(out[:7], self._wire.joints.low, self._wire.joints.high)
        else:
            out[:6] = np.clip(out[:6], -1.0, 1.0)
        return out

    def hold(self) -> np.ndarray:
        """Joints where they are, or no motion; the gripper keeps its opening's nearer end."""
        row = np.zeros(self._wire.reply.width)
        if self._wire.reply.form == "joint_targets":
            row[:7] = self._qpos(self._joints)
        row[self._gripper.index] = gripper_from_gripper(
            float(round(self._closed())), FRACTION_ONE_IS_CLOSED, self._gripper.meaning
        )
        return row

    def state(self) -> dict[str, np.ndarray]:
        known = self._all_states()
        return {state.name: known[state.name] for state in self._wire.states if state.name in known}

    def privileged(self) -> dict[str, np.ndarray]:
        """What an oracle needs of the arm, whatever the contract shows to a policy."""
        data, site = self._env.sim.data, self._site
        return {
            "joints": self._qpos(self._joints),
            "eef_pos": np.array(data.site_xpos[site]),
            "eef_vel": np.array(data.get_site_xvelp(self._site_name)),
            "finger_axis": finger_axis(self._env),
            "gripper_width": np.array([self._width()]),
            "gripper_told": np.array([told_closed(self._env)]),
            "base_pos": np.array(data.body_xpos[self._env.sim.model.body_name2id("robot0_base")]),
        }

    def _qpos(self, addresses: list[int]) -> np.ndarray:
        return np.array(self._env.sim.data.qpos[addresses], dtype=np.float64)

    def _width(self) -> float:
        left, right = self._qpos(self._fingers)
        return float(left - right)

    def _closed(self) -> float:
        return min(max(1.0 - self._width() / OPEN_M, 0.0), 1.0)

    def _all_states(self) -> dict[str, np.ndarray]:
        data = self._env.sim.data
        rotation = np.array(data.site_xmat[self._site]).reshape(3, 3)
        from scipy.spatial.transform import Rotation

        return {
            "joint_position": self._qpos(self._joints),
            "gripper_position": np.array([self._closed()]),
            "gripper_qpos": self._qpos(self._fingers),
            "eef_pos": np.array(data.site_xpos[self._site]),
            "eef_quat": Rotation.from_matrix(rotation).as_quat(),
        }

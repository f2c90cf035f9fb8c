"""A table with a red and a green cube of one size: only the instruction says which one to lift."""

from __future__ import annotations

from typing import Any

import numpy as np
from robosuite.environments.manipulation.stack import Stack
from robosuite.models.arenas import TableArena
from robosuite.models.objects import BoxObject
from robosuite.models.tasks import ManipulationTask
from robosuite.utils.mjcf_utils import CustomMaterial
from robosuite.utils.placement_samplers import UniformRandomSampler

HALF = 0.021  # m, half the edge of either cube
APART = 0.11  # m between centres at least: an open hand fits between the cubes
LIFTED = 0.04  # m above the table's surface, as robosuite's Lift asks


class TwoCubes(Stack):
    """robosuite's Stack with equal cubes further apart; success is the named cube up and the other down."""

    def __init__(self, *args: Any, target: str = "red", **kwargs: Any) -> None:
        self.target = target
        super().__init__(*args, **kwargs)

    def _load_model(self) -> None:
        super(Stack, self)._load_model()
        self.robots[0].robot_model.set_base_xpos(
            self.robots[0].robot_model.base_xpos_offset["table"](self.table_full_size[0])
        )
        arena = TableArena(
            table_full_size=self.table_full_size,
            table_friction=self.table_friction,
            table_offset=self.table_offset,
        )
        arena.set_origin([0, 0, 0])
        self.cubeA, self.cubeB = _cube("red", "WoodRed", 0), _cube("green", "WoodGreen", 1)
        cubes = [self.cubeA, self.cubeB]
        self.placement_initializer = UniformRandomSampler(
            name="ObjectSampler",
            mujoco_objects=cubes,
            x_range=[-0.08, 0.08],
            y_range=[-0.14, 0.14],
            rotation=None,
            ensure_object_boundary_in_range=False,
            ensure_valid_placement=True,
            reference_pos=self.table_offset,
            z_offset=0.01,
            rng=self.rng,
        )
        self.model = ManipulationTask(
            mujoco_arena=arena,
            mujoco_robots=[robot.robot_model for robot in self.robots],
            mujoco_objects=cubes,
        )

    def _reset_internal(self) -> None:
        super()._reset_internal()
        placed = {obj.name: (np.array(pos), quat, obj) for pos, quat, obj in self._placements()}
        for position, quat, obj in placed.values():
            self.sim.data.set_joint_qpos(obj.joints[0], np.concatenate([position, quat]))

    def _placements(self) -> list[tuple[Any, Any, Any]]:
        while True:
            drawn = list(self.placement_initializer.sample().values())
            (first, _, _), (second, _, _) = drawn
            if np.hypot(first[0] - second[0], first[1] - second[1]) >= APART:
                return drawn

    def lifted(self) -> dict[str, bool]:
        table = self.table_offset[2]
        heights = {
            "red": self.sim.data.body_xpos[self.cubeA_body_id][2],
            "green": self.sim.data.body_xpos[self.cubeB_body_id][2],
        }
        return {color: bool(z > table + LIFTED) for color, z in heights.items()}

    def _check_success(self) -> bool:
        lifted = self.lifted()
        return lifted.pop(self.target) and not any(lifted.values())

    def reward(self, action: Any = None) -> float:
        return float(self._check_success())


def _cube(color: str, texture: str, channel: int) -> Any:
    material = CustomMaterial(
        texture=texture,
        tex_name=f"{color}wood",
        mat_name=f"{color}wood_mat",
        tex_attrib={"type": "cube"},
        mat_attrib={"texrepeat": "1 1", "specular": "0.4", "shininess": "0.1"},
    )
    rgba = [0.0, 0.0, 0.0, 1.0]
    rgba[channel] = 1.0
    size = [HALF, HALF, HALF]
    return BoxObject(name=f"{color}_cube", size_min=size, size_max=size, rgba=rgba, material=material)

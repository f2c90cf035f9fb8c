"""A rendered scene that mirrors the arm: franky-sim's FR3, a floor, a red cube. Cameras `sim:twin:NAME`."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

os.environ.setdefault("MUJOCO_GL", "egl")

CUBE = (0.40, 0.16, 0.03)  # m, in the arm's base
CAMERA_X = (0.7071, -0.7071)  # picture's x axis in the hand's frame
HEIGHT, WIDTH = 90, 160  # the contract's aspect, small: rendering is in software


def scene() -> str:
    import franky_sim

    assets = Path(franky_sim.__file__).parent / "assets"
    root = ET.parse(assets / "fr3.xml").getroot()
    root.find("compiler").set("meshdir", str(assets / "meshes"))
    world = root.find("worldbody")
    ET.SubElement(
        world,
        "light",
        pos="0.5 0 2",
        dir="0 0 -1",
        directional="true",
        diffuse="0.7 0.7 0.7",
        castshadow="false",
    )
    ET.SubElement(world, "geom", type="plane", size="2 2 0.1", rgba="0.5 0.5 0.5 1")
    place = " ".join(map(str, CUBE))
    ET.SubElement(world, "geom", type="box", size="0.03 0.03 0.03", pos=place, rgba="0.9 0.05 0.05 1")
    ET.SubElement(world, "camera", name="front", pos="1.4 0.0 0.7", xyaxes="0 1 0 -0.45 0 0.9", fovy="50")
    ET.SubElement(world, "camera", name="side", pos="0.4 1.2 0.6", xyaxes="-1 0 0 0 -0.4 0.9", fovy="50")
    (hand,) = (body for body in world.iter("body") if body.get("name") == "hand")
    # Beside the fingers, looking where they point. At home the picture's x axis is the base's y axis.
    axes = f"{CAMERA_X[0]} {CAMERA_X[1]} 0 {CAMERA_X[1]} {-CAMERA_X[0]} 0"
    ET.SubElement(hand, "camera", name="wrist", pos="-0.06 -0.06 0.02", xyaxes=axes, fovy="80")
    return ET.tostring(root, encoding="unicode")


class Mirror:
    """Renders one camera of the scene for given joints. Made in the thread that renders: GL wants that."""

    def __init__(self, camera: str) -> None:
        self.camera = camera
        self._renderer = None

    def __call__(self, joints: np.ndarray, opening: float) -> np.ndarray:
        import mujoco

        if self._renderer is None:
            self._model = mujoco.MjModel.from_xml_string(scene())
            self._data = mujoco.MjData(self._model)
            names = [f"fr3_joint{i}" for i in range(1, 8)]
            self._joints = [self._model.joint(name).qposadr[0] for name in names]
            self._fingers = [self._model.joint(f"finger_joint{i}").qposadr[0] for i in (1, 2)]
            self._renderer = mujoco.Renderer(self._model, HEIGHT, WIDTH)
        self._data.qpos[self._joints] = joints
        self._data.qpos[self._fingers] = 0.04 * opening
        mujoco.mj_forward(self._model, self._data)
        self._renderer.update_scene(self._data, self.camera)
        return self._renderer.render().copy()


def wrist(width: int, height: int) -> Mirror:
    return Mirror("wrist")


def front(width: int, height: int) -> Mirror:
    return Mirror("front")


def side(width: int, height: int) -> Mirror:
    return Mirror("side")

"""Cameras of a MuJoCo scene, headless, rendered only when somebody asks."""

from __future__ import annotations

import ctypes.util
import os
from importlib import import_module
from typing import Any, Literal

import numpy as np

from wamserve.action_codec.errors import TaskError

Profile = Literal["full", "fast"]
PROFILES: tuple[Profile, ...] = ("full", "fast")

# rows as the renderer leaves them (bottom row first) -> rows as the policy gets them
ORIENTATIONS = {
    "upright": np.s_[::-1, :],
    "flipped_rows": np.s_[::-1, :],
    "rotated_180": np.s_[::-1, ::-1],
}


def choose_gl() -> str:
    """Names a headless GL backend in the environment; call it before MuJoCo is first imported."""
    chosen = os.environ.get("MUJOCO_GL")
    if not chosen:
        if ctypes.util.find_library("EGL"):
            chosen = "egl"
        elif ctypes.util.find_library("OSMesa"):
            chosen = "osmesa"
        else:
            raise TaskError(
                "no headless OpenGL library",
                seen="neither libEGL nor libOSMesa",
                fix="apt-get install -y --no-install-recommends libegl1 libgl1-mesa-dri",
            )
        os.environ["MUJOCO_GL"] = chosen
    if chosen in ("egl", "osmesa"):
        os.environ.setdefault("PYOPENGL_PLATFORM", chosen)
    return chosen


class Cameras:
    """One GL context for one model. Made on the first picture: a task nobody looks at costs no GL.

    "full" renders as the model's own settings say. "fast" leaves out shadows, reflections and
    antialiasing: about four times faster in software, and other pixels.
    """

    def __init__(self, model: Any, data: Any, profile: Profile, max_height: int, max_width: int) -> None:
        backend = choose_gl()
        import mujoco

        if profile not in PROFILES:
            raise TaskError("unknown render profile", seen=profile, expected=", ".join(PROFILES))
        self._mujoco, self._model, self._data = mujoco, model, data
        if profile == "fast":
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = max(640, max_width)
        model.vis.global_.offheight = max(480, max_height)
        # By name: mujoco.GLContext was chosen when MuJoCo was imported, perhaps before a backend was.
        self._gl: Any = import_module(f"mujoco.{backend}").GLContext(
            model.vis.global_.offwidth, model.vis.global_.offheight
        )
        self._gl.make_current()
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        if profile == "fast":
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # robosuite keeps collision shapes in group 0, what is seen in group 1
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)

    def render(self, camera: str, height: int, width: int, orientation: str) -> np.ndarray:
        """uint8 [height, width, 3] RGB of the scene as it is now."""
        mujoco = self._mujoco
        self._gl.make_current()
        self._camera.fixedcamid = self._model.camera(camera).id
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._option,
            None,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        rows = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(rows, None, viewport, self._context)
        return np.ascontiguousarray(rows[ORIENTATIONS[orientation]])

    def close(self) -> None:
        self._gl.make_current()  # or free() takes the names of another context's textures and lists
        self._context.free()
        self._gl.free()

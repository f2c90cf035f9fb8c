"""Brings hf-libero up headless: no prompt, no torch, no surprise download, on robosuite 1.4 or 1.5.

Import this before anything of `libero`. hf-libero asks on standard input for its first configuration,
imports torch to read numpy arrays, and was written for robosuite 1.4; its package stays unmodified.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import os
import pickle
import runpy
import sys
import types
import zipfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from wamserve.action_codec.errors import TaskError
from wamserve.sim_eval.render import choose_gl

ASSETS_VARIABLE = "WAMSERVE_LIBERO_ASSETS"
HUB_ID = "lerobot/libero-assets"  # a Hugging Face dataset
FIX = "wam sims install libero"


def package() -> Path:
    """Folder of the installed `libero.libero` package, found without importing it."""
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise TaskError("LIBERO is not installed", fix=FIX)
    return Path(next(iter(spec.submodule_search_locations))) / "libero"


@cache
def task_map() -> dict[str, list[str]]:
    """Suite -> file stems of its tasks, in the published order."""
    path = package() / "benchmark" / "libero_suite_task_map.py"
    names: dict[str, list[str]] = runpy.run_path(str(path))["libero_task_map"]
    return names


def language(stem: str) -> str:
    """ "KITCHEN_SCENE3_turn_on_the_stove" -> "turn on the stove", as LIBERO derives its instructions."""
    if stem[0].isupper():
        at = stem.find("SCENE")
        stem = stem[at + (8 if "SCENE10" in stem else 7) :]
    return stem.replace("_", " ")


def init_states(suite: str, stem: str) -> np.ndarray:
    """float64 [50, S] flattened simulator states: a torch zip file holding one numpy pickle, read as such."""
    allowed = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in allowed:
                raise pickle.UnpicklingError(f"{module}.{name} has no place in an array")
            return super().find_class(module.replace("numpy.core.", "numpy._core."), name)

    path = package() / "init_files" / suite / f"{stem}.pruned_init"
    try:
        with zipfile.ZipFile(path) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
            states = Reader(io.BytesIO(archive.read(member))).load()
    except (OSError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise TaskError(
            f"initial states of {suite}/{stem} cannot be read", seen=str(error), fix=FIX
        ) from None
    return np.asarray(states, dtype=np.float64)


def assets() -> Path:
    """Meshes and textures: $WAMSERVE_LIBERO_ASSETS, the package's own, or the user's cache."""
    named = os.environ.get(ASSETS_VARIABLE)
    places = [Path(named)] if named else [package() / "assets", Path("~/.cache/libero/assets").expanduser()]
    for place in places:
        if (place / "scenes").is_dir():
            return place
    raise TaskError(
        "LIBERO's meshes are not here",
        seen=", ".join(map(str, places)),
        expected="a folder with scenes/, textures/, stable_hope_objects/, ...",
        fix=f"wam sims install libero (fetches {HUB_ID}), or set {ASSETS_VARIABLE}",
    )


@cache
def assets_digest() -> str:
    """Eight hex digits over names and sizes: other meshes are other pixels."""
    root = assets()
    listing = sorted(f"{p.relative_to(root)} {p.stat().st_size}" for p in root.rglob("*") if p.is_file())
    return hashlib.sha256("\n".join(listing).encode()).hexdigest()[:8]


@cache
def boot() -> Any:
    """The problem classes by name (TASK_MAPPING), after everything hf-libero needs is in place."""
    choose_gl()
    folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "wamserve" / "libero"
    folder.mkdir(parents=True, exist_ok=True)
    root = package()
    wanted = (
        f"benchmark_root: {root}\nbddl_files: {root}/bddl_files\ninit_states: {root}/init_files\n"
        f"datasets: {folder}/datasets\nassets: {root}/assets\n"
    )
    config = folder / "config.yaml"
    if not config.is_file() or config.read_text() != wanted:
        temporary = config.with_suffix(f".{os.getpid()}")
        temporary.write_text(wanted)
        temporary.replace(config)
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)
    logging.disable(logging.WARNING)
    try:
        import robosuite

        if robosuite.__version__.startswith("1.5"):
            _teach_robosuite_15(robosuite)
        import libero.libero

        libero.libero._assets_path_cache = str(assets())
        if robosuite.__version__.startswith("1.5"):
            _teach_robots()
        from libero.libero.envs import TASK_MAPPING
    finally:
        logging.disable(logging.NOTSET)
    logging.getLogger("robosuite_logs").setLevel(logging.WARNING)
    return TASK_MAPPING


def _teach_robosuite_15(robosuite: Any) -> None:
    """The three names of robosuite 1.4 that hf-libero imports and 1.5 has renamed."""
    from robosuite.controllers import load_composite_controller_config, load_part_controller_config
    from robosuite.environments.manipulation.manipulation_env import ManipulationEnv
    from robosuite.robots.fixed_base_robot import FixedBaseRobot

    class SingleArmEnv(ManipulationEnv):
        def __init__(self, robots: Any, mount_types: str = "default", **kwargs: Any) -> None:
            super().__init__(robots=robots, base_types=mount_types, **kwargs)
            self.__dict__.pop("seed", None)  # 1.5 stores self.seed = None over LIBERO's method

    def load_controller_config(
        custom_fpath: str | None = None, default_controller: str = "OSC_POSE"
    ) -> dict[str, Any]:
        config: dict[str, Any] = load_composite_controller_config(controller=None, robot="Panda")
        if default_controller != "OSC_POSE":
            part = load_part_controller_config(default_controller=default_controller)
            part["gripper"] = config["body_parts"]["right"]["gripper"]
            config["body_parts"]["right"] = part
        return config

    for name, key, value in (
        ("robosuite.environments.manipulation.single_arm_env", "SingleArmEnv", SingleArmEnv),
        ("robosuite.robots.single_arm", "SingleArm", FixedBaseRobot),
    ):
        module = types.ModuleType(name)
        setattr(module, key, value)
        sys.modules.setdefault(name, module)
    robosuite.load_controller_config = load_controller_config


def _constant(value: Any, robot: Any) -> Any:
    return value


def _teach_robots() -> None:
    from libero.libero.envs.robots import MountedPanda, OnTheGroundPanda

    for robot, base in ((MountedPanda, "RethinkMount"), (OnTheGroundPanda, "NullMount")):
        robot.arms = ["right"]
        robot.default_base = property(partial(_constant, base))
        robot.default_gripper = property(lambda self: {"right": "PandaGripper"})
        robot.default_controller_config = property(lambda self: {"right": "default_panda"})

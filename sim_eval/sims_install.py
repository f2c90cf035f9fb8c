"""`wam sims install`: simulators whose own pins cannot resolve together, without CUDA builds or questions.

Each list in sims/ has two parts: what pip resolves, and, after a line --no-deps, packages whose declared
needs are wrong or pull a GPU build of torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path
from typing import Literal

from wamserve.action_codec.errors import TaskError

LISTS = Path(__file__).parent / "sims"
Simulator = Literal["libero", "robosuite", "pusht"]


def requirements(name: str) -> tuple[list[str], list[str]]:
    """(resolved by pip, installed without their dependencies) of sims/NAME.txt."""
    lines = [line.strip() for line in (LISTS / f"{name}.txt").read_text().splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    cut = lines.index("--no-deps")
    return lines[:cut], lines[cut + 1 :]


def this_package() -> list[str]:
    """Arguments for pip that install this very wamserve elsewhere."""
    found = distribution("wamserve")
    url = (found.read_text("direct_url.json") or "").partition('"url": "file://')[2].partition('"')[0]
    return ["-e", url] if url and Path(url).is_dir() else [f"wamserve=={found.version}"]


def commands(name: str, python: str, with_package: bool) -> list[list[str]]:
    """The pip calls, in order."""
    resolved, bare = requirements(name)
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    out = [[*pip, *resolved], [*pip, "--no-deps", *bare]]
    if with_package:
        out.append([*pip, "--no-deps", *this_package()])
    return out


def worker_home() -> Path:
    """Where environments of simulators with pins of their own live."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return cache / "wamserve" / "sims"


def install(
    simulator: Simulator,
    /,
    physics: Literal["1.5.2", "1.4.0"] = "1.5.2",
    assets: bool = True,
    dry_run: bool = False,
) -> int:
    """Install a simulator: libero, robosuite or pusht.

    Args:
        simulator: libero, robosuite or pusht.
        physics: of LIBERO: robosuite 1.5.2 in this environment, or 1.4.0, the published benchmark's, in an
            environment of its own, used by `wam eval ... --python`.
        assets: of LIBERO: fetch meshes and textures from the Hub into the user's cache.
        dry_run: print what would be run.
    """
    name = f"libero-{physics}" if simulator == "libero" else simulator
    python, own = sys.executable, simulator == "libero" and physics == "1.4.0"
    folder = worker_home() / name
    if own:
        python = str(folder / "bin" / "python")
    print(f"wam sims install: {name} into {folder if own else sys.prefix}", flush=True)
    if own and not dry_run and not Path(python).exists():
        venv.create(folder, with_pip=True)
    for command in commands(name, python, own):
        print("+", " ".join(command), flush=True)
        if not dry_run and subprocess.run(command).returncode:
            raise TaskError(
                f"{simulator} could not be installed", seen=" ".join(command), fix="run it by hand"
            )
    if simulator == "libero" and assets and not dry_run:
        fetch_assets()
    if own:
        print(f"use it: wam eval libero_object --python {python} ...")
    elif not dry_run:
        print(f"installed into {sys.prefix}")
    return 0


def fetch_assets() -> None:
    """LIBERO's meshes from the Hub into ~/.cache/libero/assets; nothing where they are there already."""
    from wamserve.sim_eval.suites.libero_boot import HUB_ID, assets

    try:
        print(f"assets: {assets()}")
        return
    except TaskError:
        pass
    target = Path("~/.cache/libero/assets").expanduser()
    print(f"assets: {HUB_ID} -> {target}", flush=True)
    try:
        from huggingface_hub import snapshot_download

        snapshot_download(HUB_ID, repo_type="dataset", local_dir=target)
    except Exception as error:
        raise TaskError(
            "LIBERO's assets could not be fetched",
            seen=str(error)[:200],
            expected=f"the dataset {HUB_ID} from huggingface.co",
            fix="set WAMSERVE_LIBERO_ASSETS to a folder that holds them",
        ) from None

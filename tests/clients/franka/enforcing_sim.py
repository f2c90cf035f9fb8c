"""franka-sim with its limits and communication reflexes on: `python enforcing_sim.py FR3.XML MESHES FOLDER`.

Its own arm model would come from the network; franky-sim's, with absolute mesh paths, does as well.
"""

import contextlib
import os
import sys
from pathlib import Path

from franka_sim.run_server import main


def start(model: str, meshes: str, folder: str) -> None:
    with contextlib.suppress(OSError):
        # A simulator that is starved is an arm that lost its connection.
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(30))
    copy = Path(folder) / "fr3.xml"
    copy.write_text(Path(model).read_text().replace('meshdir="assets"', f'meshdir="{meshes}"'))
    os.environ["FR3_MJCF"] = str(copy)
    sys.argv = ["sim", "--physics", "mujoco", "--enforce-motion-limits", "--enforce-comm-constraints"]
    main()


if __name__ == "__main__":
    start(*sys.argv[1:4])

"""franky-sim on one loopback address, stepped on absolute deadlines: `python fci_sim.py ADDRESS`.

It steps in real time as nearly as the machine allows; its own loop sleeps relatively and runs slow.
"""

import contextlib
import os
import sys
import time

import franky_sim
import numpy as np
from franky_sim.mujoco_simulator import MujocoSimulator

HOME = (0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, 0.0)


def main(address: str) -> None:
    with contextlib.suppress(OSError):
        # A simulator that is starved is an arm in slow motion.
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(30))
    with MujocoSimulator() as sim:
        start = np.array(HOME)
        start[6] += 0.2  # not at home: homing is part of the test
        sim.add_robot(initial_q=tuple(start))
        with franky_sim.SimulationServer(sim, hostname_candidates=[address]) as server:
            print("ready", flush=True)
            due = time.perf_counter()
            while True:
                server.run_once(realtime=False)
                due += 0.001
                left = due - time.perf_counter()
                if left > 0:
                    time.sleep(left)
                elif left < -0.05:
                    due = time.perf_counter()  # far behind: no burst


if __name__ == "__main__":
    main(sys.argv[1])

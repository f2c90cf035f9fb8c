"""What tests ask of an arm in the robot's own environment: `python arm_scripts.py NAME ADDRESS` says JSON."""

from __future__ import annotations

import json
import sys

import numpy as np

from wamserve.clients.franka.arm import ArmFault
from wamserve.clients.franka.backends import PositionArm, limits_for
from wamserve.clients.franka.kinematics import link_poses
from wamserve.clients.franka.run import HOME
from wamserve.embodiments.contract import load


def flange(address: str) -> dict:
    """Largest difference of flange poses between the contract's table and the arm's own model."""
    import franky

    arm = PositionArm(address, limits_for("position"), realtime=False)
    arm.connect()
    model = arm._robot.model
    chain = load("droid_lerobot").wire.kinematics
    eye = franky.Affine()
    worst = 0.0
    rng = np.random.default_rng(4)
    for _ in range(50):
        q = rng.uniform(arm.limits.arm.low, arm.limits.arm.high)
        theirs = np.array(model.pose(franky.Frame.Flange, q, eye, eye).matrix)
        worst = max(worst, float(np.abs(theirs - link_poses(chain, q)[-1]).max()))
    return {"worst": worst}


def recover(address: str) -> dict:
    """Provokes a reflex with franky's own limits, and looks at what each call then says."""
    arm = PositionArm(address, limits_for("position"), realtime=False)
    arm.connect()
    arm.go_to(np.array(HOME), 0.3)
    robot = arm._robot
    for limit, value in (
        (robot.joint_velocity_limit, 2.1),
        (robot.joint_acceleration_limit, 7.4),
        (robot.joint_jerk_limit, 3700.0),
    ):
        limit.set([value] * 7)
    out: dict = {"before": arm.needs_recovery()}
    q = np.array(HOME)
    try:
        for k in range(60):
            q[0] = 0.3 * (-1) ** (k // 4)
            arm.command(q, np.zeros(7))
            robot.join_motion(timeout=0.06)
        out["fault"] = ""
    except Exception as error:
        out["fault"] = str(error)
    out["needs"] = arm.needs_recovery()
    arm._sent = None
    try:
        for limit, value in (
            (robot.joint_velocity_limit, 1.0),
            (robot.joint_acceleration_limit, 2.0),
            (robot.joint_jerk_limit, 1000.0),
        ):
            limit.set([value] * 7)
        arm.go_to(np.array(HOME), 0.3)
        out["moved_unrecovered"] = True
    except ArmFault as error:
        out["moved_unrecovered"], out["refused"] = False, str(error)
    arm.recover()
    out["after"] = arm.needs_recovery()
    arm.go_to(np.array(HOME), 0.3)
    out["home"] = float(np.abs(arm.read().q - HOME).max())
    return out


if __name__ == "__main__":
    print(json.dumps({"flange": flange, "recover": recover}[sys.argv[1]](sys.argv[2])))

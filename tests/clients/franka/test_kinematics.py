"""The contract's kinematic table says where robosuite's Panda has its hand."""

import numpy as np
import pytest

from wamserve.clients.franka.kinematics import link_poses, tool_position
from wamserve.embodiments.contract import load

CHAIN = load("droid_lerobot").wire.kinematics


def test_at_zero_the_arm_stands_upright():
    # d1 + d3 + d5 - flange: straight up, the hand 88 mm in front, pointing down
    flange = link_poses(CHAIN, np.zeros(7))[-1]
    np.testing.assert_allclose(flange[:3, 3], [0.088, 0.0, 0.333 + 0.316 + 0.384 - 0.107], atol=1e-12)
    np.testing.assert_allclose(flange[:3, 2], [0.0, 0.0, -1.0], atol=1e-12)


def test_a_batch_is_its_rows():
    q = np.random.default_rng(0).uniform(-1, 1, (5, 3, 7))
    whole = link_poses(CHAIN, q)
    np.testing.assert_array_equal(whole[2, 1], link_poses(CHAIN, q[2, 1]))


def test_robosuites_panda_has_its_flange_and_tool_where_the_table_says():
    robosuite = pytest.importorskip("robosuite")
    import mujoco
    from robosuite.models.robots import Panda

    del robosuite
    model = Panda().get_model()
    data = mujoco.MjData(model)
    addresses = [
        model.jnt_qposadr[mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, f"robot0_joint{i}")]
        for i in range(1, 8)
    ]
    links = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, f"robot0_link{i}") for i in range(1, 8)]
    hand = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, "robot0_right_hand")
    base = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, "robot0_link0")
    rng = np.random.default_rng(1)
    for _ in range(20):
        q = rng.uniform(-1.5, 1.5, 7)
        data.qpos[addresses] = q
        mujoco.mj_forward(model, data)
        ours = link_poses(CHAIN, q)
        np.testing.assert_allclose(ours[:7, :3, 3], data.xpos[links] - data.xpos[base], atol=1e-9)
        z = data.xmat[hand].reshape(3, 3)[:, 2]
        # robosuite mounts the hand 106.5 mm after the last joint, half a millimetre before the flange.
        flange = data.xpos[hand] - data.xpos[base] + 0.0005 * z
        np.testing.assert_allclose(ours[7, :3, 3], flange, atol=1e-9)
        np.testing.assert_allclose(tool_position(CHAIN, q, 0.1034), flange + 0.1034 * z, atol=1e-9)

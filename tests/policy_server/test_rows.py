"""Measured states to model rows, model rows to commands: on hand numbers, and for every contract."""

import numpy as np
import pytest

from wamserve.action_codec.rotations import matrix_from_axis_angle, rot6d_from_matrix
from wamserve.clients.policy import Observation
from wamserve.embodiments.contract import load, names
from wamserve.policy_server.blank import blank_request
from wamserve.policy_server.rows import RowCodec

DROID = RowCodec(load("droid_lerobot"))


def droid(gripper):
    state = {
        "joint_position": np.arange(7, dtype=np.float32) / 10,
        "gripper_position": np.array([gripper], np.float32),
    }
    return Observation({}, state, "x")


def test_the_droid_state_row_is_joints_in_radians_and_an_opened_gripper():
    """The station says 1 = closed, the model was trained with 1 = open."""
    row = DROID.lead_rows(droid(0.25))
    assert row.shape == (1, 8)
    np.testing.assert_allclose(row[0], [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75], atol=1e-6)


def test_the_droid_reply_is_raw_joints_and_a_gripper_turned_back():
    rows = np.zeros((2, 8))
    rows[:, :7], rows[:, 7] = 0.5, [1.0, 0.2]
    np.testing.assert_allclose(DROID.commands_from_model(rows, droid(0.0))[:, 7], [0.0, 0.8], atol=1e-12)
    np.testing.assert_allclose(DROID.commands_from_model(rows, droid(0.0))[:, :7], 0.5)


@pytest.mark.parametrize(("name", "edge"), [("pusht_64", -1.0), ("pusht", -4.0)])  # 256 px and 64 px a unit
def test_pusht_targets_are_pixels_outside_and_units_of_its_contract_inside(name, edge):
    codec = RowCodec(load(name))
    seen = Observation({}, {"agent_pos": np.array([256.0, 0.0], np.float32)}, "")
    np.testing.assert_allclose(codec.lead_rows(seen), [[0.0, edge]], atol=0.01)
    np.testing.assert_allclose(codec.commands_from_model([[0.0, edge]], seen), [[256.0, 0.0]], atol=2.0)


@pytest.mark.parametrize("name", names())
def test_commands_already_sent_become_the_rows_they_came_from(name):
    """So that a committed prefix is exactly what was predicted."""
    contract = load(name)
    codec = RowCodec(contract)
    seen = blank_request(contract, contract.model.modes[0]).observation
    rng = np.random.default_rng(3)
    raw = np.zeros((5, contract.model.width))
    for block in contract.model.blocks:
        part = rng.uniform(0.1, 0.4, (5, block.stop - block.start))
        turned = contract.model.layout[block.name].rotation_columns
        raw[:, block.start : block.stop] = part
        if turned is not None and turned.stop - turned.start == 6:
            raw[:, turned] = rot6d_from_matrix(matrix_from_axis_angle(rng.normal(0, 0.05, (5, 3))))
        elif block.kind == "gripper" and block.gripper is not None:
            low, high = block.gripper.low, block.gripper.high
            raw[:, block.start] = rng.uniform(low, high, 5)
    model = codec.normalizer.actions.model_from_raw(raw)
    back = codec.model_from_commands(codec.commands_from_model(model, seen), seen)
    half = np.maximum(codec.normalizer.actions.half_width, 1e-6)
    error = np.abs(back - model) * np.where(codec.normalizer.actions.constant, 0, half)
    # a clamp makes rot6d columns no rotation; the robot is sent the nearest one
    assert error.max() < (1e-3 if contract.model.normalizer.clamp else 1e-6), name


@pytest.mark.parametrize("name", names())
def test_every_contract_with_a_state_row_measures_every_column(name):
    codec = RowCodec(load(name))
    if codec.lead:
        rows = codec.lead_rows(blank_request(codec.contract, codec.contract.model.modes[0]).observation)
        assert rows.shape == (codec.lead, codec.contract.model.width) and np.isfinite(rows).all()

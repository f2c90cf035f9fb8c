"""The checkpoint that ships: what its card says, what it answers, and that the instruction decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wamserve.clients.policy import Observation, Request
from wamserve.embodiments.contract import load
from wamserve.policy_server.card import CARD_FILE, read_card
from wamserve.policy_server.load import load_policy
from wamserve.policy_server.serve import default_checkpoint
from wamserve.policy_server.world_model.checkpoint import open_checkpoint, weights_hash
from wamserve.sim_eval.suites.robosuite import make

FOLDER = default_checkpoint()
pytestmark = pytest.mark.skipif(FOLDER is None, reason="no checkpoint ships with this tree")
PANDA = load("panda_joint")


@pytest.fixture(scope="module")
def policy():
    return load_policy(str(FOLDER), embodiment="panda_joint")


def seen(task: str, init: int, instruction: str) -> Observation:
    scene = make(task, PANDA, read_card(Path(FOLDER) / CARD_FILE).render_profile)
    scene.reset(init, init)
    observation = Observation(scene.render(), scene.state(), instruction)
    scene.close()
    return observation


def test_card_names_the_very_weights_the_contract_and_the_render_profile():
    card = read_card(Path(FOLDER) / CARD_FILE)
    assert card.weights_sha256 == weights_hash(open_checkpoint(FOLDER))
    assert card.modes(PANDA) == ("policy", "fd", "id")
    assert card.render_profile == "fast"


def test_folder_is_small_enough_for_git():
    sizes = [file.stat().st_size for file in Path(FOLDER).rglob("*") if file.is_file()]
    assert sum(sizes) < 40e6


def test_first_row_goes_on_from_where_the_arm_is(policy):
    observation = seen("robosuite/Lift", 3, "lift the cube")
    rows = policy.infer(Request(observation, seed=0)).chunk.actions
    assert rows.shape == (32, 8)
    assert np.abs(rows[0, :7] - observation.state["joint_position"]).max() < 0.5


def test_instruction_decides_which_cube_the_arm_goes_to(policy):
    observation = seen("two_cubes/red", 5, "lift the red cube")
    red, green = (
        policy.infer(
            Request(Observation(observation.images, observation.state, f"lift the {color} cube"), seed=0)
        ).chunk.actions
        for color in ("red", "green")
    )
    noise = policy.infer(Request(observation, seed=1)).chunk.actions
    assert np.abs(red - green)[:16, 0].max() > 2 * np.abs(red - noise)[:16, 0].max()  # the base joint

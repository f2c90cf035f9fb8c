"""A checkpoint folder named to `wam eval` becomes a policy of the task's own robot, or is refused."""

from __future__ import annotations

import pytest

from wamserve.action_codec.errors import CheckpointError
from wamserve.embodiments.contract import load
from wamserve.policy_server.blank import blank_request
from wamserve.policy_server.card import CARD_FILE, shipped_cards, write_card
from wamserve.policy_server.world_model.random_weights import write_random_checkpoint
from wamserve.sim_eval.policies import facts_of, resolve


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", "tiny-nano")


def test_folder_answers_as_the_tasks_robot_and_declares_its_weights(folder):
    write_card(shipped_cards()["random-weights"], folder / CARD_FILE)
    policy = resolve(str(folder), load("pusht"), "pusht/PushT")
    facts = facts_of(policy)
    assert (facts.contract, facts.wire_sha256) == ("pusht", load("pusht").wire_hash)
    assert len(facts.card["weights_sha256"]) == 64
    chunk = policy.infer(blank_request(load("pusht"), "policy")).chunk
    assert chunk.actions.shape == (16, 2)


def test_weights_trained_for_another_robot_are_refused(folder):
    write_card(shipped_cards()["nvidia/Cosmos3-Nano-Policy-DROID"], folder / CARD_FILE)
    with pytest.raises(CheckpointError, match="never trained for pusht"):
        resolve(str(folder), load("pusht"), "pusht/PushT")


def test_name_that_is_neither_folder_nor_hub_id_says_what_is_expected():
    with pytest.raises(CheckpointError, match="expected: a folder"):
        resolve("/no/such/folder", load("pusht"), "pusht/PushT")

"""Policy cards: what a checkpoint was trained for, and what it is therefore refused for."""

from dataclasses import replace

import pytest

from wamserve.action_codec.errors import CheckpointError, RequestError
from wamserve.clients.policy import Observation, Request
from wamserve.embodiments.contract import load, names
from wamserve.policy_server.card import (
    CARD_FILE,
    Trained,
    find_card,
    read_card,
    shipped_cards,
    write_card,
)

DROID, EDGE = "nvidia/Cosmos3-Nano-Policy-DROID", "nvidia/Cosmos3-Edge-Policy-DROID"
NANO, SUPER = "nvidia/Cosmos3-Nano", "nvidia/Cosmos3-Super"


def request(**options):
    return Request(Observation({}, {}, "Wait."), **options)


def test_the_public_checkpoints_and_random_weights_have_cards():
    assert {DROID, EDGE, NANO, SUPER, "random-weights"} <= set(shipped_cards())


@pytest.mark.parametrize("card", shipped_cards().values(), ids=lambda card: card.name)
def test_shipped_cards_sample_as_table_21_and_name_contracts_that_exist(card):
    assert (card.policy.steps, card.policy.guidance, card.policy.shift) == (4, 3.0, 5.0)
    for sampling in (card.fd, card.id):
        assert (sampling.steps, sampling.guidance, sampling.shift) == (50, 1.0, 5.0)
    for entry in card.trained:
        assert entry.embodiment == "*" or entry.embodiment in names()
        if entry.embodiment != "*":
            contract = load(entry.embodiment)
            assert set(entry.modes) <= set(contract.model.modes)
            for mode in entry.modes:
                card.check_use(contract, mode)


@pytest.mark.parametrize("name", [DROID, EDGE, NANO, SUPER])
def test_cards_of_public_checkpoints_pin_the_model_half_they_were_trained_with(name):
    """A contract edited in any field the training depends on no longer loads under these weights."""
    pinned = {entry.embodiment: entry.model_sha256 for entry in shipped_cards()[name].trained}
    assert pinned == {embodiment: load(embodiment).model_hash for embodiment in pinned}


def test_only_edge_limits_guidance_to_the_first_step():
    cards = shipped_cards()
    assert cards[EDGE].policy.interval == (960.0, 1001.0)
    assert cards[DROID].policy.interval is None


@pytest.mark.parametrize("name", [NANO, SUPER])
def test_a_base_checkpoint_is_refused_as_a_policy_with_the_reason(name):
    card = shipped_cards()[name]
    with pytest.raises(CheckpointError, match="never trained for droid_lerobot as a policy") as caught:
        card.check_use(load("droid_lerobot"), "policy")
    assert "never post-trained as a policy" in str(caught.value)
    with pytest.raises(CheckpointError, match="never trained for bridge_orig_lerobot as a policy"):
        card.check_use(load("bridge_orig_lerobot"), "policy")
    card.check_use(load("bridge_orig_lerobot"), "fd")


def test_the_droid_policy_is_refused_for_other_robots_and_modes():
    card = shipped_cards()[DROID]
    card.check_use(load("droid_lerobot"), "policy")
    with pytest.raises(CheckpointError, match=r"never trained for umi as a policy.*droid_lerobot \(policy\)"):
        card.check_use(load("umi"), "policy")
    with pytest.raises(CheckpointError, match="in mode 'fd'"):
        card.check_use(load("droid_lerobot"), "fd")
    assert card.default_embodiment() == "droid_lerobot"


def test_a_contract_that_changed_since_training_is_refused():
    droid = load("droid_lerobot")
    card = replace(shipped_cards()[DROID], trained=(Trained("droid_lerobot", ("policy",), droid.model_hash),))
    card.check_use(droid, "policy")
    moved = replace(droid, model=replace(droid.model, chunk=16))
    with pytest.raises(CheckpointError, match="trained with another model half of droid_lerobot"):
        card.check_use(moved, "policy")
    spoken = replace(droid, model=replace(droid.model, prompt_format="plain"))
    unpinned = replace(card, trained=(Trained("droid_lerobot", ("policy",)),))
    with pytest.raises(CheckpointError, match="word prompts differently; seen: plain; expected: json"):
        unpinned.check_use(spoken, "policy")


def test_requests_override_inside_the_bounds_only():
    card = shipped_cards()[DROID]
    assert card.requested(request(steps=8, guidance=1.5)) == replace(card.policy, steps=8, guidance=1.5)
    assert card.requested(request(mode="fd")) == card.fd
    for wrong in (
        {"steps": 0},
        {"steps": 101},
        {"steps": 2.5},
        {"guidance": 0.5},
        {"guidance": float("nan")},
    ):
        with pytest.raises(RequestError, match="outside what this checkpoint's card allows"):
            card.requested(request(**wrong))


@pytest.mark.parametrize("card", shipped_cards().values(), ids=lambda card: card.name)
def test_a_written_card_reads_back_equal(card, tmp_path):
    changed = replace(card, untrained='quotes " and \\ and ü', weights_sha256="ab" * 32)
    assert read_card(write_card(changed, tmp_path / CARD_FILE)) == changed


def test_the_card_beside_the_weights_comes_first_and_none_is_guessed(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"has no policy_card\.toml: what it was trained for is not known"
    ):
        find_card(tmp_path, "my/finetune")
    assert find_card(tmp_path, f"{DROID}@main").name == DROID
    own = replace(shipped_cards()[DROID], name="mine")
    write_card(own, tmp_path / CARD_FILE)
    assert find_card(tmp_path, f"{DROID}@main") == own
    assert find_card(tmp_path, "anything", card=EDGE).name == EDGE
    with pytest.raises(CheckpointError, match="no policy card nothing"):
        find_card(tmp_path, "anything", card="nothing")


def test_a_misspelt_card_is_refused(tmp_path):
    file = write_card(shipped_cards()[DROID], tmp_path / CARD_FILE)
    file.write_text(file.read_text().replace("guidance = 3.0", "guidence = 3.0"))
    with pytest.raises(CheckpointError, match=r"unknown key 'guidence'.*guidence -> guidance"):
        read_card(file)


@pytest.mark.parametrize(
    ("line", "wrong", "words"),
    [
        ("steps = 4", "steps = 0", "policy cannot be sampled; seen: unipc 0 steps"),
        ("shift = 5.0", "shift = -1.0", "policy cannot be sampled"),
        ("guidance = 3.0", "guidance = nan", "policy cannot be sampled"),
        ("guidance = 3.0", "guidance = 3.0\ninterval = [5.0, 1.0]", r"guidance 3 in 5 \.\. 1"),
        ("guidance = 3.0", "guidance = 3.0\ninterval = [5.0]", "interval has a wrong length"),
        ("steps = [1, 100]", "steps = [0, 100]", r"bounds\.steps are no bounds; seen: \[0, 100\]"),
        ("steps = [1, 100]", "steps = [9, 1]", r"bounds\.steps are no bounds"),
        ('schedule = "framework"', 'schedule = "native"', r"schedule is not a known choice.*framework"),
    ],
)
def test_a_card_nothing_can_be_sampled_with_is_refused_when_it_is_read(line, wrong, words, tmp_path):
    file = write_card(shipped_cards()[DROID], tmp_path / CARD_FILE)
    text = file.read_text()
    assert line in text
    file.write_text(text.replace(line, wrong, 1))
    with pytest.raises(CheckpointError, match=words):
        read_card(file)


def test_a_checkpoint_for_several_robots_asks_which():
    with pytest.raises(CheckpointError, match="serves more than one embodiment"):
        shipped_cards()[NANO].default_embodiment()

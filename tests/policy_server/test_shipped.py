"""What the repository ships can be served as it lies there, and is small enough to clone."""

from pathlib import Path

import pytest

from wamserve.embodiments.contract import load
from wamserve.policy_server.card import CARD_FILE, read_card
from wamserve.policy_server.serve import default_checkpoint

SHIPPED = Path(__file__).parents[2] / "checkpoints"
FOLDERS = sorted(path.parent for path in SHIPPED.glob("*/model_index.json"))


def test_without_a_name_the_panda_is_served():
    assert default_checkpoint() == SHIPPED / "panda-small"


def test_all_weights_together_are_at_most_40_mb():
    assert 0 < sum(file.stat().st_size for file in SHIPPED.rglob("*.safetensors")) <= 40e6


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_shipped_model_says_what_it_is_and_what_it_scores(folder):
    card = read_card(folder / CARD_FILE)
    assert card.trained
    for trained in card.trained:
        assert set(card.modes(load(trained.embodiment))) == {"policy", "fd", "id"}
    text = (folder / "MODEL_CARD.md").read_text()
    assert f"# {folder.name}" in text and "## Limits" in text
    assert (folder / "training.jsonl").is_file(), "the curve as data"

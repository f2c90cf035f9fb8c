"""The call that is compared with diffusers' has the shapes of the folder's contract, and equal actions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from wamserve.action_codec.errors import CheckpointError
from wamserve.embodiments.contract import load, names
from wamserve.embodiments.prompt import render
from wamserve.policy_server.card import CARD_FILE, Trained, shipped_cards, write_card
from wamserve.policy_server.engine.shapes import DROID, contract_shapes, folder_shapes
from wamserve.policy_server.engine.versus import EQUAL, print_versus, versus
from wamserve.policy_server.world_model.random_weights import write_random_checkpoint

cosmos = pytest.importorskip("diffusers.pipelines.cosmos.pipeline_cosmos3_omni")

ANY_CARD = shipped_cards()["random-weights"]


def put_card(folder: Path, *embodiments: str, **policy) -> Path:
    trained = tuple(Trained(name, ("policy",)) for name in embodiments)
    card = replace(ANY_CARD, trained=trained, policy=replace(ANY_CARD.policy, **policy))
    write_card(card, folder / CARD_FILE)
    return folder


def test_shapes_are_those_of_the_contract_that_the_card_names(tmp_path):
    found = folder_shapes(put_card(tmp_path, "panda_joint", steps=3, guidance=1.0))
    assert (found.picture, found.tier, found.fit.height, found.fit.width) == ((96, 192), "128", 96, 192)
    assert (found.domain, found.columns, found.chunk, found.rate_hz) == (10, 8, 32, 15)
    assert (found.steps, found.guidance, found.interval) == (3, 1.0, None)
    assert found.words == render(load("panda_joint").model, found.task)
    assert found.pixels(0).shape == (96, 192, 3) and (found.pixels(0) != found.pixels(1)).any()


def test_the_shipped_folder_is_compared_as_it_is_served():
    folder = Path(__file__).parents[3] / "checkpoints" / "panda-small"
    if not folder.is_dir():
        pytest.skip("no checkpoint ships with this tree")
    found = folder_shapes(folder)
    assert (found.name, found.picture, found.guidance, found.steps) == ("panda_joint", (96, 192), 1.0, 4)


def test_a_folder_without_a_contract_has_droids_shapes(tmp_path):
    assert folder_shapes(tmp_path) == DROID
    assert folder_shapes(put_card(tmp_path, "*")) == DROID
    assert folder_shapes(tmp_path, "pusht").name == "pusht", "unless one is named"


def test_a_card_of_several_contracts_is_asked_which(tmp_path):
    put_card(tmp_path, "pusht", "panda_joint")
    with pytest.raises(CheckpointError, match="more than one embodiment"):
        folder_shapes(tmp_path)
    assert folder_shapes(tmp_path, "panda_joint").columns == 8
    with pytest.raises(CheckpointError, match="never trained"):
        folder_shapes(tmp_path, "umi")


def test_a_guidance_interval_of_the_card_is_kept_where_it_guides(tmp_path):
    put_card(tmp_path, "pusht", guidance=2.0, interval=(960.0, 1001.0))
    assert folder_shapes(tmp_path).interval == (960.0, 1001.0)
    put_card(tmp_path, "pusht", guidance=1.0, interval=(960.0, 1001.0))
    assert folder_shapes(tmp_path).interval is None


def test_rows_before_the_chunk_are_left_out_unless_asked_for():
    found = contract_shapes(load("panda_joint"), ANY_CARD)
    assert found.lead == ["the state row"]
    assert (found.plan().lead, found.plan(lead=True).lead) == (0, 1)
    assert found.plan().chunk == found.plan(lead=True).chunk == 32
    assert contract_shapes(load("umi"), ANY_CARD).lead == []


@pytest.mark.parametrize("name", names())
def test_no_side_resizes_the_picture_of_any_contract(name):
    found = contract_shapes(load(name), ANY_CARD)
    assert found.picture == (found.fit.content_height, found.fit.content_width)
    assert not any(side % 16 for side in found.picture)


def test_droids_shapes_need_nothing_that_diffusers_lacks():
    assert DROID.tier in cosmos._ACTION_RESOLUTION_BINS and DROID.lead == []
    assert cosmos._EMBODIMENT_TO_DOMAIN_ID["droid_lerobot"] == DROID.domain
    assert cosmos._EMBODIMENT_TO_RAW_ACTION_DIM["droid_lerobot"] == DROID.columns
    words = cosmos.Cosmos3OmniPipeline._build_action_json_prompt(
        DROID.task, view_point=DROID.viewpoint, num_frames=33, fps=15.0,
        height=DROID.fit.height, width=DROID.fit.width,
    )  # fmt: skip
    assert words == DROID.words


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("random"), "tiny-nano")


TABLES = ("_ACTION_RESOLUTION_BINS", "_EMBODIMENT_TO_DOMAIN_ID", "_EMBODIMENT_TO_RAW_ACTION_DIM")


def test_actions_of_a_contract_equal_diffusers_which_was_handed_what_it_lacks(random_folder, capsys):
    tables = {name: dict(getattr(cosmos, name)) for name in TABLES}
    shapes = replace(contract_shapes(load("panda_joint"), ANY_CARD), chunk=8, steps=2, guidance=1.0)
    found = versus(random_folder, shapes, rounds=2, device="cpu", with_plain=True)
    assert found["max_action_difference"] < EQUAL < found["max_action"]
    assert found["handed_to_diffusers"] == ["tier 128", "domain 10 with 8 columns", "the prompt"]
    assert found["left_out_of_both"] == ["the state row"]
    assert list(found["median_s"]) == ["diffusers", "plain", "engine", "engine, with the state row"]
    assert tables == {name: getattr(cosmos, name) for name in TABLES}, "its tables are as they were"
    print_versus(found)
    said = capsys.readouterr().out
    assert (
        "picture 96 x 192 in tier 128" in said and "left out of both" in said and ": equal to 2e-04" in said
    )


def test_actions_of_droids_domain_equal_diffusers_with_nothing_handed(random_folder):
    """At the tier below, with a guidance interval."""
    small = replace(DROID, picture=(128, 160), tier="256", chunk=4, steps=2)
    words = DROID.words.replace('"H": 544, "W": 736', '"H": 256, "W": 320').replace("0:00-0:02", "0:00-0:00")
    found = versus(random_folder, replace(small, words=words.replace('"2s"', '"0s"')), 1, "cpu")
    assert found["max_action_difference"] < EQUAL < found["max_action"]
    assert found["handed_to_diffusers"] == found["left_out_of_both"] == []
    assert list(found["median_s"]) == ["diffusers", "engine", "engine, guidance interval"]

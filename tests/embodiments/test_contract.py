"""Contracts are data: complete, hashed, compared, and refused when they cannot be true."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wamserve.action_codec.errors import ContractError
from wamserve.embodiments import tables
from wamserve.embodiments.contract import HERE, diff, load, load_file, names
from wamserve.embodiments.registry import DOMAINS, REGISTRIES
from wamserve.embodiments.units import chunk_normalizer

ASKED_FOR = {
    "camera_pose": (2, 9),
    "av": (1, 9),
    "hand_pose": (3, 57),
    "agibotworld": (15, 29),
    "droid_lerobot": (8, 8),
    "droid_lerobot_midtrain": (8, 10),
    "robomind-franka": (8, 10),
    "robomind-franka-dual": (12, 20),
    "robomind-ur": (13, 10),
    "bridge_orig_lerobot": (7, 10),
    "fractal": (20, 10),
    "umi": (6, 10),
    "libero": (5, 10),
    "pusht": (4, 2),
    "pusht_64": (4, 2),
    "pusht_block": (14, 4),
    "panda_joint": (10, 8),
    "panda_osc": (11, 10),
}


def edited(tmp_path: Path, name: str, old: str, new: str) -> Path:
    text = (HERE / "contracts" / f"{name}.toml").read_text()
    assert old in text
    path = tmp_path / f"{name}.toml"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize("name", ASKED_FOR)
def test_every_embodiment_has_its_published_id_and_width(name):
    domain_id, width = ASKED_FOR[name]
    model = load(name).model
    assert (model.domain_id, model.width, model.layout.width) == (domain_id, width, width)


@pytest.mark.parametrize("name", names())
def test_every_contract_loads_normalizes_and_is_named_by_its_file(name):
    embodiment = load(name)
    assert embodiment.name == name
    assert chunk_normalizer(embodiment.model).actions.width == embodiment.model.width
    assert len(embodiment.model_hash) == len(embodiment.wire_hash) == 64


def test_released_droid_policy_has_its_published_shape():
    droid = load("droid_lerobot")
    assert (droid.model.chunk, droid.model.rate_hz, droid.model.state_row) == (32, 15, True)
    assert droid.model.normalizer.method == "none"
    assert droid.wire.reply.form == "joint_targets" and droid.wire.reply.width == 8
    panda = load("panda_joint")
    assert (panda.model.chunk, panda.model.rate_hz, panda.model.state_row, panda.model.width) == (
        32,
        15,
        True,
        8,
    )


def test_hashes_do_not_depend_on_the_process(tmp_path):
    code = (
        "from wamserve.embodiments.contract import load, names\n"
        "print([(load(n).model_hash, load(n).wire_hash) for n in names()])"
    )
    here = [(load(name).model_hash, load(name).wire_hash) for name in names()]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(here)


def test_hashes_ignore_comments_order_and_titles_and_nothing_else(tmp_path):
    umi = load("umi")
    same = load_file(edited(tmp_path, "umi", 'title = "', '# a comment\ntitle = "Other '))
    assert (same.model_hash, same.wire_hash) == (umi.model_hash, umi.wire_hash)
    zero = load_file(edited(tmp_path, "umi", "translation_scale = 1.0", "translation_scale = 1"))
    assert zero.model_hash == umi.model_hash
    view = load_file(edited(tmp_path, "umi", 'view_text = ""', 'view_text = "Fisheye."'))
    assert view.model_hash != umi.model_hash and view.wire_hash == umi.wire_hash
    wire = load_file(
        edited(
            tmp_path,
            "umi",
            "height = 224\nwidth = 224\norientation",
            "height = 224\nwidth = 225\norientation",
        )
    )
    assert wire.model_hash == umi.model_hash and wire.wire_hash != umi.wire_hash


def test_canonical_form_is_plain_sorted_json():
    parsed = json.loads(tables.canonical(load("pusht").wire))
    assert tables.canonical(load("pusht").wire) == json.dumps(parsed, sort_keys=True, separators=(",", ":"))


def leaves(value, path=()):
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), (*path, field.name))
    elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        for i, item in enumerate(value):
            yield from leaves(item, (*path, i))
    else:
        yield path, value


def replaced(value, path, new):
    if not path:
        return new
    head, *rest = path
    if isinstance(head, int):
        return (*value[:head], replaced(value[head], rest, new), *value[head + 1 :])
    return dataclasses.replace(value, **{head: replaced(getattr(value, head), rest, new)})


def other(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if value is None:
        return "x"
    return (*value, "x")


@pytest.mark.parametrize("half", ["model", "wire"])
@pytest.mark.parametrize("name", ["droid_lerobot_midtrain", "hand_pose", "panda_joint"])
def test_every_field_of_a_half_is_in_its_hash_and_in_the_diff(name, half):
    embodiment = load(name)
    count = 0
    for path, value in leaves(getattr(embodiment, half)):
        changed = dataclasses.replace(
            embodiment, **{half: replaced(getattr(embodiment, half), path, other(value))}
        )
        assert getattr(changed, f"{half}_hash") != getattr(embodiment, f"{half}_hash"), path
        assert diff(embodiment, changed)[half], path
        count += 1
    assert count > 15


def test_diff_names_the_half_and_the_field():
    fields = diff(load("droid_lerobot"), load("droid_lerobot_midtrain"))
    assert fields["model"]["action_space"] == ("joint_pos", "midtrain")
    assert fields["wire"]["reply.form"] == ("joint_targets", "pose_targets")
    assert fields["wire"]["states.joint_position.dim"] == (7, None)
    assert diff(load("umi"), load("umi")) == {"model": {}, "wire": {}}


def test_unknown_embodiment_lists_the_known_ones_and_the_nearest():
    with pytest.raises(ContractError) as error:
        load("droid_lerobt")
    text = str(error.value)
    assert "no embodiment 'droid_lerobt'" in text and "robomind-franka-dual" in text
    assert "try: wam ls embodiment droid_lerobot" in text


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("DROID_LEROBOT", "wam ls embodiment droid_lerobot"),
        ("robomind-f", "wam ls embodiment robomind-franka or wam ls embodiment robomind-franka-dual"),
        ("zzzz", "wam ls embodiments"),
    ],
)
def test_a_name_that_is_not_quite_right_finds_its_own(name, near):
    with pytest.raises(ContractError) as error:
        load(name)
    assert str(error.value).endswith(f"; try: {near}")


REFUSED = [
    ("chunk = 16", "chunks = 16", "unknown key 'chunks' in umi.model", "chunks -> chunk"),
    ("state_row = false\n", "", "missing key 'state_row' in umi.model", "state_row"),
    ("chunk = 16", 'chunk = "16"', "umi.model.chunk has a wrong type", "'16'"),
    (
        'viewpoint = "wrist_view"',
        'viewpoint = "wrist"',
        "umi.model.viewpoint is not a known choice",
        "wrist_view",
    ),
    ("stride = 3", "stride = 1", "the stride does not lead from the native rate", "60 Hz / 1"),
    ("domain_id = 6", "domain_id = 8", "registry 'framework' does not know this domain", "umi = 6"),
    ('registry = "framework"', 'registry = "wamserve"', "registry 'wamserve' does not know", "panda_joint"),
    (
        "start = 9\nstop = 10",
        "start = 10\nstop = 11",
        "umi: block 'gripper' leaves a gap before it",
        "expected: start 9",
    ),
    ('kind = "pose9_rel"', 'kind = "pose9"', "kind 'pose9' of block 'eef' is unknown", "pose9_rel"),
    ('track = "eef"', 'track = "hand"', "block 'eef' follows an unknown track", "hand"),
    ('views = ["wrist"]', 'views = ["front"]', "canvas views are not the wire's", "front"),
    ('name = "umi"', 'name = "umi2"', "the name is not the file's", "umi2"),
    (
        'stats = "umi_lerobot_stats.json"',
        'stats = "fractal_lerobot_stats.json"',
        "is not the declared one",
        "598978",
    ),
    ('measures = "eef.position"\n', "", "block 'eef' is not measured by any state", "eef.position"),
    ("chunk = 16", "chunk = 0", "umi: chunk is not positive", "seen: 0"),
    ("rate_hz = 20", "rate_hz = -20", "umi: rate_hz is not positive", "seen: -20"),
    ("history = 0", "history = -1", "umi: history is negative", "seen: -1"),
    ("xyz_wxyz[0:3]", "xyz_wxyz[0:2]", "position of track 'eef' has the wrong width", "3 numbers"),
    ("xyz_wxyz[3:7]", "xyz_wxyz[7:3]", "is empty", "i < j"),
    (
        "low = 0.0, high = 0.0967",
        "low = 0.0967, high = 0.0",
        "gripper range is empty",
        "low 0.0967, high 0.0",
    ),
    ('layout = "single"', 'layout = "over_pair"', "layout over_pair has another number of views", "seen: 1"),
    ("width = 224", "width = 240", "compose to another shape than the canvas", "224 x 240 or the same"),
    (
        "[1.0, 0.0, 0.0, 0.0]",
        "[1.1, 0.0, 0.0, 0.0]",
        "tool_offset of track 'eef' row 0 is not a rotation",
        "0.21",
    ),
    (
        'stats = "umi_lerobot_stats.json"',
        'stats = "mine.json"',
        "umi: no stats file mine.json",
        "try: put it into",
    ),
    ("index = 7", "index = 8", "reply gripper lies outside the row", "0 .. 7"),
    ("low = [-10.0,", "low = [10.0,", "eef_pos limits are upside down", "below"),
]


@pytest.mark.parametrize(
    ("old", "new", "message", "detail"), REFUSED, ids=[case[1] or case[0] for case in REFUSED]
)
def test_an_impossible_contract_is_refused_by_name(tmp_path, old, new, message, detail):
    with pytest.raises(ContractError) as error:
        load_file(edited(tmp_path, "umi", old, new))
    assert message in str(error.value) and detail in str(error.value)


def test_statistics_that_leave_rotations_unscaled_are_refused(tmp_path):
    """LIBERO's "global" block holds the identity for rotations; only "global_raw" was trained with."""
    with pytest.raises(ContractError) as error:
        load_file(edited(tmp_path, "libero", 'key = "global_raw"', 'key = "global"'))
    assert "libero: quantile_rot statistics leave the rotation of block 'rotation' un-scaled" in str(
        error.value
    )


def test_statistics_of_another_width_are_refused(tmp_path):
    with pytest.raises(ContractError) as error:
        load_file(edited(tmp_path, "umi", "columns = [0, 10]", "columns = [0, 9]"))
    assert "statistics and action rows differ in width; seen: 9 in umi_lerobot_stats.json" in str(error.value)


def test_a_file_that_is_no_contract_says_so(tmp_path):
    with pytest.raises(ContractError, match="no contract file"):
        load_file(tmp_path / "gone.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ContractError, match=r"bad\.toml is not TOML"):
        load_file(tmp_path / "bad.toml")


def test_own_domains_collide_with_no_published_id():
    published = {i for registry in ("framework", "diffusers") for i in REGISTRIES[registry].values()}
    own = list(REGISTRIES["wamserve"].values())
    assert len(set(own)) == len(own) and not published & set(own) and max(own) < DOMAINS


def test_the_two_published_registries_disagree_where_the_facts_say_so():
    assert REGISTRIES["framework"]["embodiment_b"] == REGISTRIES["diffusers"]["galbot"] == 9
    assert "galbot" not in REGISTRIES["framework"]


def test_droid_and_robomind_share_an_id_and_not_a_normalizer():
    droid, robomind = load("droid_lerobot_midtrain").model, load("robomind-franka").model
    assert droid.domain_id == robomind.domain_id
    wide = chunk_normalizer(robomind).actions.half_width[:3]
    narrow = chunk_normalizer(droid).actions.half_width[:3]
    assert (wide / narrow).max() == pytest.approx(4.65, abs=0.01)


@pytest.mark.parametrize("name", names())
def test_frame_transforms_and_tool_offsets_are_rigid(name):
    for track in load(name).model.tracks:
        for matrix in (np.array(track.frame_transform), np.array(track.tool_offset)[:3, :3]):
            np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-6)
            assert np.linalg.det(matrix) == pytest.approx(1.0, abs=1e-6)


def test_panda_chain_ends_where_a_panda_does():
    """Modified DH of the contract at q = 0: the flange is 0.088 m ahead and 0.926 m up, z pointing down."""
    table = load("droid_lerobot").wire.kinematics
    pose = np.eye(4)
    for a, d, alpha in zip(table.a, table.d, table.alpha, strict=True):
        c, s = math.cos(alpha), math.sin(alpha)
        pose = pose @ np.array([[1, 0, 0, a], [0, c, -s, -s * d], [0, s, c, c * d], [0, 0, 0, 1.0]])
    pose = pose @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, table.flange], [0, 0, 0, 1.0]])
    np.testing.assert_allclose(pose[:3, 3], [0.088, 0.0, 0.926], atol=1e-9)
    np.testing.assert_allclose(pose[:3, 2], [0.0, 0.0, -1.0], atol=1e-9)

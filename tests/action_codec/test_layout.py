"""Blocks cover a row exactly, know their kind, and are found by name only."""

import numpy as np
import pytest

from wamserve.action_codec.errors import CodecError
from wamserve.action_codec.layout import KINDS, Block, Layout
from wamserve.action_codec.rotations import FORMS

EEF = Block("eef", 0, 9, "pose9_rel", frame="earlier eef pose, OpenCV axes", unit="m, rot6d")
GRIPPER = Block("gripper", 9, 10, "gripper", unit="fraction, one_is_open")


def test_split_and_join_are_inverse():
    layout = Layout((EEF, GRIPPER))
    rows = np.arange(60.0).reshape(2, 3, 10)
    parts = layout.split(rows)
    assert layout.width == 10 and layout.names == ("eef", "gripper")
    assert parts["gripper"].tolist() == [[[9], [19], [29]], [[39], [49], [59]]]
    assert layout.join(parts).tolist() == rows.tolist()


def test_kinds_name_known_rotation_forms_and_their_widths():
    for name, kind in KINDS.items():
        if kind.rotation is not None:
            assert kind.width == FORMS[kind.rotation].width + 3 * kind.position, name


def test_rotation_columns_skip_the_position():
    assert EEF.rotation_columns == slice(3, 9)
    assert Block("r", 3, 9, "osc_rot6d").rotation_columns == slice(3, 9)
    assert GRIPPER.rotation_columns is None


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (
            lambda: Layout((EEF, Block("gripper", 10, 11, "gripper"))),
            "'gripper' leaves a gap before it.*expected: start 9",
        ),
        (lambda: Layout((EEF, Block("gripper", 8, 9, "gripper"))), "'gripper' overlaps the block before it"),
        (lambda: Layout((EEF, Block("eef", 9, 10, "gripper"))), "block names repeat; seen: eef"),
        (lambda: Layout(()), "layout has no blocks"),
        (
            lambda: Block("eef", 0, 10, "pose9_rel"),
            "'eef' has the wrong width for kind 'pose9_rel'; seen: 10; expected: 9",
        ),
        (
            lambda: Block("eef", 0, 9, "pose9"),
            "kind 'pose9' of block 'eef' is unknown; expected: .*pose9_rel",
        ),
        (lambda: Block("eef", 4, 4, "joint_abs"), "'eef' is empty"),
        (
            lambda: Layout((EEF, GRIPPER))["wrist"],
            "block 'wrist' is not in this layout; expected: eef, gripper",
        ),
        (
            lambda: Layout((EEF, GRIPPER)).check(np.ones((4, 8))),
            r"actions have the wrong width; seen: \[4, 8\]; expected: \[\.\.\., 10\] = eef 9 \| gripper 1",
        ),
        (lambda: Layout((EEF, GRIPPER)).check([[0.0] * 9 + [np.nan]]), "actions row 0 is not finite"),
        (
            lambda: Layout((EEF, GRIPPER)).join({"eef": np.ones(9)}),
            "parts do not match the layout; seen: gripper",
        ),
    ],
)
def test_wrong_layouts_get_one_clear_error(build, text):
    with pytest.raises(CodecError, match=text):
        build()

"""Grippers keep their meaning through every conversion; polarity is declared, never inferred."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wamserve.action_codec import gripper as g
from wamserve.action_codec.errors import CodecError

WIDTH = g.Gripper("one_is_open", "m", 0.0, 0.0967)
COUNTS = g.Gripper("one_is_closed", "count", 0.0, 120.0)
ALL = [
    g.FRACTION_ONE_IS_OPEN,
    g.FRACTION_ONE_IS_CLOSED,
    g.SIGN_ONE_IS_OPEN,
    g.SIGN_ONE_IS_CLOSED,
    WIDTH,
    COUNTS,
]


def test_open_and_closed_by_hand():
    assert g.open_fraction_from_gripper([0, 0.25, 1], g.FRACTION_ONE_IS_CLOSED).tolist() == [1, 0.75, 0]
    assert g.open_fraction_from_gripper([0, 60, 150], COUNTS, "clip").tolist() == [1, 0.5, 0]
    assert g.gripper_from_open_fraction([0, 0.5, 1], g.SIGN_ONE_IS_CLOSED).tolist() == [1, 0, -1]
    assert g.gripper_from_open_fraction([0, 1], WIDTH).tolist() == [0, 0.0967]


def test_libero_command_is_minus_one_when_open(shared):
    golden = np.load(shared / "golden/actions/libero.npz")
    to_env = g.gripper_from_gripper(
        golden["gripper_model"], g.FRACTION_ONE_IS_OPEN, g.SIGN_ONE_IS_CLOSED, "clip"
    )
    np.testing.assert_allclose(to_env, golden["gripper_env_zero_one"], atol=1e-12)


@given(st.sampled_from(ALL), st.sampled_from(ALL), st.lists(st.floats(0, 1), min_size=1))
def test_there_and_back_is_the_identity_and_open_stays_open(source, target, fractions):
    values = g.gripper_from_open_fraction(fractions, source)
    moved = g.gripper_from_gripper(values, source, target)
    np.testing.assert_allclose(g.gripper_from_gripper(moved, target, source), values, atol=1e-9)
    np.testing.assert_allclose(g.open_fraction_from_gripper(moved, target), fractions, atol=1e-9)


def test_hysteresis_does_not_chatter_around_the_middle():
    values = [0.5, 0.61, 0.5, 0.41, 0.39, 0.5, 0.59]
    opened = g.gripper_with_hysteresis(values, g.FRACTION_ONE_IS_OPEN, is_open=False)
    assert opened.tolist() == [0, 1, 1, 1, 0, 0, 0]
    closed = g.gripper_with_hysteresis([1 - v for v in values], g.FRACTION_ONE_IS_CLOSED, is_open=False)
    assert closed.tolist() == [1, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: g.Gripper("open"), "polarity 'open' is unknown; expected: one_is_open or one_is_closed"),
        (
            lambda: g.Gripper("one_is_open", "mm"),
            "gripper unit 'mm' is unknown; expected: fraction, m, sign, count",
        ),
        (
            lambda: g.open_fraction_from_gripper(0.5, COUNTS, "clamp"),
            "'clamp' is unknown; expected: pass, clip, refuse",
        ),
        (lambda: g.Gripper("one_is_open", "m", 0.1, 0.1), "gripper range is empty"),
        (
            lambda: g.open_fraction_from_gripper([0, 130.0], COUNTS, "refuse"),
            r"gripper row 1 lies outside its range; seen: 130\.0; expected: 0 .. 120 .count, one_is_closed",
        ),
        (lambda: g.open_fraction_from_gripper([0, np.nan], COUNTS), "gripper row 1 is not finite"),
        (lambda: g.gripper_with_hysteresis([0.0], WIDTH, True, 0.4, 0.4), "hysteresis is empty"),
    ],
)
def test_wrong_grippers_get_one_clear_error(call, text):
    with pytest.raises(CodecError, match=text):
        call()

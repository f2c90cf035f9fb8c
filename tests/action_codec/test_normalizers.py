"""Normalizers against the reference goldens; constants, clamps, state rows and mixed-up spaces are loud."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wamserve.action_codec import normalizers as n
from wamserve.action_codec.actions import ModelActions, RawActions, pad_model_actions, unpad_model_actions
from wamserve.action_codec.errors import CodecError
from wamserve.action_codec.layout import Block, Layout

LAYOUT = Layout((Block("eef", 0, 9, "pose9_rel"), Block("gripper", 9, 10, "gripper")))
NARROW = {"q01": [-0.01, 0.9], "q99": [0.03, 1.0]}
CASES = {
    "quantile": {"method": "quantile"},
    "quantile_rot": {"method": "quantile_rot"},
    "quantile_rot_scale_floor": {"method": "quantile_rot", "scale_floor": True},
    "asinh_rot": {"method": "quantile_rot", "warp": "asinh"},
    "piecewise_asinh_rot": {"method": "quantile_rot", "warp": "piecewise_asinh"},
    "meanstd": {"method": "meanstd"},
    "minmax": {"method": "minmax"},
    "quantile_clamped": {"method": "quantile", "clamp": True},
}


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden/actions/codec_unit.npz")


@pytest.fixture(scope="module")
def libero(shared):
    return json.loads(
        (shared / "data/normalizer_stats/libero_native_frame_wise_relative_rot6d.json").read_text()
    )


def build(document, method, key="global_raw", **options):
    return n.normalizer_from_stats(method, n.stats_block(document, method, key), **options)


@pytest.mark.parametrize("name", CASES)
def test_every_method_normalizes_the_golden_rows(golden, libero, name):
    normalizer = build(libero, **CASES[name])
    model = normalizer.to_model(RawActions(golden["norm_x"]))
    np.testing.assert_allclose(model.values, golden[f"norm_libero_raw_{name}"], atol=1e-5)
    if f"denorm_libero_raw_{name}" in golden.files:
        raw = normalizer.to_raw(ModelActions(golden[f"norm_libero_raw_{name}"]))
        np.testing.assert_allclose(raw.values, golden[f"denorm_libero_raw_{name}"], atol=1e-6)


def test_libero_rows_normalize_with_the_raw_rotation_statistics(shared, libero):
    golden = np.load(shared / "golden/actions/libero.npz")
    right = build(libero, "quantile_rot", key=None)
    right.check_layout(LAYOUT)
    np.testing.assert_allclose(
        right.to_model(RawActions(golden["action_raw_6d"])).values,
        golden["action_norm_quantile_rot"],
        atol=1e-4,
    )
    # Rotations with the statistics of the identity normalize without complaint, and wrongly.
    wrong = build(libero, "quantile_rot", key="global")
    np.testing.assert_allclose(
        wrong.to_model(RawActions(golden["action_raw_6d"])).values,
        golden["action_norm_WRONG_global_key"],
        atol=1e-4,
    )
    with pytest.raises(
        CodecError, match=r"leave the rotation of block 'eef' un-scaled.*statistics block 'global_raw'"
    ):
        wrong.check_layout(LAYOUT)


@given(
    arrays(np.float64, (6, 2), elements=st.floats(-5, 5)),
    st.sampled_from(["none", "asinh", "piecewise_asinh"]),
)
@settings(deadline=None)
def test_decoding_undoes_encoding_without_a_clamp(x, warp):
    normalizer = n.normalizer_from_stats("quantile", NARROW, warp=warp)
    again = normalizer.to_raw(normalizer.to_model(RawActions(x))).values
    np.testing.assert_allclose(again, x, atol=1e-9)


@given(arrays(np.float64, (6, 2), elements=st.floats(-5, 5)))
@settings(deadline=None)
def test_a_clamp_loses_exactly_what_lies_outside_the_quantiles(x):
    normalizer = n.normalizer_from_stats("quantile", NARROW, clamp=True)
    again = normalizer.to_raw(normalizer.to_model(RawActions(x))).values
    low, high = np.array(NARROW["q01"]), np.array(NARROW["q99"])
    np.testing.assert_allclose(again, np.clip(x, low, high), atol=1e-12)
    bound = np.maximum(np.maximum(x - high, low - x), 0.0)
    np.testing.assert_allclose(normalizer.clamp_loss(x), bound, atol=1e-12)


def test_low_quantile_is_minus_one_and_high_is_one():
    normalizer = n.normalizer_from_stats("quantile", NARROW)
    assert normalizer.model_from_raw(np.array([NARROW["q01"], NARROW["q99"]])).round(12).tolist() == [
        [-1, -1],
        [1, 1],
    ]


def test_scale_multiplies_on_the_way_to_the_model():
    av = n.scale_normalizer([1.35] * 3 + [1.0] * 6)
    metres = RawActions([[2.0, 0, 0, 1, 0, 0, 0, 1, 0]])
    model = av.to_model(metres)
    assert model.values[0, 0] == pytest.approx(2.7)
    np.testing.assert_allclose(av.to_raw(model).values, metres.values)


def test_none_changes_nothing():
    rows = RawActions(np.random.default_rng(0).normal(size=(4, 8)))
    assert n.no_normalizer(8).to_model(rows).values.tolist() == rows.values.tolist()


@pytest.mark.parametrize(("form", "value"), [("action_normalization", -1.0), ("affine", 0.0)])
def test_constant_dimensions_read_as_declared_where_the_reference_explodes(golden, form, value):
    stats = {"q01": golden["const_q01"], "q99": golden["const_q99"]}
    on, off = golden["const_x"][:1], golden["const_x"][1:]
    assert np.abs(golden[f"const_norm_{form}"][1]).max() > 1e7
    strict = n.normalizer_from_stats("quantile", stats, constant=(0, 1), constant_value=value)
    np.testing.assert_allclose(strict.model_from_raw(on), golden[f"const_norm_{form}"][:1], atol=1e-7)
    np.testing.assert_allclose(strict.raw_from_model(strict.model_from_raw(on)), on)
    with pytest.raises(
        CodecError, match=r"dimension 0 is constant here, but row 0 is off it; seen: 0\.1.*expected: 0\.0"
    ):
        strict.to_model(RawActions(off))
    loose = n.normalizer_from_stats(
        "quantile", stats, constant=(0, 1), constant_value=value, off_constant="ignore"
    )
    assert loose.model_from_raw(off)[0, :2].tolist() == [value, value]
    assert loose.raw_from_model([[9.0, 9.0, 0.0]])[0].tolist() == [0.0, 1.0, 0.0]


def test_undeclared_constants_are_refused_with_the_fix(golden):
    stats = {"q01": golden["const_q01"], "q99": golden["const_q99"]}
    with pytest.raises(CodecError, match=r"dimensions \[0, 1\] never move.*try: constant=\(0, 1\)"):
        n.normalizer_from_stats("quantile", stats)


def test_a_narrow_range_above_the_floor_is_not_a_constant():
    head = n.normalizer_from_stats("quantile", {"q01": [0.999999], "q99": [1.0]})
    assert head.model_from_raw([[1.0]])[0, 0] == pytest.approx(1.0)


def test_state_rows_use_their_own_statistics():
    actions = n.normalizer_from_stats("quantile", NARROW)
    state = n.normalizer_from_stats("meanstd", {"mean": [0.5, 0.0], "std": [0.25, 2.0]})
    both = n.ChunkNormalizer(actions, state)
    raw = RawActions([[0.75, 2.0], [0.03, 0.9]], state_rows=1)
    model = both.to_model(raw)
    np.testing.assert_allclose(model.values, [[1.0, 1.0], [1.0, -1.0]], atol=1e-12)
    assert model.state_rows == 1
    np.testing.assert_allclose(both.to_raw(model).values, raw.values, atol=1e-12)


def test_a_state_row_never_passes_through_delta_statistics():
    raw = RawActions([[0.75, 2.0], [0.03, 0.9]], state_rows=1)
    actions = n.normalizer_from_stats("quantile", NARROW)
    for normalizer in (actions, n.ChunkNormalizer(actions)):
        with pytest.raises(CodecError, match="1 state rows cannot pass through the action normalizer"):
            normalizer.to_model(raw)
    unnormalized = n.ChunkNormalizer(n.no_normalizer(2)).to_model(raw)
    assert unnormalized.values.tolist() == raw.values.tolist() and unnormalized.state_rows == 1


def test_raw_and_model_actions_cannot_stand_in_for_each_other():
    normalizer = n.normalizer_from_stats("quantile", NARROW)
    raw, model = RawActions([[0.0, 0.95]]), ModelActions([[0.0, 0.95]])
    with pytest.raises(CodecError, match="ModelActions were given where RawActions belong"):
        normalizer.to_model(model)
    with pytest.raises(CodecError, match="RawActions were given where ModelActions belong"):
        normalizer.to_raw(raw)
    with pytest.raises(CodecError, match="ndarray were given where RawActions belong"):
        normalizer.to_model(raw.values)
    with pytest.raises(CodecError, match="ModelActions were given where RawActions belong"):
        n.ChunkNormalizer(normalizer).to_model(model)
    with pytest.raises(CodecError, match="RawActions were given where ModelActions belong"):
        pad_model_actions(raw)
    with pytest.raises(ValueError, match="read-only"):
        raw.values[0, 0] = 1.0


def test_padding_to_the_model_width_and_its_mask(golden):
    padded, mask = pad_model_actions(ModelActions(golden["pad_x"]))
    np.testing.assert_array_equal(padded, golden["pad_y64"])
    assert mask.tolist() == [True] * 10 + [False] * 54
    np.testing.assert_array_equal(unpad_model_actions(padded, 10).values, golden["pad_x"])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: n.normalizer_from_stats("quantile", NARROW).to_model(RawActions(np.ones((3, 8)))),
            "RawActions have the wrong width for this normalizer; seen: 8; expected: 2",
        ),
        (lambda: RawActions([[0.0, 1.0], [np.nan, 0.0]]), "RawActions row 1 is not finite"),
        (lambda: RawActions([0.0, 1.0]), r"RawActions need rows and columns; seen: \[2\]"),
        (
            lambda: RawActions([[0.0]], state_rows=2),
            "state rows do not fit the chunk; seen: 2; expected: 0 .. 1",
        ),
        (
            lambda: n.normalizer_from_stats("quantile", {"mean": [0.0]}),
            "statistic 'q01' is missing for method 'quantile'; seen: mean",
        ),
        (lambda: n.normalizer_from_stats("none", NARROW), "method 'none' takes no statistics"),
        (
            lambda: n.normalizer_from_stats("quantile", {"q01": [1.0], "q99": [0.0]}),
            r"upside down in dimensions \[0\]",
        ),
        (
            lambda: n.normalizer_from_stats("quantile", NARROW, constant=(5,)),
            r"constant dimensions do not exist; seen: \[5\]",
        ),
        (
            lambda: n.normalizer_from_stats("quantile", NARROW, warp="sinh"),
            "warp 'sinh' is unknown; expected: none",
        ),
        (
            lambda: n.Normalizer("zscore", [0.0], [1.0], [False]),
            "method 'zscore' is unknown; expected: quantile",
        ),
        (
            lambda: n.Normalizer("minmax", [0.0], [0.0], [False]),
            r"half-width is not positive in dimensions \[0\]",
        ),
        (lambda: n.scale_normalizer([1.35, 0.0]), "one positive number per dimension"),
        (
            lambda: n.stats_block({"global": {}, "global_raw": {}}, "quantile"),
            "does not say which statistics block to read; seen: global, global_raw",
        ),
        (
            lambda: n.stats_block({"global": {}}, "quantile_rot"),
            "statistics block 'global_raw' does not exist; seen: global",
        ),
        (
            lambda: n.stats_block(NARROW, "quantile", "global"),
            "'global' does not exist; seen: a flat document",
        ),
        (
            lambda: n.normalizer_from_stats("quantile", NARROW).check_layout(LAYOUT),
            "normalizer and layout differ in width; seen: 2; expected: 10",
        ),
        (lambda: pad_model_actions(ModelActions(np.ones((2, 65)))), "wider than the model; seen: 65"),
        (lambda: unpad_model_actions(np.ones((2, 8)), 10), "padded actions are too narrow"),
    ],
)
def test_bad_input_gets_one_clear_error(call, text):
    with pytest.raises(CodecError, match=text):
        call()

"""Every rotation form against the reference goldens, SciPy and its axioms; bad input by its error text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from wamserve.action_codec import rotations as rot
from wamserve.action_codec.errors import CodecError

FORM_OF_GOLDEN = {
    "rot6d": "rot6d",
    "rot9d": "rot9d",
    "quat_xyzw": "quat_xyzw",
    "quat_wxyz": "quat_wxyz",
    "euler_xyz": "euler_xyz",
    "axisangle": "axis_angle",
}
rotvecs = arrays(np.float64, (5, 3), elements=st.floats(-4.0, 4.0, allow_subnormal=False))


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden/actions/codec_unit.npz")


def random_matrices(count, seed=0):
    return Rotation.random(count, random_state=seed).as_matrix()


@pytest.mark.parametrize("name", FORM_OF_GOLDEN)
def test_every_form_reads_and_writes_the_golden_rotations(golden, name):
    form = rot.rotation_form(FORM_OF_GOLDEN[name])
    np.testing.assert_allclose(form.to_matrix(golden[f"rot_{name}"]), golden["rot_matrix"], atol=1e-6)
    written, expected = form.from_matrix(golden["rot_matrix"]), golden[f"rot_{name}"]
    if name.startswith("quat"):  # both signs are the same rotation
        expected = expected * np.sign((written * expected).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(written, expected, atol=1e-6)


def test_noisy_rot6d_goes_to_the_rotation_the_reference_svd_finds(golden):
    np.testing.assert_allclose(
        rot.matrix_from_rot6d(golden["noisy_rot6d"]), golden["noisy_rot6d_svd_matrix"], atol=5e-6
    )


def test_closed_form_polar_equals_the_svd_it_stands_for():
    x = np.random.default_rng(1).normal(size=(500, 6))
    columns = np.stack([x[:, :3], x[:, 3:], np.cross(x[:, :3], x[:, 3:])], axis=-1)
    u, _, vt = np.linalg.svd(columns)
    np.testing.assert_allclose(rot.matrix_from_rot6d(x), u @ vt, atol=1e-9)


@given(rotvecs, st.floats(2e-6, 1.0), st.floats(1e-3, 1e3))
@settings(max_examples=80, deadline=None)
def test_even_almost_parallel_columns_give_a_true_rotation(vectors, angle, scale):
    r = rot.matrix_from_axis_angle(vectors)
    c0, c1 = r[:, :, 0], np.cos(angle) * r[:, :, 0] + np.sin(angle) * r[:, :, 1]
    nearest = rot.matrix_from_rot6d(scale * np.concatenate([c0, c1], axis=-1))
    rot.require_rotation(nearest, tolerance=1e-8)
    # By symmetry both columns are turned alike, each by half of what is missing to a right angle.
    middle = np.arctan2(np.sin(angle), 1 + np.cos(angle)) - np.pi / 4
    expected = r @ rot.matrix_from_axis_angle([0, 0, middle])
    assert np.rad2deg(rot.angle_between(nearest, expected)).max() < 1e-6


def test_rot6d_of_the_identity_is_column_zero_then_column_one():
    assert rot.rot6d_from_matrix(np.eye(3)).tolist() == [1, 0, 0, 0, 1, 0]
    quarter_turn = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]  # x axis goes to y, y axis to -x
    assert rot.rot6d_from_matrix(quarter_turn).tolist() == [0, 1, 0, -1, 0, 0]
    assert rot.rot9d_from_matrix(quarter_turn).tolist() == [0, -1, 0, 1, 0, 0, 0, 0, 1]


def test_rot6d_scale_does_not_matter_when_columns_are_orthogonal():
    r = random_matrices(20)
    np.testing.assert_allclose(rot.matrix_from_rot6d(1e-3 * rot.rot6d_from_matrix(r)), r, atol=1e-12)


@given(rotvecs)
@settings(max_examples=60, deadline=None)
def test_forms_agree_with_scipy(vectors):
    scipy = Rotation.from_rotvec(vectors)
    matrix = rot.matrix_from_axis_angle(vectors)
    np.testing.assert_allclose(matrix, scipy.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(rot.matrix_from_quat_xyzw(scipy.as_quat()), matrix, atol=1e-12)
    euler = Rotation.from_euler("xyz", vectors)
    np.testing.assert_allclose(rot.matrix_from_euler_xyz(vectors), euler.as_matrix(), atol=1e-12)
    assert np.abs(rot.axis_angle_from_matrix(matrix)).max() <= np.pi + 1e-9


@given(rotvecs, st.sampled_from(sorted(rot.FORMS)))
@settings(max_examples=120, deadline=None)
def test_writing_then_reading_any_form_is_the_identity(vectors, name):
    matrix = rot.matrix_from_axis_angle(vectors)
    form = rot.rotation_form(name)
    again = form.to_matrix(form.from_matrix(matrix))
    # Near half a turn and near gimbal lock a matrix fixes the vector only to the root of its precision.
    assert np.rad2deg(rot.angle_between(again, matrix)).max() < 1e-5


def test_half_turns_about_every_axis_survive_axis_angle_and_quaternion():
    for axis in np.vstack([np.eye(3), random_matrices(10)[:, 0]]):
        matrix = Rotation.from_rotvec(np.pi * axis).as_matrix()
        vector = rot.axis_angle_from_matrix(matrix)
        assert np.linalg.norm(vector) == pytest.approx(np.pi)
        np.testing.assert_allclose(rot.matrix_from_axis_angle(vector), matrix, atol=1e-12)


def test_gimbal_lock_still_writes_the_same_rotation():
    for pitch in (np.pi / 2, -np.pi / 2):
        matrix = rot.matrix_from_euler_xyz([0.3, pitch, -1.1])
        euler = rot.euler_xyz_from_matrix(matrix)
        assert euler[2] == 0.0
        np.testing.assert_allclose(rot.matrix_from_euler_xyz(euler), matrix, atol=1e-9)


def test_zero_and_tiny_rotation_vectors_are_exact():
    assert rot.matrix_from_axis_angle(np.zeros(3)).tolist() == np.eye(3).tolist()
    assert rot.axis_angle_from_matrix(np.eye(3)).tolist() == [0.0, 0.0, 0.0]
    for size in (1e-3, 1e-8, 1e-12, 1e-30, 1e-160, 1e-300):
        vector = size * np.array([1.0, -2.0, 0.5])
        back = rot.axis_angle_from_matrix(rot.matrix_from_axis_angle(vector))
        np.testing.assert_allclose(back, vector, rtol=1e-9)


def test_snapping_silences_only_rotations_below_the_threshold():
    vectors = np.array([[1e-8, 0, 0], [2e-6, 0, 0], [0, 9e-7, 5e-7]])
    assert rot.snap_tiny_axis_angle(vectors).tolist() == [[0, 0, 0], [2e-6, 0, 0], [0, 9e-7, 5e-7]]
    assert rot.snap_tiny_axis_angle(vectors, below=1e-5).tolist() == np.zeros((3, 3)).tolist()


def test_angle_of_equal_rotations_is_zero_and_small_angles_are_exact():
    r = random_matrices(50).astype(np.float32)
    assert np.rad2deg(rot.angle_between(r, r)).max() < 1e-5  # arccos in float32 says 0.028
    for angle in (1e-9, 1e-4, 1.0, np.pi - 1e-9, np.pi):
        assert rot.angle_between(np.eye(3), rot.matrix_from_axis_angle([0, angle, 0])) == pytest.approx(angle)


def test_geodesic_interpolation_moves_at_constant_angle():
    a, b = random_matrices(2)
    whole = rot.angle_between(a, b)
    for weight in (0.0, 0.25, 1.0):
        middle = rot.interpolate_matrix(a, b, weight)
        assert rot.angle_between(a, middle) == pytest.approx(weight * whole, abs=1e-9)
        np.testing.assert_allclose(rot.mean_matrix([a, b], [1 - weight, weight]), middle, atol=1e-9)


def test_mean_rotation_balances_its_members():
    r = np.stack([rot.matrix_from_axis_angle([0, 0, angle]) for angle in (0.1, 0.2, 0.6)])
    mean = rot.axis_angle_from_matrix(rot.mean_matrix(r, [1.0, 1.0, 2.0]))
    np.testing.assert_allclose(mean, [0, 0, (0.1 + 0.2 + 1.2) / 4], atol=1e-12)


def test_leading_dimensions_are_free():
    vectors = np.random.default_rng(0).normal(size=(2, 3, 4, 3))
    matrix = rot.matrix_from_axis_angle(vectors)
    for form in rot.FORMS.values():
        encoded = form.from_matrix(matrix)
        assert encoded.shape == (2, 3, 4, form.width)
        np.testing.assert_allclose(
            form.to_matrix(encoded)[1, 2, 3], form.to_matrix(encoded[1, 2, 3]), atol=1e-12
        )


@pytest.mark.parametrize("row", range(4))
def test_degenerate_rot6d_is_refused_naming_the_row(golden, row):
    good = np.tile(rot.IDENTITY_ROT6D, (3, 1))
    rows = np.insert(good, 2, golden["degenerate_rot6d"][row], axis=0)
    with pytest.raises(CodecError, match="rot6d row 2 spans no plane"):
        rot.matrix_from_rot6d(rows)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: rot.matrix_from_rot6d(np.ones((4, 5))),
            r"rot6d has the wrong width; seen: \[4, 5\]; expected: \[\.\.\., 6\]",
        ),
        (
            lambda: rot.matrix_from_rot6d([[1, 0, 0, 0, 1, 0], [1, 0, np.nan, 0, 1, 0]]),
            "rot6d row 1 is not finite",
        ),
        (
            lambda: rot.matrix_from_euler_xyz([[[0, 0, 0], [0, np.inf, 0]]]),
            r"euler_xyz row \(0, 1\) is not finite",
        ),
        (lambda: rot.matrix_from_quat_xyzw([[0, 0, 0, 1], [0, 0, 0, 0]]), "quat_xyzw row 1 has zero length"),
        (lambda: rot.matrix_from_quat_wxyz([0, 0, 0, 0]), "quat_wxyz row 0 has zero length"),
        (
            lambda: rot.require_rotation([np.eye(3), 1.1 * np.eye(3)]),
            r"matrix row 1 is not a rotation.*0\.21",
        ),
        (lambda: rot.require_rotation(np.diag([1, 1, -1])), r"matrix row 0 is not a rotation.*det R = -1"),
        (lambda: rot.axis_angle_from_matrix(np.zeros((3, 3))), "is not a rotation"),
        (lambda: rot.matrix_from_rot9d(np.zeros(9)), "rot9d row 0 has no nearest rotation"),
        (
            lambda: rot.rotation_form("rot5d"),
            "rotation form 'rot5d' is unknown; expected: rot6d, rot9d, quat_xyzw",
        ),
        (lambda: rot.matrix_from_rot6d("six"), "rot6d is not an array of numbers"),
    ],
)
def test_bad_rotations_get_one_clear_error(call, text):
    with pytest.raises(CodecError, match=text):
        call()


def test_empty_batches_stay_empty():
    for form in rot.FORMS.values():
        assert form.to_matrix(np.zeros((0, form.width))).shape == (0, 3, 3)
        assert form.from_matrix(np.zeros((0, 3, 3))).shape == (0, form.width)


def test_float32_rotations_pass_and_a_visible_error_does_not():
    r = random_matrices(100).astype(np.float32)
    np.testing.assert_array_equal(rot.require_rotation(r), r)
    with pytest.raises(CodecError, match="row 0 is not a rotation"):
        rot.require_rotation(r + 1e-3)

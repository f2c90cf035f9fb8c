"""Mixing chunks by block kind: joints linearly, rotations on SO(3), deltas re-anchored, grippers chosen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wamserve.action_codec import blending as b
from wamserve.action_codec.chunk import TimedChunk, targets_from_values, values_from_targets
from wamserve.action_codec.errors import CodecError
from wamserve.action_codec.layout import Block, Layout
from wamserve.action_codec.rotations import angle_between, matrix_from_axis_angle, rot6d_from_matrix
from wamserve.action_codec.se3 import pose_from_matrix, pose_vector_from_pose, poses_from_deltas_framewise

JOINTS = Layout((Block("joints", 0, 2, "joint_abs", unit="rad"), Block("gripper", 2, 3, "gripper")))
POSE_KINDS = ["pose9_rel", "pose9_anchored", "pose9_abs", "pose7_xyzw_abs", "pose6_euler_abs", "osc_delta"]


def layout_of(kind):
    widths = {"pose7_xyzw_abs": 7, "pose6_euler_abs": 6, "osc_delta": 6}
    return Layout((Block("eef", 0, widths.get(kind, 9), kind),))


def path(rows, seed):
    rng = np.random.default_rng(seed)
    steps = pose_from_matrix(
        matrix_from_axis_angle(rng.normal(scale=0.1, size=(rows, 3))), rng.normal(scale=0.05, size=(rows, 3))
    )
    return poses_from_deltas_framewise(np.eye(4), steps)


def chunk_of(kind, poses, start=0.0):
    values = values_from_targets(layout_of(kind)["eef"], poses[1:], poses[0])
    return TimedChunk(values, start, 0.1, {"eef": poses[0]})


def targets(kind, chunk):
    return targets_from_values(layout_of(kind)["eef"], chunk.actions, chunk.anchors["eef"])


def joints(values, grippers, start=0.0):
    values = np.asarray(values, float)
    return TimedChunk(np.c_[values, 2 * values, grippers], start, 0.1)


def test_joints_mix_linearly_and_the_tail_is_the_newer_chunk():
    old = joints([0, 1, 2, 3, 4], [1] * 5)
    new = joints([12, 13, 14, 15, 16], [1] * 5, start=0.2)
    mixed = b.blend_chunks(old, new, JOINTS, [0.25, 0.5, 0.75, 0.9])
    # Only three rows of the old chunk are left: 2, 3, 4.
    np.testing.assert_allclose(mixed.actions[:, 0], [4.5, 8.0, 11.5, 15.0, 16.0])
    assert mixed.start == new.start and mixed.period == new.period


def test_no_overlap_is_the_newer_chunk_untouched():
    new = joints([7, 8], [0, 0], start=5.0)
    mixed = b.blend_chunks(joints([0, 1], [1, 1]), new, JOINTS, b.linear_ramp(4))
    assert mixed.actions.tolist() == new.actions.tolist()


def test_a_gripper_is_never_half_closed():
    old, new = joints([0] * 4, [1, 1, 1, 1]), joints([0] * 4, [0, 0, 0, 0])
    mixed = b.blend_chunks(old, new, JOINTS, [0.2, 0.4, 0.5, 0.6])
    assert mixed.actions[:, 2].tolist() == [1, 1, 0, 0]
    mixed = b.blend_chunks(old, new, JOINTS, [0.2, 0.4, 0.5, 0.6], gripper="newest")
    assert mixed.actions[:, 2].tolist() == [0, 0, 0, 0]


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.3, 1.0]), st.floats(0.01, 1)), min_size=1, max_size=6))
def test_an_ensemble_gripper_is_always_somebodys_opinion(pairs):
    chunks = [joints([0.0], [value]) for value, _ in pairs]
    row = b.temporal_ensemble(chunks, JOINTS, 0.0, decay=pairs[0][1])
    assert row[2] in [value for value, _ in pairs]


@pytest.mark.parametrize("kind", POSE_KINDS)
def test_rows_that_were_not_mixed_stay_to_the_bit(kind):
    old, new = chunk_of(kind, path(8, 1)), chunk_of(kind, path(6, 2), start=0.2)
    new.actions[3:, 3:] *= 1.0 + 1e-3  # as a model would write them, not quite a rotation
    mixed = b.blend_chunks(old, new, layout_of(kind), [0.5, 0.5])
    if kind != "pose9_anchored":  # these are all told from the pose that changed
        assert mixed.actions[3:].tolist() == new.actions[3:].tolist()
    assert mixed.actions[:2].tolist() != new.actions[:2].tolist()


def test_rotations_blend_along_the_geodesic_and_not_through_the_chord():
    layout = Layout((Block("r", 0, 6, "rot6d_abs"),))
    a, z = np.eye(3), matrix_from_axis_angle([0, 0, 2.0])
    old, new = (TimedChunk(np.tile(rot6d_from_matrix(m), (3, 1)), 0.0, 0.1) for m in (a, z))
    mixed = b.blend_chunks(old, new, layout, [0.25, 0.5, 0.75])
    expected = [rot6d_from_matrix(matrix_from_axis_angle([0, 0, w * 2.0])) for w in (0.25, 0.5, 0.75)]
    np.testing.assert_allclose(mixed.actions, expected, atol=1e-12)
    chord = 0.75 * rot6d_from_matrix(a) + 0.25 * rot6d_from_matrix(z)
    assert np.linalg.norm(chord - mixed.actions[0]) > 0.1


@pytest.mark.parametrize("kind", POSE_KINDS)
def test_targets_of_blended_poses_lie_between_those_of_both_chunks(kind):
    first, second = path(8, 1), path(5, 2)
    old, new = chunk_of(kind, first), chunk_of(kind, second, start=0.3)
    mixed = b.blend_chunks(old, new, layout_of(kind), [0.5, 0.5], poses={"eef": np.eye(4)})
    got = targets(kind, mixed)
    for row in (0, 1):
        before, after = first[row + 4], second[row + 1]
        np.testing.assert_allclose(got[row, :3, 3], 0.5 * (before[:3, 3] + after[:3, 3]), atol=1e-12)
        whole = angle_between(before[:3, :3], after[:3, :3])
        for end in (before, after):
            assert angle_between(end[:3, :3], got[row, :3, :3]) == pytest.approx(whole / 2)
    np.testing.assert_allclose(got[2:], second[3:], atol=1e-12)


@pytest.mark.parametrize("kind", ["pose9_rel", "pose9_anchored"])
def test_blending_with_weight_one_still_reaches_the_newer_targets_from_where_the_robot_is(kind):
    first, second = path(6, 1), path(6, 2)
    old, new = chunk_of(kind, first), chunk_of(kind, second, start=0.2)
    mixed = b.blend_chunks(old, new, layout_of(kind), [1.0, 1.0])
    np.testing.assert_allclose(mixed.anchors["eef"], first[2], atol=1e-12)
    np.testing.assert_allclose(targets(kind, mixed), second[1:], atol=1e-12)


@pytest.mark.parametrize("kind", ["pose9_rel", "pose9_anchored"])
def test_late_switch_continues_from_where_the_old_chunk_led(kind):
    first, second = path(8, 1), path(6, 2)
    old, new = chunk_of(kind, first), chunk_of(kind, second, start=0.1)
    live = b.switch_chunks(old, new, layout_of(kind), now=0.3)
    assert live.start == pytest.approx(0.3) and len(live) == 4
    np.testing.assert_allclose(live.anchors["eef"], first[3], atol=1e-12)
    np.testing.assert_allclose(targets(kind, live), second[3:], atol=1e-12)
    measured = b.switch_chunks(old, new, layout_of(kind), now=0.3, poses={"eef": first[4]})
    np.testing.assert_allclose(targets(kind, measured), second[3:], atol=1e-12)


def test_playing_stale_deltas_without_reanchoring_would_miss():
    first, second = path(8, 1), path(6, 2)
    new = chunk_of("pose9_rel", second, start=0.1)
    naive = targets_from_values(layout_of("pose9_rel")["eef"], new.actions[2:], first[3])
    assert np.linalg.norm(naive[0, :3, 3] - second[3, :3, 3]) > 0.01


def test_switching_joints_only_drops_late_rows():
    live = b.switch_chunks(joints([0], [1]), joints(range(5), [1] * 5), JOINTS, now=0.15)
    assert live.actions[:, 0].tolist() == [2, 3, 4]


def test_ensemble_weighs_like_act_with_the_oldest_first():
    # At t = 0.2 the three chunks say 2, 11 and 20.
    chunks = [joints(np.arange(4) + 10 * k - 0.0, [1] * 4, start=0.1 * k) for k in range(3)]
    row = b.temporal_ensemble(chunks, JOINTS, 0.2, decay=0.5)
    w = np.exp(-0.5 * np.arange(3))
    assert row[0] == pytest.approx((w * [2, 11, 20]).sum() / w.sum())
    # Chunks without a row for this time have no say.
    assert b.temporal_ensemble([joints([99], [1]), chunks[2]], JOINTS, 0.4)[0] == 22


@given(st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_ensemble_of_agreeing_relative_chunks_is_what_they_agree_on(seed):
    poses = path(6, seed)
    chunks = [chunk_of("pose9_rel", poses[k:], start=0.1 * k) for k in range(3)]
    row = b.temporal_ensemble(chunks, layout_of("pose9_rel"), 0.2, poses={"eef": poses[2]})
    np.testing.assert_allclose(row, chunks[0].actions[2], atol=1e-9)


def test_osc_rotations_blend_as_rotations():
    old, new = (chunk_of("osc_delta", path(3, seed)) for seed in (1, 2))
    mixed = b.blend_chunks(old, new, layout_of("osc_delta"), [0.5] * 3)
    assert pose_vector_from_pose(np.eye(4), "axis_angle").tolist() == [0] * 6
    np.testing.assert_allclose(mixed.actions[:, :3], 0.5 * (old.actions + new.actions)[:, :3])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: b.blend_chunks(joints([0], [1]), TimedChunk([[0, 0, 0]], 0, 0.2), JOINTS, [0.5]),
            "chunks of different periods cannot be blended; seen: 0.1 s; expected: 0.2 s",
        ),
        (
            lambda: b.blend_chunks(joints([0], [1], 1.0), joints([0], [1]), JOINTS, [0.5]),
            "starts after the newer",
        ),
        (
            lambda: b.blend_chunks(joints([0], [1]), joints([0], [1]), JOINTS, [1.5]),
            "blend weights are shares",
        ),
        (
            lambda: b.temporal_ensemble([joints([0], [1])], JOINTS, 9.0),
            r"no chunk has a row.*0\.000 \.\. 0\.100",
        ),
        (
            lambda: b.temporal_ensemble([joints([0], [1])], JOINTS, 0.0, gripper="mean"),
            "gripper rule 'mean' is unknown; expected: median, newest",
        ),
        (
            lambda: b.temporal_ensemble([chunk_of("pose9_rel", path(3, 0))], layout_of("pose9_rel"), 0.0),
            "block 'eef' is relative: the pose it now starts from is missing; seen: no poses",
        ),
        (
            lambda: b.blend_chunks(
                TimedChunk(np.zeros((2, 9)) + [0, 0, 0, 1, 0, 0, 0, 1, 0], 0, 0.1),
                chunk_of("pose9_rel", path(3, 0)),
                layout_of("pose9_rel"),
                [0.5],
            ),
            r"block 'eef' is relative, and the chunk does not say what to; seen: no anchors; try: TimedChunk",
        ),
    ],
)
def test_chunks_that_cannot_be_mixed_get_one_clear_error(call, text):
    with pytest.raises(CodecError, match=text):
        call()

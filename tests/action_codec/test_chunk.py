"""Rows on a clock: late, due, held, committed and frozen, each checked by hand."""

import numpy as np
import pytest

from wamserve.action_codec import chunk as c
from wamserve.action_codec.errors import CodecError
from wamserve.action_codec.layout import Block, Layout
from wamserve.action_codec.rotations import matrix_from_axis_angle
from wamserve.action_codec.se3 import (
    deltas_anchored_from_poses,
    deltas_framewise_from_poses,
    pose9_from_pose,
    pose_from_matrix,
    pose_from_pose9,
    poses_from_deltas_framewise,
)

JOINTS = Layout((Block("joints", 0, 2, "joint_abs", unit="rad"), Block("gripper", 2, 3, "gripper")))
EEF = Layout((Block("eef", 0, 9, "pose9_rel"), Block("gripper", 9, 10, "gripper")))
ANCHORED = Layout((Block("eef", 0, 9, "pose9_anchored"),))
IDENTITY9 = [0, 0, 0, 1, 0, 0, 0, 1, 0]


def joint_chunk(rows=8, start=10.0, period=0.1, first=0.0):
    actions = np.stack([first + np.arange(rows), -np.arange(rows), np.ones(rows)], axis=1)
    return c.TimedChunk(actions, start, period)


def path(rows, seed=0):
    rng = np.random.default_rng(seed)
    steps = pose_from_matrix(
        matrix_from_axis_angle(rng.normal(scale=0.2, size=(rows, 3))), rng.normal(scale=0.05, size=(rows, 3))
    )
    return poses_from_deltas_framewise(np.eye(4), steps)


def eef_rows(poses):
    return np.c_[pose9_from_pose(deltas_framewise_from_poses(poses)), np.ones(len(poses) - 1)]


def test_row_due_is_the_nearest_one_and_runs_off_both_ends():
    assert [c.row_due(10.0, 0.1, now) for now in (9.9, 10.0, 10.04, 10.06, 10.7, 11.0)] == [
        -1,
        0,
        0,
        1,
        7,
        10,
    ]


def test_half_a_period_belongs_to_the_later_row_every_time():
    assert [c.row_due(0.0, 0.1, 0.1 * (k + 0.5)) for k in range(6)] == [1, 2, 3, 4, 5, 6]


def test_a_tick_served_slightly_late_keeps_its_row_when_slack_allows():
    assert c.past_rows(10.0, 0.1, now=10.203) == 3
    for now in (10.16, 10.2, 10.203, 10.24):
        assert c.past_rows(10.0, 0.1, now, slack=0.5) == c.row_due(10.0, 0.1, now) == 2
    assert c.drop_past_rows(joint_chunk(), JOINTS, 10.203, slack=0.1).actions[0, 0] == 2


@pytest.mark.parametrize(
    ("now", "first_left"), [(9.0, 0), (10.0, 0), (10.01, 1), (10.1, 1), (10.100000001, 1), (10.25, 3)]
)
def test_late_chunk_drops_rows_already_in_the_past(now, first_left):
    left = c.drop_past_rows(joint_chunk(), JOINTS, now)
    assert left.actions[0, 0] == first_left
    assert left.start == pytest.approx(10.0 + 0.1 * first_left)
    assert len(left) == 8 - first_left


def test_a_chunk_that_is_wholly_late_has_no_rows():
    left = c.drop_past_rows(joint_chunk(), JOINTS, 12.0)
    assert len(left) == 0 and left.actions.shape == (0, 3)


def test_dropping_framewise_rows_moves_the_anchor_along():
    poses = path(6)
    chunk = c.TimedChunk(eef_rows(poses), 0.0, 0.1, {"eef": poses[0]})
    left = c.drop_past_rows(chunk, EEF, 0.2)
    np.testing.assert_allclose(left.anchors["eef"], poses[2], atol=1e-12)
    targets = c.targets_from_values(EEF["eef"], left.actions[:, :9], left.anchors["eef"])
    np.testing.assert_allclose(targets, poses[3:], atol=1e-12)


def test_holding_repeats_targets_but_never_deltas_or_commands():
    layout = Layout(
        (
            Block("joints", 0, 2, "joint_abs"),
            Block("eef", 2, 11, "pose9_rel"),
            Block("wrist", 11, 20, "pose9_anchored"),
            Block("osc", 20, 26, "osc_delta"),
            Block("turn", 26, 32, "osc_rot6d"),
            Block("speed", 32, 34, "joint_velocity"),
            Block("gripper", 34, 35, "gripper"),
        )
    )
    moving = pose9_from_pose(path(1)[1])
    turn = moving[3:]
    row = np.concatenate([[0.3, -0.2], moving, moving, np.full(6, 0.5), turn, [0.1, 0.2], [1.0]])
    held = layout.split(c.hold_row(row, layout))
    assert held["joints"].tolist() == [0.3, -0.2] and held["gripper"].tolist() == [1.0]
    assert held["wrist"].tolist() == moving.tolist()
    assert held["eef"].tolist() == IDENTITY9 and held["turn"].tolist() == IDENTITY9[3:]
    assert not held["osc"].any() and not held["speed"].any()
    extended = c.extend_with_hold(row[None], layout, 4)
    assert extended.shape == (4, 35) and extended[3].tolist() == c.hold_row(row, layout).tolist()


def test_committed_rows_are_those_the_robot_runs_while_waiting():
    rows = c.committed_rows(joint_chunk(), JOINTS, start=10.3, rows=3)
    assert rows[:, 0].tolist() == [3, 4, 5]
    assert c.committed_rows(joint_chunk(), JOINTS, 10.6, 5)[:, 0].tolist() == [6, 7]
    assert len(c.committed_rows(joint_chunk(), JOINTS, 12.0, 5)) == 0


def test_committed_anchored_rows_are_told_from_their_own_start():
    poses = path(6)
    chunk = c.TimedChunk(pose9_from_pose(deltas_anchored_from_poses(poses)), 0.0, 0.1)
    rows = c.committed_rows(chunk, ANCHORED, start=0.2, rows=3)
    np.testing.assert_allclose(rows, pose9_from_pose(deltas_anchored_from_poses(poses[2:6])), atol=1e-12)


def test_frozen_prefix_keeps_the_committed_rows_and_the_later_targets():
    new, running = path(6, seed=1), path(6, seed=2)
    frozen = c.freeze_prefix(eef_rows(new), eef_rows(running)[:2], EEF)
    np.testing.assert_allclose(frozen[:2], eef_rows(running)[:2])
    np.testing.assert_allclose(frozen[3:], eef_rows(new)[3:], atol=1e-12)
    reached = poses_from_deltas_framewise(np.eye(4), pose_from_pose9(frozen[:, :9]))
    np.testing.assert_allclose(reached[1:3], running[1:3], atol=1e-12)
    np.testing.assert_allclose(reached[3:], new[3:], atol=1e-12)


def test_freezing_absolute_rows_only_replaces_them():
    frozen = c.freeze_prefix(joint_chunk(4, first=50.0).actions, joint_chunk(2).actions, JOINTS)
    assert frozen[:, 0].tolist() == [0, 1, 52, 53]
    assert c.freeze_prefix(np.ones((2, 3)), np.zeros((0, 3)), JOINTS).tolist() == np.ones((2, 3)).tolist()
    assert c.freeze_prefix(np.ones((2, 3)), np.zeros((2, 3)), JOINTS).tolist() == np.zeros((2, 3)).tolist()


def test_prefix_weights_fall_from_frozen_to_free():
    w = c.prefix_weights(8, frozen=2, free=3)
    share = np.array([3 / 4, 2 / 4, 1 / 4])
    expected = [1, 1, *(share * np.expm1(share) / np.expm1(1)), 0, 0, 0]
    np.testing.assert_allclose(w, expected)
    assert c.prefix_weights(4, 4, 0).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: c.TimedChunk(np.ones((2, 2, 3)), 0.0, 0.1),
            r"one chunk; seen: \[2, 2, 3\]; expected: \[H, D\]",
        ),
        (
            lambda: c.TimedChunk(np.ones((2, 3)), 0.0, 0.0),
            "chunk clock is not a clock; seen: start 0.0, period 0.0",
        ),
        (lambda: c.TimedChunk([[0.0, np.nan, 0.0]], 0.0, 0.1), "chunk row 0 is not finite"),
        (lambda: c.drop_past_rows(joint_chunk(), EEF, 0.0), r"chunk have the wrong width; seen: \[8, 3\]"),
        (
            lambda: c.committed_rows(joint_chunk(), JOINTS, 9.0, 2),
            "rows before the running chunk are not known",
        ),
        (
            lambda: c.freeze_prefix(np.ones((2, 3)), np.ones((3, 3)), JOINTS),
            "committed rows do not fit the chunk",
        ),
        (lambda: c.extend_with_hold(np.ones((0, 3)), JOINTS, 4), r"chunk cannot be extended; seen: \[0, 3\]"),
        (lambda: c.prefix_weights(4, 3, 2), "prefix does not fit the chunk; seen: frozen 3, free 2"),
        (
            lambda: c.TimedChunk(np.ones((2, 10)), 0, 0.1).anchor(EEF["eef"]),
            r"block 'eef' is relative, and the chunk does not say what to; seen: no anchors",
        ),
    ],
)
def test_impossible_requests_get_one_clear_error(call, text):
    with pytest.raises(CodecError, match=text):
        call()

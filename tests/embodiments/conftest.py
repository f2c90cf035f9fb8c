"""Made-up episodes for any contract: columns with the names and meanings it declares."""

from __future__ import annotations

import re

import numpy as np
import pytest

from wamserve.action_codec import rotations, se3


def smooth_poses(rng, rows, step_m=0.01, step_rad=0.02):
    """A random walk of rigid poses [rows, 4, 4]."""
    deltas = se3.pose_from_matrix(
        rotations.matrix_from_axis_angle(rng.uniform(-step_rad, step_rad, (rows - 1, 3))),
        rng.uniform(-step_m, step_m, (rows - 1, 3)),
    )
    turn = rotations.matrix_from_axis_angle(rng.uniform(-1.0, 1.0, 3))
    return se3.poses_from_deltas_framewise(se3.pose_from_matrix(turn, rng.uniform(-0.5, 0.5, 3)), deltas)


def put(columns, spec, values):
    """Writes `values` into the column that "name[i:j]" names, widening it as needed."""
    name, first, last = re.fullmatch(r"([^\[]+)(?:\[(\d+)(?::(\d+))?\])?", spec).groups()
    if first is None:
        columns[name] = values
        return
    start, stop = int(first), int(first) + 1 if last is None else int(last)
    old = columns.get(name, np.zeros((len(values), 0)))
    wide = np.zeros((len(values), max(old.shape[1], stop)))
    wide[:, : old.shape[1]] = old
    wide[:, start:stop] = values.reshape(len(values), -1)
    columns[name] = wide


@pytest.fixture(scope="session")
def made_up():
    """made_up(embodiment, rows, seed) -> columns at the control rate."""

    def make(embodiment, rows, seed=0):
        rng = np.random.default_rng(seed)
        columns: dict[str, np.ndarray] = {}
        for block in embodiment.model.blocks:
            for source in (block.gripper_source, block.state_gripper_source):
                if source is not None:
                    put(columns, source.column, rng.uniform(source.low, source.high, (rows, 1)))
            width = 63 if block.keypoints else 3 if block.column_rotation else block.stop - block.start
            for spec in filter(None, (block.column, block.state_column)):
                put(columns, spec, rng.uniform(-1.0, 1.0, (rows, width)))
        for track in embodiment.model.tracks:  # last, since a hand's wrist lies inside its points column
            poses = smooth_poses(rng, rows)
            if track.rotation_format == "matrix":
                put(columns, track.rotation, poses)
                continue
            put(columns, track.position, poses[:, :3, 3])
            turns = rotations.rotation_form(track.rotation_format).from_matrix(poses[:, :3, :3])
            put(columns, track.rotation, turns)
        return columns

    return make

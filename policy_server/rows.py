"""Between what a robot says and does and the rows the model reads and writes, by contract alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from wamserve.action_codec import rotations, se3
from wamserve.action_codec.actions import ModelActions, RawActions
from wamserve.action_codec.gripper import gripper_from_gripper
from wamserve.action_codec.normalizers import ChunkNormalizer
from wamserve.clients.policy import Observation
from wamserve.embodiments.adapters import codec_from_robot_pose, commands
from wamserve.embodiments.contract import Embodiment, State
from wamserve.embodiments.units import chunk_normalizer

Array = np.ndarray


@dataclass(frozen=True)
class RowCodec:
    """Rows of one contract. Model rows are normalized; raw rows are the model half's units; commands are
    what the reply carries. All float64 [..., rows, columns]."""

    contract: Embodiment

    @cached_property
    def normalizer(self) -> ChunkNormalizer:
        return chunk_normalizer(self.contract.model)

    @property
    def lead(self) -> int:
        """Clean rows before the chunk: history, then the measured state."""
        return self.contract.model.history + int(self.contract.model.state_row)

    @property
    def needs_state(self) -> bool:
        return self.lead > 0 or self.contract.wire.reply.form == "pose_targets"

    def lead_rows(self, observation: Observation) -> Array:
        """Model rows [lead, width] of what the robot measured, oldest first."""
        model = self.contract.model
        if not self.lead:
            return np.empty((0, model.width))
        raw = np.empty((self.lead, model.width))
        for block in model.blocks:
            if block.track:
                part = se3.pose9_from_pose(self._poses(observation, block.track, self.lead))
            else:
                state = self._state(block.name)
                part = _measured(observation, state, self.lead)
                if block.gripper is not None:
                    assert state.gripper is not None
                    part = gripper_from_gripper(part, state.gripper.meaning, block.gripper.meaning)
            raw[:, block.start : block.stop] = part
        return self.normalizer.to_model(RawActions(raw, self.lead)).values

    def model_from_raw(self, raw: ArrayLike) -> Array:
        return self.normalizer.actions.to_model(RawActions(np.asarray(raw, dtype=np.float64))).values

    def raw_from_model(self, rows: ArrayLike) -> Array:
        return self.normalizer.actions.to_raw(ModelActions(np.asarray(rows, dtype=np.float64))).values

    def commands_from_model(self, rows: ArrayLike, observation: Observation) -> Array:
        """What the robot executes [H, reply.width]; pose targets start at the observed pose."""
        start = None
        if self.contract.wire.reply.form == "pose_targets":
            start = {name: self._robot_pose(observation, name, 1)[0] for name in self._tracks}
        return commands(self.contract, RawActions(self.raw_from_model(rows)), start)

    def model_from_commands(self, rows: ArrayLike, observation: Observation) -> Array:
        """The inverse: rows [P, reply.width] already sent to the robot as model rows [P, width]."""
        rows = np.asarray(rows, dtype=np.float64)
        reply, grippers = self.contract.wire.reply, iter(self.contract.wire.reply.grippers)
        parts, column = [], 0
        for block in self.contract.model.blocks:
            width = block.stop - block.start
            if block.track and reply.form == "pose_targets":
                width = 3 + rotations.rotation_form(reply.rotation_format).width
            elif block.kind == "osc_rot6d":
                width = 3
            part, column = rows[:, column : column + width], column + width
            if block.gripper is not None:
                part = gripper_from_gripper(part, next(grippers).meaning, block.gripper.meaning)
            elif block.track and reply.form == "pose_targets":
                part = self._deltas(block.track, block.kind, part, observation)
            elif block.kind == "osc_rot6d":
                part = rotations.rot6d_from_matrix(rotations.matrix_from_axis_angle(part))
            parts.append(part)
        return self.model_from_raw(np.concatenate(parts, axis=-1))

    @property
    def _tracks(self) -> list[str]:
        return [block.track for block in self.contract.model.blocks if block.track]

    def _deltas(self, track: str, kind: str, targets: Array, observation: Observation) -> Array:
        """Target poses as the robot tells them [P, ...] -> pose9 deltas [P, 9]."""
        poses = se3.pose_from_pose_vector(targets, self.contract.wire.reply.rotation_format)
        start = self._poses(observation, track, 1)
        chain = np.concatenate([start, codec_from_robot_pose(self.contract.model.track(track), poses)])
        deltas = se3.deltas_anchored_from_poses if "anchored" in kind else se3.deltas_framewise_from_poses
        return se3.pose9_from_pose(deltas(chain))

    def _poses(self, observation: Observation, track: str, count: int) -> Array:
        """The last `count` measured poses of a track [count, 4, 4] in the codec's frame."""
        declared = self.contract.model.track(track)
        return codec_from_robot_pose(declared, self._robot_pose(observation, track, count))

    def _robot_pose(self, observation: Observation, track: str, count: int) -> Array:
        position, rotation = self._state(f"{track}.position"), self._state(f"{track}.rotation")
        assert rotation.rotation_format is not None
        form = rotations.rotation_form(rotation.rotation_format)
        matrix = form.to_matrix(_measured(observation, rotation, count))
        return se3.pose_from_matrix(matrix, _measured(observation, position, count))

    def _state(self, measures: str) -> State:
        return next(state for state in self.contract.wire.states if state.measures == measures)


def _measured(observation: Observation, state: State, count: int) -> Array:
    """The last `count` measurements [count, dim]; a vector without history counts for all of them."""
    value = np.asarray(observation.state[state.name], dtype=np.float64)
    return np.broadcast_to(value, (count, state.dim)) if value.ndim == 1 else value[-count:]

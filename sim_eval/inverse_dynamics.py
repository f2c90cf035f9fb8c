"""Inverse dynamics on recorded episodes: video in, actions out, beside a robot that stays or averages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wamserve.action_codec import se3
from wamserve.action_codec.errors import PolicyError
from wamserve.clients.policy import Observation, Policy, Request
from wamserve.embodiments.units import chunk_normalizer
from wamserve.sim_eval import kinematics
from wamserve.sim_eval.clips import Clip, Tick
from wamserve.sim_eval.metrics import trajectory
from wamserve.sim_eval.metrics.trajectory import TrajectoryScore
from wamserve.sim_eval.recorded import RecordedEpisode


@dataclass(frozen=True)
class IdScore:
    """Predicted against recorded actions of one clip, or averaged over several."""

    mse_model: float  # normalized units
    mse_raw: float  # the contract's raw units, mixed over dimensions
    mse_raw_by_block: dict[str, float]
    poses: dict[str, TrajectoryScore]  # body -> errors; {} where the contract speaks of no pose
    clips: int


@dataclass(frozen=True)
class IdReport:
    """Inverse dynamics of one model on some episodes."""

    model: IdScore
    zero_motion: IdScore  # baseline: the robot stays
    mean_action: IdScore  # baseline: the mean row of the episode, every time


def score_id(
    policy: Policy, clips: Sequence[Clip], seed: int = 0, tick: Tick = lambda what: None
) -> IdReport:
    """Asks which actions led from frame to frame, for every clip."""
    predicted = []
    for index, clip in enumerate(clips):
        model = clip.episode.embodiment.model
        lead = model.state_row or model.history
        request = Request(
            Observation({}, clip.episode.states(clip.start) if lead else {}, clip.episode.instruction),
            mode="id",
            video=clip.canvas,
            seed=seed + index,
        )
        answer = policy.infer(request)
        rows = None if answer.chunk is None else np.asarray(answer.chunk.actions, dtype=np.float64)
        if rows is None or rows.shape != clip.raw.shape:
            raise PolicyError(
                "the model's inverse dynamics does not fit the recording",
                seen=None if rows is None else rows.shape,
                expected=clip.raw.shape,
            )
        predicted.append(rows)
        tick(f"id {index + 1}/{len(clips)}")
    zero, mean = id_baselines(clips)
    return IdReport(id_score(predicted, clips), id_score(zero, clips), id_score(mean, clips))


def id_baselines(clips: Sequence[Clip]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(rows of a robot that stays, rows of the episode's mean) for every clip."""
    zero = [kinematics.zero_motion(c.episode.embodiment, c.raw[0], len(c.raw)) for c in clips]
    mean = [np.tile(mean_row(clip.episode), (len(clip.raw), 1)) for clip in clips]
    return zero, mean


def id_score(predicted: Sequence[np.ndarray], clips: Sequence[Clip]) -> IdScore:
    """MSE in both spaces and pose errors, averaged over clips."""
    embodiment = clips[0].episode.embodiment
    normalizer = chunk_normalizer(embodiment.model).actions
    poses: dict[str, list[TrajectoryScore]] = {}
    for rows, clip in zip(predicted, clips, strict=True):
        truth = kinematics.trajectories(embodiment, clip.raw)
        for body, path in kinematics.trajectories(embodiment, rows).items():
            poses.setdefault(body, []).append(trajectory.trajectory_score(path, truth[body]))
    pairs = [(rows, clip.raw) for rows, clip in zip(predicted, clips, strict=True)]
    return IdScore(
        mse_model=float(
            np.mean(
                [
                    trajectory.action_mse(normalizer.model_from_raw(a), normalizer.model_from_raw(b))
                    for a, b in pairs
                ]
            )
        ),
        mse_raw=float(np.mean([trajectory.action_mse(a, b) for a, b in pairs])),
        mse_raw_by_block={
            block.name: float(
                np.mean(
                    [
                        trajectory.action_mse(a[:, block.start : block.stop], b[:, block.start : block.stop])
                        for a, b in pairs
                    ]
                )
            )
            for block in embodiment.model.blocks
        },
        poses={body: _mean_trajectory(scores) for body, scores in poses.items()},
        clips=len(pairs),
    )


def mean_row(episode: RecordedEpisode) -> np.ndarray:
    """The mean raw row; rotations are brought back to the nearest rotation."""
    row = episode.raw.mean(axis=0)
    for block in episode.embodiment.model.layout.blocks:
        if block.of_kind.rotation == "rot6d" and block.of_kind.position:
            columns = slice(block.start, block.stop)
            row[columns] = se3.pose9_from_pose(se3.pose_from_pose9(row[columns]))
    return row


def _mean_trajectory(scores: Sequence[TrajectoryScore]) -> TrajectoryScore:
    names = TrajectoryScore.__dataclass_fields__
    values = {name: float(np.mean([getattr(score, name) for score in scores])) for name in names}
    return TrajectoryScore(**{**values, "steps": scores[0].steps})  # type: ignore[arg-type]

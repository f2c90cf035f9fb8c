"""A policy against the demonstrator on recorded episodes: the nearest of k sampled chunks and videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wamserve.action_codec.errors import PolicyError
from wamserve.action_codec.normalizers import RawActions
from wamserve.clients.policy import Observation, Policy, Request
from wamserve.embodiments.adapters import commands, robot_from_codec_pose, track_poses
from wamserve.sim_eval.clips import Clip, Tick, as_shown
from wamserve.sim_eval.metrics import policy as policy_metrics
from wamserve.sim_eval.metrics import trajectory


@dataclass(frozen=True)
class PolicyReport:
    """Policy rows and imagination against what the demonstrator did; the best of k samples."""

    mse_min: float  # reply units, minimum over the samples, mean over clips
    mse_mean: float  # over samples as well
    psnr_max_db: float | None  # None: the policy imagined nothing
    samples: int
    clips: int


def score_policy(
    policy: Policy,
    clips: Sequence[Clip],
    samples: int = 4,
    seed: int = 0,
    want_video: bool = True,
    tick: Tick = lambda what: None,
) -> PolicyReport:
    """Samples `samples` chunks from every clip's first observation; minimum-over-k error as published."""
    least, mean, best = [], [], []
    for index, clip in enumerate(clips):
        embodiment, states = clip.episode.embodiment, clip.episode.states(clip.start)
        truth = commands(embodiment, RawActions(clip.raw), _start_poses(clip))
        rows, videos = [], []
        for sample in range(samples):
            observation = Observation({"canvas": clip.canvas[0]}, states, clip.episode.instruction)
            request = Request(observation, seed=seed + index * samples + sample, want_video=want_video)
            answer = policy.infer(request)
            if answer.chunk is None:
                raise PolicyError("the policy answered without actions", seen=f"clip {index}")
            rows.append(np.asarray(answer.chunk.actions, dtype=np.float64))
            if answer.video is not None:
                videos.append(answer.video)
        errors = [trajectory.action_mse(row, truth) for row in rows]
        least.append(policy_metrics.min_action_mse(rows, truth))
        mean.append(float(np.mean(errors)))
        if videos:
            best.append(policy_metrics.max_psnr(videos, as_shown(embodiment, clip.canvas, videos[0])))
        tick(f"policy {index + 1}/{len(clips)}")
    return PolicyReport(
        mse_min=float(np.mean(least)),
        mse_mean=float(np.mean(mean)),
        psnr_max_db=float(np.mean(best)) if best else None,
        samples=samples,
        clips=len(clips),
    )


def _start_poses(clip: Clip) -> dict[str, np.ndarray] | None:
    """Robot poses at the clip's first row, where commands are pose targets."""
    embodiment = clip.episode.embodiment
    if embodiment.wire.reply.form != "pose_targets":
        return None
    here = {
        name: np.asarray(rows)[clip.start : clip.start + 1] for name, rows in clip.episode.columns.items()
    }
    return {
        name: robot_from_codec_pose(embodiment.model.track(name), poses)[0]
        for name, poses in track_poses(embodiment, here).items()
    }

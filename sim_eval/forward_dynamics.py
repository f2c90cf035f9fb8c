"""Forward dynamics on recorded episodes: frame 0 and recorded actions in, video out, beside a frozen picture.

A static camera gives a copy of frame 0 more than 20 dB, so every score stands beside the same score of that
copy, and beside what the model does with actions that are not the recorded ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wamserve.action_codec.errors import PolicyError
from wamserve.clients.policy import Observation, Policy, Request
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval import frames
from wamserve.sim_eval.clips import Clip, Show, Tick, as_canvas, as_shown
from wamserve.sim_eval.metrics import video


@dataclass(frozen=True)
class FdScore:
    """Predicted against recorded video of one clip, or pooled over several; frame 0 is never counted."""

    psnr_db: float  # one squared error over all frames
    psnr_frame_mean_db: float
    psnr_by_view_db: dict[str, float]
    psnr_by_horizon_db: list[float]  # entry 0: one control step ahead
    ssim: float  # mean over frames
    psnr_moving_db: float | None  # where the recording moved; None: nothing did
    moving_fraction: float
    clips: int


@dataclass(frozen=True)
class FdReport:
    """Forward dynamics of one model on some episodes."""

    model: FdScore
    copy_first_frame: FdScore  # baseline
    sensitivity_db: float | None  # PSNR lost with other actions; None: there were none to swap in
    other_actions: str  # where the other actions came from
    rollout_db: list[float]  # autoregressive: PSNR by horizon, chunks chained on the model's own last frame
    rollout_copy_db: list[float]  # baseline: frame 0 of the episode all along
    rollout_chunks: int


def score_fd(
    policy: Policy,
    clips: Sequence[Clip],
    seed: int = 0,
    rollout_chunks: int = 3,
    tick: Tick = lambda what: None,
    show: Show = lambda clip, predicted, recorded: None,
) -> FdReport:
    """Predicts every clip from its first frame and recorded actions, and once more from other actions."""
    predicted, recorded, copies, others, origin = [], [], [], [], ""
    for index, clip in enumerate(clips):
        answer = ask_fd(policy, clip, clip.canvas[0], clip.raw, clip.start, seed + index)
        truth = as_shown(clip.episode.embodiment, clip.canvas, answer)
        predicted.append(answer)
        recorded.append(truth)
        show(clip, answer, truth)
        copies.append(np.repeat(truth[:1], len(truth), axis=0))
        swap, origin = _other_actions(clips, index)
        if swap is not None:
            others.append(ask_fd(policy, clip, clip.canvas[0], swap, clip.start, seed + index))
        tick(f"fd {index + 1}/{len(clips)}")
    embodiment = clips[0].episode.embodiment
    chained, still = _rollouts(policy, clips, seed, rollout_chunks, tick)
    return FdReport(
        model=fd_score(predicted, recorded, embodiment),
        copy_first_frame=fd_score(copies, recorded, embodiment),
        sensitivity_db=pooled_psnr(predicted, recorded) - pooled_psnr(others, recorded)
        if len(others) == len(predicted)
        and not all(np.array_equal(a, b) for a, b in zip(predicted, others, strict=True))
        else (0.0 if others else None),
        other_actions=origin,
        rollout_db=[float(v) for v in video.psnr_by_horizon(chained)],
        rollout_copy_db=[float(v) for v in video.psnr_by_horizon(still)],
        rollout_chunks=min(rollout_chunks, max(len(c.episode.starts()) for c in clips)),
    )


def fd_score(
    predicted: Sequence[np.ndarray], recorded: Sequence[np.ndarray], embodiment: Embodiment
) -> FdScore:
    """Pools clips: squared errors are averaged before they become decibels, SSIM is averaged over frames."""
    pairs = list(zip(predicted, recorded, strict=True))
    size = (recorded[0].shape[1], recorded[0].shape[2])
    views = frames.view_rectangles(embodiment.model.canvas, size)
    moving = [video.psnr_moving(p, r) for p, r in pairs]
    weights = np.array([m.moving_fraction * len(r) for m, (_, r) in zip(moving, pairs, strict=True)])
    squares = [0.0 if m.psnr_db is None else video.squared_error_from_decibel(m.psnr_db) for m in moving]
    return FdScore(
        psnr_db=pooled_psnr(predicted, recorded),
        psnr_frame_mean_db=float(np.mean([video.psnr_frame_mean(p, r) for p, r in pairs])),
        psnr_by_view_db={
            name: pooled_psnr([view.crop(p) for p in predicted], [view.crop(r) for r in recorded])
            for name, view in views.items()
        },
        psnr_by_horizon_db=[float(v) for v in video.psnr_by_horizon(pairs)],
        ssim=float(np.mean(np.concatenate([video.ssim_per_frame(p, r) for p, r in pairs]))),
        psnr_moving_db=float(video.decibel(np.average(squares, weights=weights))) if weights.sum() else None,
        moving_fraction=float(np.mean([m.moving_fraction for m in moving])),
        clips=len(pairs),
    )


def ask_fd(policy: Policy, clip: Clip, first: np.ndarray, raw: np.ndarray, row: int, seed: int) -> np.ndarray:
    """Predicted video uint8 [H + 1, h, w, 3] from canvas frame `first` and raw rows [H, D]."""
    model = clip.episode.embodiment.model
    states = clip.episode.states(row) if model.state_row or model.history else {}
    request = Request(
        Observation({"canvas": first}, states, clip.episode.instruction), mode="fd", actions=raw, seed=seed
    )
    answer = policy.infer(request).video
    if answer is None or len(answer) != len(raw) + 1:
        raise PolicyError(
            "the model's forward dynamics does not fit the recording",
            seen=None if answer is None else answer.shape,
            expected=f"[{len(raw) + 1}, h, w, 3]",
        )
    return answer


def _rollouts(
    policy: Policy, clips: Sequence[Clip], seed: int, chunks: int, tick: Tick
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]:
    """(predicted, recorded) of whole stretches, one per episode, each chunk from the last imagined frame."""
    chained: list[tuple[np.ndarray, np.ndarray]] = []
    still: list[tuple[np.ndarray, np.ndarray]] = []
    for episode in {id(clip.episode): clip.episode for clip in clips}.values():
        length = episode.embodiment.model.chunk
        starts = episode.starts()[:chunks]
        first = episode.frames[starts[0]]
        parts: list[np.ndarray] = []
        truths: list[np.ndarray] = []
        for number, start in enumerate(starts):
            clip = Clip(episode, start)
            answer = ask_fd(policy, clip, first, clip.raw, start, seed + number)
            truth = as_shown(episode.embodiment, clip.canvas, answer)
            parts.append(answer if not parts else answer[1:])
            truths.append(truth if not truths else truth[1:])
            first = as_canvas(episode.embodiment, answer[-1])
            tick(f"rollout {episode.name} {(number + 1) * length} steps")
        recorded = np.concatenate(truths)
        chained.append((np.concatenate(parts), recorded))
        still.append((np.repeat(recorded[:1], len(recorded), axis=0), recorded))
    return chained, still


def _other_actions(clips: Sequence[Clip], index: int) -> tuple[np.ndarray | None, str]:
    """Rows of another episode where there is one, else of the most distant stretch of the same."""
    mine = clips[index]
    strangers = [clip for clip in clips if clip.episode is not mine.episode]
    if strangers:
        return strangers[index % len(strangers)].raw, "another episode"
    starts = mine.episode.starts(hop=1)
    far = max(starts, key=lambda start: abs(start - mine.start))
    if far == mine.start:
        return None, ""
    return Clip(mine.episode, far).raw, "another stretch of the same episode"


def pooled_psnr(predicted: Sequence[np.ndarray], recorded: Sequence[np.ndarray]) -> float:
    if not predicted:
        return float("nan")
    errors = [video.squared_error_per_frame(p, r)[1:] for p, r in zip(predicted, recorded, strict=True)]
    return float(video.decibel(np.concatenate(errors).mean()))

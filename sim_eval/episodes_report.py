"""One policy on recorded episodes: forward dynamics, inverse dynamics and open-loop actions in one report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wamserve.action_codec.errors import RunError
from wamserve.clients.policy import Policy
from wamserve.embodiments.contract import Embodiment
from wamserve.sim_eval.clips import Show, Tick, clips_of
from wamserve.sim_eval.forward_dynamics import FdReport, FdScore, score_fd
from wamserve.sim_eval.inverse_dynamics import IdReport, IdScore, score_id
from wamserve.sim_eval.open_loop import PolicyReport, score_policy
from wamserve.sim_eval.recorded import RecordedEpisode

MODES = ("fd", "id", "policy")


@dataclass(frozen=True)
class EpisodesReport:
    """All that was asked of one policy on recorded episodes of one contract."""

    policy: str
    contract: str
    contract_model_sha256: str
    episodes: tuple[str, ...]
    chunk: int  # rows per clip
    hop: int  # rows between the starts of two clips
    clips: int
    seed: int
    frame_size: tuple[int, int]  # (height, width) of the recorded canvas
    fd: FdReport | None  # None: not asked for, or no mode of the contract
    id: IdReport | None
    open_loop: PolicyReport | None


def score_episodes(
    policy: Policy,
    name: str,
    episodes: Sequence[RecordedEpisode],
    modes: Sequence[str] = ("fd", "id"),
    hop: int | None = None,
    limit: int | None = None,
    samples: int = 4,
    rollout_chunks: int = 3,
    seed: int = 0,
    tick: Tick = lambda what: None,
    show: Show = lambda clip, predicted, recorded: None,
) -> EpisodesReport:
    """Scores the modes asked for. RunError for a mode that is unknown or not the contract's."""
    embodiment: Embodiment = episodes[0].embodiment
    wrong = [mode for mode in modes if mode not in MODES or mode not in embodiment.model.modes]
    if wrong or not modes:
        raise RunError(
            f"{embodiment.name} cannot be scored this way",
            seen=", ".join(wrong) or "no mode",
            expected=", ".join(mode for mode in MODES if mode in embodiment.model.modes),
        )
    clips = clips_of(episodes, hop, limit)
    return EpisodesReport(
        policy=name,
        contract=embodiment.name,
        contract_model_sha256=embodiment.model_hash,
        episodes=tuple(episode.name for episode in episodes),
        chunk=embodiment.model.chunk,
        hop=hop or embodiment.model.chunk,
        clips=len(clips),
        seed=seed,
        frame_size=(episodes[0].frames.shape[1], episodes[0].frames.shape[2]),
        fd=score_fd(policy, clips, seed, rollout_chunks, tick, show) if "fd" in modes else None,
        id=score_id(policy, clips, seed, tick) if "id" in modes else None,
        open_loop=score_policy(policy, clips, samples, seed, tick=tick) if "policy" in modes else None,
    )


def lines(report: EpisodesReport) -> list[str]:
    """The report in words, every model score beside its baselines."""
    out = [
        f"{report.policy} on {report.contract}: {report.clips} clips of {report.chunk} rows, "
        f"{report.hop} rows apart, from {', '.join(report.episodes)}"
    ]
    if report.fd is not None:
        out += _fd_lines(report.fd)
    if report.id is not None:
        out += _id_lines(report.id)
    if report.open_loop is not None:
        best = report.open_loop
        psnr = "" if best.psnr_max_db is None else f", imagination {best.psnr_max_db:.2f} dB at best"
        out.append(
            f"policy, best of {best.samples}: MSE {best.mse_min:.4g} reply units "
            f"(mean {best.mse_mean:.4g}){psnr}"
        )
    return out


def _fd_lines(fd: FdReport) -> list[str]:
    out = ["forward dynamics            PSNR dB  frame mean  moving    SSIM   per view"]
    for name, score in (("model", fd.model), ("copy of frame 0", fd.copy_first_frame)):
        out.append(f"  {name:<24}{_fd_numbers(score)}")
    if fd.sensitivity_db is not None:
        out.append(f"  action sensitivity {fd.sensitivity_db:+.2f} dB against {fd.other_actions}")
    horizon = [h for h in (1, 2, 4, 8, 16, 32, 48, 64, 96) if h <= len(fd.rollout_db)]
    out.append(
        f"  rollout over {fd.rollout_chunks} chunks, PSNR dB by step (copy of frame 0): "
        + "  ".join(f"{h}: {fd.rollout_db[h - 1]:.2f} ({fd.rollout_copy_db[h - 1]:.2f})" for h in horizon)
    )
    return out


def _fd_numbers(score: FdScore) -> str:
    moving = "-" if score.psnr_moving_db is None else f"{score.psnr_moving_db:.2f}"
    views = ", ".join(f"{name} {db:.2f}" for name, db in score.psnr_by_view_db.items())
    return f"{score.psnr_db:>11.2f}{score.psnr_frame_mean_db:>12.2f}{moving:>8}{score.ssim:>8.4f}   {views}"


def _id_lines(report: IdReport) -> list[str]:
    out = ["inverse dynamics            MSE model   MSE raw  RRE deg   RTE mm   ATE mm (mean)"]
    for name, score in (
        ("model", report.model),
        ("zero motion", report.zero_motion),
        ("mean action", report.mean_action),
    ):
        out += _id_numbers(name, score)
    if not report.model.poses:
        out.append("  RRE, RTE and ATE do not apply: the contract's rows are no poses")
    return out


def _id_numbers(name: str, score: IdScore) -> list[str]:
    head = f"  {name:<24}{score.mse_model:>11.4g}{score.mse_raw:>10.4g}"
    if not score.poses:
        return [head]
    rows = [
        f"{p.rre_deg_mean:>9.3f}{1000 * p.rte_m_mean:>9.2f}{1000 * p.ate_m_mean:>9.2f}"
        + (f"   {body}" if len(score.poses) > 1 else "")
        for body, p in score.poses.items()
    ]
    return [head + rows[0], *(" " * len(head) + row for row in rows[1:])]

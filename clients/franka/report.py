"""The cadence and safety report of a run, from its rows: how regular, how late, how close to the limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wamserve.clients.franka.limits import SafetyLimits
from wamserve.clients.franka.pilot import Tally


@dataclass(frozen=True)
class Tracking:
    """How the measured arm follows where the policy wanted it at each time."""

    lag_s: float  # the delay that explains most of the difference
    rms_rad: float  # what is left at that delay
    rms_raw_rad: float  # at no delay
    worst_rad: float  # largest difference left, any joint


def tracking(times: np.ndarray, wanted: np.ndarray, measured: np.ndarray) -> Tracking | None:
    """times [T] s, wanted and measured [T, 7] rad (NaN: nothing was wanted). None for a resting arm."""
    there = np.isfinite(wanted).all(axis=1)
    times, wanted, measured = times[there], wanted[there], measured[there]
    if len(times) < 20 or np.ptp(wanted, axis=0).max() < 1e-3:
        return None
    inside = (times > times[0] + 0.5) & (times < times[-1] - 0.5)
    errors = {}
    for lag in np.arange(-0.1, 0.5001, 0.01):
        shifted = np.stack([np.interp(times[inside] - lag, times, column) for column in wanted.T], axis=1)
        errors[float(lag)] = shifted - measured[inside]
    rms = {lag: float(np.sqrt(np.mean(error**2))) for lag, error in errors.items()}
    best = min(rms, key=lambda lag: rms[lag])
    raw = min(rms, key=abs)
    return Tracking(round(best, 3), rms[best], rms[raw], float(np.abs(errors[best]).max()))


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """p50, p95 and the largest; empty for nothing."""
    array = np.asarray(values, np.float64)
    if array.size == 0:
        return {}
    return {"p50": float(np.median(array)), "p95": float(np.percentile(array, 95)), "max": float(array.max())}


def report(
    steps: Mapping[str, np.ndarray],
    tally: Tally,
    limits: SafetyLimits,
    round_trips_ms: Sequence[float],
    gripper: Mapping[str, Any],
) -> dict[str, Any]:
    """All of it as plain data."""
    out: dict[str, Any] = {
        "stopped_by": tally.stopped_by,
        "steps": tally.steps,
        "states": dict(tally.states),
        "chunks_accepted": tally.accepted,
        "chunks_refused": dict(tally.refused_chunks),
        "bounds": dict(tally.notes),
        "alarms": dict(tally.alarms),
        "round_trip_ms": spread(round_trips_ms),
        "gripper": dict(gripper),
    }
    if not steps:
        return out
    times, q = steps["time"], steps["q"]
    intervals = np.diff(times)
    out["seconds"] = float(times[-1] - times[0])
    out["rate_hz"] = float(1.0 / np.mean(intervals)) if len(intervals) else 0.0
    out["interval_ms"] = spread(1e3 * intervals)
    playing = steps["state"] == "playing"
    out["chunk_age_s"] = spread(steps["age"][playing])
    margin = np.minimum(q - np.asarray(limits.arm.low), np.asarray(limits.arm.high) - q)
    out["joint_margin_rad"] = {f"joint{i + 1}": float(margin[:, i].min()) for i in range(7)}
    out["fastest_joint_rad_s"] = float(np.abs(steps["dq"]).max())
    # Of a real arm 1; a simulator that cannot keep up is an arm in slow motion.
    out["robot_seconds_per_second"] = float(np.ptp(steps["robot_time"]) / max(np.ptp(times), 1e-9))
    moving = steps["moving"] & (times > times[0] + 1.0)  # the rate counts up while control starts
    out["success_rate_least"] = float(steps["success_rate"][moving].min()) if moving.any() else 1.0
    command_error = np.abs(steps["q_command"] - q)
    if np.isfinite(command_error).any():
        out["command_error_rad"] = float(np.nanmax(command_error))
    found = tracking(times, steps["wanted"], q)
    out["tracking"] = asdict(found) if found is not None else None
    return out


def text(report: Mapping[str, Any]) -> str:
    """For the terminal, the last lines of a run."""

    def counts(name: str) -> str:
        return ", ".join(f"{key} x{value}" for key, value in report[name].items()) or "none"

    def figures(name: str, unit: str) -> str:
        values = report.get(name) or {}
        return ", ".join(f"{key} {value:.3g} {unit}" for key, value in values.items()) or "none"

    lines = [
        f"ended by   {report['stopped_by'] or 'its time'}",
        f"cadence    {report.get('rate_hz', 0.0):.2f} Hz over {report.get('seconds', 0.0):.1f} s; "
        f"interval {figures('interval_ms', 'ms')}",
        f"answers    {figures('round_trip_ms', 'ms')}; chunk age {figures('chunk_age_s', 's')}",
        f"chunks     {report['chunks_accepted']} taken; refused {counts('chunks_refused')}",
        f"bounds     {counts('bounds')}",
        f"alarms     {counts('alarms')}",
        f"states     {counts('states')}",
    ]
    if track := report.get("tracking"):
        lines.append(
            f"tracking   lag {1e3 * track['lag_s']:.0f} ms, RMS {1e3 * track['rms_rad']:.1f} mrad left, "
            f"{1e3 * track['rms_raw_rad']:.1f} mrad raw"
        )
    if margins := report.get("joint_margin_rad"):
        nearest = min(margins, key=lambda joint: margins[joint])
        lines.append(
            f"closest    {nearest} came within {margins[nearest]:.3f} rad of its end; "
            f"fastest joint {report['fastest_joint_rad_s']:.2f} rad/s"
        )
        lines.append(f"robot time {report['robot_seconds_per_second']:.3f} s per second")
    return "\n".join(lines)

"""Small charts as SVG text: no script, no library, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from wamserve.sim_eval.statistics import Interval


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]  # None breaks the line
    style: str = "executed"  # CSS class
    low: Sequence[float] | None = None  # error bars, same length as y
    high: Sequence[float] | None = None


def interval_bar(interval: Interval, width: int = 180, height: int = 14) -> str:
    """A rate on 0..1 as a dot on its interval."""
    x = [round(1 + v * (width - 2), 1) for v in (interval.low, interval.estimate, interval.high)]
    middle = height / 2
    return (
        f'<svg class="interval" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(interval.percent())}"><line class="rail" x1="1" x2="{width - 1}" y1="{middle}" '
        f'y2="{middle}"/><line class="reach" x1="{x[0]}" x2="{x[2]}" y1="{middle}" y2="{middle}"/>'
        f'<circle class="dot" cx="{x[1]}" cy="{middle}" r="4"/></svg>'
    )


def histogram(values: Sequence[float], unit: str, width: int = 300, height: int = 110, bins: int = 24) -> str:
    """Counts of `values`, with median and 95th percentile marked."""
    array = np.asarray(values, dtype=np.float64)
    low, high = float(array.min()), float(array.max())
    if high - low < 1e-9:
        pad = max(abs(low) * 0.05, 0.5)
        low, high = (max(low - pad, 0.0) if low >= 0 else low - pad), high + pad
    counts, edges = np.histogram(array, bins=bins, range=(low, high))
    left, right, top, bottom = 4, width - 4, 28, height - 18
    scale = (bottom - top) / max(counts.max(), 1)

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    bars = "".join(
        f'<rect class="bar" x="{at(edges[i]) + 0.5:.1f}" y="{bottom - count * scale:.1f}" '
        f'width="{(right - left) / bins - 1:.1f}" height="{count * scale:.1f}"><title>{_number(edges[i])} to '
        f"{_number(edges[i + 1])} {escape(unit)}: {count}</title></rect>"
        for i, count in enumerate(counts)
        if count
    )
    marks = ""
    for quantile, name in ((50, "p50"), (95, "p95")):
        value = float(np.percentile(array, quantile))
        anchor = "end" if at(value) > width * 0.7 else "start"
        marks += (
            f'<line class="mark" x1="{at(value):.1f}" x2="{at(value):.1f}" y1="{top - 4}" y2="{bottom}"/>'
            f'<text x="{at(value) + (3 if anchor == "start" else -3):.1f}" '
            f'y="{10 if quantile == 50 else 22}" text-anchor="{anchor}">{name} {_number(value)}</text>'
        )
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" role="img">{bars}'
        f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>{marks}'
        f'<text x="{left}" y="{height - 5}">{_number(low)}</text><text x="{right}" y="{height - 5}" '
        f'text-anchor="end">{_number(high)} {escape(unit)}</text></svg>'
    )


def lines(
    series: Sequence[Series],
    width: int = 640,
    height: int = 120,
    x_label: str = "",
    y_label: str = "",
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
    guides: Sequence[float] = (),
    identity: str = "",
    percent: bool = False,
) -> str:
    """A line chart. `guides` are x values marked with a thin line (chunk seams); `identity` an element id."""
    xs = [v for s in series for v in s.x]
    ys = [v for s in series for v in s.y if v is not None and math.isfinite(v)]
    for s in series:
        ys += [v for bound in (s.low, s.high) if bound is not None for v in bound]
    x0, x1 = x_range or _padded(min(xs, default=0.0), max(xs, default=1.0), 0.0)
    y0, y1 = y_range or _padded(min(ys, default=0.0), max(ys, default=1.0), 0.06)
    left, right, top, bottom = 44, width - 10, 10, height - 26

    def px(v: float) -> float:
        return left + (v - x0) / (x1 - x0) * (right - left)

    def py(v: float) -> float:
        return bottom - (min(max(v, y0), y1) - y0) / (y1 - y0) * (bottom - top)

    parts = []
    for tick in _ticks(y0, y1, 4):
        text = f"{100 * tick:.0f} %" if percent else _number(tick)
        parts.append(
            f'<line class="grid" x1="{left}" x2="{right}" y1="{py(tick):.1f}" y2="{py(tick):.1f}"/>'
            f'<text x="{left - 5}" y="{py(tick) + 3.5:.1f}" text-anchor="end">{text}</text>'
        )
    for tick in _ticks(x0, x1, 8):
        parts.append(
            f'<text x="{px(tick):.1f}" y="{bottom + 13}" text-anchor="middle">{_number(tick)}</text>'
        )
    parts += [
        f'<line class="seam" x1="{px(g):.1f}" x2="{px(g):.1f}" y1="{top}" y2="{bottom}"/>' for g in guides
    ]
    for s in series:
        for run in _unbroken(s.x, s.y):
            points = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in run)
            parts.append(f'<polyline class="line {escape(s.style)}" points="{points}"/>')
        if s.low is not None and s.high is not None:
            for x, y, low, high in zip(s.x, s.y, s.low, s.high, strict=True):
                if y is not None:
                    parts.append(
                        f'<line class="bound {escape(s.style)}" x1="{px(x):.1f}" x2="{px(x):.1f}" '
                        f'y1="{py(low):.1f}" y2="{py(high):.1f}"/>'
                        f'<circle class="point {escape(s.style)}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3.5">'
                        f"<title>{escape(s.label)} {x:g}</title></circle>"
                    )
    if x_label:
        parts.append(
            f'<text class="label" x="{right}" y="{height - 3}" text-anchor="end">{escape(x_label)}</text>'
        )
    if y_label:
        parts.append(f'<text class="label" x="{left + 4}" y="{top + 8}">{escape(y_label)}</text>')
    name = f' id="{escape(identity)}"' if identity else ""
    return (
        f'<svg class="chart"{name} viewBox="0 0 {width} {height}" role="img" data-x0="{x0:g}" '
        f'data-x1="{x1:g}" data-left="{left}" data-right="{right}" data-top="{top}" data-bottom="{bottom}">'
        f"{''.join(parts)}</svg>"
    )


def legend(entries: Mapping[str, str]) -> str:
    """Label -> style, as coloured words."""
    return "".join(
        f'<span class="key {escape(style)}">{escape(label)}</span>' for label, style in entries.items()
    )


def _unbroken(x: Sequence[float], y: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(x, y, strict=True):
        if b is None or math.isnan(b):
            runs.append([])
        else:
            runs[-1].append((a, b))
    return [run for run in runs if run]


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    least = max(2e-3 * max(abs(low), abs(high)), 1e-6)  # below that a line is flat to the eye
    if high - low < least:
        middle, half = (low + high) / 2, max(0.05 * max(abs(low), abs(high)), 1e-3)
        return middle - half, middle + half
    return low - share * (high - low), high + share * (high - low)


def _ticks(low: float, high: float, about: int) -> list[float]:
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]

"""UniPC (Zhao et al. 2023; order 2, B(h) = expm1(h), data prediction), solved ahead for a flow schedule.

The solver is linear and element-wise: with fixed noise levels every iterate is the initial noise plus fixed
multiples of the velocities seen so far, x_{k+1} = x_0 + sum_j rows[k, j] * v_j. So the whole solver is one
small triangular matrix, and a step is one fused multiply-add over the stacked velocities.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ORDER = 2


def unipc_rows(sigmas: Sequence[float]) -> np.ndarray:
    """[n, n] float64, lower triangular: row k gives x_{k+1} in units of the velocities v_0..v_k.

    `sigmas`: n + 1 falling levels in (0, 1), the last one 0.

    A quantity linear in (x_0, v_0, .., v_{n-1}) is the vector of its coefficients, so the recursion of the
    solver runs on rows of the identity. As in diffusers' UniPCMultistepScheduler, data predictions use the
    uncorrected iterate, orders warm up from 1 and end at 1, and the corrector of step k repairs x_k.
    """
    sigma = np.asarray(sigmas, dtype=np.float64)
    n = len(sigma) - 1
    unit = np.eye(n + 1)  # row 0: x_0; row 1 + k: v_k
    with np.errstate(divide="ignore"):
        log_snr = np.log(1 - sigma) - np.log(sigma)  # half log signal-to-noise ratio; infinite at sigma 0
    data: list[np.ndarray] = []  # data predictions m_0..m_k
    iterate = unit[0]  # x_k as the network sees it
    base = unit[0]  # x_{k-1}, corrected
    order = 1
    rows = np.zeros((n, n))
    for k in range(n):
        data.append(iterate - sigma[k] * unit[1 + k])
        if k > 0:
            base = _update(base, data[:-1], log_snr, sigma, k, order, data[-1])
        order = min(ORDER, n - k, k + 1)
        iterate = _update(base, data, log_snr, sigma, k + 1, order, None)
        rows[k] = iterate[1:]
    return rows


def _update(
    base: np.ndarray,
    data: list[np.ndarray],
    log_snr: np.ndarray,
    sigma: np.ndarray,
    to: int,
    order: int,
    corrector: np.ndarray | None,
) -> np.ndarray:
    """From level to - 1 to `to`: the predictor, or the corrector where the new data prediction is given."""
    if sigma[to] == 0:
        return data[-1]  # the last step lands on its data prediction, whatever came before
    h = log_snr[to] - log_snr[to - 1]
    shrink = np.expm1(-h)  # h phi_1(-h) with the sign of data prediction; B(h) is the same
    phi_2 = shrink / -h - 1
    moved = sigma[to] / sigma[to - 1] * base - (1 - sigma[to]) * shrink * data[-1]
    slope = np.zeros_like(base)
    if order == 2:
        ratio = (log_snr[to - 2] - log_snr[to - 1]) / h
        slope = (data[-2] - data[-1]) / ratio
    if corrector is None:
        correction = 0.5 * slope
    elif order == 1:
        correction = 0.5 * (corrector - data[-1])
    else:
        # [[1, 1], [ratio, 1]] @ rho = [b_1, b_2]
        b_1 = phi_2 / shrink
        b_2 = 2 * (phi_2 / -h - 0.5) / shrink
        rho = np.linalg.solve(np.array([[1, 1], [ratio, 1]]), np.array([b_1, b_2]))
        correction = rho[0] * slope + rho[1] * (corrector - data[-1])
    return moved - (1 - sigma[to]) * shrink * correction

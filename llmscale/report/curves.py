"""Arithmetic of the curves: smoothing, thinning and axis limits. numpy only."""

from __future__ import annotations

import numpy as np

_SETTLED = 0.05
"""Fraction of the run after which the first fall of the loss no longer decides the axis."""


def smooth(x: np.ndarray, y: np.ndarray, points: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Moving median over 2 % of the points, ignoring values that are not finite.

    A median neither bends to a spike nor spreads it. Near the start the window shrinks to stay centred, so that a
    steep first fall is not lowered. Curves of fewer than 100 points are returned as they are.

    Args:
        x, y: (N,) float64; y may hold NaN and infinities, and has gaps there in the result too.
        points: largest M; the result is sampled evenly.

    Returns:
        x and y, (M,) float64 each.
    """
    half = len(y) // 100
    if half == 0:
        return x, y
    centres = np.unique(np.linspace(0, len(y) - 1, min(points, len(y))).round().astype(np.int64))
    medians = np.full(len(centres), np.nan)
    for place, centre in enumerate(centres):
        if np.isfinite(y[centre]):
            window = y[centre - min(half, centre) : centre + min(half, centre) + 1]
            medians[place] = np.median(window[np.isfinite(window)])
    return x[centres], medians


def thin(x: np.ndarray, y: np.ndarray, points: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """At most about `points` of the points, lowest and highest of each stretch, so that spikes stay visible."""
    if len(x) <= points:
        return x, y
    keep: set[int] = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), points // 2):
        finite = stretch[np.isfinite(y[stretch])]
        if len(finite):
            keep |= {int(finite[np.argmin(y[finite])]), int(finite[np.argmax(y[finite])])}
        else:
            keep.add(int(stretch[0]))
    index = np.array(sorted(keep))
    return x[index], y[index]


def settled_limits(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float] | None:
    """Limits of a y axis that show `curves` ((N,) x, (N,) y each) without their first fall and rarest spikes.

    The upper limit is the 99th percentile of the points after the first 5 % of the longest curve, unless the highest
    point is hardly above it. None when no value is finite.
    """
    finite = [(x[np.isfinite(y)], y[np.isfinite(y)]) for x, y in curves if np.isfinite(y).any()]
    if not finite:
        return None
    begin = min(float(x[0]) for x, _ in finite)
    border = begin + _SETTLED * (max(float(x[-1]) for x, _ in finite) - begin)
    settled = [y[x >= border] for x, y in finite]
    low, top = min(float(y.min()) for _, y in finite), max(float(y.max()) for _, y in finite)
    high = max(float(np.quantile(y, 0.99)) for y in settled if len(y))
    if top <= high + 0.35 * (high - low):
        high = top
    room = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room

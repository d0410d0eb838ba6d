"""Intervals of means, of ratios of sums, and of means over groups."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy  # whose parts are imported when they are first asked for

from llmscale.evaluate.statistics.clustering import Floats, Ratio, cluster_numbers, ratio_of_sums, student, sums_by
from llmscale.evaluate.statistics.interval import Interval, error_rate, unseen_share
from llmscale.evaluate.statistics.proportions import proportion_interval, wilson_limits

Bounds = tuple[float, float]


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    bounds: Bounds | None = None,
) -> Interval:
    """The mean over all items (micro).

    Student's t; with clusters CR2 with Satterthwaite's degrees of freedom, which are clusters - 1 where those are of
    equal size. Values of 0 and 1 have Wilson's interval, with clusters that of the effective number of items (Korn and
    Graubard 1998).

    Args:
        clusters: items of one name may depend on each other, such as questions about one text.
        bounds: the least and the largest possible value, where there are any; (0, 1) for values of 0 and 1.

    Raises:
        ValueError: no values, or some that are not finite.
    """
    array = _finite(values)
    binary = is_binary(array)
    if binary and clusters is None:
        return proportion_interval(int(array.sum()), len(array), level)
    numbers = cluster_numbers(clusters, len(array))
    sizes = sums_by(numbers, np.ones(len(array)))
    ratio = ratio_of_sums(sums_by(numbers, array), sizes)
    if binary:
        return _clustered_share(ratio, len(array), len(sizes), level)
    method = "Student's t" if clusters is None else "cluster-robust t"
    return _student_interval(ratio, len(array), len(sizes), level, method, bounds)


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    bounds: Bounds | None = None,
) -> Interval:
    """Sum of numerators / sum of denominators, such as nats / bytes: the delta method with CR2's correction.

    Raises:
        ValueError: no items, values that are not finite, a negative denominator, or none above 0.
    """
    above, below = _finite(numerators), _finite(denominators)
    if len(above) != len(below) or below.min() < 0 or below.sum() <= 0:
        raise ValueError("a ratio needs as many numerators as denominators, which are not negative and not all 0")
    numbers = cluster_numbers(clusters, len(above))
    ratio = ratio_of_sums(sums_by(numbers, above), sums_by(numbers, below))
    return _student_interval(ratio, len(above), int(numbers.max()) + 1, level, "ratio, cluster-robust t", bounds)


def group_mean_interval(
    values: Sequence[float],
    groups: Sequence[str],
    clusters: Sequence[str] | None = None,
    level: float = 0.95,
    bounds: Bounds | None = None,
) -> Interval:
    """The mean of the means of groups (macro), each of which counts the same however many items it has.

    Groups are all that there are, and not drawn; items within them are. Degrees of freedom are Welch's. A cluster may
    lie in several groups. A group with one cluster takes the spread of the others. Values of 0 and 1 have Wilson's
    interval of the effective number of items.

    Raises:
        ValueError: no values, or some that are not finite.
    """
    array = _finite(values)
    group_of = cluster_numbers(groups, len(array))
    cluster_of = cluster_numbers(clusters, len(array))
    ratio, units = _mean_over_groups(array, group_of, cluster_of)
    n, independent = len(array), int(cluster_of.max()) + 1
    if is_binary(array):
        size = effective_items(ratio, level)
        low, high = wilson_limits(ratio.value, units if size is None else size, level)
        method = "Wilson, effective items"
        return Interval(ratio.value, low, high, n, independent, method, level, _root(ratio.variance))
    return _student_interval(ratio, n, independent, level, "mean over groups, Welch's t", bounds)


def groups_difference(
    values: Sequence[float],
    chosen: Sequence[bool],
    clusters: Sequence[str] | None = None,
    bounds: Bounds | None = None,
) -> Interval:
    """The mean of the chosen values less the mean of the others, with Welch's degrees of freedom; a cluster may have
    values on both sides. Of gains of two groups of items between two checkpoints it is the difference in differences.

    Args:
        bounds: the least and the largest possible value.

    Raises:
        ValueError: no values, some that are not finite, or none on one side.
    """
    array = _finite(values)
    marks = np.asarray(chosen, dtype=bool)
    if marks.all() or not marks.any():
        raise ValueError("a difference of two groups needs values in both")
    signed = np.where(marks, array, -array)
    ratio, _ = _mean_over_groups(
        signed, cluster_numbers(marks.tolist(), len(array)), cluster_numbers(clusters, len(array))
    )
    # The sum of the two means in place of their mean.
    twice = Ratio(2 * ratio.value, 4 * ratio.variance, ratio.freedom)
    width = None if bounds is None else bounds[1] - bounds[0]
    limits = None if width is None else (-width, width)
    units = len(array) if clusters is None else len(set(clusters))
    return _student_interval(twice, len(array), units, 0.95, "difference of two means, Welch's t", limits)


def is_binary(values: Floats) -> bool:
    """Whether all are 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def effective_items(ratio: Ratio, level: float) -> float | None:
    """How many independent items would give a share this variance, fewer where the variance itself is uncertain.

    None where there is no variance to go by. Korn and Graubard 1998, equation 2.2.
    """
    if not ratio.variance > 0:
        return None
    size = ratio.value * (1 - ratio.value) / ratio.variance
    return size * float(scipy.special.ndtri(1 - error_rate(level) / 2) / student(level, ratio.freedom)) ** 2


def _clustered_share(ratio: Ratio, n: int, clusters: int, level: float) -> Interval:
    size = effective_items(ratio, level)
    # Without any spread each cluster tells no more than an item.
    low, high = wilson_limits(ratio.value, clusters if size is None else min(size, n), level)
    return Interval(ratio.value, low, high, n, clusters, "Wilson, effective items", level, _root(ratio.variance))


def _student_interval(
    ratio: Ratio, n: int, clusters: int, level: float, method: str, bounds: Bounds | None
) -> Interval:
    value, error = ratio.value, _root(ratio.variance)
    if error > 1e-12 * abs(value):
        half = student(level, ratio.freedom) * error
        return Interval(value, value - half, value + half, n, clusters, method, level, error).within(bounds)
    return without_spread(value, n, clusters, level, bounds)


def without_spread(value: float, n: int, clusters: int, level: float, bounds: Bounds | None) -> Interval:
    """What units that are all alike, or a single one, say of a mean: nothing, unless values are bounded."""
    if bounds is None:
        return Interval(value, -math.inf, math.inf, n, clusters, "no spread", level)
    least, largest = bounds
    share = unseen_share(clusters, level)
    low, high = value - share * (value - least), value + share * (largest - value)
    return Interval(value, low, high, n, clusters, "no spread, rule of three", level)


def _mean_over_groups(
    values: Floats, group_of: npt.NDArray[np.int64], cluster_of: npt.NDArray[np.int64]
) -> tuple[Ratio, float]:
    """The mean of the groups' means, and how many equally weighted clusters would weigh as these do."""
    sizes = sums_by(group_of, np.ones(len(values)))
    groups = len(sizes)
    means = sums_by(group_of, values) / sizes
    cells, cell_of = np.unique(np.stack([group_of, cluster_of]), axis=1, return_inverse=True)
    cell_of = cell_of.reshape(-1)
    cell_group, cell_cluster = cells
    shares = sums_by(cell_of, np.ones(len(values))) / sizes[cell_group]
    clusters_in = sums_by(cell_group, np.ones(len(cell_group)))
    residuals = sums_by(cell_of, values - means[group_of]) / sizes[cell_group]
    adjusted = residuals / np.sqrt(np.where(shares < 1, 1 - shares, 1.0))
    variances = sums_by(cell_group, adjusted**2)
    freedoms = np.maximum(clusters_in - 1, 1)
    alone = clusters_in == 1
    if alone.all():  # nothing is known of the spread within groups, but it is no more than that between all
        return ratio_of_sums(means, np.ones(groups)), float(groups)
    lent = float((variances * clusters_in)[~alone].mean())
    total = float((sums_by(cell_cluster, adjusted) ** 2).sum()) + lent * float(alone.sum())
    variances = np.where(alone, lent, variances)
    # Welch's, of each group's variance; groups that take the others' spread add nothing to what is known of it.
    known = float((variances[~alone] ** 2 / freedoms[~alone]).sum())
    scale = float(variances.sum() / variances[~alone].sum()) if variances[~alone].sum() > 0 else 1.0
    freedom = float(variances.sum()) ** 2 / (known * scale**2) if known > 0 else float(freedoms.sum())
    units = groups**2 / float((1 / clusters_in).sum())
    return Ratio(float(means.mean()), total / groups**2, max(freedom, 1.0)), units


def _finite(values: Sequence[float]) -> Floats:
    array = np.asarray(values, dtype=float)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError("an interval needs values, all of them finite")
    return array


def _root(variance: float) -> float:
    return math.sqrt(variance) if variance >= 0 else math.nan

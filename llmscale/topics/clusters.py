"""Clusters of vectors, by scikit-learn, the same for the same seed."""

from __future__ import annotations

import warnings

import numpy as np

from data_pipeline.base.errors import UserError

OUTLIER = -1
"""The topic of texts that are near none."""
_CHANNELS = 64
"""Principal components that clusters are looked for in."""
_DENSE = 10
"""Those that densities are estimated in, which many dimensions leave little of."""
_LEAST = 5
"""Texts of a topic, where their number follows from the texts."""


def cluster(vectors: np.ndarray, topics: int | None, seed: int) -> np.ndarray:
    """(N,) the topic of each text: 0 is the largest one, and `OUTLIER` none.

    Args:
        vectors: (N, channels).
        topics: how many (k-means; Lloyd 1982); None: as many as there are dense places (HDBSCAN; Campello et al. 2013),
            where texts in between have no topic.

    Raises:
        UserError: fewer texts, or different vectors, than topics; or no dense places.
    """
    from sklearn.cluster import HDBSCAN, KMeans
    from threadpoolctl import threadpool_limits

    # Threads add up in an order of their own.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if topics is not None:
            _require_enough(vectors, topics)
            reduced = components(vectors, _CHANNELS)
            return by_size(KMeans(topics, n_init=10, random_state=seed).fit_predict(reduced))
        if len(vectors) < 2 * _LEAST:
            raise UserError(
                f"--topics is auto, but --input has {len(vectors)} text{'s' * (len(vectors) != 1)}, of which"
                f" {2 * _LEAST} at least are needed to find out how many topics there are; give --topics a number"
            )
        least = max(_LEAST, len(vectors) // 100)
        found = HDBSCAN(min_cluster_size=least).fit_predict(components(vectors, _DENSE))
    if found.max() < 1:
        raise UserError(
            "--topics is auto, but the vectors have no dense places apart from each other; give --topics a number"
        )
    return by_size(found)


def _require_enough(vectors: np.ndarray, topics: int) -> None:
    if len(vectors) < topics:
        raise UserError(
            f"--topics is {topics}, but --input has {len(vectors)} text{'s' * (len(vectors) != 1)}; ask for fewer"
            f" topics, or give more texts"
        )
    different = len(np.unique(vectors, axis=0))
    if different < topics:
        raise UserError(
            f"--topics is {topics}, but the {len(vectors)} texts have {different} different vector"
            f"{'s' * (different != 1)}; ask for fewer topics, or give more texts"
        )


def components(vectors: np.ndarray, most: int) -> np.ndarray:
    """(N, at most `most`) the principal components of vectors, in double precision."""
    from sklearn.decomposition import PCA

    count = min(most, *vectors.shape)
    if not (vectors != vectors[:1]).any():
        return np.zeros((len(vectors), count))  # which has no direction
    return PCA(count, svd_solver="full").fit_transform(vectors.astype(np.float64))


def by_size(found: np.ndarray) -> np.ndarray:
    """Clusters numbered by their size, the largest first; of equal ones that with the first text."""
    names, firsts, sizes = np.unique(found, return_index=True, return_counts=True)
    order = [names[place] for place in np.lexsort((firsts, -sizes)) if names[place] != OUTLIER]
    numbers = {int(name): number for number, name in enumerate(order)} | {OUTLIER: OUTLIER}
    return np.array([numbers[int(name)] for name in found])


def centres(vectors: np.ndarray, topics: np.ndarray) -> np.ndarray:
    """(topics, channels) the mean of each topic's vectors."""
    return np.stack([vectors[topics == topic].mean(0) for topic in range(topics.max() + 1)])

"""Clusters of vectors, by scikit-learn, the same for the same seed."""

from __future__ import annotations

import numpy as np

from data_pipeline.base.errors import UserError

_CHANNELS = 32
"""Most principal components that clusters are looked for in."""
_VARIANCE = 0.9
"""Share of the variance that those have."""
_NUMBERS = (*range(2, 21), 25, 30, 35, 40, 50)
"""Topics that are tried where their number follows from the texts."""
_LEAST = 5
"""Texts of such a topic in the mean, at least."""
_SAMPLE = 5000
"""Texts by which their number is chosen, evenly spread."""


def cluster(vectors: np.ndarray, topics: int | None, seed: int) -> np.ndarray:
    """(N,) the topic of each text by k-means (Lloyd 1982) of whitened vectors; 0 is the largest one.

    Args:
        vectors: (N, channels).
        topics: how many; None: as many as give the smallest index of Davies and Bouldin (1979), the mean over clusters
            of how far they are spread by how far the next one is away.

    Raises:
        UserError: fewer texts, or different vectors, than topics.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    require_enough(len(vectors), topics, len(np.unique(vectors, axis=0)))
    # Threads add up in an order of their own.
    with threadpool_limits(1):
        count = topics or _number(components(vectors, _CHANNELS), seed)
        return by_size(KMeans(count, n_init=10, random_state=seed).fit_predict(whitened(vectors)))


def _number(vectors: np.ndarray, seed: int) -> int:
    from sklearn.cluster import KMeans
    from sklearn.metrics import davies_bouldin_score

    size = min(len(vectors), _SAMPLE)
    some = vectors[[place * len(vectors) // size for place in range(size)]]
    most = min(len(some) // _LEAST, len(np.unique(some, axis=0)) - 1)
    found = {
        count: davies_bouldin_score(some, KMeans(count, n_init=3, random_state=seed).fit_predict(some))
        for count in _NUMBERS
        if count <= most
    }
    return min(found, key=lambda count: (found[count], count))


def require_enough(count: int, topics: int | None, different: int | None = None) -> None:
    """Raise UserError where so many texts, of so many different vectors where those are known, have no such topics."""
    texts = f"{count} text{'s' * (count != 1)}"
    different = count if different is None else different
    if topics is None:
        if count < 2 * _LEAST or different < 3:
            raise UserError(
                f"--topics is auto, but --input has {texts}, which are too few or too alike to find out how many topics"
                f" they have; give --topics a number, or more texts"
            )
        return
    if count < topics:
        raise UserError(f"--topics is {topics}, but --input has {texts}; ask for fewer topics, or give more texts")
    if different < topics:
        raise UserError(
            f"--topics is {topics}, but the {texts} have {different} different vector{'s' * (different != 1)}; ask for"
            f" fewer topics, or give more texts"
        )


def whitened(vectors: np.ndarray) -> np.ndarray:
    """(N, d) the first principal components, each of variance 1, as vectors of length 1 (Su et al. 2021): without that
    a few directions that most texts share hide the others."""
    from sklearn.preprocessing import normalize

    found = components(vectors, _CHANNELS)
    variances = found.var(0)
    shares = variances.cumsum() / max(float(vectors.astype(np.float64).var(0).sum()), 1e-300)
    count = min(int(np.searchsorted(shares, _VARIANCE)) + 1, len(variances))
    return normalize(found[:, :count] / np.sqrt(np.maximum(variances[:count], 1e-300)))


def components(vectors: np.ndarray, most: int) -> np.ndarray:
    """(N, at most `most`) the principal components of vectors, in double precision."""
    from sklearn.decomposition import PCA

    count = min(most, *vectors.shape)
    if not (vectors != vectors[:1]).any():
        return np.zeros((len(vectors), count))  # which has no direction
    return PCA(count, svd_solver="full").fit_transform(vectors.astype(np.float64))


def by_size(found: np.ndarray) -> np.ndarray:
    """Clusters numbered by their size, the largest first; of equal ones that with the first text."""
    _, firsts, places, sizes = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    return np.lexsort((firsts, -sizes)).argsort()[places]


def centres(vectors: np.ndarray, topics: np.ndarray) -> np.ndarray:
    """(topics, channels) the mean of each topic's vectors."""
    return np.stack([vectors[topics == topic].mean(0) for topic in range(topics.max() + 1)])

"""Residual k-means: each level's codebook is fitted to the residuals of the levels before."""

from __future__ import annotations

import numpy as np
import torch

from recbole_llm.errors import InputError
from recbole_llm.lazy import load_faiss
from recbole_llm.semantic_ids.quantise import residual_quantise

ITERATIONS = 20  # Lloyd's


def kmeans(vectors: np.ndarray, n_clusters: int, seed: int, key: str = "sid_quantizer") -> np.ndarray:
    """Cluster centres by FAISS.

    Args:
        vectors: float32 [n, d], n >= n_clusters.
        n_clusters: number of clusters.
        seed: seed of the start.
        key: the setting that asked for them.

    Returns:
        float32 [n_clusters, d].

    Raises:
        InputError: FAISS is not installed.
    """
    faiss = load_faiss()
    if faiss is None:
        raise InputError(
            key,
            "clusters are found by FAISS, which is not installed: pip install 'recbole-llm[cpu]' (or [gpu])",
            kind="environment",
        )
    options = {"niter": ITERATIONS, "seed": seed % 2**31, "min_points_per_centroid": 1}
    options["max_points_per_centroid"] = max(len(vectors), 1)  # FAISS would draw a sample of a large catalogue
    clustering = faiss.Kmeans(vectors.shape[1], n_clusters, **options)
    clustering.train(np.ascontiguousarray(vectors, dtype=np.float32))
    centres: np.ndarray = clustering.centroids.reshape(n_clusters, -1).copy()
    return centres


def residual_kmeans(vectors: np.ndarray, levels: int, n_codes: int, seed: int) -> np.ndarray:
    """Codebooks for :func:`recbole_llm.semantic_ids.residual_quantise`.

    Args:
        vectors: float [n, d], n >= n_codes.
        levels: levels of codes.
        n_codes: codewords of a level.
        seed: seed of every level's start.

    Returns:
        float32 [levels, n_codes, d].

    Raises:
        InputError: FAISS is not installed.

    Example:
        >>> residual_kmeans(np.eye(4, dtype=np.float32), levels=2, n_codes=2, seed=0).shape
        (2, 2, 4)
    """
    residual, books = np.asarray(vectors, dtype=np.float32), []
    for level in range(levels):
        books.append(kmeans(residual, n_codes, seed + level))
        residual = residual_quantise(torch.from_numpy(residual), torch.from_numpy(books[-1])[None])[1][:, 0].numpy()
    return np.stack(books)

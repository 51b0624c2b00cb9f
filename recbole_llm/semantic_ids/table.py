"""The codes of a catalogue: made from item vectors, unique by a counter, with statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recbole_llm.semantic_ids.clashes import spread_codes
from recbole_llm.semantic_ids.codes import collision_rate, disambiguate
from recbole_llm.semantic_ids.kmeans import residual_kmeans
from recbole_llm.semantic_ids.quantise import residual_quantise
from recbole_llm.semantic_ids.rqvae import RQVAE, fit_rqvae
from recbole_llm.semantic_ids.settings import CodeSettings


@dataclass(frozen=True)
class Quantiser:
    """What turns standardised vectors into codes.

    Attributes:
        codebooks: float32 [levels, codes, width].
        autoencoder: autoencoder of ``rqvae``; None where the codewords are of the vectors' own space.
        sinkhorn: epsilon by which vectors of one code are spread (:func:`.spread_codes`); None leaves them.
    """

    codebooks: np.ndarray
    autoencoder: RQVAE | None = None
    sinkhorn: float | None = None

    @classmethod
    def fit(cls, vectors: np.ndarray, settings: CodeSettings, seed: int, n_codes: int | None = None) -> Quantiser:
        """Learn the codewords of vectors [n, d], standardised.

        Args:
            vectors: float [n, d].
            settings: settings of the quantiser.
            seed: seed of everything random.
            n_codes: codewords of a level; by default as the settings say, and no more than vectors.

        Raises:
            InputError: FAISS is not installed.
        """
        n_codes = n_codes or settings.codes_per_level(len(vectors))
        if len(vectors) < n_codes:  # k-means takes no fewer points than clusters
            vectors = np.resize(vectors, (n_codes, vectors.shape[1]))
        if settings.quantizer == "rkmeans":
            return cls(residual_kmeans(vectors, settings.levels, n_codes, seed), sinkhorn=settings.sinkhorn)
        model = fit_rqvae(
            vectors,
            width=settings.dim,
            levels=settings.levels,
            n_codes=n_codes,
            epochs=settings.epochs,
            seed=seed,
            assign="sample" if settings.assign == "sample" else "argmin",
            temperature=settings.assign_temperature,
        )
        return cls(model.codebooks.detach().numpy().copy(), model, settings.sinkhorn)

    def codes(self, vectors: np.ndarray) -> np.ndarray:
        """The codes of vectors [n, d]. Returns: int64 [n, levels]."""
        points = torch.as_tensor(vectors, dtype=torch.float32)
        if self.autoencoder is not None:
            return tower_codes(self.autoencoder, points, self.sinkhorn)
        books = torch.from_numpy(self.codebooks)
        epsilon = self.sinkhorn
        found = residual_quantise(points, books)[0] if epsilon is None else spread_codes(points, books, epsilon)
        codes: np.ndarray = found.numpy()
        return codes

    def error(self, vectors: np.ndarray) -> float:
        """Mean square between vectors [n, d] and what their codewords make of them."""
        points = torch.as_tensor(vectors, dtype=torch.float32)
        if self.autoencoder is not None:
            return self.autoencoder.reconstruction_error(points)
        found = residual_quantise(points, torch.from_numpy(self.codebooks))[2]
        return float((found - points).square().mean())


@torch.no_grad()
def tower_codes(tower: RQVAE, points: torch.Tensor, sinkhorn: float | None = None) -> np.ndarray:
    """Codes of float32 [n, d] by an autoencoder; spread where ``sinkhorn`` is given. Returns: int64 [n, levels]."""
    if sinkhorn is None:
        return tower.codes(points).numpy()
    found: np.ndarray = spread_codes(tower.encoder(points), tower.codebooks, sinkhorn).numpy()
    return found


def standardised(vectors: np.ndarray) -> np.ndarray:
    """Every column with mean 0 and standard deviation 1; a constant one becomes 0.

    Args:
        vectors: float [n, d].

    Returns:
        float32 [n, d].

    Example:
        >>> standardised(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """
    mean, scale = column_scale(vectors)
    found: np.ndarray = (np.asarray(vectors, dtype=np.float64) - mean) / scale
    return found.astype(np.float32)


def column_scale(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is taken from every column of vectors [n, d], and what it is divided by; infinity for a constant one.

    Returns:
        Both float64 [d].

    Example:
        >>> mean, scale = column_scale(np.array([[1.0, 5.0], [3.0, 5.0]]))
        >>> mean.tolist(), scale.tolist()
        ([2.0, 5.0], [1.0, inf])
    """
    wide = np.asarray(vectors, dtype=np.float64)
    spread = wide.std(axis=0)
    known = spread > 1e-12 * np.maximum(np.abs(wide).max(axis=0, initial=0.0), 1e-300)
    return wide.mean(axis=0), np.where(known, spread, np.inf)


def unique_codes(codes: np.ndarray) -> np.ndarray:
    """Codes [n, levels] with a counter behind them: int64 [n, levels + 1], no two alike."""
    return np.asarray(disambiguate(codes), dtype=np.int64)


def code_summary(codes: np.ndarray, n_codes: int) -> dict[str, Any]:
    """What there is to know of codes, as JSON values.

    Args:
        codes: int64 [n, levels + 1], the last column the counter.
        n_codes: codewords of a level.

    Returns:
        ``items``, ``collision_rate`` before the counter, ``counters`` (different values of it), and by level ``used``
        (codes that an item has) and ``perplexity`` (exp of the entropy of their shares: as many codes used equally).

    Example:
        >>> found = code_summary(np.array([[0, 1, 0], [0, 1, 1], [2, 0, 0]]), n_codes=4)
        >>> round(found["collision_rate"], 4), found["used"], found["counters"]
        (0.3333, [2, 2], 2)
    """
    own = codes[:, :-1]
    shares = [np.bincount(column, minlength=n_codes) / max(len(column), 1) for column in own.T]
    entropies = [-(share[share > 0] * np.log(share[share > 0])).sum() for share in shares]
    return {
        "items": len(codes),
        "codes": n_codes,
        "collision_rate": collision_rate(own),
        "counters": int(codes[:, -1].max(initial=-1)) + 1,
        "used": [int((share > 0).sum()) for share in shares],
        "perplexity": [float(np.exp(entropy)) for entropy in entropies],
    }

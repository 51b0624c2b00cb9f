"""DSIR: rows whose words are distributed as in a target set (Xie et al. 2023, arXiv 2302.03169)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from recbole_llm.coreset.selector import TARGET_TEXTS, TEXTS, Selector, gumbel_top
from recbole_llm.declare import Setting


@dataclass(frozen=True, repr=False)
class DSIRSelector(Selector):
    """Importance resampling on hashed n-grams: drawn without replacement in proportion to p(row) / q(row).

    p and q are the n-gram distributions of the target set and of the rows. The score is the logarithm of that weight.

    Attributes:
        n_buckets: hash buckets of n-grams, >= 1.
        max_ngram: longest n-gram in words, >= 1.
        smoothing: added to the count of every bucket, > 0, so that a bucket that one side lacks decides nothing alone.

    Example:
        >>> texts = ["Heat", "Toy Story Babe", "Alien"]
        >>> selection = DSIRSelector().select(np.arange(3), 1, texts=texts, target_texts=["Babe Toy Story"])
        >>> texts[int(selection.scores.argmax())]
        'Toy Story Babe'
    """

    n_buckets: Annotated[int, Setting("buckets of hashed n-grams", low=1, high=100_000_000)] = 10_000
    max_ngram: Annotated[int, Setting("longest n-gram in words", low=1, high=64)] = 2
    smoothing: Annotated[float, Setting("added to every bucket's count", above=0)] = 1.0

    name = "dsir"
    needs = (TEXTS, TARGET_TEXTS)

    def _select(
        self, n_rows: int, budget: int, seed: int, *, texts: list[str], target_texts: list[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        weights = log_importance(texts, target_texts, self.n_buckets, self.max_ngram, self.smoothing)
        return gumbel_top(weights, budget, np.random.default_rng(seed)), weights


def log_importance(
    texts: Sequence[str],
    target_texts: Sequence[str],
    n_buckets: int = 10_000,
    max_ngram: int = 2,
    smoothing: float = 1.0,
) -> np.ndarray:
    """log p(text) - log q(text) of every text, each n-gram of it counted.

    Args:
        texts: n texts, from which q is estimated.
        target_texts: texts from which p is estimated.
        n_buckets: see :class:`DSIRSelector`, as for the two last arguments.
        max_ngram: longest n-gram in words.
        smoothing: added to every count.

    Returns:
        float64 ``[n]``.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    words = r"\w+|[^\w\s]"  # punctuation counts, as it does for an LLM
    hashed = HashingVectorizer(
        ngram_range=(1, max_ngram), n_features=n_buckets, token_pattern=words, alternate_sign=False, norm=None
    )
    counts, target_counts = hashed.transform(texts), hashed.transform(target_texts)
    log_target, log_raw = (
        np.log((total + smoothing) / (total + smoothing).sum())
        for total in (np.asarray(table.sum(axis=0)).ravel() for table in (target_counts, counts))
    )
    weights: np.ndarray = counts @ (log_target - log_raw)
    return weights

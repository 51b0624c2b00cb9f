"""The values of the axis ``rerank``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from recbole_llm.rerank.bandit import ModularDispersionBandit
from recbole_llm.rerank.lists import greedy_list, mmr_list
from recbole_llm.rerank.settings import RerankSettings
from recbole_llm.rerank.space import ItemSpace

Floats = NDArray[np.float64]
FAR = 5.0  # standard deviations beyond which a score counts no further


class Reranker(ABC):
    """Re-orders the best items of one row.

    Args:
        settings: settings of the axis.
        space: what items are compared by.
    """

    learns: ClassVar[bool] = False
    """Whether it learns from histories; :meth:`learn` is called then."""

    def __init__(self, settings: RerankSettings, space: ItemSpace) -> None:
        self.settings, self.space = settings, space

    def learn(self, examples: Sequence[RerankExample]) -> None:  # noqa: B027
        """Learn from what users chose next."""

    @abstractmethod
    def order(self, items: np.ndarray, scores: np.ndarray, length: int, trade_off: float) -> np.ndarray:
        """The first items of the new order.

        Args:
            items: int64 [n], best first.
            scores: float64 [n], of the model, falling.
            length: items to put first; the others follow in their old order.
            trade_off: ``rerank_lambda``, in [0, 1].

        Returns:
            int64 [min(length, n)], positions in ``items``.
        """

    def facts(self) -> dict[str, Any]:
        """What was learnt, as plain data that :meth:`restore` takes."""
        return {}

    def restore(self, facts: Mapping[str, Any]) -> None:  # noqa: B027
        """Take over what another had learnt."""


class MMRReranker(Reranker):
    """Maximal marginal relevance: scores scaled to [0, 1] over the list, less the largest similarity to the list.

    Carbonell & Goldstein 1998; similarity is 1 less the distance.
    """

    def order(self, items: np.ndarray, scores: np.ndarray, length: int, trade_off: float) -> np.ndarray:
        """See :class:`Reranker`."""
        low, high = scores.min(), scores.max()
        scaled = (scores - low) / (high - low) if high > low else np.ones(len(scores))
        order: np.ndarray = mmr_list(scaled, 1 - self.space.distances(items), length, trade_off)
        return order


class RerankExample:
    """What a user chose next, and what was not chosen, as the bandit reads it.

    Args:
        items: int64 [m], the next item first, then the drawn negatives.
        scores: float64 [m], the model's, in standard deviations from the mean of the row's best items.
        window: int64 [w], the items before, among which distances are summed.
    """

    def __init__(self, items: np.ndarray, scores: np.ndarray, window: np.ndarray) -> None:
        self.items, self.scores, self.window = items, scores, window


class LMDHReranker(Reranker):
    """Relevance and dispersion, weighed by one ridge regression on what users chose next (LMDH, arXiv 2012.13245).

    An item's features are 1, the model's score, standardised over the row's best items, and its place on the first
    principal axes of what items are compared by (the 1 takes up how often anything is chosen, which dispersion, a sum
    of distances, would else stand for); its dispersion is the sum of its distances to the items before it: in
    a history those of the window, in a list all. Lists are greedy by ``theta . x + beta z``; of the uncertainty nothing
    is added, since a list that is evaluated is not explored.

    Attributes:
        theta: float64 [2 + components], weights of relevance.
        beta: weight of dispersion.
    """

    learns = True

    def __init__(self, settings: RerankSettings, space: ItemSpace) -> None:
        super().__init__(settings, space)
        self._places = space.components()
        self.theta, self.beta = np.zeros(2 + self._places.shape[1]), 0.0

    def learn(self, examples: Sequence[RerankExample]) -> None:
        """See :class:`Reranker`."""
        bandit = ModularDispersionBandit(len(self.theta), 1, self.settings.rerank_ridge)
        for example in examples:
            near = self.space.distances(np.concatenate([example.items, example.window]))
            n = len(example.items)
            feedback = np.zeros(n)
            feedback[0] = 1
            x = self._features(example.items, example.scores)
            bandit.update(x, near[:n, n:].sum(axis=1, keepdims=True), feedback)
        self.theta, beta = bandit.weights()
        self.beta = float(beta[0])

    def order(self, items: np.ndarray, scores: np.ndarray, length: int, trade_off: float) -> np.ndarray:
        """See :class:`Reranker`."""
        x = self._features(items, standardised(scores, scores))
        beta = max(self.beta, 0.0) if self.settings.clip_beta else self.beta
        relevance, spread = 2 * trade_off * (x @ self.theta), 2 * (1 - trade_off) * beta
        found: np.ndarray
        found, _ = greedy_list(relevance, spread * self.space.distances(items), length, self.settings.half_relevance)
        return found

    def _features(self, items: np.ndarray, scores: np.ndarray) -> Floats:
        features: Floats = np.column_stack([np.ones(len(items)), scores, self._places[items]])
        return features

    def facts(self) -> dict[str, Any]:
        """See :class:`Reranker`."""
        return {"theta": self.theta.tolist(), "beta": self.beta}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """See :class:`Reranker`."""
        self.theta, self.beta = np.array(facts["theta"]), float(facts["beta"])


def standardised(scores: np.ndarray, best: np.ndarray) -> Floats:
    """Scores in standard deviations from the mean of a row's best items, kept within ``FAR``.

    Args:
        scores: float64 [m]; -inf for an item that the model does not rank.
        best: float64 [n], the row's best scores, all finite.

    Example:
        >>> standardised(np.array([3.0, -np.inf]), np.array([1.0, 3.0])).tolist()
        [1.0, -5.0]
    """
    spread = best.std() if len(best) else 0.0
    mean = best.mean() if len(best) else 0.0
    found: Floats = np.clip((scores - mean) / (spread if spread > 0 else 1.0), -FAR, FAR)
    return found


def reordered(ranker: Reranker, items: np.ndarray, scores: np.ndarray, length: int, trade_off: float) -> np.ndarray:
    """The new order of one row's best items: those that the ranker puts first, then the others as they were.

    Args:
        ranker: ranker of the axis.
        items: int64 [n], best first.
        scores: float64 [n], all finite.
        length: how many the ranker puts first.
        trade_off: ``rerank_lambda``.

    Returns:
        int64 [n], positions in ``items``.
    """
    if not len(items):
        return np.zeros(0, dtype=np.int64)
    first = ranker.order(items, scores, length, trade_off)
    rest = np.setdiff1d(np.arange(len(items)), first)
    return np.concatenate([first, rest])

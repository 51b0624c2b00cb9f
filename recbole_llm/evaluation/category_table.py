"""Metrics of whole lists by category: diversity, coverage, α-NDCG."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recbole_llm.data.catalog import read_categories
from recbole_llm.errors import InputError
from recbole_llm.evaluation.categories import Categories, drop_common
from recbole_llm.report.diversity import category_coverage, intra_list_distance
from recbole_llm.rerank.space import ItemSpace, category_members

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

    from recbole_llm.declare import Settings

ALPHA = 0.5


class CategoryTable:
    """The categories of a catalogue, one line for each different set of them.

    Args:
        categories: the categories of every item by item id, none where they are unknown; item 0 is padding.

    Attributes:
        members: bool [sets, categories], the different sets.
        set_of: int64 [items], the set of each item.
        known: bool [items], whether the item has any.

    Example:
        >>> table = CategoryTable([[], ["crime"], ["crime", "drama"], ["crime"]])
        >>> table.intra_list_distance(np.array([[1, 2], [1, 3]])).tolist()
        [0.5, 0.0]
    """

    def __init__(self, categories: Categories) -> None:
        members = category_members(categories)
        self.members, self.set_of = np.unique(members, axis=0, return_inverse=True)
        self.set_of = self.set_of.reshape(-1)
        self.known = members.any(axis=1)
        self._distances = ItemSpace(self.members.astype(np.float64), "jaccard").distances(np.arange(len(self.members)))
        self._ideal: dict[tuple[int, int], float] = {}

    @classmethod
    def of(cls, dataset: Dataset, config: Settings) -> CategoryTable:
        """The categories that ``category_field`` states, less those that nearly every item has.

        Raises:
            InputError: the field is not loaded.
        """
        field = config["category_field"]
        found = read_categories(dataset, field)
        if found is None:
            raise InputError(
                "category_field", f"load_col does not load the item field '{field}'; add it to load_col", kind="data"
            )
        return cls(drop_common(found))

    def intra_list_distance(self, items: np.ndarray) -> np.ndarray:
        """Mean Jaccard distance of the pairs of each list, of items that have categories.

        Args:
            items: int64 [rows, k], 0 where there is no item.

        Returns:
            float64 [rows]; 0 where a list has fewer than two such items.
        """
        real = (items > 0) & self.known[items]
        order = np.argsort(~real, axis=1, kind="stable")  # items that count first
        lists, counts, found = np.take_along_axis(items, order, axis=1), real.sum(axis=1), np.zeros(len(items))
        for length in np.unique(counts[counts > 1]):
            rows = counts == length
            found[rows] = intra_list_distance(self.set_of[lists[rows, :length]], self._distances)
        return found

    def coverage(self, items: np.ndarray) -> np.ndarray:
        """Share of the catalogue's categories that each list has an item of. Returns: float64 [rows]."""
        members = np.where((items > 0)[..., None], self.members[self.set_of[items]], False)
        n = max(self.members.shape[1], 1)
        flat = members.reshape(len(items) * items.shape[1], -1)
        lists = np.arange(len(flat)).reshape(items.shape)
        covered: np.ndarray = category_coverage(lists, flat, n)
        return covered

    def alpha_ndcg(self, items: np.ndarray, targets: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
        """α-NDCG (Clarke et al. 2008) with the target's categories as the intents of its row.

        An item's gain is the number of intents it has, each times ``(1 - alpha)`` to the number of items before that
        have it too, discounted by ``log2(1 + position)``; over that of the best list that the catalogue allows, found
        greedily.

        Args:
            items: int64 [rows, k], 0 where there is no item.
            targets: int64 [rows].
            alpha: how much an intent that is met already loses.

        Returns:
            float64 [rows]; NaN where the target has no category.
        """
        gains = np.full(len(items), np.nan)
        discounts = 1 / np.log2(np.arange(2, items.shape[1] + 2))
        for row in np.flatnonzero(self.known[targets]):
            intents = self.members[self.set_of[targets[row]]]
            own = self.members[self.set_of[items[row]]][:, intents] & (items[row] > 0)[:, None]
            before = np.cumsum(own, axis=0) - own
            gain = float(((own * (1 - alpha) ** before).sum(axis=1) * discounts).sum())
            gains[row] = gain / self._best(int(self.set_of[targets[row]]), items.shape[1], alpha)
        return gains

    def _best(self, target_set: int, k: int, alpha: float) -> float:
        """DCG of the greedy list for a set of intents; each set of categories has as many items as the catalogue."""
        if (target_set, k) not in self._ideal:
            intents = self.members[target_set]
            left = np.bincount(self.set_of[1:], minlength=len(self.members))
            own = self.members[:, intents]
            worth, total = np.ones(int(intents.sum())), 0.0
            for position in range(k):
                gains = np.where(left > 0, own @ worth, -1.0)
                chosen = int(gains.argmax())
                if gains[chosen] <= 0:
                    break
                total += float(gains[chosen]) / np.log2(position + 2)
                left[chosen] -= 1
                worth = worth * np.where(own[chosen], 1 - alpha, 1.0)
            self._ideal[target_set, k] = total
        return self._ideal[target_set, k]

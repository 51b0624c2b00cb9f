"""Metrics of what is recommended, whatever is hit, in RecBole's evaluator: its own, and those that it lacks.

Its own are of popularity, long tail, coverage, inequality and entropy. RecBole counts popularity on whatever a model
was trained on, takes the padding item for one of the catalogue, and an empty slot of a short list for item 0. Here
popularity is that before the split, the same for all models of a command, padding is no item, and an empty slot does
not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from recbole.evaluator import Evaluator

from recbole_llm.report.diversity import novelty
from recbole_llm.settings.metric_names import CATEGORIES, ITEM_COUNTS, TARGETS

if TYPE_CHECKING:
    from recbole.evaluator.collector import DataStruct

    from recbole_llm.evaluation.category_table import CategoryTable
    from recbole_llm.settings.config import Config


def item_coverage(items: np.ndarray, n_items: int) -> float:
    """Share of the catalogue that is recommended to anybody.

    Args:
        items: int64 [rows, k], 0 where a row has no item.
        n_items: items of the catalogue, padding not among them.
    """
    return len(np.unique(items[items > 0])) / n_items


def mean_value(items: np.ndarray, values: np.ndarray) -> float:
    """Mean over rows of the mean value of a row's items; rows without an item have none.

    Args:
        items: int64 [rows, k], 0 where a row has no item.
        values: float64 [items], by item id.
    """
    filled = (items > 0).sum(axis=1)
    sums = np.where(items > 0, values[items], 0.0).sum(axis=1)
    return float((sums[filled > 0] / filled[filled > 0]).mean()) if filled.any() else 0.0


def item_bits(counts: np.ndarray) -> np.ndarray:
    """Bits of each item's share of the interactions, add-one smoothed.

    Args:
        counts: [items], interactions of each item; item 0 is padding.

    Returns:
        float64 [items]; 0 for the padding.

    Example:
        >>> item_bits(np.array([0, 2, 0])).tolist()
        [0.0, 0.4150374992788438, 2.0]
    """
    return np.concatenate([[0.0], novelty(np.arange(len(counts) - 1)[:, None], counts[1:])])


def gini_index(items: np.ndarray, n_items: int) -> float:
    """Inequality of how often items are recommended, 0 where all are alike, as RecBole's GiniIndex defines it.

    Args:
        items: int64 [rows, k], 0 where a row has no item.
        n_items: items of the catalogue, padding not among them.
    """
    counts = np.sort(np.unique(items[items > 0], return_counts=True)[1])
    positions = np.arange(n_items - len(counts) + 1, n_items + 1)
    return float(((2 * positions - n_items - 1) * counts).sum() / max(counts.sum(), 1) / n_items)


def shannon_entropy(items: np.ndarray) -> float:
    """Entropy of what is recommended, over the number of different items, as RecBole's ShannonEntropy defines it.

    Args:
        items: int64 [rows, k], 0 where a row has no item.
    """
    counts = np.unique(items[items > 0], return_counts=True)[1]
    shares = counts / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum() / max(len(counts), 1))


def tail_items(counts: Mapping[int, int], ratio: float | None) -> list[int]:
    """The items of the long tail, by RecBole's ``tail_ratio``.

    Args:
        counts: interactions by item id, of items that have some.
        ratio: up to 1 a share of these items, the rarest, the lower id first among equals; above, the most interactions
            an item of the tail has.
    """
    ratio = ratio if ratio is not None and ratio > 0 else 0.1
    if ratio > 1:
        return [item for item, count in counts.items() if count <= ratio]
    by_count = sorted(counts, key=lambda item: (counts[item], item))
    return by_count[: max(int(len(by_count) * ratio), 1)]


# --------------------------------------------------------------------------------- for RecBole's evaluator


ListMetric: TypeAlias = "Callable[[DataStruct, np.ndarray], float]"
"""Of what is collected and the lists, int64 [rows, k]."""


class _Metric:
    """A metric that replaces RecBole's of the same name."""

    def __init__(self, config: Config, name: str, value: ListMetric) -> None:
        self._topk: Sequence[int] = config["topk"]
        self._decimals, self._name, self._value = config["metric_decimal_place"], name, value

    def calculate_metric(self, collected: DataStruct) -> dict[str, float]:
        """The metric at each cut-off, by RecBole's names."""
        items = collected.get("rec.items").numpy()
        values = {f"{self._name}@{k}": self._value(collected, items[:, :k]) for k in self._topk}
        return {name: round(value, self._decimals) for name, value in values.items()}


def count_by_item(evaluator: Evaluator) -> Evaluator:
    """Let an evaluator of RecBole compute these metrics as they are defined here."""
    config = evaluator.config

    def popularity(collected: DataStruct, items: np.ndarray) -> float:
        return mean_value(items, _by_item(collected.get(ITEM_COUNTS), items))

    def tail(collected: DataStruct, items: np.ndarray) -> float:
        rare = tail_items(collected.get(ITEM_COUNTS), config["tail_ratio"])
        return mean_value(items, _by_item(dict.fromkeys(rare, 1), items))

    ours: dict[str, ListMetric] = {
        "averagepopularity": popularity,
        "tailpercentage": tail,
        "itemcoverage": lambda collected, items: item_coverage(items, collected.get("data.num_items") - 1),
        "giniindex": lambda collected, items: gini_index(items, collected.get("data.num_items") - 1),
        "shannonentropy": lambda _, items: shannon_entropy(items),
        **list_metrics(),
    }
    for name in ours.keys() & evaluator.metric_class.keys():
        evaluator.metric_class[name] = _Metric(config, name, ours[name])
    return evaluator


def list_metrics() -> dict[str, ListMetric]:
    """What RecBole's table of metrics lacks, by the lower-case names of its entries."""

    def table(collected: DataStruct) -> CategoryTable:
        found: CategoryTable = collected.get(CATEGORIES)
        return found

    def alpha_ndcg(collected: DataStruct, items: np.ndarray) -> float:
        gains = table(collected).alpha_ndcg(items, collected.get(TARGETS).numpy())
        known = ~np.isnan(gains)
        return float(gains[known].mean()) if known.any() else 0.0

    def unexpected(collected: DataStruct, items: np.ndarray) -> float:
        counts = _by_item(collected.get(ITEM_COUNTS), items, collected.get("data.num_items"))
        return mean_value(items, item_bits(counts))

    return {
        "ild": lambda collected, items: float(table(collected).intra_list_distance(items).mean()),
        "categorycoverage": lambda collected, items: float(table(collected).coverage(items).mean()),
        "alphandcg": alpha_ndcg,
        "novelty": unexpected,
    }


def _by_item(values: Mapping[int, float], items: np.ndarray, n_items: int = 0) -> np.ndarray:
    """Values as an array float64 by item id, of ``n_items`` and all that are listed; 0 for items that have none."""
    found = np.zeros(max(n_items, 1 + max([*values, int(items.max(initial=0))])))
    found[list(values)] = list(values.values())
    return found

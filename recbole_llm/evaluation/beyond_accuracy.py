"""RecBole's metrics of what is recommended, whatever is hit: popularity, long tail, coverage, inequality, entropy.

RecBole counts popularity on whatever a model was trained on, takes the padding item for one of the catalogue, and an
empty slot of a short list for item 0. Here popularity is that before the split, the same for all models of a command,
padding is no item, and an empty slot does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from recbole.evaluator import Evaluator

from recbole_llm.evaluation.list_metrics import list_metrics

if TYPE_CHECKING:
    from recbole.evaluator.collector import DataStruct

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


class _Metric:
    """A metric that replaces RecBole's of the same name."""

    def __init__(self, config: Config, name: str, value: Callable[[Any, np.ndarray], float]) -> None:
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
        counts = collected.get("data.count_items")
        values = np.zeros(1 + max([*counts, int(items.max(initial=0))]))
        values[list(counts)] = list(counts.values())
        return mean_value(items, values)

    def tail(collected: DataStruct, items: np.ndarray) -> float:
        rare = tail_items(collected.get("data.count_items"), config["tail_ratio"])
        values = np.zeros(1 + max([*rare, int(items.max(initial=0))]))
        values[rare] = 1
        return mean_value(items, values)

    ours: dict[str, Callable[[Any, np.ndarray], float]] = {
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

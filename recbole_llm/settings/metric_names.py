"""Names of the metrics of whole lists that RecBole lacks, put into its tables of metrics, and of what they read."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

ITEM_COUNTS = "data.count_items"  # RecBole's own entry
CATEGORIES, TARGETS = "data.categories", "rec.targets"  # beside RecBole's, for metrics of categories
LIST_METRICS: Mapping[str, str] = MappingProxyType(
    {"ILD": CATEGORIES, "CategoryCoverage": CATEGORIES, "AlphaNDCG": CATEGORIES, "Novelty": ITEM_COUNTS}
)
"""Name of a metric to what it reads beside lists and targets."""


def register_list_metrics() -> None:
    """Make the names known to RecBole, whose config refuses others; nothing happens the second time.

    RecBole finds metrics in one module of its own and nowhere else. What the entries compute is put in by
    :func:`recbole_llm.evaluation.recbole_metrics.count_by_item`.
    """
    from recbole.evaluator import metric_information, metric_types, metrics_dict
    from recbole.utils import EvaluatorType

    for name, needs in LIST_METRICS.items():
        metrics_dict.setdefault(name.lower(), type(name, (_Placeholder,), {}))
        metric_information.setdefault(name.lower(), ["rec.items", "rec.topk", "data.num_items", needs])
        metric_types.setdefault(name.lower(), EvaluatorType.RANKING)


class _Placeholder:
    """The entry in RecBole's table until an evaluator gets the metric itself."""

    def __init__(self, config: Any) -> None:
        pass

    def calculate_metric(self, collected: Any) -> dict[str, float]:
        """Never asked: :func:`count_by_item` has replaced it."""
        raise NotImplementedError("an evaluator of lists that count_by_item has not been given")

"""Tables, plots, statistics and the facts a result depends on. Knows nothing of RecBole."""

from recbole_llm.report.categories import category_hit_ratio, category_ranks, drop_common
from recbole_llm.report.environment import data_hash, git_revision, versions
from recbole_llm.report.plots import curriculum_figure, plot_curriculum
from recbole_llm.report.statistics import (
    RANK_METRICS,
    PairedComparison,
    hit_at,
    metric_means,
    minimal_detectable_difference,
    mrr_at,
    ndcg_at,
    paired_bootstrap,
    recall_at,
)
from recbole_llm.report.table import NOT_RUN, TINY_LLM_NOTE, ResultTable, RunResult

__all__ = [
    "NOT_RUN",
    "RANK_METRICS",
    "TINY_LLM_NOTE",
    "PairedComparison",
    "ResultTable",
    "RunResult",
    "category_hit_ratio",
    "category_ranks",
    "curriculum_figure",
    "data_hash",
    "drop_common",
    "git_revision",
    "hit_at",
    "metric_means",
    "minimal_detectable_difference",
    "mrr_at",
    "ndcg_at",
    "paired_bootstrap",
    "plot_curriculum",
    "recall_at",
    "versions",
]

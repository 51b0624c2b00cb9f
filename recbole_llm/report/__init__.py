"""Tables, plots, statistics and the facts a result depends on. Knows nothing of RecBole."""

from recbole_llm.report.answers import AnswerOutcomes, answer_metrics, answer_outcomes, normalize_title
from recbole_llm.report.categories import category_hit_ratio, category_ranks, drop_common
from recbole_llm.report.coreset_plot import coreset_figure, plot_coreset
from recbole_llm.report.environment import data_hash, git_revision, peak_mib, versions
from recbole_llm.report.goracs_plot import goracs_figure, map_points, plot_goracs
from recbole_llm.report.plots import curriculum_figure, gate_figure, plot_curriculum, plot_gates
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
    "AnswerOutcomes",
    "PairedComparison",
    "ResultTable",
    "RunResult",
    "answer_metrics",
    "answer_outcomes",
    "category_hit_ratio",
    "category_ranks",
    "coreset_figure",
    "curriculum_figure",
    "data_hash",
    "drop_common",
    "gate_figure",
    "git_revision",
    "goracs_figure",
    "hit_at",
    "map_points",
    "metric_means",
    "minimal_detectable_difference",
    "mrr_at",
    "ndcg_at",
    "normalize_title",
    "paired_bootstrap",
    "peak_mib",
    "plot_coreset",
    "plot_curriculum",
    "plot_gates",
    "plot_goracs",
    "recall_at",
    "versions",
]

"""Tables, plots, statistics and environment facts. Independent of RecBole."""

from recbole_llm.report.code_plot import code_figure, plot_codes
from recbole_llm.report.compared import Compared
from recbole_llm.report.comparison_plots import comparison_figure, cost_figure, learning_figure, plot_table
from recbole_llm.report.coreset_plot import coreset_figure, plot_coreset
from recbole_llm.report.diversity import category_coverage, embedding_distance, intra_list_distance, novelty
from recbole_llm.report.environment import data_hash, git_revision, peak_mib, revision, versions
from recbole_llm.report.examples import ExampleUser, example_users
from recbole_llm.report.goracs_plot import goracs_figure, plot_goracs
from recbole_llm.report.length_plot import length_figure, plot_lengths
from recbole_llm.report.page import Changed, PageFacts, to_page, write_page
from recbole_llm.report.plots import curriculum_figure, gate_figure, plot_curriculum, plot_gates
from recbole_llm.report.projection import map_points
from recbole_llm.report.rerank_plot import plot_trade_off, trade_off_figure
from recbole_llm.report.table import NOT_RUN, TINY_LLM_NOTE, ResultTable, RunResult
from recbole_llm.report.tuning_plots import importance_figure, plot_importances, plot_slices, slice_figure

__all__ = [
    "NOT_RUN",
    "TINY_LLM_NOTE",
    "Changed",
    "Compared",
    "ExampleUser",
    "PageFacts",
    "ResultTable",
    "RunResult",
    "category_coverage",
    "code_figure",
    "comparison_figure",
    "coreset_figure",
    "cost_figure",
    "curriculum_figure",
    "data_hash",
    "embedding_distance",
    "example_users",
    "gate_figure",
    "git_revision",
    "goracs_figure",
    "importance_figure",
    "intra_list_distance",
    "learning_figure",
    "length_figure",
    "map_points",
    "novelty",
    "peak_mib",
    "plot_codes",
    "plot_coreset",
    "plot_curriculum",
    "plot_gates",
    "plot_goracs",
    "plot_importances",
    "plot_slices",
    "plot_lengths",
    "plot_table",
    "plot_trade_off",
    "revision",
    "slice_figure",
    "to_page",
    "trade_off_figure",
    "versions",
    "write_page",
]


def __getattr__(name: str) -> object:
    """``answer_metrics`` is public here; it is one of the rules by which answers are evaluated."""
    if name == "answer_metrics":
        from importlib import import_module

        return import_module("recbole_llm.evaluation.answers").answer_metrics
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

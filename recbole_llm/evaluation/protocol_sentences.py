"""The protocol of a run in sentences, for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from recbole_llm.declare import Settings
from recbole_llm.report.layout import metric_label
from recbole_llm.settings.task_checks import LOSS

if TYPE_CHECKING:
    from recbole_llm.evaluation.base import Protocol

_LEFT_OUT = {
    "valid_and_test": "the last interaction is the test target, the one before it that of validation, and models learn "
    "from what comes before",
    "valid_only": "the last interaction is the validation target and models learn from what comes before",
    "test_only": "the last interaction is the test target and models learn from what comes before",
}
_ORDER = {"TO": "by time", "RO": "in random order"}


def protocol_in_words(
    protocol: Protocol, chosen_by: Mapping[str, Sequence[str]], prompts: Mapping[str, int | None], n_test: int | None
) -> dict[str, str]:
    """How rows were evaluated.

    Args:
        protocol: protocol of the runs.
        chosen_by: see :func:`epoch_in_words`.
        prompts: see :func:`history_in_words`.
        n_test: test rows, where they are known.

    Returns:
        A heading to a sentence each: split, rows, history, masking, what is ranked, ties, metrics, epoch.
    """
    config = protocol.config
    return {
        "Split": split_in_words(config),
        "Rows": rows_in_words(config, n_test),
        "History": history_in_words(config, prompts),
        **protocol.words(),
        "Epoch": epoch_in_words(chosen_by),
    }


def history_in_words(config: Settings, prompts: Mapping[str, int | None]) -> str:
    """How many items before the target models are shown.

    Args:
        config: settings of the runs.
        prompts: items that the LLM's prompts of a model show at most, by its name; None where they show all.

    Example:
        >>> history_in_words({"MAX_ITEM_LIST_LENGTH": 50}, {"SASRec": None, "BIGRec": 10, "RecLoRA": 10})
        'A model is shown at most the 50 last items before the target; prompts of BIGRec, RecLoRA show 10 of them.'
    """
    fewer: dict[int, list[str]] = {}
    for name, count in prompts.items():
        if count is not None:
            fewer.setdefault(count, []).append(name)
    shown = "".join(f"; prompts of {', '.join(names)} show {count} of them" for count, names in fewer.items())
    return f"A model is shown at most the {config['MAX_ITEM_LIST_LENGTH']} last items before the target{shown}."


def epoch_in_words(models: Mapping[str, Sequence[str]]) -> str:
    """What the kept epoch is chosen by.

    Args:
        models: names of the models by the metric that chooses theirs; they are said where there are several metrics.

    Example:
        >>> epoch_in_words({"ndcg@10": ["BIGRec"], "mrr@10": ["Pop", "SASRec"]})[:72]
        'The kept epoch is the best one by NDCG@10 (BIGRec), MRR@10 (Pop, SASRec)'
    """
    named = {metric: "the loss of the validation rows' answers" for metric in models if metric == LOSS}
    several = len(models) > 1
    measures = (
        named.get(metric, metric_label(metric)) + (f" ({', '.join(own)})" if several else "")
        for metric, own in models.items()
    )
    return (
        f"The kept epoch is the best one by {', '.join(measures)} on the validation rows; "
        "the test rows are evaluated once."
    )


def split_in_words(config: Settings) -> str:
    """How rows were divided into training, validation and test.

    Example:
        >>> found = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user"}
        >>> split_in_words({"benchmark_filename": None, "eval_args": found})[:44]
        'Leave one out: of each user, ordered by time'
    """
    if config["benchmark_filename"]:
        return f"As the files are split: {', '.join(config['benchmark_filename'])}."
    found: Mapping[str, Any] = config["eval_args"]
    ((kind, value),) = found["split"].items()
    whose = "of each user" if found["group_by"] == "user" else "of all interactions together"
    order = _ORDER[found["order"]]
    if kind == "LS":
        return f"Leave one out: {whose}, ordered {order}, {_LEFT_OUT[value]}."
    shares = " : ".join(f"{share:g}" for share in value)
    return f"Shares: {whose}, ordered {order}, training : validation : test are {shares}."


def rows_in_words(config: Settings, n_test: int | None) -> str:
    """Which rows were evaluated, and on which models were trained."""
    counted = "" if n_test is None else f"{n_test:,} test rows, "
    named = {"validation": config["valid_sample_size"], "test": config["test_sample_size"]}
    sizes = [f"{size:,} of the {name} rows" for name, size in named.items() if size is not None]
    drawn = f"at most {' and '.join(sizes)}, drawn by sample_seed {config['sample_seed']}" if sizes else "all there are"
    few = config["train_sample_size"]
    learned = "" if few is None else f" Few-shot models learn from at most {few:,} training rows, drawn by seed."
    return f"{counted}{drawn}, with one target each; the same rows for all models.{learned}"

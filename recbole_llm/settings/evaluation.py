"""Settings of data, rows and evaluation, which all models of a command share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from recbole_llm.declare import Declared, Setting

LEAVE_ONE_OUT = ("valid_and_test", "valid_only", "test_only")


def is_number(value: object) -> bool:
    """Whether a value is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_split(split: Mapping[str, Any]) -> bool:
    if len(split) != 1:
        return False
    ((kind, value),) = split.items()
    if kind == "LS":
        return value in LEAVE_ONE_OUT
    shares = isinstance(value, list) and len(value) == 3 and all(is_number(share) and share >= 0 for share in value)
    return kind in ("RS", "TS") and shares


@dataclass(frozen=True)
class RowSettings(Declared):
    """Which rows there are, and how many of them are used."""

    MAX_ITEM_LIST_LENGTH: Annotated[int, Setting("items of history per row", low=1, high=65_536)] = 10
    windows: Annotated[
        str,
        Setting(
            "which windows of a user are rows",
            choices={
                "all": "every prefix",
                "full": "those with the longest history and, where the whole sequence fits into one window, that one",
            },
        ),
    ] = "all"
    train_sample_size: Annotated[
        int | None,
        Setting("few-shot training: number of training rows drawn by seed", low=1, null="takes all rows"),
    ] = None
    sample_for: Annotated[
        str,
        Setting(
            "rows that RecBole's models are trained on",
            choices={"both": "once on each, side by side", "llm": "all rows", "all": "the few-shot rows"},
        ),
    ] = "both"
    valid_sample_size: Annotated[
        int | None,
        Setting("number of validation rows drawn by sample_seed, the same for all models", low=1, null="takes all"),
    ] = None
    test_sample_size: Annotated[
        int | None,
        Setting("number of test rows drawn by sample_seed, the same for all models", low=1, null="takes all"),
    ] = None
    sample_seed: Annotated[
        int,
        Setting(
            "seed that draws validation and test rows, and the items each is ranked among",
            low=0,
            high=2**32 - 1,
            note="seed draws training rows and trains",
        ),
    ] = 2020
    filter_inter_by_user_or_item: Annotated[
        bool,
        Setting("leave out interactions whose user or item has no line in the .user or .item file"),
    ] = False
    bad_lines: Annotated[
        str,
        Setting(
            "a line that cannot be read as its header says",
            choices={"error": "refuse the file", "drop": "leave it out and count it"},
        ),
    ] = "error"
    quoting: Annotated[
        str,
        Setting(
            "quotes in the atomic files",
            choices={
                "none": "part of the values",
                "csv": "around a field they are taken off",
                "auto": "csv if every line is whole under it",
            },
        ),
    ] = "none"


@dataclass(frozen=True)
class EvalArgs(Declared):
    """The keys inside ``eval_args``."""

    split: Annotated[
        dict[str, Any],
        Setting(
            "how rows are divided into training, validation and test",
            accept=_is_split,
            like=f"{{LS: {' or '.join(LEAVE_ONE_OUT)}}} or {{RS: [0.8, 0.1, 0.1]}}",
        ),
    ]
    order: Annotated[str, Setting("order of the rows", choices={"TO": "time", "RO": "random"})]
    group_by: Annotated[str | None, Setting("what is split on its own", choices=("user", "none"), null="is none")]
    mode: Annotated[str | dict[str, Any], Setting("what is ranked: full, uni<n> or pop<n>; clicks are labeled")]


@dataclass(frozen=True)
class EvaluationSettings(Declared):
    """How all models of a command are evaluated."""

    eval_args: Annotated[
        dict[str, Any],
        Setting("4 keys: split, order, group_by and mode", note="a user's key replaces this one, the rest stay"),
    ]
    repeatable: Annotated[
        bool,
        Setting(
            "items that a user had may be recommended again",
            note="False, only for models that read no sequences: nothing that a user had before the target is ranked "
            "or drawn",
        ),
    ] = True
    metrics: Annotated[list[str] | str, Setting("evaluation metrics")] = field(
        default_factory=lambda: ["Recall", "NDCG", "MRR", "Hit"]
    )
    topk: Annotated[list[int] | int, Setting("cut-offs of the metrics", low=1, high=65_536)] = field(
        default_factory=lambda: [1, 5, 10, 20]
    )
    head_share: Annotated[
        float | None,
        Setting(
            "share of the items, the most popular in training, that form the head",
            above=0,
            below=1,
            null="does not separate head and tail",
        ),
    ] = None
    category_field: Annotated[
        str | None,
        Setting(
            "item field with an item's categories, for category_hit: how often one of the first k items "
            "shares a category with the target",
            null="leaves it out",
        ),
    ] = None
    beyond_accuracy: Annotated[
        bool,
        Setting(
            "more columns: coverage, Gini index, novelty, popularity lift and distance of the items within lists; NDCG "
            "and Hit by head and tail targets, the compared metric by warm and cold ones; what the untuned LLM knows "
            "of the data",
        ),
    ] = False
    valid_metric: Annotated[
        str,
        Setting(
            "metric that chooses the epoch",
            note="one of metrics, at one of topk; or, for LLM models, loss: per token of the validation rows' answers, "
            "without generating",
        ),
    ] = "MRR@10"
    candidates: Annotated[
        int | None,
        Setting(
            "titles that a prompt lists to choose from, including the target's",
            low=2,
            high=10_000,
            note="evaluated by HitRatio@1 and ValidRatio (docs/candidates.md)",
            null="lists none and ranks the whole catalogue",
        ),
    ] = None
    title_field: Annotated[str, Setting("item field that holds the title")] = "title"
    title_with: Annotated[
        str | None,
        Setting("item field added to the title in brackets, to tell items of one title apart", null="is none"),
    ] = None

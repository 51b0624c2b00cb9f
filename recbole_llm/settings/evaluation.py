"""Settings of data, rows and evaluation, which all models of a command share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from recbole_llm.declare import Declared, Setting

LEAVE_ONE_OUT = ("valid_and_test", "valid_only", "test_only")
NUMBER = r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_RANGE = rf"[\[(]{NUMBER},(inf|{NUMBER})[\])]"
_INTERVAL = rf"{_RANGE}(;{_RANGE})*"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_split(split: Mapping[str, Any]) -> bool:
    if len(split) != 1:
        return False
    ((kind, value),) = split.items()
    if kind == "LS":
        return value in LEAVE_ONE_OUT
    shares = isinstance(value, list) and len(value) == 3 and all(_is_number(share) and share >= 0 for share in value)
    return kind in ("RS", "TS") and shares


def _is_columns(value: Mapping[str, Any]) -> bool:
    """Whether this names columns by the suffix of their file."""
    return all(fields == "*" or _are_texts(fields) for fields in value.values()) and _are_texts(list(value))


def _are_lists(value: Mapping[str, Any]) -> bool:
    return all(map(_are_texts, value.values())) and _are_texts(list(value))


def _parts_fields(value: str) -> bool:
    return bool(value) and not {"\n", "\r"} & set(value)


def _are_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)


def _is_negatives(value: Mapping[str, Any]) -> bool:
    """Whether these are RecBole's arguments of negative samples, of types that it can use."""
    if value.get("distribution") == "none":  # what RecBole makes of ~, with "none" for numbers
        return True
    count, power, pool = (value.get(key, 1) for key in ("sample_num", "alpha", "candidate_num"))
    names = {"distribution", "sample_num", "alpha", "dynamic", "candidate_num"}
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in (count, pool))
    dynamic = isinstance(value.get("dynamic", False), bool)
    return (
        names.issuperset(value) and whole and count >= 1 and pool >= 0 and dynamic and _is_number(power) and power >= 0
    )


def _is_threshold(value: Mapping[str, Any]) -> bool:
    return len(value) == 1 and all(map(_is_number, value.values()))


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
            "on which rows RecBole's models train",
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
            "seed that draws validation and test rows, and what each is evaluated among",
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
    repeatable: Annotated[bool, Setting("items of the history can be recommended again: nothing is masked")] = True
    metrics: Annotated[list[str] | str, Setting("evaluation metrics")] = field(
        default_factory=lambda: ["Recall", "NDCG", "MRR", "Hit"]
    )
    topk: Annotated[list[int] | int, Setting("cut-offs of the metrics", low=1, high=65_536)] = field(
        default_factory=lambda: [1, 5, 10, 20]
    )
    head_share: Annotated[
        float | None,
        Setting(
            "share of items, the most popular in training, whose targets are evaluated apart from the others",
            above=0,
            below=1,
            null="evaluates none apart",
        ),
    ] = None
    category_field: Annotated[
        str | None,
        Setting(
            "item field that states an item's categories, for category_hit: how often one of the first k items "
            "shares a category with the target",
            null="leaves it out",
        ),
    ] = None
    beyond_accuracy: Annotated[
        bool,
        Setting(
            "more columns: coverage, Gini index, novelty, popularity lift and distance of the items within lists; the "
            "metric of the comparisons by head, tail, warm and cold targets; what the untuned LLM knows of the data",
        ),
    ] = False
    valid_metric: Annotated[
        str,
        Setting(
            "metric that chooses the epoch",
            note="one of metrics, at one of topk; or loss, of LLM models: that of the validation rows' answers per "
            "token, for which nothing is generated",
        ),
    ] = "MRR@10"
    candidates: Annotated[
        int | None,
        Setting(
            "titles that a prompt lists to choose from, the target's one of them",
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


@dataclass(frozen=True, kw_only=True)
class RecBoleSettings(Declared):
    """Settings of RecBole that are checked here too; their defaults are RecBole's."""

    dataset: Annotated[str, Setting("name of the data set")]
    data_path: Annotated[str, Setting("folder that holds the folder of the data set, or that folder")]
    checkpoint_dir: Annotated[str, Setting("folder of runs and stages")]
    seed: Annotated[int, Setting("seed of samples, initial weights and dropout", low=0, high=2**32 - 1)]
    eval_batch_size: Annotated[int, Setting("rows per batch of evaluation", low=1)]
    metric_decimal_place: Annotated[int, Setting("decimals of metrics in RecBole's log", low=0, high=100)]
    loss_decimal_place: Annotated[int, Setting("decimals of losses in RecBole's log", low=0, high=100)]
    USER_ID_FIELD: Annotated[str, Setting("column of the user")]
    ITEM_ID_FIELD: Annotated[str, Setting("column of the item")]
    RATING_FIELD: Annotated[str, Setting("column of the rating")]
    TIME_FIELD: Annotated[str, Setting("column of the time")]
    LABEL_FIELD: Annotated[str, Setting("column of the label, 0 or 1, where clicks are predicted")]
    LIST_SUFFIX: Annotated[
        str, Setting("what ends the name of a column's history in a row", accept=bool, like="text, such as _list")
    ]
    ITEM_LIST_LENGTH_FIELD: Annotated[str, Setting("column of each row's length of history")]
    field_separator: Annotated[
        str,
        Setting(
            "what parts the fields of a line of the atomic files",
            accept=_parts_fields,
            like="text that no line ends in, such as a comma",
        ),
    ]
    seq_separator: Annotated[
        str | None,
        Setting(
            "what parts the entries of a sequence",
            accept=_parts_fields,
            like="text that no line ends in, such as a blank",
            null="is any white space",
        ),
    ]
    encoding: Annotated[str | None, Setting("text encoding of the atomic files", null="is utf-8")]
    load_col: Annotated[
        dict[str, Any] | None,
        Setting(
            "columns to load by file suffix",
            accept=_is_columns,
            like="lists of columns by file suffix, such as {inter: [user_id, item_id], item: '*'}",
            null="loads all",
        ),
    ]
    unload_col: Annotated[
        dict[str, Any] | None,
        Setting(
            "columns to leave out by file suffix",
            accept=_are_lists,
            like="lists of columns by file suffix, such as {inter: [rating]}",
            null="is none",
        ),
    ]
    threshold: Annotated[
        dict[str, Any] | None,
        Setting(
            "value from which an interaction counts as liked, for models of clicks",
            accept=_is_threshold,
            like="one column and a number, such as {'rating': 4}",
            null="is none",
        ),
    ]
    alias_of_user_id: Annotated[
        list[str] | None,
        Setting("further columns that hold ids of users", null="is none"),
    ]
    alias_of_item_id: Annotated[
        list[str] | None,
        Setting("further columns that hold ids of items", null="is none"),
    ]
    additional_feat_suffix: Annotated[
        list[str] | str | None,
        Setting("suffixes of further files of features", null="is none"),
    ]
    rm_dup_inter: Annotated[
        str | None,
        Setting(
            "which of a user's repeated interactions with an item stays",
            choices={"first": "the earliest", "last": "the latest"},
            null="keeps all",
        ),
    ]
    val_interval: Annotated[dict[str, Any] | None, Setting("values to keep by column", null="keeps all")]
    user_inter_num_interval: Annotated[
        str | None,
        Setting("interactions of a user that is kept", pattern=_INTERVAL, like="text like [3,inf)", null="keeps all"),
    ]
    item_inter_num_interval: Annotated[
        str | None,
        Setting("interactions of an item that is kept", pattern=_INTERVAL, like="text like [3,inf)", null="keeps all"),
    ]
    train_neg_sample_args: Annotated[
        dict[str, Any] | None,
        Setting(
            "negative samples for training",
            accept=_is_negatives,
            like="some of {distribution: uniform, sample_num: 1, alpha: 1.0, dynamic: False, candidate_num: 0}",
            null="draws none",
        ),
    ]

"""Settings of RecBole's own that are checked here too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from recbole_llm.declare import Declared, Setting
from recbole_llm.settings.evaluation import is_number

NUMBER = r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_RANGE = rf"[\[(]{NUMBER},(inf|{NUMBER})[\])]"
_INTERVAL = rf"{_RANGE}(;{_RANGE})*"


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
        names.issuperset(value) and whole and count >= 1 and pool >= 0 and dynamic and is_number(power) and power >= 0
    )


def _is_threshold(value: Mapping[str, Any]) -> bool:
    return len(value) == 1 and all(map(is_number, value.values()))


@dataclass(frozen=True, kw_only=True)
class RecBoleSettings(Declared):
    """Settings of RecBole's, with RecBole's defaults."""

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
        str, Setting("ending of the name of a column's history in a row", accept=bool, like="text, such as _list")
    ]
    ITEM_LIST_LENGTH_FIELD: Annotated[str, Setting("column with the length of each row's history")]
    field_separator: Annotated[
        str,
        Setting(
            "separator of the fields in a line of the atomic files",
            accept=_parts_fields,
            like="text that no line ends in, such as a comma",
        ),
    ]
    seq_separator: Annotated[
        str | None,
        Setting(
            "separator of the entries of a sequence",
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
            "value from which an interaction counts as liked, for models that predict clicks",
            accept=_is_threshold,
            like="one column and a number, such as {'rating': 4}",
            null="is none",
        ),
    ]
    alias_of_user_id: Annotated[
        list[str] | None,
        Setting("further columns with ids of users", null="is none"),
    ]
    alias_of_item_id: Annotated[
        list[str] | None,
        Setting("further columns with ids of items", null="is none"),
    ]
    additional_feat_suffix: Annotated[
        list[str] | str | None,
        Setting("suffixes of further feature files", null="is none"),
    ]
    rm_dup_inter: Annotated[
        str | None,
        Setting(
            "which of a user's repeated interactions with an item is kept",
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

"""Settings of RecBole's own that are checked here too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from recbole_llm.data.filter_checks import NUMBER
from recbole_llm.declare import Declared, Setting
from recbole_llm.settings.evaluation import is_number

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


def _is_count(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_negatives(value: Mapping[str, Any]) -> bool:
    """Whether these are RecBole's arguments of negative samples, of types that it can use."""
    if value.get("distribution") == "none":  # what RecBole makes of ~, with "none" for numbers
        return True
    count, power, pool = (value.get(key, 1) for key in ("sample_num", "alpha", "candidate_num"))
    names = {"distribution", "sample_num", "alpha", "dynamic", "candidate_num"}
    counted = _is_count(count) and _is_count(pool, least=0)
    dynamic = isinstance(value.get("dynamic", False), bool)
    return names.issuperset(value) and counted and dynamic and is_number(power) and power >= 0


def _are_names(value: Mapping[str, Any]) -> bool:
    return _are_texts([*value, *value.values()])


def _are_lengths(value: Mapping[str, Any]) -> bool:
    return all(map(_is_count, value.values())) and _are_texts(list(value))


def _are_buckets(value: Mapping[str, Any]) -> bool:
    """Whether these are RecBole's methods of making numbers into classes, by column."""
    return _are_texts(list(value)) and all(map(_is_bucketing, value.values()))


def _is_bucketing(value: object) -> bool:
    if not isinstance(value, Mapping) or not {"method", "bucket"}.issuperset(value):
        return False
    return value.get("method") == "LD" or (value.get("method") == "ED" and _is_count(value.get("bucket")))


def _is_threshold(value: Mapping[str, Any]) -> bool:
    return len(value) == 1 and all(map(is_number, value.values()))


@dataclass(frozen=True, kw_only=True)
class RecBoleSettings(Declared):
    """Settings of RecBole's, with RecBole's defaults."""

    dataset: Annotated[str, Setting("name of the data set")]
    data_path: Annotated[str, Setting("folder that holds the folder of the data set, or that folder")]
    checkpoint_dir: Annotated[str, Setting("folder of runs and stages")]
    dataset_save_path: Annotated[str | None, Setting("file of a saved data set to load", null="is none")]
    dataloaders_save_path: Annotated[str | None, Setting("file of saved loaders to load", null="is none")]
    state: Annotated[str, Setting("least important messages in the log: debug, info, warning, error or critical")]
    wandb_project: Annotated[str, Setting("project of Weights & Biases, where log_wandb is on")]
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
    POSITION_FIELD: Annotated[str, Setting("column of the positions in a row's history")]
    NEG_PREFIX: Annotated[str, Setting("beginning of the names of columns of negative samples")]
    ENTITY_ID_FIELD: Annotated[str, Setting("column of the entity, of a knowledge graph")]
    RELATION_ID_FIELD: Annotated[str, Setting("column of the relation, of a knowledge graph")]
    HEAD_ENTITY_ID_FIELD: Annotated[str, Setting("column of the entity that a relation is from")]
    TAIL_ENTITY_ID_FIELD: Annotated[str, Setting("column of the entity that a relation is to")]
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
    unused_col: Annotated[
        dict[str, Any] | None,
        Setting(
            "columns to leave out by file suffix, once rows are filtered and in order",
            accept=_are_lists,
            like="lists of columns by file suffix, such as {inter: [timestamp]}",
            null="is none",
        ),
    ]
    benchmark_filename: Annotated[
        list[str] | None,
        Setting("suffixes of the files of training, validation and test, already split", null="splits the .inter file"),
    ]
    seq_len: Annotated[
        dict[str, Any] | None,
        Setting(
            "entries to keep of a sequence, by column",
            accept=_are_lengths,
            like="a count by column, such as {title: 10}",
            null="keeps all",
        ),
    ]
    preload_weight: Annotated[
        dict[str, Any] | None,
        Setting(
            "column of vectors by that of ids",
            accept=_are_names,
            like="the column of vectors by that of ids, such as {ent_id: ent_emb}",
            null="is none",
        ),
    ]
    normalize_field: Annotated[list[str] | None, Setting("columns of numbers to bring to 0 to 1", null="is none")]
    numerical_features: Annotated[list[str], Setting("columns of numbers that a model embeds")]
    discretization: Annotated[
        dict[str, Any] | None,
        Setting(
            "columns of numbers to make into classes: ED in buckets of equal width, LD by their logarithm",
            accept=_are_buckets,
            like="{method: ED, bucket: 5} or {method: LD} by column",
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
    alias_of_entity_id: Annotated[
        list[str] | None,
        Setting("further columns with ids of entities", null="is none"),
    ]
    alias_of_relation_id: Annotated[
        list[str] | None,
        Setting("further columns with ids of relations", null="is none"),
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
    entity_kg_num_interval: Annotated[
        str | None,
        Setting("triples of an entity that is kept", pattern=_INTERVAL, like="text like [3,inf)", null="keeps all"),
    ]
    relation_kg_num_interval: Annotated[
        str | None,
        Setting("triples of a relation that is kept", pattern=_INTERVAL, like="text like [3,inf)", null="keeps all"),
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

"""The rows that are trained on and evaluated: one target per row, the same rows for every model of a command.

RecBole evaluates its general models on other rows than its sequential ones. Here the rows are always those of the
sequential split; a general model (Pop, BPR, LightGCN, ...) learns from the interactions before the split and scores the
same rows.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

import numpy as np
import psutil
import torch
from recbole.data.dataset import Dataset, KnowledgeBasedDataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

import recbole_llm.data.patched  # noqa: F401
from recbole_llm.data.catalog import note_unread_items
from recbole_llm.data.columns import check_columns, check_graph, inter_columns
from recbole_llm.data.general import count_before_split, interactions_before, interactions_of_rows, pairs_before_split
from recbole_llm.data.identity import place_rows
from recbole_llm.data.labels import check_labels, label_column, missing_label
from recbole_llm.data.presplit import log_unseen, prepare_presplit
from recbole_llm.data.recbole_dataset import make_dataset
from recbole_llm.data.row_arrays import find_pairs, newest, row_histories, row_pairs, rows_digest
from recbole_llm.data.split_rows import N_BEFORE, SAMPLE_ID, Rows
from recbole_llm.data.windows import with_full_windows
from recbole_llm.declare import MutableSettings, Settings
from recbole_llm.errors import InputError
from recbole_llm.stages import stage_seed

__all__ = [
    "AsSequential", "N_BEFORE", "Rows", "SAMPLE_ID", "find_pairs", "load_rows", "newest", "row_histories", "row_pairs",
    "rows_digest", "take_sample",
]  # fmt: skip
log = logging.getLogger(__name__)


class AsSequential:
    """A model's config as its evaluation loader should see it: rows are sequential whatever the model is."""

    def __init__(self, config: MutableSettings) -> None:
        self._config = config

    def __getitem__(self, key: str) -> Any:
        return ModelType.SEQUENTIAL if key == "MODEL_TYPE" else self._config[key]

    def __setitem__(self, key: str, value: Any) -> None:  # RecBole's loaders name the fields of their transforms
        self._config[key] = value


def load_rows(config: MutableSettings, few_shot: bool) -> Rows:
    """Read the data set, split it and take the configured subsets.

    Nothing that an earlier run pickled is loaded: RecBole's ``save_dataset`` files are written but never read.

    Args:
        config: the model's config.
        few_shot: whether ``train_sample_size`` applies to this model; the evaluation sizes apply to all models alike.

    Raises:
        InputError: no row is left to train on or to evaluate.
    """
    prepare_presplit(config)
    check_columns(config)
    _check_graph(config)
    sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    whole, built = _split(config, _dataset_class(config) if sequential else SequentialDataset)
    parts = [_cut_histories(_with_history(part)) for part in _number_rows(whole, built)]
    note_unread_items(whole)
    whole.reading.log(log)
    _log_skipped_users(whole, parts)
    if config["benchmark_filename"] is not None:
        log_unseen(parts)
    seeds = {"train": config["seed"], "valid": config["sample_seed"], "test": config["sample_seed"]}
    sampled = [
        take_sample(part, config[f"{name}_sample_size"], seed, name)
        for part, (name, seed) in zip(parts, seeds.items(), strict=True)
    ]
    train = sampled[0] if few_shot else parts[0]
    if not len(train) or not len(sampled[2]):
        hint = "a user needs 3 interactions for both; check user_inter_num_interval, item_inter_num_interval, eval_args"
        if config["benchmark_filename"] is not None:
            hint = "check the files of benchmark_filename"
        message = f"'{config['dataset']}' leaves {len(train)} training and {len(sampled[2])} test rows: {hint}"
        raise InputError("dataset", message, kind="data")
    if not sequential and few_shot:
        train = interactions_of_rows(config, _dataset_class(config), whole, train)
    elif not sequential:
        train = interactions_before(config, _dataset_class(config), whole, parts)
    train.item_counts = whole.item_counts = count_before_split(whole, parts)
    if config["beyond_accuracy"] or config["rerank"] != "none":
        whole.pairs_before = pairs_before_split(whole, parts)
    rows = Rows(train, sampled[1], sampled[2], whole)
    if label_column(config):
        check_labels(config, {"train": rows.train, "valid": rows.valid, "test": rows.test})
    return rows


def _split(config: MutableSettings, rows_class: type) -> tuple[SequentialDataset, list[SequentialDataset]]:
    """The data set of the evaluated rows, and its training, validation and test rows."""
    rows_class = with_full_windows(rows_class) if config["windows"] == "full" else rows_class
    view = config if config["MODEL_TYPE"] == ModelType.SEQUENTIAL else AsSequential(config)
    try:
        whole = make_dataset(rows_class, view, getattr(config, "numbering", None))
        if config["save_dataset"]:
            whole.save()
        _check_memory(whole, config["MAX_ITEM_LIST_LENGTH"])
        built = whole.build()
    except InputError:
        raise
    except ValueError as error:  # RecBole's own checks
        raise InputError("dataset", f"'{config['dataset']}': {_in_words(error)}", kind="data") from error
    if label_column(config) and whole.label_field not in built[0].inter_feat:
        columns = {name: kind for _, found in inter_columns(config) for name, kind in found.items()}
        raise InputError(missing_label(config, columns), kind="data")
    return whole, built


def _check_memory(whole: Dataset, length: int) -> None:
    """Refuse tables of histories that do not fit into memory: RecBole pads every row's to the longest allowed.

    Args:
        whole: the interactions, before they become rows.
        length: items of history per row, at most.

    Raises:
        InputError: what they would take, and how long histories are.
    """
    if whole.config["benchmark_filename"] is not None:  # histories are in the files, as long as they are
        return
    padded = len(whole.inter_feat.columns) - 1  # all columns but the user's
    needed, free = 8 * len(whole.inter_feat) * length * padded, psutil.virtual_memory().available
    if needed > free:
        longest = int(whole.inter_feat[whole.uid_field].value_counts().max()) - 1
        raise InputError(
            "MAX_ITEM_LIST_LENGTH",
            f"histories padded to {length:,} items take about {needed / 1e9:,.1f} GB of the {free / 1e9:,.1f} GB of "
            f"memory that are free; the longest history has {longest:,} items, set no more than that",
            kind="environment",
        )


def _in_words(error: ValueError) -> str:
    """What RecBole says of data that it cannot read, with a remedy where it names none."""
    said = " ".join(str(error).split())
    return said + ("; it holds text that is no number" if "Unable to convert column" in said else "")


def _dataset_class(config: Settings) -> type[Dataset]:
    module = importlib.import_module("recbole.data.dataset")
    by_type = {ModelType.SEQUENTIAL: "SequentialDataset", ModelType.KNOWLEDGE: "KnowledgeBasedDataset"}
    usual: type[Dataset] = getattr(module, by_type.get(config["MODEL_TYPE"], "Dataset"))
    own: type[Dataset] = getattr(module, config["model"] + "Dataset", usual)
    return own


def _check_graph(config: Settings) -> None:
    """Refuse a model of knowledge graphs on a data set without one, on which RecBole fails with an unrelated error."""
    if issubclass(_dataset_class(config), KnowledgeBasedDataset):
        check_graph(config["model"], config)


def _number_rows(whole: SequentialDataset, parts: list[SequentialDataset]) -> list[SequentialDataset]:
    """Give every row its number in the order of the split, and how many interactions its user has before it."""
    presplit = whole.config["benchmark_filename"] is not None
    lengths = [part.inter_feat[part.item_list_length_field].numpy() for part in parts]
    start = 0
    for part, before in zip(parts, lengths if presplit else place_rows(whole, parts), strict=True):
        numbers = torch.arange(start, start + len(part))
        part.inter_feat.update(Interaction({SAMPLE_ID: numbers, N_BEFORE: torch.from_numpy(before)}))
        start += len(part)
    return parts


def _with_history(part: SequentialDataset) -> SequentialDataset:
    keep = part.inter_feat[part.item_list_length_field] > 0
    if not keep.all():
        log.warning("%d rows have no history; they are skipped.", int((~keep).sum()))
        part = part.copy(part.inter_feat[keep])
    return part


def _cut_histories(part: SequentialDataset) -> SequentialDataset:
    """Benchmark files may hold longer histories than ``MAX_ITEM_LIST_LENGTH``: the newest items stay.

    All parts are as wide as the longest history of any of them, so one without a long history is cut as well.
    """
    rows, limit, suffix = part.inter_feat, part.config["MAX_ITEM_LIST_LENGTH"], part.config["LIST_SUFFIX"]
    if rows[part.iid_field + suffix].shape[1] <= limit:
        return part
    lengths = rows[part.item_list_length_field]
    cut = {name: newest(rows[name], lengths, limit) for name in rows.columns if name.endswith(suffix)}
    cut[part.item_list_length_field] = lengths.clamp(max=limit)
    part = part.copy(rows[torch.arange(len(part))])
    part.inter_feat.update(Interaction(cut))
    return part


def _log_skipped_users(whole: SequentialDataset, parts: list[SequentialDataset]) -> None:
    if whole.config["benchmark_filename"] is None:
        skipped = int((np.bincount(whole.in_time.users) == 1).sum())
    else:
        skipped = whole.user_num - 1 - len(np.unique(np.concatenate([row_pairs(part)[:, 0] for part in parts])))
    if skipped:
        log.warning("%d users have a single interaction and so no history; they are skipped.", skipped)


def take_sample(part: SequentialDataset, size: int | None, seed: int, name: str) -> SequentialDataset:
    """A seeded sample of rows without replacement, in the order of the split; all rows if there are not more.

    Args:
        part: the rows.
        size: how many, or None for all.
        seed: the run's ``seed`` for training rows, ``sample_seed`` for the others.
        name: name of the part: each draws from a generator of its own.
    """
    if size is None or size >= len(part):
        return part
    chosen = np.random.default_rng(stage_seed(seed, "rows", name)).choice(len(part), size, replace=False)
    return part.copy(part.inter_feat[np.sort(chosen)])

"""Training interactions of general models: those before the split, or of the few-shot rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, ModelType

import recbole_llm.data.patched  # noqa: F401
from recbole_llm.data.identity import check_numbering
from recbole_llm.data.labels import label_column, row_labels
from recbole_llm.data.numbering import ids_of
from recbole_llm.data.recbole_dataset import make_dataset
from recbole_llm.data.time_order import cuts_once
from recbole_llm.declare import Settings
from recbole_llm.errors import InputError

log = logging.getLogger(__name__)


def split_point(whole: SequentialDataset, parts: Sequence[SequentialDataset]) -> tuple[np.ndarray, np.ndarray]:
    """Which interactions come before the split, and which are targets of validation and test rows.

    Under one cut for all users, a user without training rows has nothing before it that a sequential model learns
    from, and the first interaction, which is never a target, may itself come after the cut.

    Args:
        whole: the data set.
        parts: its training, validation and test rows, before any is sampled.

    Returns:
        Two bool [interactions], in the order of ``whole.in_time``.
    """
    users = whole.in_time.users
    by_user = np.argsort(users, kind="stable")
    n_own = np.bincount(users, minlength=whole.user_num)
    evaluated = np.concatenate([_column(part, part.uid_field) for part in parts[1:]])
    n_targets = np.bincount(evaluated, minlength=whole.user_num)
    held_out = n_targets.copy()
    if cuts_once(whole.config["eval_args"]):
        trains = np.bincount(_column(parts[0], whole.uid_field), minlength=whole.user_num) > 0
        held_out[~trains] = n_own[~trains]
    nth, ends = np.empty(len(users), dtype=np.int64), np.cumsum(n_own)
    nth[by_user] = np.arange(len(users))
    return nth < (ends - held_out)[users], nth >= (ends - n_targets)[users]


def _column(part: Dataset, field: str) -> np.ndarray:
    column: np.ndarray = part.inter_feat[field].numpy()
    return column


def interactions_before(
    config: Settings, dataset_class: type[Dataset], whole: SequentialDataset, parts: Sequence[SequentialDataset]
) -> Dataset:
    """The interactions before the split in the model's own data set class, joined by their lines in the file.

    Args:
        config: the model's config.
        dataset_class: the class that the model learns from.
        whole: the data set of the evaluated rows.
        parts: its training, validation and test rows, before any is sampled.

    Raises:
        InputError: the class leaves evaluated interactions out, or numbers users or items in its own way.
    """
    if whole.config["benchmark_filename"] is not None:
        return interactions_of_rows(config, dataset_class, whole, parts[0])
    general = _general(config, dataset_class, whole)
    before, evaluated = split_point(whole, parts)
    if lost := int((~np.isin(whole.in_time.lines[evaluated], general.in_time.lines)).sum()):
        raise InputError(
            "model",
            f"{config['model']}'s data set class {dataset_class.__name__} leaves out {lost} of {evaluated.sum()} "
            "evaluated interactions; it cannot be evaluated on the rows of the other models",
            kind="conflict",
        )
    kept = np.flatnonzero(np.isin(general.in_time.lines, whole.in_time.lines[before]))
    by_user = np.argsort(general.in_time.users[kept], kind="stable")
    return general.copy(general.inter_feat[kept[by_user]])


def interactions_of_rows(
    config: Settings, dataset_class: type[Dataset], whole: SequentialDataset, train: SequentialDataset
) -> Dataset:
    """The distinct (user, item) pairs, and labels, that sequential rows tell of, as targets or in histories."""
    general = _general(config, dataset_class, whole)
    fields = [general.uid_field, general.iid_field, *([general.label_field] if label_column(config) else [])]
    distinct = told_interactions(train)
    columns = {field: torch.from_numpy(column) for field, column in zip(fields, distinct.T.copy(), strict=True)}
    if label_column(config):
        columns[general.label_field] = columns[general.label_field].float()
    return _with_fields_of_rows(general.copy(Interaction(columns)))


def _with_fields_of_rows(general: Dataset) -> Dataset:
    """The data set without the columns of interactions that its rows lack, which models of features would ask for.

    Sequential rows have an interaction's user, item and label. The columns of histories in presplit files are no
    features of an interaction; others are, and are named.
    """
    absent = {name for name in general.fields(source=[FeatureSource.INTERACTION]) if name not in general.inter_feat}
    kinds = {
        name: general.field2type[name].value for name in absent if not name.endswith(general.config["LIST_SUFFIX"])
    }
    read = [name for name, kind in kinds.items() if "token" in kind or name in general.config["numerical_features"]]
    if read and general.config["MODEL_TYPE"] == ModelType.CONTEXT:
        log.warning(
            "%s learns without %s of the .inter file: few-shot and presplit rows have only user, item and label",
            *(general.config["model"], ", ".join(f"'{name}'" for name in sorted(read))),
        )
    for name in ("field2type", "field2source"):
        known = getattr(general, name)
        setattr(general, name, {field: value for field, value in known.items() if field not in absent})
    return general


def told_interactions(rows: SequentialDataset) -> np.ndarray:
    """Distinct (user, item) of targets and histories, with labels where known. Returns: int64 [pairs, 2 or 3]."""
    suffix = rows.config["LIST_SUFFIX"]
    items, lengths = _column(rows, rows.iid_field + suffix), _column(rows, rows.item_list_length_field)
    real = np.arange(items.shape[1]) < lengths[:, None]
    users = _column(rows, rows.uid_field)
    targets, history = [users, _column(rows, rows.iid_field)], [np.repeat(users, lengths), items[real]]
    if label_column(rows.config):
        targets.append(row_labels(rows).astype(np.int64))
        history.append(_column(rows, rows.label_field + suffix)[real].astype(np.int64))
    distinct: np.ndarray = np.unique(np.concatenate([np.stack(targets, axis=1), np.stack(history, axis=1)]), axis=0)
    return distinct


def _general(config: Settings, dataset_class: type[Dataset], whole: SequentialDataset) -> Dataset:
    general = make_dataset(dataset_class, config, ids_of(whole))
    check_numbering(whole, general)
    for level, note in general.reading.notes:
        if (level, note) not in whole.reading.notes:
            log.log(level, note)
    general.build()
    if whole.config["benchmark_filename"] is None and not _same_interactions(whole, general):
        raise InputError(
            "model",
            f"{config['model']}'s data set class {dataset_class.__name__} leaves out {general.reading.unexplained} "
            "interactions and renumbers the others, so that they cannot be told apart; keep the frame's index there",
            kind="conflict",
        )
    return general


def _same_interactions(whole: Dataset, general: Dataset) -> bool:
    """Whether equal lines of the file are interactions of the same user and item in both data sets."""
    own, theirs = whole.in_time, general.in_time
    by_line = np.argsort(own.lines)
    at = by_line[np.minimum(np.searchsorted(own.lines, theirs.lines, sorter=by_line), len(own.lines) - 1)]
    same = (own.lines[at] == theirs.lines) & (own.users[at] == theirs.users) & (own.items[at] == theirs.items)
    return bool(same.all()) and len(theirs.lines) == len(general.inter_feat)


def pairs_before_split(whole: SequentialDataset, parts: Sequence[SequentialDataset]) -> np.ndarray:
    """User and item of every interaction before the split, the same for every model of a command.

    Args:
        whole: the data set.
        parts: its training, validation and test rows, before any is sampled.

    Returns:
        int64 [interactions, 2]; of presplit files, the distinct pairs that the training rows tell of.
    """
    if whole.config["benchmark_filename"] is not None:
        return told_interactions(parts[0])[:, :2]
    before, _ = split_point(whole, parts)
    return np.stack([whole.in_time.users[before], whole.in_time.items[before]], axis=1)


def count_before_split(whole: SequentialDataset, parts: Sequence[SequentialDataset]) -> np.ndarray:
    """How often each item occurs before the split, the same for every model of a command.

    Args:
        whole: the data set.
        parts: its training, validation and test rows, before any is sampled.

    Returns:
        int64 [items], 0 for padding.
    """
    if whole.config["benchmark_filename"] is None:
        items = whole.in_time.items[split_point(whole, parts)[0]]
    else:
        items = told_interactions(parts[0])[:, 1]
    counts: np.ndarray = np.bincount(items, minlength=whole.item_num)
    return counts

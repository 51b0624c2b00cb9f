"""The rows that are trained on and judged: one target per row, the same rows for every model of a command.

RecBole judges its general models on other rows than its sequential ones. Here the rows are always those of the
sequential split; a general model (Pop, BPR, LightGCN, ...) learns from the interactions before the split and scores the
same rows.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import Dataset, KnowledgeBasedDataset, SequentialDataset
from recbole.data.interaction import Interaction, cat_interactions
from recbole.utils import ModelType

from recbole_llm.data.columns import check_columns, inter_columns
from recbole_llm.data.labels import check_labels, label_column, missing_label, row_labels
from recbole_llm.data.windows import with_full_windows
from recbole_llm.errors import InputError
from recbole_llm.hashing import hash_arrays
from recbole_llm.stages import stage_seed

SAMPLE_ID = "sample_id"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """The rows of one model, split.

    Attributes:
        train: what the model learns from: sequential rows, or the interactions before the split for a general model.
        valid: sequential rows, one target each.
        test: sequential rows, one target each.
        whole: the data set all of them were cut from.
    """

    train: Dataset
    valid: SequentialDataset
    test: SequentialDataset
    whole: Dataset

    def judged(self) -> str:
        """SHA-256 over (user, target), and label, of validation and test rows: equal for all models of one command."""
        arrays = []
        for part in (self.valid, self.test):
            arrays.append(row_pairs(part))
            if label_column(part.config):
                arrays.append(row_labels(part))
        return hash_arrays(*arrays)


class AsSequential:
    """A model's config as its evaluation loader should see it: rows are sequential whatever the model is."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getitem__(self, key: str) -> Any:
        return ModelType.SEQUENTIAL if key == "MODEL_TYPE" else self._config[key]

    def __setitem__(self, key: str, value: Any) -> None:  # RecBole's loaders name the fields of their transforms
        self._config[key] = value


def row_pairs(dataset: SequentialDataset) -> np.ndarray:
    """The (user, target) pairs of the rows. Returns: int64 [rows, 2]."""
    rows = dataset.inter_feat
    return np.stack([rows[dataset.uid_field].numpy(), rows[dataset.iid_field].numpy()], axis=1)


def row_histories(dataset: SequentialDataset) -> tuple[np.ndarray, np.ndarray]:
    """Item ids and lengths of the histories, oldest item first. Returns: int64 [rows, longest], int64 [rows]."""
    rows = dataset.inter_feat
    items = rows[dataset.iid_field + dataset.config["LIST_SUFFIX"]].numpy()
    return items, rows[dataset.item_list_length_field].numpy()


def rows_digest(dataset: SequentialDataset) -> str:
    """SHA-256 over users, histories and targets, and their labels: what a training stage depends on."""
    items, lengths = row_histories(dataset)
    real = np.arange(items.shape[1]) < lengths[:, None]
    arrays = [row_pairs(dataset), np.where(real, items, 0)]
    if label_column(dataset.config):
        arrays.append(row_labels(dataset))
        likes = dataset.label_field + dataset.config["LIST_SUFFIX"]
        if likes in dataset.inter_feat:
            arrays.append(np.where(real, dataset.inter_feat[likes].numpy() > 0, False))
    return hash_arrays(*arrays)


def load_rows(config: Any, few_shot: bool) -> Rows:
    """Read the data set, split it and take the configured subsets.

    Nothing that an earlier run pickled is loaded: RecBole's ``save_dataset`` files are written but never read.

    Args:
        config: the model's config.
        few_shot: whether ``train_sample_size`` applies to this model; the evaluation sizes apply to all models alike.

    Raises:
        InputError: no row is left to train on or to judge.
    """
    check_columns(config)
    _check_windows(config)
    _check_graph(config)
    sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    rows_class = _windowed(config, _dataset_class(config) if sequential else SequentialDataset)
    try:
        whole = rows_class(config if sequential else AsSequential(config))
        if config["save_dataset"]:
            whole.save()
        built = whole.build()
    except ValueError as error:  # RecBole's own checks
        raise InputError(f"dataset '{config['dataset']}': {_in_words(error)}") from error
    if label_column(config) and whole.label_field not in built[0].inter_feat:
        columns = {name: kind for _, found in inter_columns(config) for name, kind in found.items()}
        raise InputError(missing_label(config, columns))
    parts = [_cut_histories(_with_history(part)) for part in _number_rows(built)]
    _log_skipped_users(whole, parts)
    sampled = [
        take_sample(part, config[f"{name}_sample_size"], config["seed"], name)
        for part, name in zip(parts, ("train", "valid", "test"), strict=True)
    ]
    train = sampled[0] if few_shot else parts[0]
    if not len(train) or not len(sampled[2]):
        raise InputError(
            f"dataset '{config['dataset']}' leaves {len(train)} training and {len(sampled[2])} test rows: "
            "a user needs 3 interactions for both; check user_inter_num_interval, item_inter_num_interval, eval_args"
        )
    if not sequential:
        train = _interactions_of_rows(config, train) if few_shot else _interactions_before(config, parts)
    rows = Rows(train, sampled[1], sampled[2], whole)
    if label_column(config):
        check_labels(config, {"train": rows.train, "valid": rows.valid, "test": rows.test})
    return rows


def _in_words(error: ValueError) -> str:
    """What RecBole says of data that it cannot read, with a remedy where it names none."""
    said = " ".join(str(error).split())
    if "feat is empty" in said:
        return "no interaction is left; check its .inter file, user_inter_num_interval and item_inter_num_interval"
    return said + ("; it holds text that is no number" if "Unable to convert column" in said else "")


def _check_windows(config: Any) -> None:
    """Refuse to make windows of benchmark files, whose rows are given."""
    if config["windows"] == "full" and config["benchmark_filename"] is not None:
        raise InputError("windows: full makes rows of whole sequences; leave out windows or benchmark_filename")


def _windowed(config: Any, dataset_class: type[Dataset]) -> type[Dataset]:
    return with_full_windows(dataset_class) if config["windows"] == "full" else dataset_class


def _dataset_class(config: Any) -> type[Dataset]:
    module = importlib.import_module("recbole.data.dataset")
    by_type = {ModelType.SEQUENTIAL: "SequentialDataset", ModelType.KNOWLEDGE: "KnowledgeBasedDataset"}
    return getattr(module, config["model"] + "Dataset", getattr(module, by_type.get(config["MODEL_TYPE"], "Dataset")))


def _check_graph(config: Any) -> None:
    """Refuse a model of knowledge graphs on a data set without one, on which RecBole fails without a word of it."""
    if issubclass(_dataset_class(config), KnowledgeBasedDataset):
        for suffix in ("kg", "link"):
            file = Path(config["data_path"]) / f"{config['dataset']}.{suffix}"
            if not file.is_file() or config["load_col"] is not None and suffix not in config["load_col"]:
                raise InputError(
                    f"load_col: {config['model']} needs a knowledge graph, the file {file} with all its columns named; "
                    'give --load_col="{inter: [...], kg: [head_id, relation_id, tail_id], link: [item_id, entity_id]}"'
                )


def _number_rows(parts: list[SequentialDataset]) -> list[SequentialDataset]:
    start = 0
    for part in parts:
        part.inter_feat.update(Interaction({SAMPLE_ID: torch.arange(start, start + len(part))}))
        start += len(part)
    return parts


def _with_history(part: SequentialDataset) -> SequentialDataset:
    keep = part.inter_feat[part.item_list_length_field] > 0
    if not keep.all():
        log.warning("%d rows have no history; they are skipped.", int((~keep).sum()))
        part = part.copy(part.inter_feat[keep])
    return part


def _cut_histories(part: SequentialDataset) -> SequentialDataset:
    """Benchmark files may hold longer histories than ``MAX_ITEM_LIST_LENGTH``: the newest items stay."""
    rows, limit = part.inter_feat, part.config["MAX_ITEM_LIST_LENGTH"]
    lengths = rows[part.item_list_length_field]
    if not len(part) or lengths.max() <= limit:
        return part
    places = (lengths - limit).clamp(min=0)[:, None] + torch.arange(limit)
    lists = [name for name in rows.columns if name.endswith(part.config["LIST_SUFFIX"])]
    cut = {name: rows[name].gather(1, places) for name in lists}
    cut[part.item_list_length_field] = lengths.clamp(max=limit)
    part = part.copy(rows[torch.arange(len(part))])
    part.inter_feat.update(Interaction(cut))
    return part


def _log_skipped_users(whole: SequentialDataset, parts: list[SequentialDataset]) -> None:
    users = np.unique(np.concatenate([row_pairs(part)[:, 0] for part in parts]))
    skipped = whole.user_num - 1 - len(users)
    if skipped:
        log.warning("%d users have a single interaction and so no history; they are skipped.", skipped)


def take_sample(part: SequentialDataset, size: int | None, seed: int, name: str) -> SequentialDataset:
    """A seeded sample of rows without replacement, in the order of the split; all rows if there are not more.

    Args:
        part: the rows.
        size: how many, or None for all.
        seed: the run's seed.
        name: name of the part: each draws from a generator of its own.
    """
    if size is None or size >= len(part):
        return part
    chosen = np.random.default_rng(stage_seed(seed, "rows", name)).choice(len(part), size, replace=False)
    return part.copy(part.inter_feat[np.sort(chosen)])


def _interactions_before(config: Any, parts: list[SequentialDataset]) -> Dataset:
    """All interactions but each user's last ones, as many as the user has validation and test rows.

    Under one cut for all users, a user without training rows has nothing before it that a sequential model learns
    from, and the first interaction, which is never a target, may itself come after the cut.
    """
    if config["benchmark_filename"] is not None:
        return _interactions_of_rows(config, parts[0])
    general = _windowed(config, _dataset_class(config))(config)
    built = general.build()
    interactions = cat_interactions([part.inter_feat for part in built])
    uid, time = general.uid_field, general.time_field
    interactions.sort(by=[uid, time])
    users = interactions[uid].numpy()
    judged = np.concatenate([row_pairs(part)[:, 0] for part in parts[1:]])
    held_out = np.bincount(judged, minlength=general.user_num)
    n_own = np.bincount(users, minlength=general.user_num)
    if _cuts_once(config["eval_args"]):
        trains = np.bincount(row_pairs(parts[0])[:, 0], minlength=general.user_num) > 0
        held_out[~trains] = n_own[~trains]
    ends = np.cumsum(n_own)
    return built[0].copy(interactions[np.arange(len(users)) < (ends - held_out)[users]])


def _cuts_once(eval_args: Mapping[str, Any]) -> bool:
    """Whether the split is one cut in time for all users, not a cut inside each user."""
    grouped = eval_args["group_by"] not in (None, "none")
    return "TS" in eval_args["split"] or "RS" in eval_args["split"] and not grouped


def _interactions_of_rows(config: Any, train: SequentialDataset) -> Dataset:
    """The distinct (user, item) pairs, and labels, that sequential rows tell of, as targets or in histories."""
    general = _dataset_class(config)(config)
    items, lengths = row_histories(train)
    real = np.arange(items.shape[1]) < lengths[:, None]
    told = [row_pairs(train)]
    history = [np.repeat(told[0][:, 0], lengths), items[real]]
    fields = [general.uid_field, general.iid_field]
    if label_column(config):
        told.append(row_labels(train)[:, None].astype(np.int64))
        likes = train.inter_feat[train.label_field + train.config["LIST_SUFFIX"]].numpy()
        history.append(likes[real].astype(np.int64))
        fields.append(general.label_field)
    distinct = np.unique(np.concatenate([np.hstack(told), np.stack(history, axis=1)]), axis=0)
    columns = {field: torch.from_numpy(column) for field, column in zip(fields, distinct.T.copy(), strict=True)}
    if label_column(config):
        columns[general.label_field] = columns[general.label_field].float()
    return general.build()[0].copy(Interaction(columns))

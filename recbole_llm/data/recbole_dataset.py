"""RecBole's data sets on our reader: what :func:`recbole_llm.compat.read_atomic_files` puts into their classes.

Every class inherits these methods, so general, sequential and knowledge-based models, ours and RecBole's, see the same
lines, in the same order, under the same ids.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import Dataset, DIENDataset, KnowledgeBasedDataset
from recbole.utils import FeatureSource, FeatureType

from recbole_llm.data import summary
from recbole_llm.data.atomic import AtomicFile, Format, read_atomic, read_header
from recbole_llm.data.summary import FileSummary, ReadSummary
from recbole_llm.errors import InputError

_N_EXAMPLES = 5  # how many ids a note names
_remap_by_recbole = Dataset._remap
_prepare_features_by_recbole = Dataset._user_item_feat_preparation
_change_format_by_recbole = Dataset._change_feat_format
_convert_by_recbole = Dataset._dataframe_to_interaction
_build_by_recbole = Dataset.build


@dataclass(frozen=True)
class InTime:
    """The interactions of a data set after its filters, in the order of time, equal times in the order of the file.

    Attributes:
        users: int64 [interactions], internal ids.
        items: int64 [interactions], internal ids.
        lines: int64 [interactions], which row of the file of interactions each is.
    """

    users: np.ndarray
    items: np.ndarray
    lines: np.ndarray


def make_dataset(dataset_class: type[Dataset], config: Any, numbered_like: Dataset | None = None) -> Dataset:
    """A data set, read and filtered but not built.

    Args:
        dataset_class: its class.
        config: the model's config.
        numbered_like: the data set whose internal ids of users and items it is to use.
    """
    dataset = object.__new__(dataset_class)
    if numbered_like is not None:
        fields = (numbered_like.uid_field, numbered_like.iid_field)
        dataset.numbering = {field: numbered_like.field2id_token[field] for field in fields}
    if (
        config["benchmark_filename"] is not None
    ):  # RecBole looks for the histories under this name, whatever the field's
        dataset.item_id_list_field = config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]
    dataset.__init__(config)
    dataset.reading.kept = len(dataset.inter_feat)
    return dataset


# ----------------------------------------------------------------------------------------------------- reading


def _load_feat(self: Dataset, filepath: str, source: FeatureSource | str) -> pd.DataFrame | None:
    """One file as a frame, its fields registered as RecBole registers them."""
    load_col, unload_col = self._get_load_and_unload_col(source)
    if load_col == set():
        return None
    form, file = Format.from_config(self.config), Path(filepath)
    header = read_header(file, form)
    wanted = [name for name in header if load_col is None or name in load_col]
    wanted = [name for name in wanted if unload_col is None or name not in unload_col]
    if not wanted:
        self.logger.warning(f"No columns has been loaded from [{source}]")
        return None
    _check_types(self, file, {name: header[name] for name in wanted})
    is_inter = source == FeatureSource.INTERACTION
    found = read_atomic(file, form, wanted, _required(self, source), self.time_field if is_inter else None)
    _register(self, found, source)
    frame = pd.DataFrame({name: _column(found, name) for name in found.types})
    for name in [name for name, kind in found.types.items() if kind.endswith("seq")]:
        frame[name] = self._cut_sequences(name, frame[name])
    frame = _first_lines(self, file, found, frame, source)
    _summarise(self, file, found, frame, is_inter)
    return frame


def _required(self: Dataset, source: FeatureSource | str) -> list[str]:
    """Columns in which every line must have a value."""
    if source == FeatureSource.KG:
        return [self.head_entity_field, self.relation_field, self.tail_entity_field]
    fields: dict[Any, list[str | None]] = {
        FeatureSource.INTERACTION: [self.uid_field, self.iid_field, self.time_field],
        FeatureSource.USER: [self.uid_field],
        FeatureSource.ITEM: [self.iid_field],
        "link": [self.iid_field, getattr(self, "entity_field", None)],
    }
    return [name for name in fields.get(source, ()) if name]


def _check_types(self: Dataset, file: Path, types: dict[str, str]) -> None:
    for name in (self.uid_field, self.iid_field):
        if types.get(name, "token") != "token":
            raise InputError(
                "",
                f"{file.name}: column '{name}' has type {types[name]}; ids are text: write {name}:token",
                kind="data",
            )
    if types.get(self.time_field, "float").endswith("seq"):
        raise InputError(
            "TIME_FIELD", f"column '{self.time_field}' of {file.name} is a sequence; declare it as float", kind="data"
        )


def _register(self: Dataset, found: AtomicFile, source: FeatureSource | str) -> None:
    """RecBole's notes on the fields of a file, as its own reader makes them; it keeps none on those of a link."""
    for name, kind in found.types.items():
        if source == "link":
            continue
        is_time = found.times is not None and name == self.time_field
        self.field2source[name] = source
        self.field2type[name] = FeatureType.FLOAT if is_time else FeatureType(kind)
        if not kind.endswith("seq"):
            self.field2seqlen[name] = 1
        if "float" in self.field2type[name].value:
            self.field2bucketnum[name] = 2


def _column(found: AtomicFile, name: str) -> Any:
    """A column as RecBole's own reader gives it: an empty token is missing."""
    values = found.columns[name]
    if found.types[name] != "token":
        return pd.Series(values, dtype=None if found.types[name] == "float" else object)
    if isinstance(values, np.ndarray):  # the column of times
        assert found.times is not None
        return found.times.values
    return pd.Series([value or np.nan for value in values], dtype=object)


def _cut_sequences(self: Dataset, name: str, values: pd.Series) -> pd.Series:
    """Sequences, not longer than ``seq_len`` allows."""
    longest = max(map(len, values), default=0)
    limits = self.config["seq_len"] or {}
    self.field2seqlen[name] = min(longest, limits.get(name, longest))
    return pd.Series([row[: self.field2seqlen[name]] for row in values], dtype=object)


def _first_lines(
    self: Dataset, file: Path, found: AtomicFile, frame: pd.DataFrame, source: FeatureSource | str
) -> pd.DataFrame:
    """The first line of each user, item or link; further lines of one are noted."""
    key = {FeatureSource.USER: self.uid_field, FeatureSource.ITEM: self.iid_field, "link": self.iid_field}.get(source)
    if key is None or key not in frame:
        return frame
    again = frame[key].duplicated().to_numpy()
    if again.any():
        first = int(np.flatnonzero(again)[0])
        note = (
            f"{file.name}: {again.sum():,} lines repeat the {key} of an earlier line, which counts (first: "
            f"'{frame[key].iloc[first]}', line {found.line_numbers[first]})"
        )
        _reading(self).notes.append((logging.WARNING, note))
        found.dropped["repeated " + key] += int(again.sum())
    return frame[~again].reset_index(drop=True)


def _summarise(self: Dataset, file: Path, found: AtomicFile, frame: pd.DataFrame, is_inter: bool) -> None:
    reading = _reading(self)
    numbers = [name for name, kind in found.types.items() if kind == "float" and name != self.time_field]
    filled = {name: int(frame[name].isna().sum()) for name in numbers if frame[name].isna().any()}
    reading.files.append(FileSummary(file.name, found.n_lines, len(frame), found.dropped, filled))
    if not is_inter:
        return
    reading.interactions += len(frame)
    if found.times is not None:
        self.time_order = found.times.order
        if found.types[self.time_field] == "token":
            kind = "ISO dates, in seconds since 1970 UTC" if found.times.dates else "numbers"
            note = (
                f"{file.name}: {self.time_field}, declared as token, is read as {kind} ('{found.times.example}', ...)"
            )
            reading.notes.append((logging.INFO, note))


def _reading(self: Dataset) -> ReadSummary:
    """The summary of this data set."""
    if "reading" not in self.__dict__:
        self.reading = ReadSummary()
    found: ReadSummary = self.reading
    return found


# ----------------------------------------------------------------------------------------------------- filters


def _data_filtering(self: Dataset) -> None:
    """RecBole's filters in RecBole's order, what each leaves out counted."""
    steps: Sequence[tuple[str, Callable[[], None]]] = (
        (summary.NO_ID, self._filter_nan_user_or_item),
        (summary.DUPLICATES, self._remove_duplication),
        (summary.BY_VALUE, self._filter_by_field_value),
        (summary.NO_LINE, self._filter_inter_by_user_or_item),
        (summary.K_CORE, self._filter_by_inter_num),
    )
    for reason, step in steps:
        before = len(self.inter_feat)
        step()
        self.reading.drop(reason, before - len(self.inter_feat))
    self.lines = self.inter_feat.index.to_numpy()
    self._reset_index()


def _remove_duplication(self: Dataset) -> None:
    """RecBole's rule on repeated pairs, by exact times; its own sort leaves the order of equal times open."""
    keep = self.config["rm_dup_inter"]
    if keep is None:
        return
    self._check_field("uid_field", "iid_field")
    if self.time_field in self.inter_feat:
        order = np.argsort(self.time_order[self.inter_feat.index], kind="stable")
        self.inter_feat = self.inter_feat.iloc[order].copy()
    else:
        self.logger.warning(f"rm_dup_inter: {keep} goes by the order of the file; no time is loaded.")
    self.inter_feat.drop_duplicates(subset=[self.uid_field, self.iid_field], keep=keep, inplace=True)


# ----------------------------------------------------------------------------------------------------- ids


def _remap(self: Dataset, remap_list: list[tuple[pd.DataFrame, str, FeatureType]]) -> None:
    """RecBole's internal ids, by first appearance; those of another data set come first where it is to be followed."""
    numbering = self.__dict__.get("numbering", {})
    for field in dict.fromkeys(field for _, field, _ in remap_list if field in numbering):
        known = pd.DataFrame({field: np.array(numbering[field][1:], dtype=object)})
        remap_list = [(known, field, FeatureType.TOKEN), *remap_list]
    _remap_by_recbole(self, remap_list)


def _user_item_feat_preparation(self: Dataset) -> None:
    """RecBole's join of the files of users and items; what has no line there is noted."""
    for feat, field in ((self.user_feat, self.uid_field), (self.item_feat, self.iid_field)):
        if feat is not None:
            _note_lineless(self, feat, field)
    _prepare_features_by_recbole(self)


def _note_lineless(self: Dataset, feat: pd.DataFrame, field: str) -> None:
    known = np.zeros(self.num(field), dtype=bool)
    known[0] = known[feat[field].to_numpy()] = True
    if known.all():
        return
    tokens = self.field2id_token[field]
    missing = tokens[~known]
    count = int((~known[self.inter_feat[field].to_numpy()]).sum())
    examples = ", ".join(f"'{token}'" for token in missing[:_N_EXAMPLES])
    stripped = set(tokens[known].tolist())
    near = [token for token in missing if token != token.strip() and token.strip() in stripped]
    hint = f"; '{near[0]}' differs from '{near[0].strip()}' by blanks alone" if near else ""
    what = self.field2source[field].value.removesuffix("_id")
    note = (
        f"{count:,} interactions are with {len(missing):,} of {len(tokens) - 1:,} {what}s that have no line in "
        f"{self.dataset_name}.{what}; they are kept, these {what}s without title and features (first: {examples}){hint}"
    )
    self.reading.notes.append((logging.WARNING, note))


# ----------------------------------------------------------------------------------------------------- order


def _change_feat_format(self: Dataset) -> None:
    """RecBole's conversion to tensors, after the interactions are put into the exact order of time."""
    in_order = self.benchmark_filename_list is None and self.config["eval_args"]["order"] == "TO"
    if in_order and self.time_field in self.inter_feat:
        lines = self.lines[self.inter_feat.index.to_numpy()]
        order = np.argsort(self.time_order[lines], kind="stable")
        self.inter_feat = self.inter_feat.iloc[order].reset_index(drop=True)
        users, items = (self.inter_feat[name].to_numpy() for name in (self.uid_field, self.iid_field))
        self.in_time = InTime(users, items, lines[order])
    _change_format_by_recbole(self)


def cuts_once(eval_args: Mapping[str, Any]) -> bool:
    """Whether the split is one cut in time for all users, not a cut inside each user."""
    split, grouped = eval_args["split"] or {}, eval_args["group_by"] not in (None, "none")
    return "TS" in split or "RS" in split and not grouped


def _dataframe_to_interaction(self: Dataset, data: pd.DataFrame) -> Any:
    """RecBole's tensors; where one cut in time is for all users, times are in double precision until it is made.

    RecBole sorts by single precision, stably: inside each user that keeps the order in which interactions come here,
    but not between users. Cuts inside each user need no more, and a file in order of time gives RecBole's own rows.
    """
    converted = _convert_by_recbole(self, data)
    has_times = data is self.inter_feat and self.time_field in data and converted[self.time_field].ndim == 1
    if has_times and cuts_once(self.config["eval_args"]):
        converted[self.time_field] = torch.from_numpy(data[self.time_field].to_numpy(np.float64, copy=True))
    return converted


def _build(self: Dataset) -> list[Dataset]:
    """RecBole's parts; times in double precision are cast to single, RecBole's own, once they are split by."""
    parts: list[Dataset] = _build_by_recbole(self)
    for feat in [self.inter_feat, *(part.inter_feat for part in parts)]:
        for name in (self.time_field, f"{self.time_field}{self.config['LIST_SUFFIX']}"):
            if name in feat and feat[name].dtype == torch.float64:
                single = feat[name].float()
                feat[name] = single.double() if isinstance(self, DIENDataset) and name != self.time_field else single
    return parts


# ----------------------------------------------------------------------------------------------------- knowledge graphs


def _filter_link(self: KnowledgeBasedDataset) -> None:
    """Keep links of items and entities that are there; interactions with items that have none stay.

    RecBole leaves these interactions out, so that a knowledge model would learn from, and be evaluated on, other data
    than the models beside it.
    """
    items, entities = self._get_rec_item_token(), self._get_entity_token()
    self.item2entity = {item: own for item, own in self.item2entity.items() if item in items and own in entities}
    shared = [entity for entity, count in Counter(self.item2entity.values()).items() if count > 1]
    name = f"{self.dataset_name}.link"
    if shared:
        raise InputError("", f"{name} links several items to entity '{shared[0]}'; a link is one to one", kind="data")
    if not self.item2entity:
        raise InputError("", f"{name} links no item of the interactions to an entity of the .kg file", kind="data")
    self.entity2item = {entity: item for item, entity in self.item2entity.items()}


def _merge_item_and_entity(self: KnowledgeBasedDataset) -> None:
    """Entities take over the ids of their items, the others follow; RecBole renumbers the items instead.

    With a link for every item both give the same ids.
    """
    items, entities = self.field2id_token[self.iid_field], self.field2id_token[self.head_entity_field]
    item_ids = {token: number for number, token in enumerate(items)}
    linked = np.array([entity in self.entity2item for entity in entities])
    is_own = ~linked & (np.arange(len(entities)) > 0)
    new_ids = np.zeros(len(entities), dtype=np.int64)
    new_ids[linked] = [item_ids[self.entity2item[entity]] for entity in entities[linked]]
    new_ids[is_own] = np.arange(len(items), len(items) + is_own.sum())
    tokens = np.concatenate([np.array([self.item2entity.get(item, item) for item in items]), entities[is_own]])
    token_ids = {token: number for number, token in enumerate(tokens)}
    for field in self.alias["entity_id"]:
        self._reset_ent_remapID(field, new_ids, tokens, token_ids)
    self.field2id_token[self.entity_field] = tokens
    self.field2token_id[self.entity_field] = token_ids
    note = f"{self.dataset_name}.link: {len(self.item2entity):,} of {len(items) - 1:,} items are in the knowledge graph"
    self.reading.notes.append((logging.INFO, note))


DATASET_METHODS: dict[str, Callable[..., Any]] = {
    "_load_feat": _load_feat,
    "_cut_sequences": _cut_sequences,
    "_data_filtering": _data_filtering,
    "_remove_duplication": _remove_duplication,
    "_remap": _remap,
    "_user_item_feat_preparation": _user_item_feat_preparation,
    "_change_feat_format": _change_feat_format,
    "_dataframe_to_interaction": _dataframe_to_interaction,
    "build": _build,
}
KNOWLEDGE_METHODS: dict[str, Callable[..., Any]] = {
    "_filter_link": _filter_link,
    "_merge_item_and_entity": _merge_item_and_entity,
}

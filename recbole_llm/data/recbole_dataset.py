"""RecBole's data sets on our reader: what :func:`recbole_llm.compat.read_atomic_files` puts into their classes.

Every class inherits these methods, so general, sequential and knowledge-based models, ours and RecBole's, see the same
lines, in the same order, under the same ids.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import Dataset
from recbole.utils import FeatureType

from recbole_llm.data import knowledge_graph, recbole_files, summary, time_order
from recbole_llm.declare import Settings
from recbole_llm.errors import InputError

_N_EXAMPLES = 5  # how many ids a note names
_remap_by_recbole = Dataset._remap
_filter_by_value_by_recbole = Dataset._filter_by_field_value
_prepare_features_by_recbole = Dataset._user_item_feat_preparation
_fill_nan_by_recbole = Dataset._fill_nan


def make_dataset(
    dataset_class: type[Dataset], config: Settings, numbering: Mapping[str, Sequence[str]] | None = None
) -> Dataset:
    """A data set, read and filtered but not built.

    Args:
        dataset_class: its class.
        config: the model's config.
        numbering: outside ids by the internal ones that they are to have, the padding first, by field; others follow.
    """
    dataset = object.__new__(dataset_class)
    dataset.numbering = dict(numbering or {})
    if (
        config["benchmark_filename"] is not None
    ):  # RecBole looks for the histories under this name, whatever the field's
        dataset.item_id_list_field = config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]
    dataset.__init__(config)
    dataset.reading.kept = len(dataset.inter_feat)
    return dataset


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
    _refuse_empty(self)
    self.lines = self.inter_feat.index.to_numpy()
    self._reset_index()


def _refuse_empty(self: Dataset) -> None:
    """A line that says which filters have left nothing."""
    if self.inter_feat.empty:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in self.reading.dropped.items())
        why = f" of {self.reading.interactions:,} (left out: {left_out})" if left_out else ""
        hint = "check these settings" if left_out else "check its .inter file"
        raise InputError("dataset", f"'{self.dataset_name}': no interaction is left{why}; {hint}", kind="data")
    for what, feat in (("user", self.user_feat), ("item", self.item_feat)):
        if feat is not None and feat.empty:
            message = f"no line of {self.dataset_name}.{what} is inside the intervals; correct them"
            raise InputError("val_interval", message, kind="data")


def _filter_by_field_value(self: Dataset) -> None:
    """RecBole's filter by values; of users and items that it leaves out, the interactions go as well.

    RecBole leaves these to ``filter_inter_by_user_or_item``, which here stands for users and items without a line.
    """
    of = [(name, field) for name, field in (("user_feat", self.uid_field), ("item_feat", self.iid_field))]
    before = {name: getattr(self, name)[field] for name, field in of if getattr(self, name) is not None}
    _filter_by_value_by_recbole(self)
    for name, field in of:
        if name in before:
            gone = before[name].drop(getattr(self, name).index)
            self.inter_feat.drop(self.inter_feat.index[self.inter_feat[field].isin(gone)], inplace=True)


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
        self.logger.warning(f"rm_dup_inter: {keep} goes by the order of the file, as no time is loaded")
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


def _fill_nan(self: Dataset) -> None:
    """RecBole's means of missing numbers; a column that has no number at all has no mean, and is 0 for every row.

    RecBole leaves such a column missing, and a model that reads it learns nothing but NaN.
    """
    for name in self.feat_name_list:
        feat = getattr(self, name)
        floats = [field for field in feat if self.field2type[field] == FeatureType.FLOAT]
        for field in [field for field in floats if len(feat) and feat[field].isna().all()]:
            feat[field] = 0.0
            file = f"{self.dataset_name}.{name.removesuffix('_feat')}"
            note = f"column '{field}' of {file} holds no number in any row that is kept; it is 0 for all of them"
            self.reading.notes.append((logging.WARNING, note))
            for read in self.reading.files:
                read.filled.pop(field, None)  # a column's name is in one kind of file alone
    _fill_nan_by_recbole(self)


DATASET_METHODS: dict[str, Callable[..., Any]] = {
    "_load_feat": recbole_files.load_feat,
    "_cut_sequences": recbole_files.cut_sequences,
    "_data_filtering": _data_filtering,
    "_remove_duplication": _remove_duplication,
    "_filter_by_field_value": _filter_by_field_value,
    "_remap": _remap,
    "_fill_nan": _fill_nan,
    "_user_item_feat_preparation": _user_item_feat_preparation,
    "_change_feat_format": time_order.change_feat_format,
    "_dataframe_to_interaction": time_order.dataframe_to_interaction,
    "build": time_order.build,
}
KNOWLEDGE_METHODS: dict[str, Callable[..., Any]] = {
    "_filter_link": knowledge_graph.filter_link,
    "_merge_item_and_entity": knowledge_graph.merge_item_and_entity,
}

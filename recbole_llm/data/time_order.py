"""Exact time order of RecBole's interactions, which its single precision loses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import Dataset, DIENDataset

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


def change_feat_format(self: Dataset) -> None:
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


def dataframe_to_interaction(self: Dataset, data: pd.DataFrame) -> Any:
    """RecBole's tensors; where one cut in time is for all users, times are in double precision until it is made.

    RecBole sorts by single precision, stably: inside each user that keeps the order in which interactions come here,
    but not between users. Cuts inside each user need no more, and a file in order of time gives RecBole's own rows.
    Times that are a feature of models (``numerical_features``) are pairs of numbers, which RecBole does not cut by;
    their ranks stand for them until it has.
    """
    converted = _convert_by_recbole(self, data)
    if data is not self.inter_feat or self.time_field not in data or not cuts_once(self.config["eval_args"]):
        return converted
    times, exact = converted[self.time_field], _exact_times(self, len(data))
    if times.ndim == 1:
        cut_by, self.times_of_ranks = _apart(data[self.time_field].to_numpy(np.float64), exact)
    elif exact is not None:
        cut_by, self.times_of_ranks = _ranked(times.numpy().astype(np.float64), exact)
        numerical = self.config["numerical_features"]
        self.config["numerical_features"] = [name for name in numerical if name != self.time_field]
    else:
        return converted
    converted[self.time_field] = torch.from_numpy(cut_by)
    return converted


def _exact_times(self: Dataset, n_rows: int) -> np.ndarray | None:
    """What the interactions, as they stand, are in order by; None for presplit files, which nothing cuts."""
    in_time = self.__dict__.get("in_time")
    return self.time_order[in_time.lines] if in_time is not None and len(in_time.lines) == n_rows else None


def _apart(times: np.ndarray, exact: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Times that a cut can tell apart: as they are, or their ranks where double precision makes different ones equal.

    Args:
        times: float64 [interactions].
        exact: [interactions], in the same order without rounding.

    Returns:
        float64 [interactions]; and, of ranks, the time that each stands for, 0 of the rank 0 that pads histories.
    """
    if exact is not None:
        ranks, of_ranks = _ranked(times, exact)
        if len(np.unique(of_ranks[1:])) < len(of_ranks) - 1:
            return ranks, of_ranks
    return times.copy(), None


def _ranked(times: np.ndarray, exact: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of times, from 1, and what each stands for.

    Args:
        times: float64 [interactions, ...], the same where ``exact`` is.
        exact: [interactions].

    Returns:
        float64 [interactions] and float64 [ranks, ...]; the rank 0, which pads histories, stands for 0.

    Example:
        >>> ranks, of_ranks = _ranked(np.array([7.0, 5.0, 7.0]), np.array([70, 50, 70]))
        >>> ranks.tolist(), of_ranks.tolist()
        ([2.0, 1.0, 2.0], [0.0, 5.0, 7.0])
    """
    _, first, ranks = np.unique(exact, return_index=True, return_inverse=True)
    return ranks + 1.0, np.concatenate([np.zeros((1, *times.shape[1:])), times[first]])


def build(self: Dataset) -> list[Dataset]:
    """RecBole's parts; times in double precision are cast to single, RecBole's own, once they are split by."""
    numerical = self.config["numerical_features"]
    try:
        parts: list[Dataset] = _build_by_recbole(self)
    finally:
        self.config["numerical_features"] = numerical
    of_ranks = self.__dict__.get("times_of_ranks")
    for feat in [self.inter_feat, *(part.inter_feat for part in parts)]:
        for name in (self.time_field, f"{self.time_field}{self.config['LIST_SUFFIX']}"):
            if name in feat and feat[name].dtype == torch.float64:
                times = feat[name] if of_ranks is None else torch.from_numpy(of_ranks)[feat[name].long()]
                single = times.float()
                feat[name] = single.double() if isinstance(self, DIENDataset) and name != self.time_field else single
    return parts

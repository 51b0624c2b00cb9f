"""RecBole's reading of a file, replaced by our reader; each field registered as RecBole registers it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import Dataset
from recbole.utils import FeatureSource, FeatureType

from recbole_llm.data.atomic import AtomicFile, read_atomic
from recbole_llm.data.labels import label_sources
from recbole_llm.data.lines import Format, read_header
from recbole_llm.data.summary import FileSummary, ReadSummary
from recbole_llm.errors import InputError


def load_feat(self: Dataset, filepath: str, source: FeatureSource | str) -> pd.DataFrame | None:
    """One file as a frame, its fields registered as RecBole registers them."""
    load_col, unload_col = self._get_load_and_unload_col(source)
    if load_col == set():
        return None
    form, file = Format.from_config(self.config), Path(filepath)
    header = read_header(file, form)
    wanted = [name for name in header if load_col is None or name in load_col]
    wanted = [name for name in wanted if unload_col is None or name not in unload_col]
    if not wanted:
        self.logger.warning(f"No columns have been loaded from [{source}]")
        return None
    _check_types(self, file, {name: header[name] for name in wanted})
    is_inter = source == FeatureSource.INTERACTION
    found = read_atomic(file, form, wanted, _required(self, source), self.time_field if is_inter else None)
    _register(self, found, source)
    frame = pd.DataFrame({name: _column(found, name) for name in found.types})
    for name in [name for name, kind in found.types.items() if kind.endswith("seq")]:
        frame[name] = self._cut_sequences(name, frame[name])
    frame = _first_lines(self, file, found, frame, source)
    if not len(frame) and not is_inter and source != "link":
        raise InputError("", f"{file.name} has no line below its header that can be read; add some", kind="data")
    _summarise(self, file, found, frame, is_inter)
    return frame


def _required(self: Dataset, source: FeatureSource | str) -> list[str]:
    """Columns in which every line must have a value."""
    if source == FeatureSource.KG:
        return [self.head_entity_field, self.relation_field, self.tail_entity_field]
    fields: dict[Any, list[str | None]] = {
        FeatureSource.INTERACTION: [self.uid_field, self.iid_field, self.time_field, *label_sources(self.config)],
        FeatureSource.USER: [self.uid_field],
        FeatureSource.ITEM: [self.iid_field],
        "link": [self.iid_field, getattr(self, "entity_field", None)],
    }
    return [name for name in fields.get(source, ()) if name]


def _check_types(self: Dataset, file: Path, types: dict[str, str]) -> None:
    for name in (self.uid_field, self.iid_field):
        if types.get(name, "token") not in ("token", ""):  # what has no type is refused in reading
            raise InputError(
                "",
                f"{file.name}, line 1: column '{name}' has type {types[name]}; ids are text: write {name}:token",
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


def cut_sequences(self: Dataset, name: str, values: pd.Series) -> pd.Series:
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
        reading_of(self).notes.append((logging.WARNING, note))
        found.dropped["repeated " + key] += int(again.sum())
    return frame[~again].reset_index(drop=True)


def _summarise(self: Dataset, file: Path, found: AtomicFile, frame: pd.DataFrame, is_inter: bool) -> None:
    reading = reading_of(self)
    if found.note:
        reading.notes.append((logging.INFO, found.note))
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


def reading_of(self: Dataset) -> ReadSummary:
    """The summary of this data set."""
    if "reading" not in self.__dict__:
        self.reading = ReadSummary()
    found: ReadSummary = self.reading
    return found

"""The file of a selection: a line per row that could be chosen, tied to its row by a hash."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recbole_llm.coreset import Selection
from recbole_llm.data.rows import SAMPLE_ID
from recbole_llm.errors import InputError
from recbole_llm.hashing import hash_json
from recbole_llm.selection.pool import Pool
from recbole_llm.settings.stage_checks import check_readable

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset


def row_hashes(rows: Dataset) -> list[str]:
    """What ties a selection to its rows: 16 hex digits over user, history and target of each."""
    feat = rows.inter_feat
    items = feat[rows.iid_field + rows.config["LIST_SUFFIX"]].tolist()
    columns = (feat[name].tolist() for name in (rows.uid_field, rows.item_list_length_field, rows.iid_field))
    return [
        hash_json([user, own[:length], target])[:16] for own, user, length, target in zip(items, *columns, strict=True)
    ]


def write_selection(file: Path, pool: Pool, selection: Selection, inputs: Mapping[str, np.ndarray]) -> None:
    """Write one line per row that could be chosen: id, hash, whether it was, score, and parts of the score."""
    hashes, selected = row_hashes(pool.data), np.isin(pool.ids, selection.ids).astype(int)
    columns = [selection.scores.tolist(), *(value.tolist() for value in inputs.values())]
    rows = zip(pool.indices.tolist(), pool.ids.tolist(), selected.tolist(), *columns, strict=True)
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([SAMPLE_ID, "row", "selected", "score", *inputs])
        for index, sample_id, chosen, *values in rows:
            writer.writerow([sample_id, hashes[index], chosen, *map(repr, values)])


def read_selection(file: Path, rows: Dataset) -> np.ndarray:
    """Read which rows a file says are selected.

    Args:
        file: what :func:`write_selection` wrote.
        rows: the training rows of this run, a RecBole data set.

    Returns:
        Their indices among the rows, int64, ascending.

    Raises:
        InputError: the file cannot be read, selects nothing, a row twice, or rows that are not among these.
    """
    index_of = {sample_id: index for index, sample_id in enumerate(rows.inter_feat[SAMPLE_ID].tolist())}
    hashes, chosen = row_hashes(rows), []
    for sample_id, row, selected in _lines(file):
        if not selected:
            continue
        if sample_id not in index_of or hashes[index_of[sample_id]] != row:
            raise _error(
                f"{file} selects row {sample_id}, which is no row of this run; use the data, the split and the "
                "train_sample_size that it was made with"
            )
        chosen.append(index_of[sample_id])
    if not chosen:
        raise _error(f"{file} selects no row; give the coreset.csv of a run")
    if len(set(chosen)) < len(chosen):
        raise _error(f"{file} selects {len(chosen) - len(set(chosen))} rows twice; give each once")
    return np.sort(np.array(chosen, dtype=np.int64))


def _lines(file: Path) -> list[tuple[int, str, int]]:
    """Id, hash, and whether it is selected, of each line."""
    check_readable("coreset_file", file)
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            return [(int(line[SAMPLE_ID]), line["row"], int(line["selected"])) for line in csv.DictReader(stream)]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise _error(f"{file} holds no selection; give the coreset.csv of a run") from error


def _error(message: str) -> InputError:
    return InputError("coreset_file", message, kind="file")

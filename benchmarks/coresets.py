"""Coresets on the planted world: what was chosen, known row by row, and rows drawn by what only the world knows.

Rows are RecBole's training rows in their order, which is that of ``World.rows``.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.planted import NAME, PlantedRows, World
from recbole_llm.coreset import resolve_budget
from recbole_llm.data.rows import SAMPLE_ID, load_rows, row_pairs
from recbole_llm.selection.selection_file import row_hashes
from recbole_llm.settings.config import Config
from recbole_llm.stages import stage_seed


def write_rows(
    world: World, folder: Path, file: Path, choice: Callable[[PlantedRows], np.ndarray], size: float, **settings: Any
) -> Path:
    """Write a ``coreset_file`` of rows drawn at random among those of a choice.

    Args:
        world: whose marks are known.
        folder: where ``write_world`` wrote it: the command's ``data_path``.
        file: to write.
        choice: bool per training row, whether it may be drawn.
        size: as ``coreset_size``: a count, or a share of all training rows.
        settings: what rows depend on beside the data, as in the command.

    Returns:
        The file.
    """
    config = Config("BIGRec", NAME, config_dict={"data_path": str(folder), "train_sample_size": None, **settings})
    train, rows = load_rows(config, few_shot=True).train, world.rows("train")
    check_order(train, world, rows)
    generator = np.random.default_rng(stage_seed(world.settings.seed, "oracle coreset"))
    order = generator.permutation(np.flatnonzero(choice(rows)))  # so that a larger share holds a smaller one
    n_rows = size if isinstance(size, int) else resolve_budget(len(train), ratio=size)
    hashes = row_hashes(train)
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([SAMPLE_ID, "row", "selected"])
        writer.writerows([row, hashes[row], 1] for row in np.sort(order[:n_rows]).tolist())
    return file


def check_order(train: Any, world: World, rows: PlantedRows) -> None:
    """Stop where RecBole's rows are not the world's, one by one."""
    tokens = train.field2id_token[train.uid_field]
    users = np.array([int(tokens[user].removeprefix("u")) - 1 for user, _ in row_pairs(train)])
    same = np.array_equal(users, rows.user) and np.array_equal(row_pairs(train)[:, 1], world.recbole_ids[rows.target])
    if not same or not np.array_equal(train.inter_feat[SAMPLE_ID].numpy(), np.arange(len(users))):
        raise RuntimeError("RecBole's training rows are not in the order of World.rows")


def read_choice(folder: Path) -> dict[str, Any]:
    """Ids of the rows that a run's folder says are selected; nothing where it was tuned on all."""
    file = folder / "coreset.csv"
    if not file.exists():
        return {}
    with open(file, newline="", encoding="utf-8") as stream:
        return {"ids": [int(line[SAMPLE_ID]) for line in csv.DictReader(stream) if line["selected"] == "1"]}


def marked_shares(rows: PlantedRows, ids: list[int] | None) -> Mapping[str, float]:
    """Share of the chosen rows, or of all where none were chosen, that bear each of the marks that the world gives.

    Marks are ``mislabelled``, ``redundant`` and, where there are groups, ``last group``: of that group's rule.
    """
    chosen = slice(None) if ids is None else ids
    marks = {
        "mislabelled": rows.mislabelled,
        "redundant": rows.redundant,
        "last group": (rows.group == rows.group.max()) & (rows.group.max() > 0),
    }
    return {name: float(marked[chosen].mean()) for name, marked in marks.items() if marked.any()}

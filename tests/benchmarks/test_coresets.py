"""Coresets drawn by what only the planted world knows, and the table that says what a selection cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import results
from benchmarks.coresets import marked_shares, read_choice, write_rows
from benchmarks.grids import Grid, Line
from benchmarks.planted import PlantedRows, PlantedSettings, make_world, write_world
from recbole_llm.data.rows import load_rows
from recbole_llm.selection.selection_file import read_selection
from recbole_llm.settings.config import Config

SETTINGS = PlantedSettings(n_users=60, n_categories=4, items_per_category=5, mislabelled=0.3, redundant=0.3)


def useful(rows: PlantedRows):
    return ~(rows.mislabelled | rows.redundant)


def test_rows_of_a_choice_are_a_coreset_that_a_run_accepts(tmp_path):
    world = make_world(SETTINGS)
    write_world(world, tmp_path)
    few, many = (write_rows(world, tmp_path, tmp_path / f"{size}.csv", useful, size) for size in (0.05, 0.2))
    train = load_rows(Config("BIGRec", "planted", config_dict={"data_path": str(tmp_path)}), few_shot=True).train
    rows = world.rows("train")
    chosen = [read_selection(file, train) for file in (few, many)]
    assert [len(own) for own in chosen] == [int(0.05 * len(train)), int(0.2 * len(train))]
    assert set(chosen[0]) < set(chosen[1])
    for own in chosen:
        assert not rows.mislabelled[own].any() and not rows.redundant[own].any()
    short = {"MAX_ITEM_LIST_LENGTH": 2}  # rows are told apart by their histories
    train = load_rows(
        Config("BIGRec", "planted", config_dict={"data_path": str(tmp_path), **short}), few_shot=True
    ).train
    file = write_rows(world, tmp_path, tmp_path / "short.csv", useful, 0.05, **short)
    assert read_selection(file, train).tolist() == chosen[0].tolist()
    assert marked_shares(rows, None) == {
        "mislabelled": pytest.approx(rows.mislabelled.mean()), "redundant": pytest.approx(rows.redundant.mean()),
    }  # fmt: skip
    groups = make_world(replace(SETTINGS, n_groups=2, mislabelled=0.0, redundant=0.0)).rows("train")
    assert marked_shares(groups, None) == {"last group": pytest.approx((groups.group == 1).mean())}
    few.replace(tmp_path / "coreset.csv")
    assert read_choice(tmp_path) == {"ids": chosen[0].tolist()} and read_choice(tmp_path / "planted") == {}


def test_the_table_shows_what_a_selection_cost(monkeypatch):
    grid = Grid("g", {}, (Line("all", "g-all", "BIGRec"), Line("dealrec", "g-dealrec", "BIGRec")), seeds=(1, 2))
    content = {
        "coreset": {"BIGRec": {"seconds": {"SASRec": 30.0, "effort": 12.0}}},
        "history": {"BIGRec": [{"seconds": 4.0}, {"seconds": 5.0}]},
    }
    found = {("g-dealrec", 1): content, ("g-all", 1): {"history": {"BIGRec": [{"seconds": 1.0}]}}}
    monkeypatch.setattr(results, "read_cell", lambda cell, seed: found.get((cell, seed), {}))
    lines = [line for line in results.coresets(grid) if line.startswith("| ")]
    assert lines[1:] == ["| dealrec | 1 | 42 s | SASRec 30 s, effort 12 s | 9 s |"]
    found.clear()
    assert list(results.coresets(grid)) == []

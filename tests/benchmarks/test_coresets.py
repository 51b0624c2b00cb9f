"""The oracle's coreset holds useful rows alone, and the tables say what chosen rows are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import results
from benchmarks.coresets import marked_shares, oracle_file, read_choice, write_oracle
from benchmarks.planted import PlantedSettings, make_world, write_world
from recbole_llm.data.rows import load_rows
from recbole_llm.selection.selection_file import read_selection
from recbole_llm.settings.config import Config

SETTINGS = PlantedSettings(n_users=60, n_categories=4, items_per_category=5, mislabelled=0.3, redundant=0.3)
GRIDS = [grid for grid in results.GRIDS if grid.name.endswith("-coreset")]


def test_the_oracle_chooses_useful_rows_that_a_run_accepts(tmp_path):
    world = make_world(SETTINGS)
    write_world(world, tmp_path)
    few, many = (write_oracle(world, tmp_path, share) for share in (0.05, 0.2))
    assert few == oracle_file(tmp_path, 0.05) == tmp_path / "oracle-0.05.csv"
    train = load_rows(Config("BIGRec", "planted", config_dict={"data_path": str(tmp_path)}), few_shot=True).train
    rows = world.rows("train")
    chosen = [read_selection(file, train) for file in (few, many)]
    assert [len(places) for places in chosen] == [int(0.05 * len(train)), int(0.2 * len(train))]
    assert set(chosen[0]) < set(chosen[1])
    for places in chosen:
        assert not rows.mislabelled[places].any() and not rows.redundant[places].any()
    short = {"MAX_ITEM_LIST_LENGTH": 2}  # rows are told apart by their histories
    train = load_rows(
        Config("BIGRec", "planted", config_dict={"data_path": str(tmp_path), **short}), few_shot=True
    ).train
    assert read_selection(write_oracle(world, tmp_path, 0.05, **short), train).tolist() == chosen[0].tolist()
    assert marked_shares(rows, None) == {
        "mislabelled": pytest.approx(rows.mislabelled.mean()), "redundant": pytest.approx(rows.redundant.mean()),
    }  # fmt: skip
    groups = make_world(replace(SETTINGS, n_groups=2, mislabelled=0.0, redundant=0.0)).rows("train")
    assert marked_shares(groups, None) == {"last group": pytest.approx((groups.group == 1).mean())}
    few.replace(tmp_path / "coreset.csv")
    assert read_choice(tmp_path) == {"ids": chosen[0].tolist()} and read_choice(tmp_path / "planted") == {}


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_every_line_is_a_cell_and_every_size_has_random_beside_it(grid):
    cells = {cell for own in results.GRIDS for cell in own.cells}
    assert {line.cell for line in grid.lines} <= cells
    titles = [line.title for line in grid.lines]
    assert len(set(titles)) == len(titles) and set(grid.compared_with) <= set(titles)
    for words in grid.cells.values():
        assert len({word.partition("=")[0] for word in words}) == len(words)
    if grid.world is not None:
        oracles = [word for words in grid.cells.values() for word in words if word.startswith("--coreset_file=")]
        assert oracles == [
            f"--coreset_file={oracle_file(grid.world_folder('{seed}'), share)}" for share in grid.oracle_shares
        ]


def test_the_table_shows_noise_and_costs(monkeypatch):
    (grid,) = [replace(grid, seeds=(2020,), world=SETTINGS) for grid in GRIDS if grid.world is not None]
    rows = make_world(SETTINGS).rows("train")
    worst = np.flatnonzero(rows.mislabelled & ~rows.redundant)[:5].tolist()
    line = next(line for line in grid.lines if line.title == "dealrec, 2%")
    content = {
        "coreset": {"BIGRec": {"ids": worst, "seconds": {"SASRec": 30.0, "effort": 12.0}}},
        "history": {"BIGRec": [{"seconds": 4.0}, {"seconds": 5.0}]},
    }
    monkeypatch.setattr(results, "read_cell", lambda cell, seed: content if cell == line.cell else {})
    text = list(results.coresets(grid))
    assert "| dealrec, 2% | 1 | 100.0% | 0.0% | 42 s | SASRec 30 s, effort 12 s | 9 s |" in text
    assert f"Of all training rows: mislabelled {rows.mislabelled.mean():.1%}" in "\n".join(text)
    monkeypatch.setattr(results, "read_cell", lambda cell, seed: {})
    assert list(results.coresets(grid)) == []

"""Nothing but the rows decides who is chosen, and a file of choices belongs to its rows."""

from __future__ import annotations

import copy
import csv
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_llm.coreset import MeanLoss
from recbole_llm.data.rows import SAMPLE_ID
from recbole_llm.selection import row_selection
from recbole_llm.selection.row_selection import FILE, _choosable, select_rows
from recbole_llm.selection.selection_file import read_selection, row_hashes
from recbole_llm.settings.config import Config
from tests.refusals import refused
from tests.selection.rows import N_ROWS


def ids_of(rows: Any) -> list[int]:
    """Of a data set, or of training rows as they were chosen."""
    return getattr(rows, "data", rows).inter_feat[SAMPLE_ID].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"coreset": "random"},
        {"coreset": "dealrec", "coreset_unit": "user"},
        {"coreset": "qdit"},
        pytest.param({"coreset": "goracs"}, marks=pytest.mark.slow),
        pytest.param({"coreset": "herding", "coreset_vectors": "llm"}, marks=pytest.mark.slow),
        pytest.param({"coreset": "recranker", "coreset_pool": 15}, marks=pytest.mark.slow),
        pytest.param({"coreset": "moderate"}, marks=pytest.mark.slow),
        pytest.param({"coreset": "fdmat"}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: settings["coreset"],
)
def test_the_order_of_the_rows_has_no_part_in_the_choice(make, settings, tmp_path):
    config, rows, model = make(**settings, train_sample_size=None, checkpoint_dir=str(tmp_path))
    chosen, folder = select_rows(model, config, rows.train, rows.valid)
    order = torch.randperm(len(rows.train), generator=torch.Generator().manual_seed(1))
    shuffled = rows.train.copy(rows.train.inter_feat[order])
    other, other_folder = select_rows(model, config, shuffled, rows.valid)
    assert len(chosen) == 6 and ids_of(chosen) == sorted(ids_of(chosen)) == sorted(ids_of(other))
    assert folder != other_folder
    tables = [(place / FILE).read_text() for place in (folder, other_folder)]
    assert tables[0] == tables[1]
    in_order = [sample_id for sample_id in ids_of(shuffled) if sample_id in ids_of(chosen)]
    assert ids_of(other) == in_order


def test_the_runs_objective_decides_the_selection_only_where_it_is_asked(make, tmp_path):
    """By default one selection serves all objectives; asked for, what decides it decides the stage's name."""

    def folder_of(model: str, **settings: Any) -> str:
        config, rows, built = make(model, coreset="qdit", checkpoint_dir=str(tmp_path), **settings)
        return select_rows(built, config, rows.train, rows.valid)[1].name

    same = {"coreset_objective": "same"}
    usual = folder_of("BIGRec")
    assert folder_of("MSL") == folder_of("BIGRec", **same) == usual
    assert len({usual, folder_of("MSL", **same), folder_of("MSL", **same, msl_tau=3.0)}) == 3


def test_choosing_rows_leaves_no_trace_in_the_model(make):
    """What the model depends on decides whose fine-tuning is found again."""
    config, rows, model = make(coreset="dealrec")
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    before = copy.deepcopy(model.facts())
    select_rows(model, config, rows.train, rows.valid)
    assert model.facts() == before and "auxiliary" not in vars(model)
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())


def test_inputs_are_computed_once_for_all_selectors_and_sizes(make, tmp_path):
    saved = str(tmp_path)
    config, rows, model = make(coreset="dealrec", checkpoint_dir=saved)
    select_rows(model, config, rows.train, rows.valid)
    for settings in ({"coreset_size": 0.5}, {"dealrec_weight": 2.0}, {"dealrec_n_groups": 3}):
        config, rows, model = make(coreset="dealrec", checkpoint_dir=saved, **settings)
        select_rows(model, config, rows.train, rows.valid)
        assert set(model.stages.reused) == {"auxiliary-SASRec", "influence", "effort"}
    config, rows, model = make(coreset="dealrec", checkpoint_dir=saved, influence_weights="ffn")
    select_rows(model, config, rows.train, rows.valid)
    assert set(model.stages.reused) == {"auxiliary-SASRec", "effort"}
    config, rows, model = make(coreset="dealrec", checkpoint_dir=saved, valid_sample_size=3)
    select_rows(model, config, rows.train, rows.valid)  # they choose the epoch of the recommender, and that is all
    assert "effort" in model.stages.reused


def test_norms_without_a_weight_are_not_computed(make):
    config, rows, model = make("GORACS", goracs_gradient_weight=0)
    _, folder = select_rows(model, config, rows.train, rows.valid)
    assert set(model.stages.used) == {"embeddings", "valid-embeddings", "coreset"}
    assert (folder / FILE).read_text().splitlines()[0] == "sample_id,row,selected,score"


def test_a_map_holds_all_selected_rows_and_a_draw_from_the_others(make, monkeypatch, tmp_path):
    monkeypatch.setattr(row_selection, "MAP_ROWS", 10)
    for settings, n_valid in (({"coreset": "goracs"}, 10), ({"coreset": "fdmat"}, 0)):
        config, rows, model = make(checkpoint_dir=str(tmp_path), **settings)
        chosen, folder = select_rows(model, config, rows.train, rows.valid)
        with np.load(folder / row_selection.MAP) as places:
            assert places["points"].shape == (10, 2) and places["selected"].sum() == len(chosen) == 6
            assert places["valid_points"].shape == (n_valid, 2)


def test_more_rows_than_there_are_is_all_of_them_with_a_warning(make, caplog):
    config, rows, model = make(coreset="random", coreset_size=1000)
    with caplog.at_level(logging.WARNING):
        chosen, _ = select_rows(model, config, rows.train, rows.valid)
    assert ids_of(chosen) == ids_of(rows.train)
    assert f"budget 1000 exceeds the {N_ROWS} rows" in caplog.text


@pytest.mark.parametrize("size", [1.0, N_ROWS, 1000])
@pytest.mark.parametrize("coreset", ["ccs", "dealrec"])
def test_a_budget_of_all_rows_cuts_none(make, coreset, size):
    """One row less, and the share of the highest scores goes first."""
    config, rows, model = make(coreset=coreset, coreset_size=size)
    chosen, folder = select_rows(model, config, rows.train, rows.valid)
    assert ids_of(chosen) == ids_of(rows.train)
    assert json.loads((folder / row_selection.SUMMARY).read_text())["hard_prune_ratio"] == 0
    config, rows, model = make(coreset=coreset, coreset_size=N_ROWS - 1)
    chosen, folder = select_rows(model, config, rows.train, rows.valid)
    assert len(chosen) == N_ROWS - N_ROWS // 10
    assert json.loads((folder / row_selection.SUMMARY).read_text())["hard_prune_ratio"] == 0.1


def test_a_surrogate_at_rest_leaves_the_choice_to_effort(make, caplog, monkeypatch, tmp_path):
    config, rows, model = make(coreset="dealrec", checkpoint_dir=str(tmp_path), dealrec_hard_prune_ratio=0)
    monkeypatch.setattr(MeanLoss, "gradient", lambda self: self.params * 0)
    with caplog.at_level(logging.WARNING):
        _, folder = select_rows(model, config, rows.train, rows.valid)
    assert "stationary point" in caplog.text
    lines = list(csv.DictReader((folder / FILE).open()))
    effort = np.array([float(line["effort"]) for line in lines])
    expected = 0.5 * (effort - effort.min()) / (effort.max() - effort.min())
    np.testing.assert_allclose([float(line["score"]) for line in lines], expected, rtol=1e-12)


# ---------------------------------------------------------------------------------------------------------- the file


def write(file: Path, lines: list[str]) -> Path:
    file.write_text("sample_id,row,selected\n" + "".join(f"{line}\n" for line in lines))
    return file


def test_a_file_is_read_by_ids_and_hashes(make, tmp_path):
    _, rows, _ = make()
    ids, hashes = ids_of(rows.train), row_hashes(rows.train)
    lines = [f"{ids[place]},{hashes[place]},{int(place in (2, 5))}" for place in reversed(range(N_ROWS))]
    assert read_selection(write(tmp_path / "a.csv", lines), rows.train).tolist() == [2, 5]
    only = [f"{ids[9]},{hashes[9]},1", "100000,feedbeef,0"]  # what is not selected may be of elsewhere
    assert read_selection(write(tmp_path / "b.csv", only), rows.train).tolist() == [9]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "selects no row"),
        (["{id},{hash},0"], "selects no row"),
        (["{id},{hash},1", "{id},{hash},1"], "selects 1 rows twice; give each once"),
        (["{id},feedbeef,1"], "selects row {id}, which is no row of this run; use the data, the split"),
        (["100000,{hash},1"], "selects row 100000, which is no row of this run"),
        (["x,{hash},1"], "holds no selection; give the coreset.csv of a run"),
        (["{id},{hash}"], "holds no selection"),
        (["{id},{hash},yes"], "holds no selection"),
    ],
)
def test_a_wrong_file_is_refused(make, tmp_path, lines, message):
    _, rows, _ = make()
    facts = {"id": ids_of(rows.train)[0], "hash": row_hashes(rows.train)[0]}
    file = write(tmp_path / "coreset.csv", [line.format(**facts) for line in lines])
    with refused("coreset_file", "file", f"^coreset_file: {file} {message.format(**facts)}"):
        read_selection(file, rows.train)


class Lines(SimpleNamespace):
    """As much of a data set as the choice among its rows reads."""

    def __len__(self) -> int:
        return len(self.inter_feat)


def test_of_a_user_the_row_with_the_longest_history_is_the_last_whatever_the_order_of_lines():
    feat = {"sample_id": [0, 1, 2, 3], "user_id": [1, 1, 1, 2], "item_length": [3, 1, 2, 1]}
    names = {"uid_field": "user_id", "item_list_length_field": "item_length"}
    rows: Any = Lines(inter_feat=Interaction({key: torch.tensor(own) for key, own in feat.items()}), **names)
    config = Config("BIGRec", "ml-100k", argv=["--coreset=random", "--coreset_unit=user", "--coreset_size=2"])
    assert _choosable(config, rows, [([1], [2])] * 4).tolist() == [0, 3]

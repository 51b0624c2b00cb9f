"""Real data sets beside the checkout: the command runs on them unchanged, by ``--data_path`` alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import run

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FEW = ("--train_sample_size=32", "--valid_sample_size=10", "--test_sample_size=10", "--epochs=1")


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not beside this checkout")
@pytest.mark.parametrize("dataset", ["amazon-games-tiny", "lastfm-hetrec"])
def test_the_command_runs_on_a_real_data_set_given_its_folder(dataset, tmp_path):
    finished = run("Pop,BIGRec", SHARED / dataset, tmp_path / "saved", *FEW)
    assert finished.status == 0
    assert [result.model for result in finished.table.results] == ["Pop", "BIGRec"]
    assert {result.n_rows for result in finished.table.results} == {10}

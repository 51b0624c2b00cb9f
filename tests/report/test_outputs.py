"""Several seeds in one line: means, best values, differences and marks in every form that a table has."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from recbole_llm.report import (
    Compared,
    ResultTable,
    RunResult,
    comparison_figure,
    cost_figure,
    learning_figure,
    plot_table,
)
from recbole_llm.report import rows as rows_module
from recbole_llm.report.layout import lines_of, repeated
from tests.pictures import drawn
from tests.refusals import refused

VALUES = {"Pop": [0.02, 0.02, 0.02], "SAS_Rec & 50%": [0.06, 0.05, 0.08], "BIGRec": [0.03, 0.01, 0.06]}
NAMES = [f"{family}@{k}" for family in ("recall", "ndcg", "mrr", "hit") for k in (5, 10)]


def compared(model: str, difference: float, p_holm: float, **facts: object) -> Compared:
    known = {"users": (difference - 0.01, difference + 0.01), "seeds_and_users": (difference - 0.02, difference + 0.02)}
    known |= {"p": p_holm / 2, "p_holm": p_holm, "detectable": 0.03, "n_users": 99, "n_seeds": (3, 3)}
    return Compared(model=model, baseline="Pop", metric="ndcg@10", difference=difference, **{**known, **facts})


@pytest.fixture
def table(tmp_path: Path) -> ResultTable:
    results = []
    for model, values in VALUES.items():
        for seed, value in enumerate(values, start=1):
            folder = tmp_path / f"{model[:3]}{seed}"
            folder.mkdir()
            history = [{"epoch": e, "train_loss": 4 / e, "valid": {"ndcg@10": e / 50}} for e in (1, 2, 3)]
            (folder / "history.json").write_text(json.dumps(history))
            (folder / "test_ranks.csv").write_text(
                f"user_id,item_id,rank,top_items\r\n007,a,{seed},a b\r\n1,b,,c d\r\n"
            )
            test = {name: value + (0.5 if name.startswith(("recall", "hit")) else 0) for name in NAMES}
            test |= {"ndcg@5": value / 2, "logloss": 1 - value}
            facts = {"train_rows": 5, "epochs": 2 + seed, "wall_seconds": 60.0 * seed, "folder": str(folder)}
            results.append(RunResult(model, "d", seed=seed, test=test, revision="abc1234", **facts))
    results[4] = replace(results[4], revision="def5678", warnings=("one answer takes all",))
    comparisons = (compared("SAS_Rec & 50%", 0.0433, 0.02), compared("BIGRec", 0.0133, 0.4))
    environment = {"git_revision": "abc1234"}
    return ResultTable(results, environment, command="recbole-llm x", metric="ndcg@10", comparisons=comparisons)


def test_runs_of_one_model_are_a_line_with_mean_and_deviation(table):
    lines = lines_of(table.results)
    assert [(line.model, len(line.results)) for line in lines] == [(model, 3) for model in VALUES]
    shown = table.text().splitlines()
    assert re.split(" {2,}", shown[0])[:3] == ["Model", "Seeds", "Train rows"] and "NDCG@10" in shown[0]
    for line, (model, values) in zip(shown[1:4], VALUES.items(), strict=True):
        cell = f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"
        assert line.startswith(model) and cell in line and " 2m00s " in line
    assert table.markdown().count("| 3 | 5 | 3–5 | - | 2m00s |") == 3
    without = replace(table.results[0], seed=None)
    assert len(lines_of([without, without])) == len(lines_of([table.results[0]] * 2)) == 2  # not seeds of one model


def test_the_terminal_shows_one_block_with_the_compared_metric_first_and_no_repeats(table):
    shown = table.text()
    head = shown.splitlines()[0]
    assert head.index("NDCG@10") < head.index("Recall@5") and "Hit" not in head
    assert "Hit equals Recall at every cut-off and is left out." in shown
    assert all(len(line) <= 100 for line in shown.splitlines() if line and line[0] not in "!†[")
    results = list(table.results)
    results[0] = replace(results[0], test={**results[0].test, "hit@5": 0.7})
    assert repeated(table) == {"hit": "recall"} and repeated(replace(table, results=results)) == {}
    assert "\x1b[1m" not in shown and table.text(bold=True).count("\x1b[1m") >= 1


def test_best_values_are_bold_and_differences_marked(table):
    head, _, *body = [line.strip("|").split(" | ") for line in table.markdown().splitlines() if line[:1] == "|"][:5]
    column = [cell.strip() for cell in head].index("NDCG@10")
    cells = [row[column].strip() for row in body]
    assert cells == ["0.0200 ± 0.0000", "**0.0633 ± 0.0153***", "0.0333 ± 0.0252"]
    last = [row[-1].strip() for row in body]  # LogLoss: less is better
    assert head[-1].strip() == "LogLoss" and last[1].startswith("**") and not last[0].startswith("**")


def test_comparisons_are_stated_with_both_intervals(table):
    shown, one = table.text(), table.comparisons[0]
    line = next(line for line in shown.splitlines() if "+0.0433" in line)
    for part in ("+0.0333 … +0.0533", "+0.0233 … +0.0633", f"{one.p:.3f}", "0.020*"):
        assert part in line and part in table.markdown() and part in table._repr_html_()
    assert "p < .05 over seeds and users, corrected by Holm for 2 comparisons" in " ".join(shown.split())
    alone = replace(table, comparisons=[replace(one, seeds_and_users=None, n_seeds=(1, 1))])
    assert "p < .05 over users only, as one seed tells nothing of others" in " ".join(alone.text().split())
    assert ResultTable.from_json(alone.json()) == alone
    few = replace(table, comparisons=[replace(one, n_seeds=(2, 2))])
    note = "With 2 seeds up to 11 % of models that do not differ have p < .05, not 5 %."
    assert note in " ".join(few.text().split()) and note not in " ".join(alone.text().split())


def test_warnings_and_results_of_another_commit_are_marked(table):
    shown = table.text()
    assert "SAS_Rec & 50% !†" in shown and shown.count("†") == 2
    assert "† SAS_Rec & 50%, seed 2: measured with def5678, the table with abc1234" in shown
    assert "! SAS_Rec & 50%, seed 2: one answer takes all" in shown
    installed = {"git_revision": "not a checkout", "recbole-llm": "9.9"}
    assert replace(table, environment=installed).revision == "version 9.9"
    assert "†" not in replace(table, environment={}).text()


def test_latex_is_escaped_and_as_the_text_says(table):
    shown = table.latex()
    assert r"SAS\_Rec \& 50\%" in shown and r"\textbf{0.0633 $\pm$ 0.0153$^{*}$}" in shown
    assert shown.count(r"\begin{tabular}") == shown.count(r"\end{tabular}") == 4
    assert shown.count(r"\toprule") == shown.count(r"\bottomrule") == 4 and "p $<$ .05" in shown
    body = [line for line in shown.splitlines() if not line.startswith("%")]
    below = shown.partition(r"\end{table}")[0].rpartition(r"\end{tabular}")[2]  # what the marks beside models mean
    assert r"! SAS\_Rec \& 50\%, seed 2: one answer takes all\par" in below and r"$\dagger$ SAS\_Rec" in below
    for block in "\n".join(body).split(r"\begin{tabular}")[1:]:
        columns = len(re.match(r"\{([lr]+)\}", block)[1])
        lines = [line for line in block.splitlines() if line.rstrip().endswith(r"\\")]
        assert len(lines) >= 3 and all(len(re.findall(r"(?<!\\)&", line)) == columns - 1 for line in lines)
    assert not re.search(r"(?<!\\)[#_%]", "\n".join(body)) and shown.count("{") == shown.count("}")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex (apt install texlive-latex-base)")
def test_latex_compiles_within_the_width_of_a_page(table, tmp_path):
    head = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    wide = replace(table, comparisons=tuple(replace(one, baseline="SASRec") for one in table.comparisons))
    (tmp_path / "paper.tex").write_text(f"{head}\n{wide.latex()}\n\\end{{document}}\n", encoding="utf-8")
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and (tmp_path / "paper.pdf").is_file(), done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "Missing character" not in (tmp_path / "paper.log").read_text()


def test_figures_show_the_numbers(table):
    bars, differences = comparison_figure(table).axes
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([statistics.fmean(v) for v in VALUES.values()])
    assert [list(line.get_xdata()) for line in bars.lines] == list(VALUES.values())
    ends = [tuple(line.get_xdata()) for line in differences.lines[:2]]
    assert ends == [table.comparisons[0].seeds_and_users, table.comparisons[0].users]
    losses, metrics = learning_figure(table).axes
    assert len(losses.lines) == len(metrics.lines) == 9
    assert list(losses.lines[0].get_ydata()) == pytest.approx([1, 1 / 2, 1 / 3])
    assert list(metrics.lines[0].get_ydata()) == pytest.approx([0.02, 0.04, 0.06])
    for result in table.results[:3]:
        (Path(result.folder) / "history.json").write_text(json.dumps([{"epoch": 1, "train_loss": 4}]))
    losses, _ = learning_figure(table).axes
    assert [line.get_marker() for line in losses.lines[2:4]] == ["o", "None"]  # one point is no line
    (cost,) = cost_figure(table).axes
    assert [list(line.get_xdata()) for line in cost.lines] == [[60, 120, 180]] * 3
    assert [list(line.get_ydata()) for line in cost.lines] == list(VALUES.values())


def test_plots_are_files_and_the_same_each_time(table, tmp_path):
    paths = plot_table(table, tmp_path)
    assert sorted(path.name for path in paths) == sorted(
        f"{name}.{kind}" for name in ("comparison", "cost", "learning") for kind in ("pdf", "png", "svg")
    )
    before = [path.read_bytes() for path in paths]
    assert all(content[:4] in (b"%PDF", b"\x89PNG", b"<?xm") for content in before)
    assert [path.read_bytes() for path in plot_table(table, tmp_path)] == before
    gone = replace(table, results=[replace(result, folder="") for result in table.results], comparisons=())
    with drawn("none of these"):
        assert len(plot_table(gone, tmp_path)) == 9 and plot_table(ResultTable(()), tmp_path) == []


def test_parquet_holds_every_row_of_every_run(table, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    found = parquet.read_table(table.to_parquet(tmp_path / "rows.parquet")).to_pandas()
    assert list(found) == ["model", "seed", "user_id", "item_id", "rank", "top_items"] and len(found) == 18
    assert found["user_id"].tolist() == ["007", "1"] * 9 and found["seed"].tolist()[:6] == [1, 1, 2, 2, 3, 3]
    assert found["rank"].isna().tolist() == [False, True] * 9 and found["rank"].tolist()[2] == 2


def test_parquet_without_pyarrow_or_folders_is_one_line(table, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(rows_module, "find_spec", lambda name: None)
        with refused("", "environment", "Parquet needs pyarrow, which is not installed; pip install pyarrow"):
            table.to_parquet(tmp_path / "rows.parquet")
    gone = replace(table, results=[replace(table.results[0], folder=str(tmp_path / "gone"))])
    monkeypatch.setattr(rows_module, "has_pyarrow", lambda: True)
    pytest.importorskip("pyarrow")
    with refused("", "file", "gone: no test_.* is there"):
        gone.to_parquet(tmp_path / "rows.parquet")

"""The table shows what was run, says what was not, and its JSON gives the same table back."""

import csv
import io
import json
from dataclasses import replace

import pytest

from recbole_llm.report import TINY_LLM_NOTE, ResultTable, RunResult
from tests.processes import fresh_python

POINT = "BIGRec adapter=lora coreset=none curriculum=none"


def metrics(value, *names):
    return {name: value + place / 1000 for place, name in enumerate(names)}


@pytest.fixture
def table():
    names = ("hit@10", "hit@5", "ndcg@10", "mrr@5", "recall@10", "recall@5", "auc")
    pop = RunResult(
        "Pop", "ml-100k", "Pop", seed=1, train_rows=98114, epochs=1, n_rows=943, wall_seconds=3.25,
        test=metrics(1 / 30, *names), valid=metrics(1 / 7, "ndcg@10"),
    )  # fmt: skip
    bigrec = RunResult(
        "BIGRec", "ml-100k", POINT, seed=1, train_rows=512, epochs=4, best_epoch=3, n_rows=943, wall_seconds=125.0,
        test={**metrics(0.2, *names[:3]), "mrr@5": None}, notes=(TINY_LLM_NOTE,),
    )  # fmt: skip
    failed = RunResult("SASRec", "ml-100k", notes=("stopped | by the user", TINY_LLM_NOTE))
    return ResultTable(
        (pop, bigrec, failed), {"python": "3.11.7"}, {"ml-100k": "ab12"}, "recbole-llm --model=Pop,BIGRec", "Title ü"
    )


def test_columns_come_in_order(table):
    assert table.metrics == ["recall@5", "recall@10", "ndcg@10", "mrr@5", "hit@5", "hit@10", "auc"]
    assert ResultTable((RunResult("A", "d", test=metrics(0, "ndcg@20", "ndcg@5", "NDCG@1")),)).metrics == [
        "NDCG@1",
        "ndcg@5",
        "ndcg@20",
    ]


def test_a_table_is_printed_as_the_terminal_shows_it_and_named_in_short(table):
    assert str(table) + "\n" == table.text()
    assert repr(table).startswith(f"<ResultTable of {len(table.results)} runs: ") and len(repr(table)) < 200
    assert repr(ResultTable(())) == "<ResultTable of 0 runs: ; print it, or see to_frame()>"


def test_text_whole(table):
    results = [replace(r, test={k: v for k, v in r.test.items() if k in ("hit@10", "mrr@5")}) for r in table.results]
    assert replace(table, results=results).text() == (
        "Model          Train rows  Epochs  Best   Time  Rows    MRR@5   Hit@10\n"
        "Pop                 98114       1     -   3.2s   943   0.0363   0.0333\n"
        "BIGRec [1][2]         512       4     3  2m05s   943  not run   0.2000\n"
        "SASRec [2][3]           -       -     -      -     -  not run  not run\n"
        "\n"
        f"[1] {POINT}\n"
        f"[2] {TINY_LLM_NOTE}\n"
        "[3] stopped | by the user\n"
    )


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_narrow_text_is_one_block_and_names_what_it_leaves_out(table, width):
    """The models, the first metric and as many columns as fit; the others stand in the Markdown."""
    shown = table.text(width=width)
    block, rest = shown.split("\n\n", 1)
    assert max(map(len, block.splitlines())) <= width and len(block.splitlines()) == 4
    head = block.splitlines()[0].split("  ")
    heads = [name.strip() for name in head if name.strip()]
    named = rest.replace("\n", " ").partition("Not shown here: ")[2].partition(".")[0].split(", ")
    wanted = [cell.strip() for cell in table.markdown().splitlines()[2].strip("|").split("|")]
    assert heads[0] == "Model" and "Recall@5" in heads
    assert sorted([*heads, *filter(None, named)]) == sorted(wanted)


def test_markdown_is_one_github_table(table):
    lines = table.markdown().splitlines()
    assert lines[0] == "# Title ü"
    body = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in body}) == 1 and len(body) == 5
    assert body[2].split(" | ")[6:9] == ["0.0383", "0.0373", "0.0353"]
    assert f"- [2] {TINY_LLM_NOTE}" in lines and "Command: `recbole-llm --model=Pop,BIGRec`" in lines
    assert "- data ml-100k: sha256 `ab12`" in lines and "- python: 3.11.7" in lines
    piped = ResultTable((RunResult("a|b", "d"),)).markdown()
    assert "| a\\|b |" in piped


def test_seed_and_data_are_columns_where_they_differ():
    def head(*results):
        return ResultTable(results).text().splitlines()[0].split()

    assert "Seed" not in head(RunResult("A", "d", seed=1), RunResult("B", "d", seed=1))
    assert "Seed" in head(RunResult("A", "d", seed=1), RunResult("B", "d", seed=2))
    assert "Seeds" in head(RunResult("A", "d", seed=1), RunResult("A", "d", seed=2))
    assert "Data" in head(RunResult("A", "d"), RunResult("A", "e"))


def test_csv_is_unrounded(table):
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert [row["model"] for row in rows] == ["Pop", "BIGRec", "SASRec"]
    assert float(rows[0]["hit@10"]) == 1 / 30 and float(rows[0]["valid_ndcg@10"]) == 1 / 7
    assert rows[1]["mrr@5"] == rows[1]["auc"] == rows[2]["seed"] == ""
    assert rows[2]["notes"] == f"stopped | by the user; {TINY_LLM_NOTE}"


def test_files_give_the_same_table_back_in_a_new_process(table, tmp_path):
    paths = table.write(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["results.md", "results.csv", "results.json", "results.tex"]
    assert ResultTable.read(paths[2]) == table == ResultTable.from_json(table.json())
    program = "import sys; from recbole_llm.report import ResultTable; t = ResultTable.read(sys.argv[1])\n"
    program += "t.write(sys.argv[2]); assert not {'torch', 'recbole', 'pandas'} & set(sys.modules)"
    fresh_python(paths[2], tmp_path / "again", code=program)
    for path in paths:
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_what_some_runs_have_is_a_column_where_one_has_it():
    """Rows of the auxiliary recommender, validation loss, spread of the answers; a doubted run is marked."""
    plain = RunResult("A", "d", seed=1, test={"ndcg@10": 0.1})
    assert "Distinct" not in ResultTable((plain,)).text() and "Auxiliary" not in ResultTable((plain,)).text()
    summary = {"valid_loss": 1.25, "distinct_answers": 0.5, "top_answer": 1 / 3}
    told = replace(plain, model="B", seed=2, auxiliary_rows=1234, summary=summary, warnings=("too few", "too slow"))
    table = ResultTable((plain, told))
    head, first, second, *_ = table.text(width=500).splitlines()
    assert head.split("  ")[-5:] == ["Auxiliary rows", "Valid loss", "Distinct answers", "Top answer", "NDCG@10"]
    assert first.split()[-5:] == ["-", "-", "-", "-", "0.1000"]
    assert second.split()[:2] == ["B", "!"] and second.split()[-5:] == ["1234", "1.250", "0.500", "0.333", "0.1000"]
    assert table.text().endswith("! B, seed 2: too few\n! B, seed 2: too slow\n")
    row = list(csv.DictReader(io.StringIO(table.csv())))[1]
    assert (row["auxiliary_rows"], row["top_answer"], row["warnings"]) == ("1234", str(1 / 3), "too few; too slow")
    assert ResultTable.from_json(table.json()) == table and "! B, seed 2: too few" in table._repr_html_()


def test_foreign_json_is_refused(table):
    later = {**json.loads(table.json()), "format": 2}
    for text in ("[]", "{}", json.dumps(later)):
        with pytest.raises(ValueError, match="format"):
            ResultTable.from_json(text)


def test_an_empty_table_is_a_table():
    empty = ResultTable(())
    assert empty.text().startswith("Model") and ResultTable.from_json(empty.json()) == empty

"""``report.html`` of real runs: numbers are those of the per-user files, examples are what was ranked."""

from __future__ import annotations

import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recbole_llm
from recbole_llm import ResultTable
from recbole_llm.evaluation import compare_two_level, holm
from recbole_llm.quick_start import load_data_and_model
from tests.runs import histories_in, metrics_of, working_in

SASREC = {"SASRec.learning_rate": 0.01, "SASRec.valid_metric": "MRR@10"}


class Tables(HTMLParser):
    """Tables by their ids as lists of rows of cells; definitions by their ids; and the text of everything."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.text: list[str] = []
        self._own: list[list[str]] | None = None
        self._in_cell = False
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._own = self.tables.setdefault(dict(attrs).get("id") or f"example {len(self.tables)}", [])
        elif tag == "tr" and self._own is not None:
            self._own.append([])
        elif tag in ("td", "th") and self._own is not None:
            self._own[-1].append("")
            self._in_cell = True
        elif tag == "li" and self._own is not None and self._own[-1][-1]:
            self._own[-1][-1] += "\n"

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())
        if self._in_cell and self._own is not None:
            self._own[-1][-1] = (self._own[-1][-1] + data).lstrip()


@pytest.fixture(scope="module")
def compared(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[ResultTable, Path]:
    """Three models with two seeds each, and the folder of their table."""
    folder = tmp_path_factory.mktemp("report")
    with working_in(folder):
        own = {**small, "checkpoint_dir": str(folder / "saved")}
        table = recbole_llm.compare("Pop,SASRec,BPR", "world", seeds=2, **own, **SASREC)
    (found,) = (folder / "saved").glob("compare-*")
    return table, found


@pytest.fixture(scope="module")
def page(compared: tuple[ResultTable, Path]) -> Tables:
    return Tables(compared[1] / "report.html")


def ranks_of(table: ResultTable) -> dict[str, list[Any]]:
    """Ranks of the users in their order, by model a list for each seed; 0 where the target was not ranked."""
    found: dict[str, list[Any]] = {}
    for one in table.results:
        rows = recbole_llm.load_run(one.folder).ranks.sort_values("user_id")
        found.setdefault(one.model, []).append(rows["rank"].fillna(0).tolist())
    return found


def test_every_metric_is_that_of_the_per_user_files(compared, page):
    ranks = ranks_of(compared[0])
    head, *rows = page.tables["results"]
    assert [row[0] for row in rows] == list(ranks)
    by_model = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    metrics = [name for name in head if "@" in name]
    assert len(metrics) == 12
    for model, own in ranks.items():
        values = [metrics_of(one, (1, 5, 10)) for one in own]
        folders = [run.folder for run in compared[0].results if run.model == model]
        tops = [recbole_llm.load_run(folder).ranks["top_items"] for folder in folders]
        firsts = [[items.split()[0] for items in lists] for lists in tops]
        for name in metrics:
            found = [value[name.lower()] for value in values]
            expected = f"{statistics.fmean(found):.4f} ± {statistics.stdev(found):.4f}"
            assert by_model[model][name].rstrip("*") == expected
        assert by_model[model]["Rows"] == str(len(own[0])) and by_model[model]["Seeds"] == "2"
        distinct = statistics.fmean(len(set(own)) / len(own) for own in firsts)
        most = statistics.fmean(max(map(own.count, own)) / len(own) for own in firsts)
        assert by_model[model]["Distinct answers"] == f"{distinct:.3f}"
        assert by_model[model]["Top answer"] == f"{most:.3f}"


def test_every_run_is_listed_with_its_own_metrics(compared, page):
    head, *rows = page.tables["runs"]
    assert len(rows) == 6
    for row, result in zip(rows, compared[0].results, strict=True):
        told = dict(zip(head, row, strict=True))
        assert [told["Model"], told["Seed"], told["Run folder"]] == [result.model, str(result.seed), result.folder]
        ranks = recbole_llm.load_run(result.folder).ranks["rank"].fillna(0).tolist()
        expected = metrics_of(ranks, (1, 5, 10))
        for name in (name for name in head if "@" in name):
            assert told[name] == f"{expected[name.lower()]:.4f}"


def test_comparisons_and_headline_are_those_of_the_per_user_files(compared, page):
    gains = {
        model: [[1 / np.log2(rank + 1) if 0 < rank <= 10 else 0.0 for rank in one] for one in own]
        for model, own in ranks_of(compared[0]).items()
    }
    means = {model: statistics.fmean(np.mean(one) for one in own) for model, own in gains.items()}
    rows = {row[0]: row[1:] for row in page.tables["comparisons"][1:]}
    found = {model: compare_two_level(gains[model], gains["Pop"]) for model in ("SASRec", "BPR")}
    for (model, own), p_holm in zip(found.items(), holm([one.p for one in found.values()]), strict=True):
        ends = [f"{low:+.4f} … {high:+.4f}" for low, high in (own.users, own.seeds_and_users)]
        expected = [f"{own.difference:+.4f}", *ends, f"{own.p:.3f}", f"{p_holm:.3f}"]
        assert [cell.rstrip("*") for cell in rows[model]] == expected
        if model == max(means, key=means.__getitem__):
            (headline,) = (text for text in page.text if text.startswith("By NDCG@10"))
            assert f"{model} is best ({means[model]:.4f} ± " in headline and f"(p = {p_holm:.3f})" in headline


def test_examples_are_the_rows_that_were_ranked_with_the_models_own_scores(compared, page, world):
    first = {one.model: one for one in reversed(compared[0].results)}
    histories = histories_in(world)
    titles = dict(line.split("\t")[:2] for line in (world / "world.item").read_text().splitlines()[1:])
    examples = [rows for name, rows in page.tables.items() if name.startswith("example")]
    users = [text.removeprefix("User ") for text in page.text if re.fullmatch(r"User u\d+", text)]
    assert len(examples) == len(users) == 10
    for model, result in first.items():
        run = recbole_llm.load_run(result.folder)
        told = run.ranks.set_index("user_id")
        _, trained, dataset, *_, loader = load_data_and_model(result.folder)
        rows = loader.dataset.inter_feat
        row_of = {dataset.id2token("user_id", user): row for row, user in enumerate(rows["user_id"].tolist())}
        for user, table in zip(users, examples, strict=True):
            row = next(row for row in table if row[0] == model)
            assert row[1] == "–" and row[2] == f"rank {told.loc[user, 'rank']}"
            scores = trained.full_sort_predict(rows[[row_of[user]]]).flatten().detach()
            items = told.loc[user, "top_items"].split()[:5]
            shown = [f"{titles[item]} {float(scores[dataset.token2id('item_id', item)]):.4g}" for item in items]
            found = [line.strip() for line in row[3].strip().split("\n")]
            assert [line.rpartition(" ")[0] for line in found] == [line.rpartition(" ")[0] for line in shown]
            numbers = [[float(line.rpartition(" ")[2]) for line in lines] for lines in (found, shown)]
            assert numbers[0] == pytest.approx(numbers[1], rel=2e-3, abs=1e-6)
    for user in users:
        *before, target = histories[user]
        path = [titles[item] for item in before[-10:]]
        assert " → ".join([*path, titles[target]]) in re.sub(r"\s+", " ", " ".join(page.text))


def test_settings_and_protocol_are_said(compared, page):
    head, *rows = page.tables["settings"]
    told = {row[0]: row[1:] for row in rows}
    assert head == ["Setting", "Value", "Default", "Models"]
    assert told["learning_rate"][0::2] == ["0.01", "SASRec"] and told["topk"][0::2] == ["[1, 5, 10]", "all"]
    assert "stopping_step" not in told
    text = " ".join(page.text)
    assert "Leave one out: of each user, ordered by time" in text and "12 test rows" in text
    assert "The kept epoch is the best one by NDCG@10 (Pop, BPR), MRR@10 (SASRec) on the validation rows" in text
    assert "trained with the seeds 2020, 2021" in text and "The whole catalogue is ranked" in text


def test_a_single_run_has_a_page_in_its_folder(small, tmp_path):
    with working_in(tmp_path):
        run = recbole_llm.run("Pop", "world", **{**small, "checkpoint_dir": str(tmp_path / "saved")})
    page = Tables(run.folder / "report.html")
    told = dict(zip(*page.tables["results"], strict=True))
    assert told["NDCG@10"] == f"{run.metrics['ndcg@10']:.4f}" and "comparisons" not in page.tables
    assert (run.folder / "cost.png").is_file()


def test_clicks_and_candidates_have_examples_too(small, tmp_path):
    own = {**small, "checkpoint_dir": str(tmp_path / "saved"), "epochs": 1}
    ranking = {name: own.pop(name) for name in ("topk", "valid_metric")}
    with working_in(tmp_path):
        clicks = recbole_llm.run("LR", "world", **own, threshold={"rating": 4})
        choice = recbole_llm.run("Pop", "world", **own, **ranking, candidates=4)
    for run, wanted in ((clicks, r"liked: (yes|no), predicted [01]\.\d{3}"), (choice, "hit|no hit|no valid answer")):
        records = json.loads((run.folder / "examples.json").read_text())
        assert len(records) == min(10, run.result.n_rows) and all(
            re.fullmatch(wanted, one["outcome"]) for one in records
        )
        rows = run.ranks.set_index(["user_id", "item_id"])
        for one in records:
            told = rows.loc[(one["user_id"], one["item_id"])]
            if run is clicks:
                assert one["outcome"].endswith(f"{told['score']:.3f}") and one["items"] == []
            else:
                assert [item["item_id"] for item in one["items"]] == told["candidates"].split()
                assert sum(item["is_target"] for item in one["items"]) == 1 and one["answer"] == told["answer"]
        assert "Examples" in (run.folder / "report.html").read_text()

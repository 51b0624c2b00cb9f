"""The walk of the quick start, from a CSV to a table of a paper and recommendations, by the commands of the page."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.processes import REPOSITORY, fresh_python
from tests.runs import TINY

PAGE = REPOSITORY / "docs" / "quickstart.md"
COMMAND = re.compile(r"^    recbole-llm (.+)$", re.MULTILINE)
TITLES = [
    *("三体:黑暗森林", "三体：黑暗森林", "射雕英雄传，卷一", "Война и мир", "Преступление и наказание: роман", "Ёж"),
    *('He said "no"', '"Quoted"', 'A 19" screen', "It's; a, 'trap'", "Alien: Covenant", "50% off, 3: a tale"),
    *("Naïve — Café", "C++ # 7", "  blanks  inside  ", "a|b\\c", "Twin", "Twin", "1984", "NA"),
]
# What makes the walk short; the commands stay as they are.
ALL = {"epochs": 1, "MAX_ITEM_LIST_LENGTH": 6, "show_progress": False, "test_sample_size": 16, "valid_sample_size": 12}
CLASSIC = {"n_layers": 1, "hidden_size": 16, "inner_size": 16}
LLM = {key: yaml.safe_load(value) for key, value in (word.removeprefix("--").split("=") for word in TINY)}
SMALL = {
    "compare": {**ALL, **CLASSIC, **LLM},
    "audit": {**ALL, **LLM},
    "tune": {**ALL, "hidden_size": 16, "inner_size": 16},
}


def write_reviews(file: Path, n_users: int = 30) -> dict[str, str]:
    """A shop's table, with exact repeats, quoted titles and its own names of columns; returns title by item."""
    rng = np.random.default_rng(3)
    titles = {f"p{number}": title for number, title in enumerate(TITLES, start=1)}
    with file.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Customer ID", "Product ID", "Stars", "Date", "Product Title"])
        for user in range(n_users):
            for day, item in enumerate(rng.permutation(len(TITLES))[: rng.integers(6, 11)] + 1):
                date = f"2024-{1 + user % 12:02}-{1 + day:02}T10:00:00Z"
                line = [f"клиент {user}", f"p{item}", 1 + user % 5, date, titles[f"p{item}"]]
                writer.writerows([line] * (2 if user == day else 1))
    return titles


def run(words: str, cwd: Path, *more: str) -> str:
    environment = {"OMP_NUM_THREADS": "1"}
    return fresh_python("-m", "recbole_llm", *shlex.split(words), *more, cwd=cwd, env=environment).stdout


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The folder after the walk, titles by item, and what each command printed by its verb."""
    folder = tmp_path_factory.mktemp("walk")
    titles = write_reviews(folder / "reviews.csv")
    for verb, settings in SMALL.items():
        (folder / f"{verb}.yaml").write_text(yaml.safe_dump(settings))
    printed = {}
    for words in COMMAND.findall(PAGE.read_text(encoding="utf-8")):
        verb = words.split()[0] if not words.startswith("-") else "compare"
        if verb == "recommend":
            runs = [file.parent for file in folder.glob("saved/SOFT-shop-*/test_ranks.csv")]
            words = words.replace("saved/<run>", str(min(runs).relative_to(folder)))
        small = [f"--config_files={verb}.yaml"] if verb in SMALL else []
        printed[verb] = run(words, folder, *small)
    return folder, titles, printed


@pytest.mark.slow
def test_the_page_walks_from_a_csv_to_recommendations(walked):
    folder, _, printed = walked
    assert list(printed) == ["import", "audit", "compare", "tune", "recommend"]
    assert {file.name for file in (folder / "dataset" / "shop").iterdir()} == {"shop.inter", "shop.item", "shop.yaml"}


@pytest.mark.slow
def test_every_title_survives_and_repeats_are_dropped(walked):
    folder, titles, _ = walked
    lines = (folder / "dataset" / "shop" / "shop.item").read_text(encoding="utf-8").splitlines()[1:]
    found = dict(line.split("\t")[:2] for line in lines)
    assert found.keys() == titles.keys()
    assert all(" ".join(found[item].split()) == " ".join(title.split()) for item, title in titles.items())
    inter = pd.read_csv(folder / "dataset" / "shop" / "shop.inter", sep="\t")
    assert len(inter) == len(inter.drop_duplicates())


@pytest.mark.slow
def test_the_table_has_four_models_and_three_seeds_in_every_form(walked):
    folder, _, printed = walked
    (results,) = folder.glob("saved/compare-shop-*")
    table = pd.read_csv(results / "results.csv")
    counted = table.groupby("model")["seed"].nunique().to_dict()
    assert counted == {"Pop": 3, "SASRec": 3, "BIGRec": 3, "SOFT": 3} and len(table) == 12
    latex = (results / "results.tex").read_text(encoding="utf-8")
    assert all(word in latex for word in (r"\toprule", r"\bottomrule", "Pop", "SASRec", "BIGRec", "SOFT", r"$\pm$"))
    facts = json.loads((results / "results.json").read_text(encoding="utf-8"))
    assert {one["model"] for one in facts["comparisons"]} == {"Pop", "BIGRec", "SOFT"}
    assert {one["baseline"] for one in facts["comparisons"]} == {"SASRec"}
    digests = {json.loads((folder / one["folder"] / "run.json").read_text())["rows"] for one in facts["results"]}
    assert len(digests) == 1  # all runs, of all seeds, are evaluated on the same users
    page = (results / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("Pop", "SASRec", "BIGRec", "SOFT"))
    assert "results:" in printed["compare"] and max(map(len, printed["compare"].splitlines()[:8])) <= 100


@pytest.mark.slow
def test_every_user_gets_unseen_items_with_their_titles(walked):
    folder, titles, _ = walked
    found = pd.read_csv(folder / "recs.csv", dtype={"item_id": str, "title": str}, keep_default_na=False)
    seen = pd.read_csv(folder / "dataset" / "shop" / "shop.inter", sep="\t").groupby("user_id:token")["item_id:token"]
    seen = {user: set(items) for user, items in seen}
    assert set(found["user_id"]) == set(seen) and len(seen) == 30
    for user, own in found.groupby("user_id"):
        assert own["rank"].tolist() == list(range(1, len(own) + 1))
        # To an LLM two items of one title are one: whoever saw the one is not shown the other.
        unseen = set(titles.values()) - {titles[item] for item in seen[user]}
        assert len(own) == min(10, len(unseen)) and set(own["title"]) <= {title.strip() for title in unseen}
        assert own["score"].is_monotonic_decreasing
    shown = dict(zip(found["item_id"], found["title"], strict=True))
    assert all(title == titles[item].strip() for item, title in shown.items())


@pytest.mark.slow
def test_the_same_commands_from_the_same_folder_find_their_results(walked):
    folder, _, printed = walked
    before = {file for file in (folder / "saved").iterdir()}
    words = next(words for words in COMMAND.findall(PAGE.read_text(encoding="utf-8")) if words.startswith("-"))
    again = run(words, folder, "--config_files=compare.yaml")
    assert {file for file in (folder / "saved").iterdir()} == before
    assert [line for line in again.splitlines() if not line.startswith("time:")] == [
        line for line in printed["compare"].splitlines() if not line.startswith("time:")
    ]

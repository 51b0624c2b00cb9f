"""The importer of Amazon Reviews 2023, against files as the public ones are."""

from __future__ import annotations

import gzip
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas._libs.parsers import STR_NA_VALUES

from recbole_llm.data.atomic import read_atomic
from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.data.importers import interactions, writing
from recbole_llm.data.importers.importing import import_dataset
from recbole_llm.data.importers.plan import Choices
from recbole_llm.data.importers.steps import Filters, in_k_core
from recbole_llm.data.importers.text import READ_AS_MISSING, category_words, clean_text
from recbole_llm.data.lines import Format
from recbole_llm.data.rows import load_rows, row_histories, row_pairs
from recbole_llm.experiment.command import main
from recbole_llm.settings.config import Config
from tests.processes import fresh_python
from tests.refusals import refused

HEADER = "user_id,parent_asin,rating,timestamp"
START = 1_549_866_158_000  # milliseconds: single precision tells times two minutes apart, not seconds

# What a title may hold, and what RecBole must read of it.
TITLES = {
    'Say "cheese"': 'Say "cheese"',
    '"Heroes" of Might': '"Heroes" of Might',
    '"Quoted"': '"Quoted"',
    'Monitor 24"': 'Monitor 24"',
    '"': '"',
    '""': '""',
    "It's 5' 6''": "It's 5' 6''",
    "Two\nlines\r\nand\ta tab": "Two lines and a tab",
    " Tom &amp; Jerry&#39;s &quot;Chase&quot;, vol. 1 ": 'Tom & Jerry\'s "Chase", vol. 1',
    "ゼルダの伝説 – Édition ö": "ゼルダの伝説 – Édition ö",
    "a  b": "a  b",
    "nul\x00l, bell\x07": "nul l, bell",
    "1984": "1984",
    "half \ud83d a smile": "half ? a smile",
    "# no \\ comment, a;b|c": "# no \\ comment, a;b|c",
}
MISSING: list[Any] = [None, "", "  \t", "nan", "NaN", "None", "&nbsp;", 7, float("nan")]


def write_files(folder: Path, rows: list[tuple[Any, ...]], items: list[dict[str, Any]], packed: bool = False) -> Any:
    """The two files, as (ratings, metadata)."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "Things.csv": "\n".join([HEADER, *(",".join(map(str, row)) for row in rows)]) + "\n",
        "meta_Things.jsonl": "".join(json.dumps(item) + "\n" for item in items),
    }
    files = [folder / f"{name}{'.gz' * packed}" for name in texts]
    for file, text in zip(files, texts.values(), strict=True):
        file.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return files


def import_amazon(
    ratings: Path, metadata: Path, name: str, out: Path, k_core: int = 10, progress: bool = False
) -> Path:
    filters = Filters(k_core=k_core)
    choices = Choices(items=metadata)
    return import_dataset(ratings, name, out, choices=choices, filters=filters, overwrite=True, progress=progress)


def write_titled(folder: Path, titles: list[Any], **options: Any) -> Path:
    """A data set ``things`` in which u1, u2 and u3 have had every item once."""
    items = [{"parent_asin": f"B{place:02}", "title": title} for place, title in enumerate(titles)]
    rows = [
        (f"u{user}", item["parent_asin"], 5.0, START + place * 1000 + user)
        for place, item in enumerate(items)
        for user in (1, 2, 3)
    ]
    return import_amazon(*write_files(folder, rows, items), "things", folder / "out", progress=False, **options)


def config_of(folder: Path, **settings: Any) -> Config:
    paper = {"data_path": str(folder), "load_col": None, "title_field": "title", **settings}
    return Config("BIGRec", folder.name, config_dict=paper)


def frame(folder: Path, kind: str) -> pd.DataFrame:
    """An atomic file by another reader's eyes: the standard csv module."""
    import csv

    with open(folder / f"{folder.name}.{kind}", newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return pd.DataFrame(lines, columns=[column.partition(":")[0] for column in header])


@pytest.mark.parametrize("packed", [False, True])
def test_files_come_out_in_time_order_with_sorted_items(tmp_path, packed):
    rows = [
        ("u2", "B2", 3.0, START + 5),
        ("u1", "B1", 5.0, START + 1),
        ("u1", "B2", 1.0, START + 5),
        ("u2", "B1", 4.0, START + 5),
        ("u1", "B1", 5.0, START + 1),  # an exact duplicate
        ("u1", "B1", 4.0, START + 1),  # the same item once more, with another rating
        ("u3", "B3", 4.0, START),  # an item the metadata does not know
        ("u3", "B1", 4.0, START),
    ]
    items = [
        {"parent_asin": "B9", "title": "Nobody's"},
        {
            "parent_asin": "B2",
            "title": "Two",
            "store": "Shop & Co",
            "main_category": "Video Games",
            "categories": ["Video Games", "PC", "PC", "Games &amp; More"],
        },
        {"parent_asin": "B1", "title": None},
        {"parent_asin": "B1", "title": "One", "categories": None},
        {"parent_asin": "B1", "title": "One again"},
    ]
    folder = import_amazon(*write_files(tmp_path, rows, items, packed), "things", tmp_path / "out", 1)
    assert (folder / "things.inter").read_text().splitlines() == [
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        f"u3\tB1\t4.0\t{START}",
        f"u1\tB1\t5.0\t{START + 1}",
        f"u1\tB1\t4.0\t{START + 1}",
        f"u2\tB2\t3.0\t{START + 5}",
        f"u1\tB2\t1.0\t{START + 5}",
        f"u2\tB1\t4.0\t{START + 5}",
    ]
    assert (folder / "things.item").read_text().splitlines() == [
        "item_id:token\ttitle:token\tbrand:token\tcategories:token_seq\tmain_category:token",
        "B1\tOne\t\tUnknown\t",
        "B2\tTwo\tShop & Co\tVideo_Games PC Games_&_More\tVideo Games",
    ]


def test_reading_in_small_chunks_gives_the_same(tmp_path, monkeypatch):
    whole = write_titled(tmp_path, [f"Title {place}" for place in range(12)], k_core=2)
    before = [(whole / f"things.{kind}").read_bytes() for kind in ("inter", "item")]
    monkeypatch.setattr(interactions, "_BLOCK", 5)
    monkeypatch.setattr(writing, "_STEP", 3)
    write_titled(tmp_path, [f"Title {place}" for place in range(12)], k_core=2)
    assert [(whole / f"things.{kind}").read_bytes() for kind in ("inter", "item")] == before


def test_titles_survive_recboles_reading(tmp_path):
    folder = write_titled(tmp_path, list(TITLES), k_core=3)
    dataset = load_rows(config_of(folder), False).whole
    catalog = ItemCatalog.from_dataset(dataset, "title", text_fields=["categories", "main_category"])
    names = dict(zip(catalog.tokens, catalog.titles, strict=True))
    del names["[PAD]"]
    assert names == {f"B{place:02}": title for place, title in enumerate(TITLES.values())}
    for title in TITLES.values():
        assert catalog.titles[catalog.lookup(title)] == title
    assert list(frame(folder, "item")["title"]) == list(TITLES.values())


@given(title=st.text(max_size=40))
def test_any_title_survives_or_is_missing(title, tmp_path_factory):
    cleaned = clean_text(title)
    assert cleaned == clean_text(cleaned.replace("&", "&amp;")) and cleaned not in STR_NA_VALUES - {""}
    if cleaned:
        folder = tmp_path_factory.mktemp("any")
        one = np.zeros(1, dtype=np.int32)
        found = interactions.Interactions(["u"], ["i"], one, one, None, one, one)
        writing.write_items(found, {"i": (cleaned,)}, (), folder / "a.item")
        assert read_atomic(folder / "a.item", Format()).columns == {"item_id": ["i"], "title": [cleaned]}


def test_items_without_a_title_go_before_the_k_core(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        folder = write_titled(tmp_path, [*MISSING, "One", "Two"], k_core=2)
    assert f"left out: {3 * len(MISSING)} with an item without a title" in caplog.text
    assert list(frame(folder, "item")["title"]) == ["One", "Two"]
    # With the untitled items the users would have had 11 interactions; without them a 3-core is empty.
    with refused("", "data", "no interaction is left .* 6 outside the 3-core"):
        write_titled(tmp_path / "more", [*MISSING, "One", "Two"], k_core=3)


def test_what_pandas_reads_as_missing_counts_as_missing():
    assert READ_AS_MISSING >= STR_NA_VALUES - {""}


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        (["Video Games", "PC"], "Video_Games PC"),
        (["A\tB  C", "A B C", "", None, 3], "A_B_C"),
        ([], "Unknown"),
        (None, "Unknown"),
        ("Games", "Unknown"),
        (["nan"], "Unknown"),
    ],
)
def test_categories_are_one_word_each(categories, words):
    assert category_words(categories) == words


def k_core_by_hand(pairs: list[tuple[int, int]], k: int) -> list[tuple[int, int]]:
    """Drop one user or item at a time."""
    while True:
        for side in (0, 1):
            few = [name for name, count in Counter(pair[side] for pair in pairs).items() if count < k]
            if few:
                pairs = [pair for pair in pairs if pair[side] != few[0]]
                break
        else:
            return pairs


@given(pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40), k=st.integers(1, 4))
def test_the_k_core_equals_dropping_one_by_one(pairs, k):
    users, items = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    kept = in_k_core(users, items, k)
    assert [pair for pair, keep in zip(pairs, kept, strict=True) if keep] == k_core_by_hand(pairs, k)


def test_recbole_reads_the_interactions_in_exact_time_order(tmp_path):
    # A second apart, backwards in the file: single precision would take all times for equal.
    items = [{"parent_asin": f"B{place}", "title": f"Title {place}"} for place in range(6)]
    rows = [("u1", f"B{place}", 5.0, START + 1000 * place) for place in reversed(range(6))]
    folder = import_amazon(*write_files(tmp_path, rows, items), "things", tmp_path / "out", 1)
    loaded = load_rows(config_of(folder, eval_args={"split": {"LS": "test_only"}}, stopping_step=0), False)
    names = loaded.whole.field2id_token["item_id"]
    assert [names[item] for item in row_histories(loaded.test)[0][0][:5]] == [f"B{place}" for place in range(5)]
    assert names[row_pairs(loaded.test)[0, 1]] == "B5"


def test_the_command_writes_the_same_bytes_in_every_process(tmp_path):
    items = [{"parent_asin": f"B{place}", "title": f"Title {place}"} for place in range(4)]
    rows = [(f"u{user}", f"B{place}", 5.0, START + place) for place in range(4) for user in range(4)]
    ratings, metadata = write_files(tmp_path, rows, items)
    written = []
    for out in (tmp_path / "here", tmp_path / "there"):
        words = ["import", str(ratings), f"--items={metadata}", "--name=t", f"--out={out}", "--k_core=4"]
        if out.name == "here":
            assert main(words) == 0
        else:
            finished = fresh_python("-m", "recbole_llm", *words, env={"PYTHONHASHSEED": "12345"})
            assert "16 interactions of 4 users and 4 items" in finished.stderr
            assert finished.stdout.endswith(f"--dataset=t --data_path={out}\n")
        written.append([(out / "t" / f"t.{kind}").read_bytes() for kind in ("inter", "item")])
    assert written[0] == written[1]


ROWS = "u1,B1,5.0,1\n"
META = '{"parent_asin": "B1", "title": "One"}\n'


@pytest.mark.parametrize(
    ("ratings", "metadata", "message", "key", "kind"),
    [
        (None, META, "cannot read .*r.csv: there is no such file", "", "file"),
        (f"{HEADER}\n{ROWS}", None, "items: cannot read .*m.jsonl: there is no such file", "items", "file"),
        ("", META, "r.csv: is empty; it needs a line of column names", "", "file"),
        (
            f"user_id,asin,rating\n{ROWS}",
            META,
            "time: r.csv has no column .* \\(it has user_id, asin, rating\\); add --time=COLUMN",
            "time",
            "missing",
        ),
        (f"{HEADER}\n", META, "r.csv: holds no interactions", "", "data"),
        (f"{HEADER}\nu1,B1,five,1\n", META, "r.csv, line 2: has a rating that is no number 'five'", "", "data"),
        (f"{HEADER}\nu1,B1,5.0,{10**20}\n", META, "r.csv, line 2: has a time that cannot be read '10", "", "data"),
        (f"{HEADER}\nu1,B1,5.0,\n", META, "r.csv, line 2: has no time", "", "data"),
        (f"{HEADER}\n{ROWS}u1,B1\n", META, "r.csv, line 3: has 2 fields, not 4", "", "data"),
        (f"{HEADER}\n{ROWS}u1,B1,5.0,1,2\n", META, "r.csv, line 3: has 5 fields, not 4", "", "data"),
        (f"{HEADER}\n{ROWS},B1,5.0,1\n", META, "r.csv, line 3: has no user", "", "data"),
        (f"{HEADER}\n{ROWS}", META + "{broken\n", "m.jsonl, line 2: no valid JSON", "", "data"),
        (f"{HEADER}\n{ROWS}", "\n[1, 2]\n", "m.jsonl, line 2: no JSON object", "", "data"),
        (
            f"{HEADER}\n{ROWS}",
            '{"title": "One"}\n',
            "m.jsonl, line 1: has no item; give the file of the items",
            "",
            "data",
        ),
        (
            f"{HEADER}\n{ROWS}",
            '{"parent_asin": "B2", "title": "Two"}\n',
            "m.jsonl has the title of no item that is in",
            "items",
            "data",
        ),
        (f"{HEADER}\n{ROWS}", META, "no interaction is left \\(left out: 1 outside the 10-core\\)", "", "data"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, ratings, metadata, message, key, kind):
    for name, text in (("r.csv", ratings), ("m.jsonl", metadata)):
        if text is not None:
            (tmp_path / name).write_text(text)
    words = ["import", str(tmp_path / "r.csv"), f"--items={tmp_path / 'm.jsonl'}", "--name=t", "--k-core=10"]
    assert main([*words, f"--out={tmp_path}"]) == 2
    error = capsys.readouterr().err.rstrip("\n").split("\n")[-1]
    assert error.startswith("recbole-llm: error: ")
    with refused(key, kind, message) as caught:
        import_amazon(tmp_path / "r.csv", tmp_path / "m.jsonl", "t", tmp_path)
    assert "\n" not in str(caught.value) and str(caught.value) in error


def test_a_folder_of_several_categories_is_refused_and_one_in_several_files_is_not(tmp_path):
    folder = tmp_path / "amazon"
    folder.mkdir()
    reviews = '{"user_id": "u1", "parent_asin": "B1", "timestamp": 1, "rating": 5.0}\n'
    (folder / "All_Beauty.csv").write_text(f"{HEADER}\n{ROWS}")
    (folder / "All_Beauty.jsonl").write_text(reviews)
    for name in ("meta_All_Beauty.jsonl", "meta_Video_Games.jsonl"):
        (folder / name).write_text(META)
    import_dataset(folder, "one", tmp_path / "out")
    (folder / "Video_Games.jsonl").write_text(reviews)
    with refused("", "conflict", "amazon holds several categories \\(all_beauty, video_games\\)"):
        import_dataset(folder, "two", tmp_path / "out")
    import_dataset(folder / "Video_Games.jsonl", "two", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message", "key"),
    [
        ({"k_core": 0}, "k_core: 0 is not allowed", "k_core"),
        ({"name": "a/b"}, "name: 'a/b'", "name"),
        ({"name": ""}, "name: ''", "name"),
    ],
)
def test_bad_options_are_named(tmp_path, options, message, key):
    files = write_files(tmp_path, [("u1", "B1", 5.0, 1)], [{"parent_asin": "B1", "title": "One"}])
    with refused(key, "value", message):
        import_amazon(*files, **{"name": "t", "out": tmp_path, **options})


def test_a_cut_off_download_is_named(tmp_path):
    rows = [(f"u{place}", f"B{place * 7919 % 1000}", 5.0, START + place) for place in range(1000)]
    ratings, metadata = write_files(tmp_path, rows, [{"parent_asin": "B1", "title": "One"}], packed=True)
    ratings.write_bytes(ratings.read_bytes()[:-20])
    with refused("", "file", "Things.csv.gz: damaged or cut off"):
        import_amazon(ratings, metadata, "things", tmp_path / "out", 1)


@pytest.mark.parametrize("dataset", ["amazon-games-2023", "amazon-movies-2023", "amazon-kindle-2023"])
def test_an_imported_data_set_gives_the_rows_of_the_paper(tmp_path, dataset):
    rng = np.random.default_rng(0)
    items = [{"parent_asin": f"B{place}", "title": f"Title {place}"} for place in range(15)]
    n_own = [10 + user % 6 for user in range(30)]
    rows = [
        (f"u{user}", f"B{item}", 5.0, START + int(time))
        for user, n in enumerate(n_own)
        for item, time in zip(rng.permutation(15)[:n], rng.integers(0, 10**10, n), strict=True)
    ]
    import_amazon(*write_files(tmp_path, rows, items), dataset, tmp_path, 10)
    config = Config("SOFT", dataset, ["paper/soft.yaml"], {"data_path": str(tmp_path)})
    loaded = load_rows(config, False)
    n_rows = sum(max(n - 10, 1) for n in n_own)
    ends = [0, n_rows * 8 // 10, n_rows * 9 // 10, n_rows]
    parts = (loaded.train, loaded.valid, loaded.test)
    assert [len(part) for part in parts] == np.diff(ends).tolist()
    assert all(row_histories(part)[1].min() >= 9 for part in parts)
    assert ItemCatalog.from_dataset(loaded.whole, config["title_field"]).lookup("Title 3")

"""The catalogue agrees with the .item file, and title → answer → title is the identity."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm import compat
from recbole_llm.data.catalog import ItemCatalog, read_categories
from recbole_llm.prompt.titles import clean_answer, clean_title
from tests.refusals import refused

SHARED = Path(__file__).parents[3] / "shared" / "data"
TITLES = [None, "Babe", "Heat", "Babe", "  ", "Heat ", 'Say "Hi"']

texts = st.text(max_size=30) | st.text(alphabet='"ab \t\n\r', max_size=12)


@given(texts)
def test_cleaned_titles_are_one_line_and_stay_as_they_are(text):
    title = clean_title(text)
    assert clean_title(title) == title == title.strip()
    assert len(title.splitlines()) <= 1
    assert "\t" not in title


@given(texts)
def test_an_answer_names_the_title_it_was_made_from(text):
    title = clean_title(text)
    assert clean_answer(f'"{title}"') == title
    assert clean_answer(f' "{title}"\n') == title


@pytest.mark.parametrize(
    "title", ['"Heroes"', '"', 'Disk 3.5"', 'He said "no"', "Amélie & Léon", "罗马 假日", "AT&amp;T"]
)
def test_quotes_scripts_and_entities_survive_the_round_trip(title):
    catalog = ItemCatalog([None, "Babe", title])
    assert catalog.titles[2] == title
    assert catalog.lookup(clean_answer(f'"{title}"')) == 2


def test_an_answer_without_a_title_is_empty():
    assert [clean_answer(text) for text in ("", '"', '""', '" "', " \n", '"Ba', 'Ba"')] == [""] * 5 + ["Ba", "Ba"]


def test_duplicates_are_represented_by_the_lowest_id_and_untitled_items_by_none():
    catalog = ItemCatalog(TITLES)
    assert catalog.titles == [None, "Babe", "Heat", "Babe", None, "Heat", 'Say "Hi"']
    assert catalog.representative.tolist() == [0, 1, 2, 1, 0, 2, 6]
    assert catalog.representative.dtype == np.int64
    assert catalog.rankable.tolist() == [False, True, True, False, False, False, True]
    assert catalog.has_title.tolist() == [False, True, True, True, False, True, True]
    assert (catalog.n_items, catalog.n_duplicates) == (7, 2)
    assert (catalog.lookup("Babe\n"), catalog.lookup("babe"), catalog.lookup("")) == (1, None, None)


@given(st.lists(st.sampled_from(["a", "b", "c", " a", "", None]), min_size=1, max_size=12))
def test_representatives_agree_with_a_search_from_the_start(titles):
    titles = [None, "z", *titles]
    catalog = ItemCatalog(titles)
    cleaned = [clean_title(title or "") for title in titles]
    expected = [cleaned.index(title) if title else 0 for title in cleaned]
    assert catalog.representative.tolist() == expected
    assert catalog.rankable.sum() == len(set(filter(None, cleaned)))
    assert np.array_equal(catalog.representative[catalog.representative], catalog.representative)


def test_gaps_and_duplicates_are_logged_with_counts_and_external_ids(caplog):
    with caplog.at_level(logging.INFO):
        ItemCatalog(TITLES, tokens=["[PAD]", "a", "b", "c", "B0042", "e", "f"], source="item field 'title'")
    assert "1 of 6 items have no title in item field 'title'" in caplog.text
    assert "(first: B0042)" in caplog.text
    assert "4 items share a title" in caplog.text


def test_attributes_are_kept_per_item():
    attributes = [[], ["Comedy", "1995"], []]
    assert ItemCatalog([None, "Babe", "Heat"], attributes=attributes).attributes == attributes
    assert ItemCatalog([None, "Babe", "Heat"]).attributes == [[], [], []]
    with pytest.raises(ValueError, match="one entry per item"):
        ItemCatalog([None, "Babe", "Heat"], attributes=[["Comedy"]])


def test_the_fingerprint_follows_titles_alone():
    base = ItemCatalog(TITLES).fingerprint()
    assert ItemCatalog(TITLES, tokens=list("0abcdef"), attributes=[["x"]] * 7).fingerprint() == base
    assert ItemCatalog([*TITLES, "New"]).fingerprint() != base
    assert ItemCatalog([TITLES[0], TITLES[2], TITLES[1], *TITLES[3:]]).fingerprint() != base


def test_a_catalogue_without_titles_is_refused():
    with refused("title_field", "data", "every title of the catalogue is empty; set it to"):
        ItemCatalog([None, "", "  "])
    with pytest.raises(ValueError, match="padding"):
        ItemCatalog(["Babe", "Heat"])


# ---- from RecBole data sets ----------------------------------------------------------------------------------------


def load_dataset(monkeypatch, folder, name, item_fields, inter_fields=("user_id", "item_id", "timestamp")):
    """A RecBole data set, not built yet."""
    compat.apply()
    from recbole.config import Config
    from recbole.data import create_dataset

    monkeypatch.setattr(sys, "argv", ["test"])  # RecBole's Config reads the command line
    load_col = {"inter": list(inter_fields)}
    if item_fields:
        load_col["item"] = ["item_id", *item_fields]
    settings = {
        "data_path": str(folder),
        "load_col": load_col,
        "train_neg_sample_args": None,
        "filter_inter_by_user_or_item": False,  # keeps items that the .item file does not list
    }
    return create_dataset(Config(model="SASRec", dataset=name, config_dict=settings))


@pytest.fixture
def films(tmp_path):
    """Items 1 to 6 interact; 5 has blank cells, 6 is not in the .item file at all."""
    folder = tmp_path / "films"
    folder.mkdir()
    item_rows = [
        "item_id:token\tname:token\twords:token_seq\tyear:token\tclass:token_seq\tscore:float",
        "1\tBabe\tBabe\t1995\tComedy Children's\t3.5",
        "2\tThe  Matrix\tThe  Matrix\t\tAction\t4",
        "3\tBabe\tBabe\t1998\t\t2",
        "4\t[PAD]\t[PAD] Story\t2000\tAction Drama\t",
        "5\t\t\t2001\tDrama\t1",
    ]
    inter_rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    inter_rows += [f"u{user}\t{item}\t{item}" for user in (1, 2) for item in (6, 5, 4, 3, 2, 1)]
    (folder / "films.item").write_text("\n".join(item_rows) + "\n")
    (folder / "films.inter").write_text("\n".join(inter_rows) + "\n")
    return tmp_path


def by_external_id(catalog):
    return {catalog.tokens[item_id]: catalog.titles[item_id] for item_id in range(1, catalog.n_items)}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("built", [False, True])
def test_token_and_token_seq_titles_are_read_before_and_after_build(monkeypatch, films, built):
    dataset = load_dataset(monkeypatch, films, "films", ["name", "words", "year", "class", "score"])
    if built:
        dataset.build()
    name = ItemCatalog.from_dataset(dataset, "name", text_fields=["class", "year"])
    expected = {"1": "Babe", "2": "The  Matrix", "3": "Babe", "4": "[PAD]", "5": None, "6": None}
    assert by_external_id(name) == expected
    words = ItemCatalog.from_dataset(dataset, "words", title_with="year")
    assert by_external_id(words) == {
        **{"1": "Babe (1995)", "2": "The Matrix", "3": "Babe (1998)"},
        **{"4": "[PAD] Story (2000)", "5": None, "6": None},
    }
    assert dict(zip(name.tokens, name.attributes, strict=True)) == {
        **{"[PAD]": [], "1": ["Comedy", "Children's", "1995"], "2": ["Action"], "3": ["1998"]},
        **{"4": ["Action", "Drama", "2000"], "5": ["Drama", "2001"], "6": []},
    }


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_wrong_fields_are_one_line_errors_that_name_the_fields(monkeypatch, films):
    dataset = load_dataset(monkeypatch, films, "films", ["name", "score"])
    with refused(
        "title_field",
        "data",
        r"title_field: data set 'films' has no item field 'titel' \(its item fields: item_id, name, words",
    ):
        ItemCatalog.from_dataset(dataset, "titel")
    with refused("title_with", "data", "title_with: item field 'score' of data set 'films' has type float"):
        ItemCatalog.from_dataset(dataset, "name", title_with="score")
    with refused("title_field", "data", "title_field: item field 'name' exists in films.item but load_col"):
        ItemCatalog.from_dataset(load_dataset(monkeypatch, films, "films", []), "name")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_categories_are_those_of_the_file_none_if_not_loaded_and_an_error_if_not_there(monkeypatch, films):
    dataset = load_dataset(monkeypatch, films, "films", ["year", "class", "score"])
    tokens = dataset.field2id_token["item_id"]
    assert dict(zip(tokens, read_categories(dataset, "class"), strict=True)) == {
        **{"[PAD]": [], "1": ["Comedy", "Children's"], "2": ["Action"], "3": []},
        **{"4": ["Action", "Drama"], "5": ["Drama"], "6": []},
    }
    assert dict(zip(tokens, read_categories(dataset, "year"), strict=True))["1"] == ["1995"]
    assert read_categories(dataset, "words") is None
    with refused("category_field", "data", "category_field: data set 'films' has no item field 'clas'"):
        read_categories(dataset, "clas")
    with refused("category_field", "data", "category_field: item field 'score' of data set 'films' has type float"):
        read_categories(dataset, "score")
    without_items = load_dataset(monkeypatch, films, "films", [])
    assert read_categories(without_items, "class") is None


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_empty_title_column_is_an_error_that_names_it(monkeypatch, films):
    path = films / "films" / "films.item"
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    blank = [rows[0], *([row[0], "  ", "", *row[3:]] for row in rows[1:])]
    path.write_text("\n".join("\t".join(row) for row in blank) + "\n")
    dataset = load_dataset(monkeypatch, films, "films", ["name", "words", "year"])
    for field in ("name", "words"):
        with refused("title_field", "data", f"every title of item field '{field}' of data set 'films' is empty"):
            ItemCatalog.from_dataset(dataset, field, title_with="year")


def read_item_file(path, field):
    header, *rows = [line.rstrip("\n").split("\t") for line in path.open(encoding="utf-8")]
    names = [column.split(":")[0] for column in header]
    return {row[0]: row[names.index(field)] for row in rows}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_ml_100k_titles_with_their_years(monkeypatch):
    compat.apply()
    import recbole

    folder = Path(recbole.__file__).parent / "dataset_example"
    dataset = load_dataset(monkeypatch, folder, "ml-100k", ["movie_title", "release_year", "class"])
    catalog = ItemCatalog.from_dataset(dataset, "movie_title", "release_year", ["class"])
    item_file = folder / "ml-100k" / "ml-100k.item"
    years = read_item_file(item_file, "release_year")
    expected = {
        item: f"{title} ({years[item]})" if years[item] else title
        for item, title in read_item_file(item_file, "movie_title").items()
    }
    assert by_external_id(catalog) == expected
    assert catalog.attributes[catalog.lookup("Toy Story (1995)")] == ["Animation", "Children's", "Comedy"]
    assert ItemCatalog.from_dataset(dataset, "movie_title").n_duplicates > catalog.n_duplicates == 18


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("name", "n_duplicates"), [("amazon-games-tiny", 18), ("lastfm-hetrec", 0)])
def test_titles_of_shared_data_sets_equal_their_files(monkeypatch, name, n_duplicates):
    if not SHARED.is_dir():
        pytest.skip("needs the shared data sets")
    catalog = ItemCatalog.from_dataset(load_dataset(monkeypatch, SHARED, name, ["title"]), "title")
    assert by_external_id(catalog) == read_item_file(SHARED / name / f"{name}.item", "title")
    assert catalog.n_duplicates == n_duplicates

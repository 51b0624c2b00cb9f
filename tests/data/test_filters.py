"""What filters keep, against plain Python over the same lines; and one line for filters that cannot be."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_llm.data.rows import Rows, load_rows
from recbole_llm.settings.config import Config
from tests.refusals import refused

ITEMS = "item_id:token\ttitle:token\tclass:token\tprice:float\twords:token_seq"
USERS = "user_id:token\tage:float"
LOADED = {
    "inter": ["user_id", "item_id", "timestamp"],
    "item": ["item_id", "title", "class", "price", "words"],
    "user": ["user_id", "age"],
}
START = datetime(2024, 3, 9, 12, tzinfo=timezone.utc)


@pytest.fixture
def lines() -> list[tuple[str, str, int]]:
    rng = np.random.default_rng(1)
    return [(f"u{rng.integers(6)}", f"i{rng.integers(9)}", int(second)) for second in rng.permutation(60)]


def write(folder: Path, lines: list[tuple[str, str, int]], dates: bool = False, **texts: str) -> Path:
    """Interactions; a price for i0 to i6, and none for i7; no line for i8, nor for u5."""
    folder.mkdir()
    moments = [(START + timedelta(seconds=second)).isoformat() if dates else second for _, _, second in lines]
    table = [f"{user}\t{item}\t{moment}" for (user, item, _), moment in zip(lines, moments, strict=True)]
    header = f"user_id:token\titem_id:token\ttimestamp:{'token' if dates else 'float'}"
    files = {
        "inter": [header, *table],
        "item": [ITEMS, *(f"i{n}\tTitle {n}\t{'ab'[n % 2]}\t{n if n < 7 else ''}\tw{n} w" for n in range(8))],
        "user": [USERS, *(f"u{n}\t{20 + n}" for n in range(5))],
    }
    for suffix, rows in files.items():
        text = texts.get(suffix, "\n".join(rows) + "\n")
        (folder / f"{folder.name}.{suffix}").write_text(text)
    return folder


def load(folder: Path, model: str = "SASRec", **settings: Any) -> Rows:
    given = {"data_path": str(folder.parent), "load_col": LOADED, **settings}
    return load_rows(Config(model, folder.name, config_dict=given), False)


def kept(rows: Rows) -> list[tuple[str, str]]:
    """(user, item) of the interactions that are left, in the order of time."""
    users, items = rows.whole.field2id_token["user_id"], rows.whole.field2id_token["item_id"]
    found = rows.whole.in_time
    return list(zip(users[found.users].tolist(), items[found.items].tolist(), strict=True))


@pytest.mark.parametrize("model", ["SASRec", "Pop", "BIGRec"])
@pytest.mark.parametrize("only_with_lines", [False, True])
def test_interactions_of_filtered_items_and_users_go_with_them(tmp_path, lines, model, only_with_lines):
    folder = write(tmp_path / "shop", lines)
    filters: dict[str, Any] = {"price": "[2,inf)", "class": ["a"], "age": "[20,23)"}
    rows = load(folder, model, val_interval=filters, filter_inter_by_user_or_item=only_with_lines)
    items, users = {"i2", "i4", "i6"}, {"u0", "u1", "u2"}
    if not only_with_lines:  # an item or a user without a line is outside no interval
        items, users = items | {"i8"}, users | {"u5"}
    in_time = sorted(lines, key=lambda line: line[2])
    expected = [(user, item) for user, item, _ in in_time if user in users and item in items]
    assert kept(rows) == expected and len(rows.test)
    by_value = rows.whole.reading.dropped["outside val_interval"]
    without = sum(item == "i8" or user == "u5" for user, item, _ in lines)
    inside = sum(item in items | {"i8"} and user in users | {"u5"} for user, item, _ in lines)
    assert by_value == len(lines) - inside and without
    notes = " ".join(note for _, note in rows.whole.reading.notes)
    assert "'i1'" not in notes and "'i7'" not in notes  # they have a line, and are left out


@pytest.mark.parametrize("dates", [False, True])
def test_times_are_filtered_as_numbers_however_they_are_declared(tmp_path, lines, dates):
    folder = write(tmp_path / "shop", lines, dates)
    first = int(START.timestamp()) if dates else 0
    rows = load(folder, val_interval={"timestamp": f"[{first + 5},{first + 50})"})
    in_time = sorted(lines, key=lambda line: line[2])
    assert kept(rows) == [(user, item) for user, item, second in in_time if 5 <= second < 50]
    with refused("val_interval", "value", "ISO dates as seconds since 1970"):
        load(folder, val_interval={"timestamp": [START.isoformat()]})


@pytest.mark.parametrize(
    ("filters", "kind", "words"),
    [
        ({"class": "a"}, "value", "is not a list of texts"),
        ({"price": ["2"]}, "value", "is not an interval"),
        ({"words": ["w"]}, "value", "'words' holds sequences"),
        ({"colour": ["red"]}, "data", "no file of shop has a column 'colour'"),
        ({"rating": "[3,inf)"}, "data", "no file of shop has a column 'rating'"),
        ({"price": "[50,inf)"}, "data", "no line of shop.item is inside the intervals"),
    ],
)
def test_a_filter_that_cannot_be_is_refused(tmp_path, lines, filters, kind, words):
    folder = write(tmp_path / "shop", lines)
    with refused("val_interval", kind, words):
        load(folder, val_interval=filters)


def test_a_column_that_is_not_loaded_cannot_be_filtered_by(tmp_path, lines):
    folder = write(tmp_path / "shop", lines)
    with refused("val_interval", "data", "column 'price' of shop.item is not loaded"):
        load(folder, load_col={"inter": LOADED["inter"], "item": ["item_id"]}, val_interval={"price": "[3,inf)"})


def test_what_has_left_nothing_is_named(tmp_path, lines):
    folder = write(tmp_path / "shop", lines)
    with refused(
        "dataset", "data", "no interaction is left of 60 .left out: 50 outside val_interval, 10 outside user_"
    ):
        load(folder, val_interval={"timestamp": "[0,10)"}, user_inter_num_interval="[11,inf)")
    with refused("rm_dup_inter", "value"):
        load(folder, rm_dup_inter="both")
    for split in ({"TS": [0, 0, 1]}, {"RS": [0, 0.5, 0.5]}):
        with refused("eval_args", "conflict", "leaves 0 training rows"):
            load(folder, eval_args={"split": split})


# ------------------------------------------------------------------------------------------------- files and columns


@pytest.mark.parametrize(
    ("suffix", "text", "key", "words"),
    [
        ("item", ITEMS + "\n", "", "shop.item has no line below its header"),
        ("user", USERS + "\n", "", "shop.user has no line below its header"),
        ("item", "id:token\ttitle:token\n1\tA\n", "ITEM_ID_FIELD", "shop.item has no column 'item_id', it has id"),
        ("user", "name:token\tage:float\nu\t1\n", "USER_ID_FIELD", "shop.user has no column 'user_id', it has name"),
        ("user", " user_id:token\tage:float\nu\t1\n", "USER_ID_FIELD", "it has ' user_id', age"),
    ],
)
@pytest.mark.parametrize("model", ["Pop", "SASRec"])
def test_a_file_of_items_or_users_without_lines_or_ids_is_named(tmp_path, lines, suffix, text, key, words, model):
    folder = write(tmp_path / "shop", lines, **{suffix: text})
    with refused(key, "data", words):
        load(folder, model, load_col=None)


@pytest.mark.parametrize(
    ("suffix", "text", "kind", "words"),
    [
        ("kg", "head_id:token\trelation_id:token\ttail_id:token\n", "data", "shop.kg has no line below its header"),
        ("link", "item_id:token\tentity_id:token\n", "data", "shop.link links no item"),
        ("link", "item_id\tentity_id\ni1\te1\n", "file", "shop.link, line 1: column 'item_id' has no type"),
    ],
)
def test_a_knowledge_graph_without_lines_or_types_is_named(tmp_path, lines, suffix, text, kind, words):
    graph = {
        "kg": "head_id:token\trelation_id:token\ttail_id:token\ne1\tr\te2\n",
        "link": "item_id:token\tentity_id:token\ni1\te1\n",
    }
    folder = write(tmp_path / "shop", lines)
    for name, own in {**graph, suffix: text}.items():
        (folder / f"shop.{name}").write_text(own)
    columns = {"kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]}
    with refused("", kind, words):
        load(folder, "CKE", load_col={"inter": LOADED["inter"], **columns})


def test_a_header_of_another_encoding_names_encodings(tmp_path, lines):
    folder = write(tmp_path / "shop", lines)
    file = folder / "shop.inter"
    file.write_bytes(file.read_text().encode("utf-16-le"))
    with refused("", "file", "--encoding=utf-16-le"):
        load(folder)


@pytest.mark.parametrize("name", ["item_length", "sample_id", "n_before", "timestamp_list", "item_id_list"])
@pytest.mark.parametrize("kind", ["float", "token", "float_seq"])
def test_a_column_with_the_name_of_one_that_rows_are_given_is_refused(tmp_path, lines, name, kind):
    folder = write(tmp_path / "shop", lines)
    file = folder / "shop.inter"
    header, *rest = file.read_text().splitlines()
    file.write_text("\n".join([f"{header}\t{name}:{kind}", *(f"{line}\t1" for line in rest)]) + "\n")
    for model in ("SASRec", "Pop"):
        with refused("load_col", "data", f"'{name}' of shop.inter has the name of a column"):
            load(folder, model, load_col={**LOADED, "inter": [*LOADED["inter"], name]})
    assert len(load(folder).test)


def test_a_name_in_two_files_is_refused_where_both_are_loaded(tmp_path, lines):
    """RecBole would write an item's value over that of the interaction."""
    folder = write(tmp_path / "shop", lines)
    file = folder / "shop.item"
    file.write_text(file.read_text().replace("price:float", "timestamp:float"))
    item = {"item": ["item_id", "timestamp"]}
    with refused("load_col", "data", "'timestamp' is a column of shop.inter and of shop.item"):
        load(folder, load_col={"inter": LOADED["inter"], **item})
    assert len(load(folder, load_col={"inter": LOADED["inter"], "item": ["item_id", "title"]}).test)


def test_a_further_name_of_ids_that_no_column_has_is_refused(tmp_path, lines):
    folder = write(tmp_path / "shop", lines)
    for key in ("alias_of_item_id", "alias_of_user_id"):
        with refused(key, "data", "no column 'nope' is loaded"):
            load(folder, **{key: ["nope"]})


@pytest.mark.parametrize("missing", ["nan", "NA", "null"])
def test_a_vector_with_a_number_missing_names_its_line(tmp_path, lines, missing):
    folder = write(tmp_path / "shop", lines)
    file = folder / "shop.item"
    file.write_text(f"item_id:token\tvector:float_seq\ni0\t\ni1\t1 {missing}\n")
    with refused("", "data", f"shop.item, line 3: column 'vector' holds '{missing}' in a sequence"):
        load(folder, load_col=None)
    rows = load(folder, load_col=None, bad_lines="drop")
    (item,) = (file for file in rows.whole.reading.files if file.name == "shop.item")
    assert item.dropped == {"'vector' not readable": 1}

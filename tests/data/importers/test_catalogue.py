"""A file of items beside the interactions: items without interactions, titles that it lacks, ids that nearly fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.data.importers.importing import import_dataset
from recbole_llm.data.importers.plan import Choices
from recbole_llm.data.importers.steps import Filters
from tests.data.importers.public import atomic, objects, text
from tests.refusals import refused


def imported(
    folder: Path, events: str, items: str, texts: tuple[str, ...] = (), **filters: Any
) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of the .inter and of the .item file."""
    choices = Choices(items=text(folder, "cat.csv", items), texts=texts)
    file = text(folder, "mine.csv", events)
    out = import_dataset(
        file, "t", folder / "out", choices=choices, filters=Filters(**filters), overwrite=True, progress=False
    )
    return atomic(out, "inter")[1], atomic(out, "item")[1]


EVENTS = "user,item,time\nu,a,1\nv,a,2\nu,b,3\n"
ITEMS = "item,title\na,A\nb,B\nc,C\nd,D\ne,\n"


def test_items_without_interactions_are_counted_or_kept(tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert imported(tmp_path, EVENTS, ITEMS)[1] == [["a", "A"], ["b", "B"]]
    assert "cat.csv: 5 lines; left out: 3 with items of no interaction (--keep-items keeps these)" in caplog.messages
    caplog.clear()
    with caplog.at_level("INFO"):
        inter, items = imported(tmp_path, EVENTS, ITEMS, keep_items=True)
    assert items == [["a", "A"], ["b", "B"], ["c", "C"], ["d", "D"]] and len(inter) == 3
    assert "cat.csv: 5 lines" in caplog.messages
    # Of the 2-core, too: its items are those that are sold, and the catalogue is the catalogue.
    inter, items = imported(tmp_path, "user,item,time\nu,a,1\nu,a,2\nu,b,3\n", ITEMS, keep_items=True, k_core=2)
    assert [row[1] for row in inter] == ["a", "a"] and [row[0] for row in items] == ["a", "b", "c", "d"]
    with refused("items", "data", "has the title of no item that is in the interactions"):
        imported(tmp_path, "user,item,time\nu,x,1\n", ITEMS, keep_items=True)
    with refused("", "data", "cat.csv, line 3: has an id with a tab in it"):
        imported(tmp_path, EVENTS, "item,title\na,A\nz\tz,Z\n", keep_items=True)
    assert len(imported(tmp_path, EVENTS, "item,title\na,A\nz\tz,Z\n")[1]) == 1  # nothing reads it


def test_a_run_ranks_items_that_were_kept(tmp_path):
    from recbole_llm.data.rows import load_rows
    from recbole_llm.settings.config import Config

    lines = "".join(f"u{user},i{item},{item}\n" for user in range(4) for item in range(5))
    items = "item,title\n" + "".join(f"i{item},Title {item}\n" for item in range(8))
    imported(tmp_path, f"user,item,time\n{lines}", items, keep_items=True)
    whole = load_rows(Config("BIGRec", "t", config_dict={"data_path": str(tmp_path / "out")}), False).whole
    assert set(whole.field2id_token["item_id"].tolist()) == {"[PAD]", *(f"i{item}" for item in range(8))}


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "Own", "More"]), st.sampled_from(["", "x"]))),
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["", "Cat"]), st.sampled_from(["", "y"]))),
)
@settings(max_examples=60)
def test_titles_of_the_interactions_stand_for_those_that_the_items_lack(tmp_path_factory, lines, listed):
    folder = tmp_path_factory.mktemp("own")
    lines, listed = [("d", "", ""), *lines], [("d", "Cat", "y"), *listed]
    events = "user,item,time,title,brand\n" + "".join(f"u,{i},{n},{t},{b}\n" for n, (i, t, b) in enumerate(lines))
    items = "item,title,brand\n" + "".join(f"{item},{title},{brand}\n" for item, title, brand in listed)
    wanted = []
    for item in sorted({item for item, *_ in lines}):
        for source in (listed, lines):
            titles = [title for key, title, _ in source if key == item and title]
            brands = [brand for key, _, brand in source if key == item and brand]
            if titles:
                wanted.append([item, titles[0], (brands or [""])[0]])
                break
    assert imported(folder, events, items, ("brand",))[1] == wanted


def test_where_titles_are_from_is_told(tmp_path, caplog):
    with caplog.at_level("INFO"):
        found = imported(tmp_path, "user,item,time,title\nu,a,1,Own\nu,x,2,X\n", "item,label,title\na,L,A\n")
    assert found[1] == [["a", "A"], ["x", "X"]]
    assert "titles of item 'x' are from column 'title' of mine.csv, as cat.csv has none" in caplog.messages
    choices = Choices({"title": "label"}, items=text(tmp_path, "cat.csv", "item,label\na,A\n"))
    file = text(tmp_path, "mine.csv", "user,item,time,label\nu,a,1,Own\nu,x,2,X\n")
    out = import_dataset(file, "t", tmp_path / "named", choices=choices, progress=False)
    assert atomic(out, "item")[1] == [["a", "A"], ["x", "X"]]


@pytest.mark.parametrize("padded", ["events", "items"])
def test_items_without_a_title_are_named_with_what_differs_by_blanks(tmp_path, caplog, padded):
    events = "user,item,time\nu,a,1\nu,b,2\nv,b,3\nu,c,4\nu,d,5\nu,e,6\nu,f,7\n"
    own, other = ("b ", "b") if padded == "events" else ("b", "b ")
    with caplog.at_level("INFO"):
        inter, _ = imported(tmp_path, events.replace(",b,", f",{own},"), f"item,title\na,A\n{other},B\n")
    assert [row[1] for row in inter] == ["a"]
    assert "left out: 6 with an item without a title" in caplog.messages
    assert f"without a title: 5 items (first: '{own}', 'c', 'd')" in caplog.messages
    assert f"'{own}' differs from '{other}' of cat.csv by blanks alone" in caplog.messages


# ------------------------------------------------------------------------------------------------- JSON lines


def late(n_before: int, **more: object) -> str:
    rows: list[dict[str, object]] = [{"user": "u", "item": f"i{n}", "time": n} for n in range(n_before)]
    return objects([*rows, {"user": "u", "item": "last", "time": n_before, **more}])


def test_columns_that_first_appear_late_are_told_and_can_be_named(tmp_path, caplog):
    file = text(tmp_path, "mine.jsonl", late(1500, label="A", headline="B", brand="C"))
    with caplog.at_level("INFO"):
        import_dataset(file, "t", tmp_path / "out", progress=False)
    assert (
        "mine.jsonl: columns label, headline, brand are not taken, as none of the first objects has it (first: line "
        "1501); name it to take it, such as --title=label"
    ) in caplog.messages
    out = import_dataset(
        file,
        "t",
        tmp_path / "out",
        choices=Choices({"title": "label"}, ("brand",)),
        overwrite=True,
        progress=False,
    )
    assert atomic(out, "item")[1] == [["last", "A", "C"]]
    with refused("title", "unknown", "mine.jsonl has no column 'lable'; did you mean label"):
        import_dataset(file, "t", tmp_path / "b", choices=Choices({"title": "lable"}), progress=False)
    caplog.clear()
    with caplog.at_level("INFO"):
        import_dataset(text(tmp_path, "mine.jsonl", late(900, name="A")), "t", tmp_path / "c", progress=False)
    assert "not taken" not in caplog.text
    items = text(tmp_path, "items.jsonl", late(1200, name="A"))
    out = import_dataset(
        text(tmp_path, "mine.jsonl", late(2)),
        "t",
        tmp_path / "d",
        choices=Choices({"title": "name"}, items=items),
        progress=False,
    )
    assert atomic(out, "item")[1] == [["last", "A"]]

"""Quotes in separated files: what a writer of CSV wrote is read as it was, and a stray quote is text."""

from __future__ import annotations

import csv
import io

from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.data.importers.delimited import Delimited, DelimitedTable
from recbole_llm.data.importers.importing import import_dataset
from recbole_llm.data.importers.plan import Choices
from tests.data.importers.public import atomic, text
from tests.data.importers.test_tables import HEAD, imported
from tests.refusals import refused

texts = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=12)


@given(
    st.lists(st.lists(texts, min_size=3, max_size=3), min_size=1, max_size=8),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
@settings(max_examples=50)
def test_what_the_csv_module_writes_is_read_as_it_was(tmp_path_factory, rows, separator, newline, quoting):
    if quoting == csv.QUOTE_MINIMAL:  # which leaves a carriage return bare: nobody can tell it from a line's end
        rows = [[cell.replace("\r", "") for cell in row] for row in rows]
    stream = io.StringIO()
    csv.writer(stream, delimiter=separator, lineterminator=newline, quoting=quoting).writerows(rows)
    file = tmp_path_factory.mktemp("csv") / "a.csv"
    file.write_bytes(stream.getvalue().encode())
    table = DelimitedTable(file, Delimited(separator, "csv"), ("a", "b", "c"))
    assert [list(row) for _, row in table.rows()] == rows
    assert table.lines == len(rows) and not table.dropped


@given(
    st.lists(
        st.sampled_from(['"Heroes', 'Ruler 12"', '"Crocodile" Dundee', '"', 'a "b" c', "plain", '""x']), min_size=1
    )
)
@settings(max_examples=50)
def test_stray_quotes_swallow_no_line(tmp_path_factory, titles):
    """Written without quoting: every line is whole, whatever quotes its title holds.

    A last line that is no CSV tells so: `"Heroes` and `Ruler 12"` alone could be one title of two lines.
    """
    folder = tmp_path_factory.mktemp("stray")
    titles = [*titles, '"Heroes" by X']
    lines = [f"u{n},i{n},{n},{title}" for n, title in enumerate(titles)]
    rows = imported(folder, "mine.csv", "\n".join([HEAD, *lines]) + "\n")
    assert rows == [[f"u{n}", f"i{n}", str(n), title] for n, title in enumerate(titles)]


def test_stray_quotes_are_said_and_a_field_may_go_on_in_the_next_line(tmp_path, caplog):
    content = f'{HEAD}\nu1,i1,10,"Heroes\nu1,i2,20,"a ""b"", c"\nu1,i3,30,"Two\nlines"\n"u\n1",i4,40,Last\n'
    with caplog.at_level("INFO"):
        with refused("", "data", "mine.csv, line 6: has an id with a line end in it"):
            imported(tmp_path, "mine.csv", content)
        rows = imported(tmp_path, "mine.csv", content, drop=True)
    assert [row[3] for row in rows] == ['"Heroes', 'a "b", c', "Two lines"]
    assert "mine.csv: quotes are text where they are no CSV (first: line 2)" in caplog.text
    assert "left out: 1 an id with a line end in it" in caplog.messages
    with refused("", "data", "mine.csv, line 2: has a quote that does not close"):
        imported(tmp_path, "mine.csv", content.partition("u1,i2")[0], quoting="csv")
    assert imported(tmp_path, "mine.csv", f'{HEAD}\nu,i,1,"x"\n', quoting="none")[0][3] == '"x"'


@given(
    st.lists(
        st.tuples(*[st.sampled_from(['He said "hi"', '12" ruler', '"Heroes"', "Two\nlines", "a\tb", "plain"])] * 2),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([("tsv", "\t"), ("csv", ",")]),
)
@settings(max_examples=30)
def test_auto_reads_what_pandas_writes_with_tabs_and_commas(tmp_path_factory, titles, kind):
    import pandas as pd

    end, separator = kind
    folder, n = tmp_path_factory.mktemp("pandas"), len(titles)
    frame = pd.DataFrame({"user": [f'u"{k}"' for k in range(n)], "item": [f"i{k}" for k in range(n)], "time": range(n)})
    frame["title"], frame["brand"] = zip(*titles, strict=True)
    frame.to_csv(folder / f"mine.{end}", sep=separator, index=False)
    out = import_dataset(folder / f"mine.{end}", "t", folder / "out", choices=Choices(texts=("brand",)), progress=False)
    assert [row[:2] for row in atomic(out, "inter")[1]] == [
        list(row) for row in zip(frame.user, frame.item, strict=True)
    ]
    assert [row[1:] for row in atomic(out, "item")[1]] == [[" ".join(cell.split()) for cell in row] for row in titles]


def test_quotes_between_tabs_are_told(tmp_path, caplog):
    """Files of tabs are mostly written without quoting: a quote that is no CSV is text, one that is CSV is told."""
    rows = {"i1": '12" ruler', "i2": '"Heroes" by X', "i3": 'He said "hi"', "i4": '"', "i5": "plain"}
    lines = [f"u\t{item}\t{n}\t{title}" for n, (item, title) in enumerate(rows.items())]
    content = "\n".join([HEAD.replace(",", "\t"), *lines]) + "\n"
    with caplog.at_level("INFO"):
        assert {row[1]: row[3] for row in imported(tmp_path, "mine.tsv", content)} == rows
    assert "mine.tsv: quotes are text where they are no CSV (first: line 2); --quoting=csv or none" in caplog.text
    assert "quotes are those of CSV" not in caplog.text
    with refused("", "data", "mine.tsv, line 7: has 2 fields, not 4, with quotes as text .--quoting=csv reads them"):
        imported(tmp_path, "mine.tsv", content + "a\tb\n")
    with caplog.at_level("INFO"):
        (row,) = imported(tmp_path, "mine.tsv", f'{HEAD}\nu,i,1,"12"" ruler"\n'.replace(",", "\t"))
    assert row[3] == '12" ruler'
    assert "mine.tsv: quotes are those of CSV (first: line 2); --quoting=none keeps them" in caplog.messages
    items = text(tmp_path, "items.tsv", "item\ttitle\n" + "".join(f"{i}\t{title}\n" for i, title in rows.items()))
    caplog.clear()
    with caplog.at_level("INFO"):
        found = imported(tmp_path, "mine.csv", "user,item,time\n" + "".join(f"u,{i},1\n" for i in rows), items=items)
    assert {row[1]: row[3] for row in found} == rows
    assert "items.tsv: quotes are text where they are no CSV (first: line 2)" in caplog.text


@given(
    st.lists(st.sampled_from(["second, third, 4, x", "plain", 'a "b"', "u1,i9,7,Other", ""]), min_size=1, max_size=4)
)
@settings(max_examples=50)
def test_a_file_that_is_csv_throughout_is_read_as_csv(tmp_path_factory, more):
    """Also where a line of a title could be a row by itself: no interaction is made of it."""
    folder = tmp_path_factory.mktemp("whole")
    stream = io.StringIO()
    written = [["u1", "a", "1", "\n".join(["first", *more])], ["u2", "b", "2", 'Last "one"']]
    csv.writer(stream, lineterminator="\n").writerows([HEAD.split(","), *written])
    rows = imported(folder, "mine.csv", stream.getvalue())
    assert rows == [[*row[:3], " ".join(row[3].split())] for row in written]


def test_a_quoted_field_that_holds_what_could_be_rows_is_told(tmp_path, caplog):
    content = f'{HEAD}\nu1,a,1,"first\nsecond, third, 4, x"\n'
    with caplog.at_level("INFO"):
        assert len(imported(tmp_path, "mine.csv", content)) == 1
    assert "mine.csv: a quoted field holds lines that could be rows (first: line 2)" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        assert len(imported(tmp_path, "mine.csv", content, quoting="csv")) == 1
        assert len(imported(tmp_path, "mine.csv", f'{content}u1,b,2,"Heroes" by X\n')) == 3
    assert "could be rows" not in caplog.text


@given(st.sampled_from(",;|\t"), st.lists(st.sampled_from(["a, b", "c; d", "e | f", 'g ""h"", i', "j"]), max_size=3))
def test_separators_inside_the_quotes_of_a_header_do_not_count(tmp_path_factory, separator, more):
    folder = tmp_path_factory.mktemp("header")
    more = [f"{name} {number}, , , ; ; | |" for number, name in enumerate(more)]
    header = separator.join(f'"{name}"' for name in ["user", "item", "time", "title", *more])
    row = separator.join(["u", "i", "1", "A", *(["x"] * len(more))])
    assert imported(folder, "mine.csv", f"{header}\n{row}\n") == [["u", "i", "1", "A"]]

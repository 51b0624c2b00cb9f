"""The reader of atomic files: what it reads literally, and fifty broken files that it names or reads without loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.data.atomic import AtomicFile, read_atomic
from recbole_llm.data.lines import Format, read_header
from recbole_llm.data.rows import load_rows
from recbole_llm.settings.config import Config
from tests.refusals import refused

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
REQUIRED = ("user_id", "item_id", "timestamp")
cells = st.text(st.characters(blacklist_characters="\t\n\r\0", blacklist_categories=["Cs"]), min_size=1, max_size=8)


def read(path: Path, content: str | bytes, **form: Any) -> AtomicFile:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return read_atomic(path, Format(**form), required=REQUIRED, time="timestamp")


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_any_text_is_read_as_it_stands(tmp_path_factory, rows, newline, mark):
    path = tmp_path_factory.mktemp("any") / "a.item"
    lines = ["item_id:token\ttitle:token", *("\t".join(row) for row in rows)]
    text = newline.join(lines) + newline * 2
    path.write_bytes(text.encode("utf-8-sig" if mark else "utf-8"))
    found = read_atomic(path, Format())
    assert list(zip(found.columns["item_id"], found.columns["title"], strict=True)) == rows
    assert found.n_lines == len(found) == len(rows)


@given(st.lists(st.integers(-(10**18), 10**18) | st.decimals(-(10**9), 10**9, places=9), min_size=1, max_size=12))
def test_times_keep_their_order_and_their_ties(tmp_path_factory, times):
    path = tmp_path_factory.mktemp("times") / "a.inter"
    lines = [
        "user_id:token\titem_id:token\ttimestamp:float",
        *(f"u\ti\t{time:f}" if hasattr(time, "is_nan") else f"u\ti\t{time}" for time in times),
    ]
    order = read(path, "\n".join(lines)).times.order
    for one, first in zip(times, order, strict=True):
        for other, second in zip(times, order, strict=True):
            assert (one < other) == (first < second) and (one == other) == (first == second)


def test_sequences_and_numbers_have_their_declared_types(tmp_path):
    header = "user_id:token\titem_id:token\twords:token_seq\tvector:float_seq\trating:float\ttimestamp:float"
    found = read(tmp_path / "a.inter", f"{header}\nu\ti\ta  b NA\t1 2.5\tnan\t7\nu\ti\t\t\t1e1\t8\n")
    assert [row.tolist() for row in found.columns["words"]] == [["a", "b", "NA"], []]
    assert [row.tolist() for row in found.columns["vector"]] == [[1.0, 2.5], []]
    np.testing.assert_array_equal(found.columns["rating"], [np.nan, 10.0])


# Each: the lines below the header, the line that is named, what else the message says.
GOOD = "u1\ti1\t3\t10\nu1\ti2\t3\t20\n"
BROKEN: list[tuple[str, int, str]] = [
    *[
        (GOOD + line + "\nu1\ti3\t3\t30\n", 4, says)
        for line, says in [
            ("u2\ti1\t3", "has 3 fields, not 4"),
            ("u2\ti1", "has 2 fields, not 4"),
            ("u2", "has 1 fields, not 4"),
            ("u2\ti1\t3\t30\t", "has 5 fields, not 4 (the last is empty: take the separator at the end off)"),
            ("u2\ti1\t3\t30\textra", "has 5 fields, not 4"),
            ("u2\ti1\t3\t30\tu3\ti1\t3\t40", "has 8 fields, not 4"),
            ("\tu2\ti1\t3\t30", "has 5 fields, not 4"),
            ("u2,i1,3,30", "has 1 fields, not 4"),
            ("u2 i1 3 30", "has 1 fields, not 4"),
            ("u2\ti1\t3\t", "has no timestamp"),
            ("\ti1\t3\t30", "has no user_id"),
            ("u2\t\t3\t30", "has no item_id"),
            ("\t\t\t", "has no "),
            ("u2\ti1\t3\tnan", "'timestamp' holds 'nan'"),
            ("u2\ti1\t3\tNA", "'timestamp' holds 'NA'"),
            ("u2\ti1\t3\tinf", "'timestamp' holds 'inf'"),
            ("u2\ti1\t3\t-inf", "'timestamp' holds '-inf'"),
            ("u2\ti1\t3\t ", "'timestamp' holds ' '"),
            ("u2\ti1\t3\tnull", "'timestamp' holds 'null'"),
            ("u2\ti1\t3\t1_000", "'timestamp' holds '1_000'"),
            ("u2\ti1\t3\t10:30", "'timestamp' holds '10:30'"),
            ("u2\ti1\t3\t2024-01-31", "declare it as token to have ISO dates read"),
            ("u2\ti1\t3\t12,5", "'timestamp' holds '12,5'"),
            ("u2\ti1\tgood\t30", "'rating' holds 'good'"),
            ("u2\ti1\t4,5\t30", "'rating' holds '4,5'"),
            ("u2\ti1\t1_0\t30", "'rating' holds '1_0'"),
            ("u2\ti1\tinf\t30", "'rating' holds 'inf'"),
            ("u2\ti1\t'3'\t30", "'rating' holds"),
            ('u2\ti1\t"3"\t30', "'rating' holds '\"3\"'"),
            ('u2\ti1\t3\t"30"', "'timestamp' holds"),
            ("u2\ti1\x00\t3\t30", "holds a NUL character"),
            (HEADER, "'timestamp' holds 'timestamp:float'"),
        ]
    ],
]
HEADERS: list[tuple[str | bytes, str]] = [
    ("", "line 1 is empty"),
    ("\n" + HEADER + "\n" + GOOD, "line 1 is empty"),
    (HEADER.replace("rating:float", "rating") + "\n" + GOOD, "column 'rating' has no type"),
    (HEADER.replace("rating:float", "rating:int") + "\n" + GOOD, "column 'rating' has type 'int'; choose from token"),
    (HEADER.replace("rating:float", "rating: float") + "\n" + GOOD, "column 'rating' has type ' float'"),
    (HEADER + "\t\n" + GOOD, "line 1: column 5 of the header has no name; take the separator beside it off"),
    (HEADER.replace("rating", "user_id") + "\n" + GOOD, "names column 'user_id' twice"),
    ((HEADER + "\n" + GOOD).replace("\n", "\r"), "end in carriage returns alone"),
    ((HEADER + "\n" + GOOD).encode("utf-16"), "byte 0 of the file is no utf-8 text; .*--encoding=utf-16"),
    (
        (HEADER + "\n" + GOOD + "u2\té\t3\t3\n").encode("latin-1"),
        r"line 4: byte 82 of the file is no utf-8 text; .*--encoding=latin-1",
    ),
    ((HEADER + "\n" + GOOD + "u2\té").encode()[:-1], "line 4: byte 82 of the file is no utf-8"),
]
WHOLE: list[str] = [  # odd, but nothing is lost
    GOOD.rstrip("\n"),
    GOOD + "\n\n\n",
    GOOD + "   \n",
    GOOD.replace("\n", "\r\n"),
    "u1\ti1\t3\t10\n\nu1\ti2\t3\t20\n",
    GOOD.replace("3", ""),
    GOOD.replace("10", "1e1"),
    GOOD.replace("10", "-10"),
    GOOD.replace("u1", "NA").replace("i1", "nan"),
    GOOD.replace("u1", '"u1'),
    GOOD.replace("i1", "i\u20281").replace("i2", "i\x852"),
]


def test_there_are_fifty_broken_files():
    assert len(BROKEN) + len(HEADERS) + len(WHOLE) >= 50


@pytest.mark.parametrize(("body", "line", "says"), BROKEN)
def test_a_line_that_cannot_be_read_is_named_or_counted(tmp_path, body, line, says):
    with refused("", "data") as caught:
        read(tmp_path / "shop.inter", f"{HEADER}\n{body}")
    message = str(caught.value)
    assert message.startswith(f"shop.inter, line {line}: ") and says in message and "\n" not in message
    assert "bad_lines: drop" in message
    found = read(tmp_path / "shop.inter", f"{HEADER}\n{body}", bad_lines="drop")
    assert found.columns["item_id"] == ["i1", "i2", "i3"] and found.line_numbers.tolist() == [2, 3, 5]
    assert found.n_lines == len(found) + sum(found.dropped.values()) == 4


@pytest.mark.parametrize(("content", "says"), HEADERS)
def test_a_file_that_is_no_atomic_file_is_named(tmp_path, content, says):
    for bad_lines in ("error", "drop"):
        with refused("", "file", f"^shop.inter.*{says}") as caught:
            read(tmp_path / "shop.inter", content, bad_lines=bad_lines)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", WHOLE)
def test_an_odd_file_loses_no_row(tmp_path, body):
    found = read(tmp_path / "shop.inter", f"{HEADER}\n{body}")
    assert len(found) == found.n_lines == 2 and not found.dropped
    assert found.times.order[0] < found.times.order[1]


def test_headers_are_read_with_the_encoding_and_without_a_mark(tmp_path):
    path = tmp_path / "a.item"
    for encoding, named in (("utf-8-sig", "utf-8"), ("utf-16", "utf-16"), ("latin-1", "latin-1")):
        path.write_bytes("item_id:token\ttitré:token\n".encode(encoding))
        assert read_header(path, Format(encoding=named)) == {"item_id": "token", "titré": "token"}
    for name in ("klingon", "hex", "utf-8\0"):  # codecs that make no text, and no name at all
        with refused("encoding", "unknown", "there is no encoding '"):
            read_header(path, Format(encoding=name))
    for name in ("undefined", "idna"):  # their codecs raise other errors than those of bytes that cannot be decoded
        with refused("", "file", "is no (undefined|idna) text"):
            path.write_bytes("item_id:token\ttitré..:token\n".encode())
            read_header(path, Format(encoding=name))


# ------------------------------------------------------------------------------------------------- quoting


QUOTED = {  # fields as they stand in a line, and what they are with quotes taken off; None: no CSV
    '"Heroes"': "Heroes",
    '"a ""b"" c"': 'a "b" c',
    '""': "",
    "plain": "plain",
    'Ruler 12"': 'Ruler 12"',
    'the "Heroes"': 'the "Heroes"',
    '"Heroes': None,
    '"Crocodile" Dundee': None,
    '"': None,
    '"a" b"': None,
}
fields = st.sampled_from(sorted(QUOTED))


def write_items(path: Path, titles: list[str], separator: str = "\t") -> Path:
    lines = [f"item_id:token{separator}title:token", *(f"i{n}{separator}{title}" for n, title in enumerate(titles))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@given(st.lists(fields, min_size=1, max_size=6), st.sampled_from(["none", "csv", "auto"]))
def test_quotes_are_text_or_are_taken_off_and_no_line_is_lost(tmp_path_factory, titles, quoting):
    file = write_items(tmp_path_factory.mktemp("quotes") / "shop.item", titles)
    unquoted = [QUOTED[title] for title in titles]
    form = Format(quoting=quoting)
    if quoting == "csv" and None in unquoted:
        message = f"^shop.item, line {2 + unquoted.index(None)}: has a quote that does not close where its field ends"
        with refused("", "data", message):
            read_atomic(file, form)
        found = read_atomic(file, Format(quoting=quoting, bad_lines="drop"))
        assert found.columns["title"] == [text for text in unquoted if text is not None]
        assert found.n_lines - len(found) == found.dropped["a quote does not close"] == unquoted.count(None)
        return
    found = read_atomic(file, form)
    as_csv = quoting == "csv" or quoting == "auto" and None not in unquoted and unquoted != titles
    assert found.columns["title"] == (unquoted if as_csv else titles)
    assert found.columns["item_id"] == [f"i{n}" for n in range(len(titles))]
    said = "taken off" if as_csv else "part of the values" if None in unquoted else ""
    assert said in found.note if quoting == "auto" else not found.note
    assert bool(found.note) == (quoting == "auto" and bool(said))


def test_separators_and_headers_in_quotes(tmp_path):
    text = '"item_id:token","title:token"\n"i1","Heroes, all"\ni2,"say ""no"", twice"\n'
    (tmp_path / "shop.item").write_text(text)
    for quoting in ("csv", "auto"):
        form = Format(separator=",", quoting=quoting)
        assert read_header(tmp_path / "shop.item", form) == {"item_id": "token", "title": "token"}
        assert read_atomic(tmp_path / "shop.item", form).columns["title"] == ["Heroes, all", 'say "no", twice']
    with refused("", "file", "^shop.item, line 1: column .* for names in quotes set quoting: csv"):
        read_atomic(tmp_path / "shop.item", Format(separator=","))
    with refused("quoting", "conflict", "csv needs a field_separator of one character, and it is '::'"):
        read_atomic(tmp_path / "shop.item", Format(separator="::", quoting="csv"))
    write_items(tmp_path / "shop.item", ['"a"'], "::")
    assert read_atomic(tmp_path / "shop.item", Format(separator="::", quoting="auto")).columns["title"] == ['"a"']


@pytest.mark.parametrize("quoting", ["none", "csv", "auto"])
def test_the_setting_reaches_every_file_of_a_run(tmp_path, quoting, caplog):
    folder = tmp_path / "quoted"
    folder.mkdir()
    rows = [f'"u{n}"\t"i{k}"\t{k}' for n in range(3) for k in range(4)]
    (folder / "quoted.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n")
    titles = ['"Heroes"', "Plain", '"a ""b"""', "Last"]
    items = [f'"i{n}"\t{title}' for n, title in enumerate(titles)]
    (folder / "quoted.item").write_text("\n".join(["item_id:token\ttitle:token", *items]) + "\n")
    with caplog.at_level("INFO"):
        config = Config("BIGRec", "quoted", config_dict={"data_path": str(tmp_path), "quoting": quoting})
        dataset = load_rows(config, False).whole
    found = {name: set(dataset.field2id_token[name].tolist()) - {"[PAD]"} for name in ("item_id", "title")}
    literal = quoting == "none"
    assert found["item_id"] == {f'"i{n}"' if literal else f"i{n}" for n in range(4)}
    assert found["title"] == set(titles if literal else ["Heroes", "Plain", 'a "b"', "Last"])
    assert caplog.text.count("quotes around a field are taken off (quoting: auto)") == 2 * (quoting == "auto")


# ------------------------------------------------------------------------------------------------- dates


@pytest.mark.parametrize(
    ("dates", "order"),
    [
        (["2024-03-01", "2023-12-31", "2024-01-15"], [2, 0, 1]),
        (["2024-03-01T10:00:00", "2024-03-01", "2024-03-01 10:00:00.000001"], [1, 0, 2]),
        (["2024-03-01T10:00:00+02:00", "2024-03-01T09:00:00Z", "2024-03-01T08:00:00Z"], [0, 1, 0]),
        (["30", "4", "100"], [1, 0, 2]),
    ],
)
def test_a_column_of_tokens_is_read_as_dates_or_numbers(tmp_path, dates, order):
    lines = [
        HEADER.replace("timestamp:float", "timestamp:token"),
        *(f"u\ti{n}\t3\t{date}" for n, date in enumerate(dates)),
    ]
    found = read(tmp_path / "a.inter", "\n".join(lines)).times
    assert np.unique(found.order, return_inverse=True)[1].tolist() == order
    assert found.dates == (dates[0] != "30")
    if found.dates:
        seconds = {"2024-03-01": 0, "2024-03-01T10:00:00": 36_000, "2024-03-01T10:00:00+02:00": 28_800}
        assert found.values[0] == 1_709_251_200 + seconds[dates[0]]


@pytest.mark.parametrize(
    ("dates", "line", "says"),
    [
        (["01/02/2024", "03/04/2024"], 2, "'01/02/2024', not an ISO date like 2024-05-31"),
        (["2024-01-31", "31.01.2024"], 3, "'31.01.2024', not an ISO date"),
        (["2024-01-31", "2024-13-01"], 3, "'2024-13-01', not an ISO date"),
        (
            ["2024-01-31T10:00:00", "2024-01-31T10:00:00Z"],
            3,
            "'2024-01-31T10:00:00Z' with an offset from UTC, and '2024-01-31T10:00:00' with none before it; write all",
        ),
        (
            ["2024-01-31T10:00:00Z", "2024-01-31T10:00:00"],
            3,
            "'2024-01-31T10:00:00' with no offset from UTC, and '2024-01-31T10:00:00Z' with one before it; write all",
        ),
        (["2024-01-31T10:00:00Z", "2024-02-31T10:00:00"], 3, "'2024-02-31T10:00:00', not an ISO date"),
        (["2024-01-31", "now"], 3, "'now', not an ISO date"),
        (["17", "2024-01-31"], 3, "'2024-01-31', a text that is no number"),
        (["2024-01-31", ""], 3, "has no timestamp"),
    ],
)
def test_dates_that_cannot_be_read_are_named(tmp_path, dates, line, says):
    lines = [
        HEADER.replace("timestamp:float", "timestamp:token"),
        *(f"u\ti{n}\t3\t{date}" for n, date in enumerate(dates)),
    ]
    with refused("", "data") as caught:
        read(tmp_path / "a.inter", "\n".join(lines))
    assert str(caught.value).startswith(f"a.inter, line {line}: ") and says in str(caught.value)


# ------------------------------------------------------------------------------------------------- the summary


def test_the_summary_accounts_for_every_line(tmp_path, caplog):
    folder = tmp_path / "sums"
    folder.mkdir()
    rows = [(user, f"i{n}", n % 5 or "", 100 - n) for user in ("u1", "u2", "u3") for n in range(6)]
    rows += [("u1", "i0", 3, 200), ("u9", "i1", 3, 5), ("u1", "i2", 3, "")]
    lines = [HEADER, *("\t".join(map(str, row)) for row in rows)]
    (folder / "sums.inter").write_text("\n".join(lines) + "\n")
    settings = {
        "data_path": str(tmp_path),
        "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
        "bad_lines": "drop",
        "rm_dup_inter": "first",
        "user_inter_num_interval": "[3,inf)",
    }
    with caplog.at_level("INFO"):
        rows = load_rows(Config("SASRec", "sums", config_dict=settings), False)
    reading = rows.whole.reading
    assert (reading.interactions, reading.kept, reading.unexplained) == (20, 18, 0)
    assert sorted(reading.dropped.values()) == [1, 1]
    assert reading.lines() == [
        "sums.inter: 21 lines, 20 read; left out: 1 no timestamp; filled with the mean: 6 rating",
        "interactions: 20 read, 18 kept; left out: 1 repeated user and item (rm_dup_inter), "
        "1 outside user_inter_num_interval or item_inter_num_interval",
    ]
    for line in reading.lines():
        assert caplog.text.count(line) == 1
    assert reading.to_dict()["files"][0]["dropped"] == {"no timestamp": 1}

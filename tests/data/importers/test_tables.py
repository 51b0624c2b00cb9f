"""Tables of one's own: separators, quotes, encodings, names of columns, and lines that cannot be read."""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.data.importers.any_table import KNOWN
from recbole_llm.data.importers.clock import Clock, parse_moment
from recbole_llm.data.importers.importing import import_dataset
from recbole_llm.data.importers.interactions import id_text
from recbole_llm.data.importers.plan import Choices
from recbole_llm.errors import Kind
from tests.data.importers.public import atomic, objects, text
from tests.refusals import refused

HEAD = "user,item,time,title"
GOOD = ["u1,i1,10,One", "u1,i2,20,Two"]


def imported(folder: Path, name: str, content: str | bytes, **choices: Any) -> list[list[str]]:
    """Rows of the .inter file, with the title of each item."""
    file = text(folder, name, content) if isinstance(content, str) else folder / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    out = import_dataset(file, "t", folder / "out", choices=Choices(**choices), overwrite=True, progress=False)
    titles = {item: title for item, title in atomic(out, "item")[1]}
    return [[user, item, time, titles[item]] for user, item, time in atomic(out, "inter")[1]]


# ------------------------------------------------------------------------------------------------- separated fields


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found(tmp_path, separator):
    content = "\n".join(line.replace(",", separator) for line in [HEAD, *GOOD]) + "\n"
    assert imported(tmp_path, "mine.csv", content) == [["u1", "i1", "10", "One"], ["u1", "i2", "20", "Two"]]


def test_a_separator_of_several_characters(tmp_path):
    content = "\n".join(line.replace(",", "::") for line in [HEAD, *GOOD]) + "\n"
    assert len(imported(tmp_path, "mine.dat", content, separator="::")) == 2


@pytest.mark.parametrize(("encoding", "named"), [("utf-8-sig", None), ("latin-1", "latin-1"), ("utf-16", "utf-16")])
def test_encodings(tmp_path, encoding, named):
    content = f"{HEAD}\nu,i,1,Amélie\n".encode(encoding)
    rows = imported(tmp_path, "mine.csv", content, encoding=named)
    assert rows == [["u", "i", "1", "Amélie"]]
    if encoding == "latin-1":
        with refused("", "file", "mine.csv, line 1 or soon after: no utf-8 text; .*--encoding=latin-1"):
            imported(tmp_path, "mine.csv", content)
    with refused("encoding", "value", "encoding: there is no encoding 'klingon'"):
        imported(tmp_path, "mine.csv", f"{HEAD}\n", encoding="klingon")


def test_utf_16_is_known_by_its_mark(tmp_path):
    for kind in ("utf-16", "utf-16-be"):
        mark = "\ufeff" if kind == "utf-16-be" else ""
        assert imported(tmp_path, "mine.txt", f"{mark}{HEAD}\nu,i,1,Ёж\n".replace(",", "\t").encode(kind)) == [
            ["u", "i", "1", "Ёж"]
        ]


def test_lines_that_end_in_a_carriage_return_alone(tmp_path):
    assert imported(tmp_path, "mine.csv", f"{HEAD}\ru,i,1,A\ru,j,2,B\r") == [["u", "i", "1", "A"], ["u", "j", "2", "B"]]
    assert imported(tmp_path, "mine.csv", f"{HEAD}\nu,i,1,A\rB\n") == [["u", "i", "1", "A B"]]  # a part of a title


def test_the_line_that_tells_excel_the_separator_is_no_header(tmp_path):
    for line in ("sep=;", '"sep=;"'):
        rows = imported(tmp_path, "mine.csv", f"{line}\r\nuser;item;time;title\r\nu;i;1;A, B\r\n")
        assert rows == [["u", "i", "1", "A, B"]]
    with refused("", "data", "mine.csv, line 3: has 3 fields, not 4"):
        imported(tmp_path, "mine.csv", "sep=;\nuser;item;time;title\nu;i;1\n")


@pytest.mark.parametrize("start", (b"PK\x03\x04\x14", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"BZh91AY", b"\xfd7zXZ\x00"))
def test_archives_and_spreadsheets_are_no_text_of_another_encoding(tmp_path, start):
    with refused("", "file", "mine.csv is .*(unpack it|as CSV in UTF-8)"):
        imported(tmp_path, "mine.csv", start + b"\xff\xfe")


# Each: lines below the header, the line that is named, what is wrong with it.
BAD = [
    (["u1,i1,10"], "has 3 fields, not 4"),
    (["u1,i1,10,One,more"], "has 5 fields, not 4"),
    ([",i1,10,One"], "has no user"),
    (["u1,,10,One"], "has no item"),
    (["u1,i1,,One"], "has no time"),
    (["u1,i1,soon,One"], "has a time that cannot be read 'soon'"),
    (["u1,i1,1_0,One"], "has a time that cannot be read '1_0'"),
    (["u1,i1,nan,One"], "has a time that cannot be read 'nan'"),
    (["u1,i1,inf,One"], "has a time that cannot be read 'inf'"),
    (["u1,i\t1,10,One"], "has an id with a tab in it"),
    (["u1,i\0,10,One"], "has an id with a NUL character in it"),
    (["u1,\0,10,One"], "has an id with a NUL character in it"),
    (["u1, ,10,One"], "has no item"),
    (["\u3000,i1,10,One"], "has no user"),
    (['u1,i1,10,One,"x'], "has a quote that does not close"),
    (['u1,"i1" x,10'], "has a quote that does not close"),
]


@pytest.mark.parametrize(("lines", "problem"), BAD)
def test_a_line_that_cannot_be_read_is_named_or_counted(tmp_path, caplog, lines, problem):
    content = "\n".join([HEAD, *GOOD, *lines, "u1,i3,30,Three"]) + "\n"
    with refused("", "data") as caught:
        imported(tmp_path, "mine.csv", content)
    message = str(caught.value)
    assert message.startswith(f"mine.csv, line 4: {problem}") and "--bad-lines=drop" in message and "\n" not in message
    with caplog.at_level("INFO"):
        rows = imported(tmp_path, "mine.csv", content, drop=True)
    assert [row[1] for row in rows] == ["i1", "i2", "i3"]
    assert any(line.startswith("left out: 1 ") for line in caplog.messages)
    assert "mine.csv: 4 lines, 4 interactions" in caplog.messages


def test_blank_lines_are_no_rows(tmp_path):
    assert len(imported(tmp_path, "mine.csv", "\n\n".join([HEAD, *GOOD]) + "\n\n   \n")) == 2


# ------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize("role", KNOWN)
def test_columns_are_found_by_any_of_their_names(tmp_path, caplog, role):
    usual = {"user": "user", "item": "item", "time": "time", "rating": "rating", "title": "title"}
    for name in KNOWN[role].split():
        header = ",".join({**usual, role: name.upper() + "_"}.values())
        file = text(tmp_path, "mine.csv", f"{header}\nu,i,7,3,A title\n")
        with caplog.at_level("INFO"):
            out = import_dataset(file, "t", tmp_path / "out", overwrite=True, progress=False)
        assert atomic(out, "inter")[1] == [["u", "i", "3.0", "7"]]
        (told,) = (line for line in caplog.messages if line.startswith("columns: "))
        assert f"{role} is '{name.upper()}_'" in told
        caplog.clear()


def test_columns_that_are_not_there_are_named(tmp_path):
    def refusal(key: str, kind: Kind, content: str, **choices: Any) -> str:
        with refused(key, kind) as caught:
            imported(tmp_path, "mine.csv", content, **choices)
        return str(caught.value)

    content = "a,b,c\nu,i,1\n"
    assert refusal("user", "missing", content) == (
        "user: mine.csv has no column with a known name for user, item, time (it has a, b, c); add --user=COLUMN "
        "--item=COLUMN --time=COLUMN, or --time=order if the order of the lines stands for the time"
    )
    assert refusal("user", "missing", "u1,i1,5,1700000000\n").endswith(
        "; if the file has no header, name all its columns: --columns=user,item,..."
    )
    assert refusal("user", "missing", "user item time\nu i 1\n").endswith("say what parts them: --separator=' '")
    assert "or --time=order if" in refusal("time", "missing", content, names={"user": "a", "item": "b"})
    said = refusal("user", "unknown", content, names={"user": "x"})
    assert said.startswith("user: mine.csv has no column 'x'; it has a, b, c")
    assert refusal("", "file", "user,item,time,item\nu,i,1,j\n").startswith(
        "mine.csv, line 1: the header names column 'item' twice"
    )
    assert refusal("text", "unknown", f"{HEAD}\n{GOOD[0]}\n", texts=("brand",)).startswith(
        "text: mine.csv has no column 'brand'"
    )


@pytest.mark.parametrize(("role", "other"), [("user", "item"), ("item", "time"), ("user", "time")])
def test_one_column_is_not_two_things(tmp_path, role, other):
    with refused(other, "conflict", f"column 'x' is the {role} and the {other}; name another with --{role} or"):
        imported(tmp_path, "mine.csv", "user,item,time,x\nu,i,1,x\n", names={role: "x", other: "x"})
    rows = imported(tmp_path, "mine.csv", "user,item,time\nu,Heat,1\n", names={"title": "item"})
    assert rows == [["u", "Heat", "1", "Heat"]]  # an item that its title names


OWN = {
    "behaviors.tsv": "user\titem\ttime\nu\ti\t1\n",
    "u.data": "user\titem\ttime\nu\ti\t1\n",
    "ratings.dat": "user,item,time\nu,i,1\n",
    "steam_reviews.json": '{"user": "u", "item": "i", "time": 1}\n',
    "goodreads_interactions.json": '{"user": "u", "item": "i", "time": 1}\n',
    "yelp_academic_dataset_review.json": '{"user": "u", "item": "i", "time": 1}\n',
}


@pytest.mark.parametrize("name", OWN)
def test_a_table_with_a_public_files_name_is_told_of_its_layout(tmp_path, name):
    """Also without an ending that says what it holds, as of u.data, which needs another name."""
    file = text(tmp_path, name, OWN[name])
    with refused("", "data", f"{name}, line 1: .*; if the file is a table of your own, add --layout=table$"):
        import_dataset(file, "t", tmp_path / "out", progress=False)
    if name != "u.data":
        out = import_dataset(file, "t", tmp_path / "out", layout="table", progress=False)
        assert atomic(out, "inter")[1] == [["u", "i", "1"]]


def test_names_of_columns_are_for_files_without_a_header(tmp_path):
    columns = ("user", "item", "time", "title")
    assert imported(tmp_path, "mine.csv", GOOD[0] + "\n", columns=columns) == [["u1", "i1", "10", "One"]]
    with refused("columns", "conflict", "the first line of mine.csv names its columns .user, item, time, title."):
        imported(tmp_path, "mine.csv", f"{HEAD}\n{GOOD[0]}\n", columns=columns)


def test_the_order_of_lines_may_stand_for_the_time(tmp_path):
    rows = imported(tmp_path, "mine.csv", "user,item,title\nu,b,B\nu,a,A\n", names={"time": "order"})
    assert rows == [["u", "b", "0", "B"], ["u", "a", "1", "A"]]


def test_titles_of_a_second_file(tmp_path, caplog):
    """Of which columns are named by flags that the first file does not have, or by names that only items have."""
    items = text(tmp_path, "items.csv", "id,label\ni,A\nj,B\n")
    content = "who,what,time\nu,i,1\nu,j,2\n"
    names = {"user": "who", "item": "what", "title": "label"}
    rows = imported(tmp_path, "mine.csv", content, items=items, names=names)
    assert rows == [["u", "i", "1", "A"], ["u", "j", "2", "B"]]
    with refused("title", "unknown", "items.csv has no column 'lable'; did you mean label"):
        imported(tmp_path, "mine.csv", content, items=items, names={**names, "title": "lable"})
    items.write_text("code,label\ni,A\n")
    with refused("items", "data", "items.csv has no column 'what' .it has code, label.; rename"):
        imported(tmp_path, "mine.csv", content, items=items, names=names)


def test_an_item_with_several_titles_is_told(tmp_path, caplog):
    with caplog.at_level("INFO"):
        rows = imported(tmp_path, "mine.csv", f"{HEAD}\nu,i,1,\nu,i,2,A\nv,i,3,B\nv,j,4,C\nw,j,5,C\nw,j,6,\n")
    assert [row[3] for row in rows] == ["A", "A", "A", "C", "C", "C"]
    assert "items with more than one title: 1 (such as 'i'); the first counts" in caplog.messages
    items = text(tmp_path, "items.csv", "item,title\ni, \nj,C\ni,A\nj,C\ni,B\n")
    caplog.clear()
    with caplog.at_level("INFO"):
        assert imported(tmp_path, "mine.csv", "user,item,time\nu,i,1\n", items=items)[0][3] == "A"
        imported(tmp_path, "mine.csv", f"{HEAD}\nu,i,1, \nu,i,2,A\n")
    assert caplog.text.count("items with more than one title: 1 (such as 'i'); the first counts") == 1


values = st.sampled_from(["", " ", "\x01", "One", "One ", "Two", None, float("nan")])


@given(st.lists(st.tuples(st.sampled_from("ij"), values, values), min_size=1, max_size=8), st.booleans())
@settings(max_examples=60)
def test_the_first_value_of_each_column_counts_in_either_file(tmp_path_factory, lines, aside):
    """Of an item on several lines; what is blank, or no number at all, is no value."""
    folder = tmp_path_factory.mktemp("first")
    rows = [{"user": "u", "item": item, "time": n, "title": t, "brand": b} for n, (item, t, b) in enumerate(lines)]
    clean = [(item, *[str(v).strip("\x01 ") if isinstance(v, str) else "" for v in (t, b)]) for item, t, b in lines]
    wanted = []
    for item in sorted({item for item, *_ in clean}):
        given_titles = [title for key, title, _ in clean if key == item and title]
        brands = [brand for key, _, brand in clean if key == item and brand]
        if given_titles:
            wanted.append([item, given_titles[0], (brands or [""])[0]])
    file = text(folder, "mine.jsonl", objects(rows))
    if aside:
        items = text(folder, "items.jsonl", objects([{k: row[k] for k in ("item", "title", "brand")} for row in rows]))
        file = text(folder, "mine.jsonl", objects([{k: row[k] for k in ("user", "item", "time")} for row in rows]))
    choices = Choices(texts=("brand",), items=items if aside else None)
    if not wanted:
        with refused("items" if aside else "", "data"):
            import_dataset(file, "t", folder / "out", choices=choices, progress=False)
        return
    out = import_dataset(file, "t", folder / "out", choices=choices, progress=False)
    assert atomic(out, "item")[1] == wanted


def test_a_missing_rating_is_missing_however_it_is_written(tmp_path):
    content = "user,item,time,rating\n" + "".join(f"u,i{n},{n},{r}\n" for n, r in enumerate(("", "NA", "NULL", "4")))
    file = text(tmp_path, "mine.csv", content)
    out = import_dataset(file, "t", tmp_path / "out", progress=False)
    assert [row[2] for row in atomic(out, "inter")[1]] == ["", "", "", "4.0"]


def test_ids_and_titles_that_look_like_missing_values_are_ids_and_titles(tmp_path):
    rows = imported(tmp_path, "mine.csv", f"{HEAD}\nNA,null,1,None\nnan,007,2,NA\n")
    assert rows == [["NA", "null", "1", "None"], ["nan", "007", "2", "NA"]]


# ------------------------------------------------------------------------------------------------- JSON and Parquet


def test_json_lines_of_numbers_and_missing_values(tmp_path, caplog):
    rows = [{"user_id": 7, "item_id": "007", "ts": 1.5, "name": "A"}, {"user_id": 7, "item_id": 8, "ts": 2}]
    with caplog.at_level("INFO"):
        found = imported(tmp_path, "mine.jsonl", objects(rows))
    assert found == [["7", "007", "1.5", "A"]]
    assert "left out: 1 with an item without a title" in caplog.messages
    rows = [{"user_id": 7, "item_id": 8, "ts": 2}, {"user_id": 7, "item_id": 8, "ts": 3, "name": "Later"}]
    assert [row[3] for row in imported(tmp_path, "mine.jsonl", objects(rows))] == ["Later", "Later"]
    with refused("", "file", "mine.jsonl: is empty; give one JSON object on each line"):
        imported(tmp_path, "mine.jsonl", "\n")
    with refused("", "data", "mine.jsonl, line 2: no valid JSON: "):
        imported(tmp_path, "mine.jsonl", objects(rows[:1]) + "{broken\n")
    for content in ('[{"user_id": 7}]\n', '[\n{"user_id": 7}\n]'):  # as pandas writes it, unless asked for lines
        with refused("", "file", "mine.json, line 1: no JSON object but an array; .*lines=True"):
            imported(tmp_path, "mine.json", content)


@pytest.mark.parametrize("record", ({"user_id": {"id": 7}, "item_id": "a"}, {"user_id": "u", "item_id": ["a"]}))
def test_what_is_no_id_is_no_text_of_python(tmp_path, record):
    with refused("", "data", "mine.jsonl, line 1: has a list or an object in the place of the (user|item)'s id"):
        imported(tmp_path, "mine.jsonl", objects([{**record, "ts": 1}]))


@pytest.mark.parametrize("key", ["ts", "rating"])
def test_a_number_beyond_all_floats_is_named_with_its_line(tmp_path, key):
    rows = [
        {"user_id": 7, "item_id": 8, "ts": 1, "rating": 1},
        {"user_id": 7, "item_id": 9, "ts": 2, "rating": 1, key: 10**400},
    ]
    with refused("", "data", "mine.jsonl, line 2: has a (time that cannot be read|rating that is no number) '1000"):
        imported(tmp_path, "mine.jsonl", objects(rows))


def test_lists_of_texts_are_texts(tmp_path):
    rows = [{"user_id": 7, "item_id": 8, "ts": 2, "name": ["One", " and\ttwo", None, ""]}]
    assert imported(tmp_path, "mine.jsonl", objects(rows)) == [["7", "8", "2", "One, and two"]]


def test_parquet_without_pyarrow_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with refused("", "environment", r"mine.parquet is Parquet, .*: pip install 'recbole-llm\[parquet\]'"):
        import_dataset(text(tmp_path, "mine.parquet", "PAR1"), "t", tmp_path / "out", progress=False)


def test_parquet(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from recbole_llm.data.importers import tables

    monkeypatch.setattr(tables, "_BATCH", 100)
    n = 150  # more than one batch
    columns = {
        "user_id": [k % 97 for k in range(n)],
        "item_id": [f"i{k % 89}" for k in range(n)],
        "timestamp": range(n),
    }
    columns["title"] = [f"Title {item}" for item in columns["item_id"]]
    parquet.write_table(pa.table({name: list(values) for name, values in columns.items()}), tmp_path / "mine.parquet")
    out = import_dataset(tmp_path / "mine.parquet", "t", tmp_path / "out", progress=False)
    assert atomic(out, "inter")[1] == [[str(k % 97), f"i{k % 89}", str(k)] for k in range(n)]
    (tmp_path / "mine.parquet").write_bytes(b"no Parquet at all")
    with refused("", "file", "cannot read .*mine.parquet: "):
        import_dataset(tmp_path / "mine.parquet", "t", tmp_path / "out", overwrite=True, progress=False)


# ------------------------------------------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("form", "values", "times"),
    [
        (None, ["1700000000", "5"], [1_700_000_000, 5]),
        (None, [1_700_000_000_123_456_789, 2], [1_700_000_000_123_456_789, 2]),
        (None, ["1.5", "2"], [1.5, 2.0]),
        (None, ["1e3", "2"], [1000, 2]),
        (None, ["2020-01-01", "2020-01-01T00:00:01Z"], [1_577_836_800, 1_577_836_801]),
        (None, ["2020-01-01 02:00:00+02:00"], [1_577_836_800]),
        (None, ["2020-01-01 00:00:00.5"], [1_577_836_800.5]),
        ("%d.%m.%Y", ["01.01.2020", "02.01.2020"], [1_577_836_800, 1_577_923_200]),
    ],
)
def test_times_are_exact(form, values, times):
    found, wrong = Clock(form).read(values)
    assert found.tolist() == times and not wrong


@pytest.mark.parametrize(
    ("date", "forms"),
    [
        ("31.12.2023 14:00", "'%d.%m.%Y %H:%M'"),
        ("1/2/2024", "'%m/%d/%Y' or '%d/%m/%Y'"),
        ("12/31/2024", "'%m/%d/%Y'"),
        ("Jan 2, 2024", "'%b %d, %Y'"),
    ],
)
def test_the_refusal_of_a_date_names_the_format_that_reads_it(tmp_path, date, forms):
    with refused("", "data", "where all are written so, add --time-format=") as caught:
        imported(tmp_path, "mine.csv", f'{HEAD}\nu,i,"{date}",A\n')
    assert f"--time-format={forms}; correct the line" in str(caught.value)
    first = forms.split("'")[1]
    assert imported(tmp_path, "mine.csv", f'{HEAD}\nu,i,"{date}",A\n', time_format=first)


@pytest.mark.parametrize(
    ("date", "form"),
    [
        ("9999-12-31", None),
        ("2262-05-01T00:00:00Z", None),
        ("0001-01-01 10:00", None),
        ("01.01.1000", "%d.%m.%Y"),
        ("31.12.2300", "%d.%m.%Y"),
    ],
)
def test_a_date_out_of_range_is_called_that(tmp_path, date, form):
    with refused("", "data", f"mine.csv, line 2: has a time out of range '{date}', times are from 1678 to 2261; "):
        imported(tmp_path, "mine.csv", f"{HEAD}\nu,i,{date},A\n", time_format=form)
    for other in ("2024-13-01", "2024-02-30"):
        with refused("", "data", f"line 2: has a time that cannot be read '{other}', not an ISO date"):
            imported(tmp_path, "mine.csv", f"{HEAD}\nu,i,{other},A\n")


def test_days_without_separators_are_numbers_and_the_log_says_so(tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert imported(tmp_path, "mine.csv", f"{HEAD}\nu,i,20240102,A\n")[0][2] == "20240102"
    assert "times are numbers such as 20240102; if these are dates, add --time-format=%Y%m%d" in caplog.messages
    caplog.clear()
    rows = imported(tmp_path, "mine.csv", f"{HEAD}\nu,i,20240102,A\n", time_format="%Y%m%d")
    assert rows[0][2] == "1704153600" and not any("if these are dates" in line for line in caplog.messages)


def test_a_format_of_dates_applies_to_all(tmp_path):
    content = f"{HEAD}\nu,i,31.12.2019,A\nu,j,2020-01-01,B\n"
    with refused("", "data", r"mine.csv, line 3: .* '2020-01-01', not of the format %d.%m.%Y"):
        imported(tmp_path, "mine.csv", content, time_format="%d.%m.%Y")
    rows = imported(tmp_path, "mine.csv", content, time_format="%d.%m.%Y", drop=True)
    assert [row[2] for row in rows] == ["1577750400"]


SIZES = {"seconds": 10**9, "milliseconds": 10**12, "microseconds": 10**15, "nanoseconds": 10**18}


@given(st.data(), st.sampled_from(list(SIZES)), st.sampled_from(list(SIZES)), st.integers(0, 5))
@settings(max_examples=50)
def test_times_of_two_units_are_not_put_in_one_order(data, unit, other, place):
    """Whatever block the odd one is in; a zero, or a count, is of no unit."""
    times = [SIZES[unit] + n * SIZES[unit] // 10**9 for n in range(6)]
    odd = data.draw(st.integers(SIZES[other], 2 * SIZES[other]))
    clock, wrong = Clock(), {}
    for row, value in enumerate([times[0], *times[:place], odd, 0, 7, *times[place:]]):
        found = clock.read([str(value) if data.draw(st.booleans()) else value])[1]
        if found:
            (wrong[row],) = found.values()
    assert set(wrong) == (set() if unit == other else {place + 1})
    assert all(f"has a time in {other} '{odd}', where the first are in {unit} " in text for text in wrong.values())
    assert not Clock("number").read([times[0], odd])[1]


def test_a_line_of_another_unit_is_named_or_left_out(tmp_path, caplog):
    content = f"{HEAD}\nu,i,1700000000,A\nu,j,1700000060000,B\n"
    with refused("", "data", "mine.csv, line 3: has a time in milliseconds '1700000060000', where the first "):
        imported(tmp_path, "mine.csv", content)
    with caplog.at_level("INFO"):
        assert len(imported(tmp_path, "mine.csv", content, drop=True)) == 1
    assert "left out: 1 a time in milliseconds" in caplog.messages
    assert len(imported(tmp_path, "mine.csv", content, time_format="number")) == 2


def test_times_since_a_start_and_old_dates_are_of_no_unit(tmp_path):
    for times in ([10**8, 99 * 10**9, 101 * 10**9], [31_536_000_000, 10**11 + 1], [-5 * 10**11, -(10**9), 2 * 10**11]):
        content = HEAD + "\n" + "".join(f"u,i{n},{time},A\n" for n, time in enumerate(times))
        assert [int(row[2]) for row in imported(tmp_path, "mine.csv", content)] == sorted(times)


def test_most_lines_are_not_left_out_for_the_unit_of_the_first(tmp_path):
    lines = ["u,i,1600000000,A", *(f"u,i{n},{1600000000000 + n},B" for n in range(12))]
    with refused("", "data", "mine.csv: 12 times are of another unit than the first, 1 are of its unit; write all in"):
        imported(tmp_path, "mine.csv", "\n".join([HEAD, *lines]) + "\n", drop=True)


def test_times_that_a_spreadsheet_rounded_are_told(tmp_path, caplog):
    with caplog.at_level("INFO"):
        imported(tmp_path, "mine.csv", HEAD + "\n" + "".join(f"u,i{n},1.70E+09,A\n" for n in range(20)))
    assert "20 of 20 interactions have the same time, 1700000000: the order of the lines" in caplog.text
    assert "times are numbers such as 1.70E+09, of few digits" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        imported(tmp_path, "mine.csv", HEAD + "\n" + "".join(f"u,i{n},{1700000000 + n},A\n" for n in range(20)))
    assert "same time" not in caplog.text and "few digits" not in caplog.text


@pytest.mark.parametrize("word", ["now", "today", " Now", "NaT"])
def test_a_word_is_no_date(tmp_path, word):
    with refused("", "data", "mine.csv, line 2: has a time that cannot be read"):
        imported(tmp_path, "mine.csv", f"{HEAD}\nu,i,{word},A\n")
    with refused("since", "value"):
        parse_moment("since", word)


# ------------------------------------------------------------------------------------------------- items of one's own


@pytest.mark.parametrize("end", ["csv", "jsonl", "parquet"])
def test_items_of_any_kind_of_file_need_no_layout(tmp_path, end, caplog):
    """Also by numbers that one file stores as floats, as pandas does where some are missing."""
    rows = [{"id": float(n), "label": f"Title {n}", "brand": f"B{n}"} for n in range(4)]
    items = tmp_path / f"catalogue.{end}"
    if end == "csv":
        text(tmp_path, items.name, "id,label,brand\n" + "".join(f"{n},Title {n},B{n}\n" for n in range(4)))
    elif end == "jsonl":
        text(tmp_path, items.name, objects(rows))
    else:
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), items)
    file = text(tmp_path, "mine.jsonl", objects([{"user": "u", "item": n, "time": n} for n in range(4)]))
    choices = Choices(items=items, names={"title": "label"}, texts=("brand",))
    with caplog.at_level("INFO"):
        out = import_dataset(file, "t", tmp_path / "out", choices=choices, progress=False)
    assert atomic(out, "item")[1] == [[str(n), f"Title {n}", f"B{n}"] for n in range(4)]
    assert f"columns of catalogue.{end}: item is 'id', title is 'label', text is 'brand'" in caplog.messages


@given(st.integers(-(2**53), 2**53), st.sampled_from([int, float, Decimal, lambda n: Decimal(n).scaleb(-1) * 10]))
def test_a_whole_number_is_one_id_however_it_is_stored(number, store):
    assert id_text(store(number)) == str(number)


def test_titles_of_other_ids_show_one_of_each_side(tmp_path):
    items = text(tmp_path, "items.csv", "id,name\n7.0,A\n")
    with refused("items", "data") as caught:
        imported(tmp_path, "mine.csv", "user,sku,time\nu,7,1\n", items=items)
    assert "ids are '7.0' in its column 'id', '7' in 'sku' there; titles are in 'name'" in str(caught.value)


@pytest.mark.parametrize("aside", [True, False])
@pytest.mark.parametrize(
    ("texts", "kind", "words"),
    [
        (("title",), "conflict", "'title' is the name of another column of a data set; rename it in "),
        (("item_id",), "conflict", "'item_id' is"),
        (("rating",), "conflict", "'rating' is"),
        (("timestamp",), "conflict", "'timestamp' is"),
        (("brand", "brand"), "value", "'brand' is given twice"),
        (("a:b",), "value", "the name 'a:b' has a colon"),
    ],
)
def test_texts_that_no_run_could_load_are_refused(tmp_path, aside, texts, kind, words):
    about = "item_id,title,brand,a:b,rating,timestamp\ni,T,B,C,1,2\n"
    own = "user,item_id,timestamp,title,brand,a:b,rating\nu,i,1,T,B,C,1\n"
    items = {"items": text(tmp_path, "items.csv", about)} if aside else {}
    with refused("text", kind, words):
        imported(tmp_path, "mine.csv", own, texts=texts, **items)


def test_texts_without_titles_are_refused(tmp_path):
    with refused("text", "value", "name their column: --title=COLUMN"):
        imported(tmp_path, "mine.csv", "user,item,time,brand\nu,i,1,B\n", texts=("brand",))


@pytest.mark.parametrize("header", ["userId,movieId,rating,timestamp", "user_id,parent_asin,rating,timestamp"])
@pytest.mark.parametrize("title", ["title", "Product Name"])
def test_a_file_with_a_title_column_is_a_table_whatever_its_other_columns_are_called(tmp_path, header, title):
    file = text(tmp_path, "ratings.csv", f"{header},{title}\nu,i,4,10,Heat\n")
    out = import_dataset(file, "t", tmp_path / "out", progress=False)
    assert atomic(out, "item")[1] == [["i", "Heat"]]


def test_titles_beside_a_public_files_items_or_review_texts_are_no_items_titles(tmp_path):
    """Amazon's review records have a title, which is the review's; the items' titles are in another file."""
    reviews = "rating,title,text,parent_asin,user_id,timestamp,helpful_vote\n" + "".join(
        f"5.0,Great {user},words,i,{user},{n},0\n" for n, user in enumerate("uvw")
    )
    meta = '{"parent_asin": "i", "title": "Soap"}\n'
    for name, extra in (("alone", {}), ("beside", {"meta_Beauty.jsonl": meta})):
        (folder := tmp_path / name).mkdir()
        file = text(folder, "Beauty.csv", reviews)
        for other, content in extra.items():
            text(folder, other, content)
        for source in (file, folder):
            out = import_dataset(source, "t", folder / "out", progress=False, overwrite=True)
            assert len(atomic(out, "inter")[1]) == 3
            assert (out / "t.item").exists() == bool(extra)
            assert not extra or atomic(out, "item")[1][0][:2] == ["i", "Soap"]
    own = reviews.replace("parent_asin", "asin")
    assert not (import_dataset(text(tmp_path, "own.csv", own), "t", tmp_path / "a", progress=False) / "t.item").exists()
    titled = import_dataset(
        tmp_path / "own.csv", "t", tmp_path / "b", choices=Choices(names={"title": "title"}), progress=False
    )
    assert atomic(titled, "item")[1] == [["i", "Great u"]]
    (folder := tmp_path / "other").mkdir()
    text(folder, "ratings.csv", "userId,movieId,rating,timestamp,title\nu,i,4,10,Heat\n")
    text(folder, "movies.csv", "id,name\n1,Something else\n")
    out = import_dataset(folder / "ratings.csv", "t", folder / "out", progress=False)
    assert atomic(out, "item")[1] == [["i", "Heat"]]
    (folder := tmp_path / "movies").mkdir()
    text(folder, "ratings.csv", "userId,movieId,rating,timestamp,title\nu,i,4,10,A pirate copy\n")
    text(folder, "movies.csv", "movieId,title,genres\ni,Heat,Crime\n")
    out = import_dataset(folder, "t", folder / "out", progress=False)
    assert atomic(out, "item")[1] == [["i", "Heat", "Crime"]]


def test_the_items_of_a_public_file_without_its_columns_are_named(tmp_path):
    text(tmp_path, "ratings.csv", "userId,movieId,rating,timestamp\nu,i,4,10\n")
    items = text(tmp_path, "mine.csv", "movieId,label\ni,Heat\n")
    with refused("", "data", "mine.csv has no column 'title' .it has movieId, label."):
        import_dataset(tmp_path / "ratings.csv", "t", tmp_path / "out", choices=Choices(items=items), progress=False)


def test_utf_16_without_a_mark_is_one_line(tmp_path):
    content = f"{HEAD}\nu,i,1,Ёж\n".encode("utf-16-le")
    with refused("", "file", "no utf-16 text; .*--encoding=utf-16-le"):
        imported(tmp_path, "mine.csv", content, encoding="utf-16")
    assert imported(tmp_path, "mine.csv", content, encoding="utf-16-le")[0][3] == "Ёж"

"""Atomic files: cut, overwritten, in other encodings, with NUL bytes and odd headers; and data sets of odd shapes."""

from __future__ import annotations

import codecs
from collections import Counter
from encodings.aliases import aliases
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.data.atomic import AtomicFile, read_atomic
from recbole_llm.data.lines import Format, read_header
from tests.hostile.cases import broken, outcome, texts, tried

pytestmark = pytest.mark.hostile
HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\twords:token_seq\tvector:float_seq"
ROWS = (
    "u1\ti1\t3\t100\ta b\t1 2",
    "u1\ti2\t4.5\t200\t\u00e9\t",
    "u2\t\U0001f600\t\t300\t\u05e9\u05dc\t.5",
    "u2\t\u202ei3\tnan\t1e3\t\t-1e-3",
)
FILE = "\n".join([HEADER, *ROWS, ""])
ENCODINGS = sorted({*aliases.values(), "utf-8-sig", "undefined", "no-such", "idna", "punycode", "unicode_escape", "\0"})
formats = st.builds(
    Format,
    separator=st.sampled_from(["\t", ",", "|", " ", "::", "ab"]),
    seq_separator=st.sampled_from([" ", None, "|", ", "]),
    encoding=st.sampled_from(["utf-8", "utf-8", "latin-1", "utf-16", "utf-32", "ascii", "cp1252"]),
    bad_lines=st.sampled_from(["error", "drop"]),
    quoting=st.sampled_from(["none", "csv", "auto"]),
)


def read(file: Path, form: Format, time: str | None = "timestamp") -> AtomicFile:
    return read_atomic(file, form, required=("user_id", "item_id"), time=time)


def check_whole(found: AtomicFile, form: Format) -> None:
    """What holds of every file that is read: lines are rows or are counted, and rows have their declared types."""
    n_rows = len(found)
    assert n_rows + sum(found.dropped.values()) == found.n_lines
    assert form.bad_lines == "drop" or not found.dropped
    assert (np.diff(found.line_numbers) > 0).all()
    for name, kind in found.types.items():
        column = found.columns[name]
        assert len(column) == n_rows
        if kind == "float":
            assert column.dtype == np.float64 and not np.isinf(column).any()
        elif kind == "token" and not isinstance(column, np.ndarray):
            assert all(isinstance(value, str) and "\0" not in value for value in column)
    if found.times is not None:
        assert np.isfinite(found.times.values).all() and len(found.times.order) == n_rows


@tried(800)
@given(broken(FILE.encode()), formats)
def test_a_broken_file_is_read_whole_or_its_line_is_named(tmp_path: Path, content: bytes, form: Format) -> None:
    file = tmp_path / "a.inter"
    file.write_bytes(content)
    found, error = outcome(read, file, form)
    if found is not None:
        check_whole(found, form)
    else:
        assert error is not None and ("a.inter" in str(error) or error.key in ("encoding", "quoting"))


@tried(300)
@given(st.binary(max_size=80) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")), formats)
def test_any_bytes_are_a_file_or_refused(tmp_path: Path, content: bytes, form: Format) -> None:
    file = tmp_path / "a.inter"
    file.write_bytes(content)
    found, _ = outcome(read, file, form)
    if found is not None:
        check_whole(found, form)
    outcome(read_header, file, form)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_reads_the_same_or_is_refused(tmp_path: Path, encoding: str) -> None:
    """Bytes of UTF-8 and of the encoding itself; what is read of the latter is what was written."""
    file = tmp_path / "a.inter"
    file.write_text(FILE, encoding="utf-8")
    form = Format(encoding=encoding)
    found, error = outcome(read, file, form)
    assert found is None or (check_whole(found, form) is None)
    ascii_rows = "\n".join([HEADER, ROWS[0], ""])
    try:
        content = codecs.encode(ascii_rows, encoding)
        same = isinstance(content, bytes) and content.decode(encoding) == ascii_rows
    except (LookupError, ValueError, TypeError):
        same = False
    if same:
        file.write_bytes(content)
        found, error = outcome(read, file, form)
        assert error is not None or found.columns["user_id"] == ["u1"]


@tried(300)
@given(st.lists(texts | st.sampled_from(["user_id:token", "user_id", "a:float", ":", "::", "x:y:z"]), max_size=6))
def test_a_header_of_any_names_is_read_as_it_stands_or_refused(tmp_path: Path, names: list[str]) -> None:
    file = tmp_path / "a.item"
    try:
        file.write_text("\t".join(names) + "\n", encoding="utf-8", newline="")
    except UnicodeEncodeError:
        return
    found, error = outcome(read_header, file, Format())
    if found is not None:
        line = "\t".join(names).partition("\n")[0].rstrip("\r\n").removeprefix("\ufeff")
        assert [name.partition(":")[0] for name in line.split("\t")] == list(found)


cell = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\t\n\r\0"), max_size=6)


@tried(300)
@given(st.lists(st.lists(cell, min_size=1, max_size=4), max_size=6))
def test_ragged_lines_are_counted(tmp_path: Path, rows: list[list[str]]) -> None:
    """Against a count by hand: of lines of two fields, those with both ids are rows; blank lines are none."""
    file = tmp_path / "a.item"
    file.write_text(
        "\n".join(["user_id:token\titem_id:token", *map("\t".join, rows)]) + "\n", encoding="utf-8", newline=""
    )
    found = read(file, Format(bad_lines="drop"), time=None)
    blank = [row for row in rows if len(row) == 1 and not row[0].strip(" ")]
    whole = [row for row in rows if len(row) == 2 and all(row)]
    assert list(zip(found.columns["user_id"], found.columns["item_id"], strict=True)) == [tuple(row) for row in whole]
    assert found.n_lines == len(rows) - len(blank)
    found, error = outcome(read, file, Format(), time=None)
    assert (error is None) == (len(whole) + len(blank) == len(rows))


number = (
    st.floats().map(repr)
    | st.integers().map(str)
    | st.sampled_from(
        [
            "1e400",
            "-1e400",
            "9" * 500,
            "0x10",
            "1_0",
            " 7 ",
            "+5",
            "\u0661",
            "NaN",
            "N/A",
            "inf",
            "1,5",
            "--1",
            "1e-400",
            "",
        ]
    )
)


@tried(300)
@given(st.lists(number, min_size=1, max_size=5))
def test_any_number_is_itself_or_refused(tmp_path: Path, cells: list[str]) -> None:
    file = tmp_path / "a.inter"
    file.write_text(
        "\n".join(["user_id:token\trating:float", *(f"u\t{one}" for one in cells)]) + "\n", encoding="utf-8"
    )
    found, error = outcome(read_atomic, file, Format())
    if found is None:
        assert error is not None and error.kind == "data" and "rating" in str(error)
        return
    for one, value in zip(cells, found.columns["rating"], strict=True):
        expected = float(one) if one and one.strip().lower() not in ("n/a",) else float("nan")
        assert value == expected or np.isnan(value) and np.isnan(expected)


@tried(300)
@given(
    st.lists(number | st.sampled_from(["2020-01-01", "2020-02-30", "0001-01-01", "9999-12-31T23:59:59Z"]), max_size=4)
)
def test_any_times_are_in_their_order_or_refused(tmp_path: Path, times: list[str]) -> None:
    file = tmp_path / "a.inter"
    lines = ["user_id:token\titem_id:token\ttimestamp:token", *(f"u\ti\t{one}" for one in times)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found, _ = outcome(read_atomic, file, Format(), time="timestamp")
    if found is not None and not found.times.dates:
        values = [float(one) for one in times if one]
        if len(values) == len(times):
            for first, one in zip(found.times.order, values, strict=True):
                for second, other in zip(found.times.order, values, strict=True):
                    assert one == other or (one < other) == (first < second)


# ------------------------------------------------------------------------------------------------- data sets as a whole


@st.composite
def interactions(draw: st.DrawFn) -> list[tuple[str, str, int]]:
    """Few users, items and times: single users, single items, all at once, the same thing again and again."""
    name = st.sampled_from(["a", "b", "c", "[PAD]", "nan", "None", "0", "\u00e9", "e\u0301", '"q', " "])
    return draw(st.lists(st.tuples(name, name, st.integers(0, 3)), max_size=14))


@tried(60)
@given(interactions(), st.sampled_from(["Pop", "SASRec"]))
def test_a_data_set_of_any_shape_gives_the_rows_it_has(
    tmp_path: Path, rows: list[tuple[str, str, int]], model: str
) -> None:
    from recbole_llm.data.rows import load_rows
    from recbole_llm.settings.config import Config

    folder = tmp_path / "odd"
    folder.mkdir(exist_ok=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in rows)]
    (folder / "odd.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    where: dict[str, Any] = {
        "data_path": str(tmp_path),
        "checkpoint_dir": str(tmp_path / "saved"),
        "show_progress": False,
    }
    found, error = outcome(lambda: load_rows(Config(model, "odd", settings=where), few_shot=False))
    per_user = Counter(user for user, _, _ in rows)
    testable = sorted(user for user, count in per_user.items() if count >= 3)
    if error is not None:
        assert error.kind in ("data", "conflict"), error
        assert not testable, error
        return
    users = found.whole.field2id_token["user_id"]
    assert sorted(users[found.test.inter_feat["user_id"].numpy()]) == testable

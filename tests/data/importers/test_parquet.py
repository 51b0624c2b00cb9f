"""Parquet: what pyarrow cannot read of a file is one line, and what is not imported need not be readable."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from recbole_llm.data.importers.importing import import_dataset
from recbole_llm.data.importers.plan import Choices
from tests.data.importers.public import atomic, text
from tests.refusals import refused

pa = pytest.importorskip("pyarrow")
YEAR_10000 = 253_402_300_800  # in seconds since 1970; Python's datetime ends before


def written(file: Path, columns: list[tuple[str, Any]], **options: Any) -> Path:
    from pyarrow import parquet

    names, values = zip(*columns, strict=True)
    parquet.write_table(pa.table(list(values), names=list(names)), file, **options)
    return file


def rows(file: Path, **choices: Any) -> list[list[str]]:
    folder = file.parent / "out"
    out = import_dataset(file, "t", folder, choices=Choices(**choices), overwrite=True, progress=False)
    return atomic(out, "inter")[1]


def interactions(n: int = 3) -> list[tuple[str, Any]]:
    return [("user", ["u"] * n), ("item", [f"i{k}" for k in range(n)]), ("time", list(range(n)))]


IMPORTED = [["u", f"i{k}", str(k)] for k in range(3)]


def test_a_gzipped_file_is_unpacked(tmp_path):
    plain = written(tmp_path / "mine.parquet", interactions())
    packed = tmp_path / "packed.parquet.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert rows(packed) == rows(plain) == IMPORTED
    items = written(tmp_path / "items.parquet", [("item", ["i0"]), ("title", ["A"])])
    (tmp_path / "items.parquet.gz").write_bytes(gzip.compress(items.read_bytes()))
    assert rows(plain, items=tmp_path / "items.parquet.gz") == IMPORTED[:1]
    packed.write_bytes(gzip.compress(plain.read_bytes())[:-20])
    with refused("", "file", "packed.parquet.gz: damaged or cut off"):
        rows(packed)


@pytest.mark.parametrize("zone", [None, "UTC"])
def test_a_time_beyond_pythons_dates_is_no_matter_where_it_is_not_imported(tmp_path, zone):
    moments = pa.array([0, 1, YEAR_10000], pa.int64()).cast(pa.timestamp("s", zone))
    assert rows(written(tmp_path / "mine.parquet", [*interactions(), ("seen", moments)])) == IMPORTED
    file = written(tmp_path / "mine.parquet", [*interactions()[:2], ("time", moments)])
    with refused("", "data", "mine.parquet, line 3: has a time out of range '10000-01-01"):
        rows(file)
    assert rows(file, drop=True) == IMPORTED[:2]


def test_two_columns_of_one_name_are_refused(tmp_path):
    file = written(tmp_path / "mine.parquet", [*interactions(), ("item", ["x"] * 3)])
    with refused("", "file", "mine.parquet names column 'item' twice; rename one"):
        rows(file)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_damaged_pages_are_one_line(tmp_path, compression):
    file = written(tmp_path / "mine.parquet", interactions(5000), compression=compression, use_dictionary=False)
    content = bytearray(file.read_bytes())
    content[4:2000] = b"\xff" * 1996
    file.write_bytes(bytes(content))
    with refused("", "file", "cannot read .*mine.parquet: .*; write it anew, or save it as CSV"):
        rows(file)


def test_names_of_columns_are_refused(tmp_path):
    with refused("columns", "conflict", "mine.parquet is Parquet, which names its columns; leave it out"):
        rows(written(tmp_path / "mine.parquet", interactions()), columns=("user", "item", "time"))


def test_objects_are_no_ids_and_no_titles(tmp_path):
    nested = [{"en": "A"}] * 3
    with refused("", "data", "mine.parquet, line 1: has a list or an object in the place of the item's id"):
        rows(written(tmp_path / "mine.parquet", [("user", ["u"] * 3), ("item", nested), ("time", [1, 2, 3])]))
    file = written(tmp_path / "mine.parquet", [*interactions(), ("title", nested)])
    with refused("", "data", "mine.parquet, line 1: has an object in the place of a title or text"):
        rows(file)
    items = text(tmp_path, "items.jsonl", '{"item": "i0", "title": "A"}\n{"item": "i1", "title": [{"en": "B"}]}\n')
    file = written(tmp_path / "mine.parquet", interactions())
    with refused("", "data", "items.jsonl, line 2: has an object in the place of a title or text"):
        rows(file, items=items)
    assert rows(file, items=items, drop=True) == IMPORTED[:1]

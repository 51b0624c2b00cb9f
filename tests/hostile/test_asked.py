"""What is asked of finished runs and of the other commands: histories, queries, spaces to search, tables to import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import recbole_llm
from recbole_llm import Run
from recbole_llm.data.atomic import read_atomic
from recbole_llm.data.importers.importing import import_dataset
from recbole_llm.data.lines import Format
from recbole_llm.experiment.recommend_command import main as recommend_main
from recbole_llm.experiment.recommend_file import parse_history, read_queries
from recbole_llm.experiment.tune_space import KINDS, as_space, parse_dimension, parse_space, read_space
from tests.hostile.cases import ODD_TEXTS, broken, outcome, texts, tried, values
from tests.runs import working_in

pytestmark = pytest.mark.hostile


@pytest.fixture(scope="module")
def sasrec(world: Path, saved: Path) -> Run:
    saved.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"epochs": 1, "topk": [5], "valid_metric": "NDCG@5", "show_progress": False}
    with working_in(saved.parent):
        return recbole_llm.run("SASRec", "world", data_path=str(world.parent), checkpoint_dir=str(saved), **options)


@tried(300)
@given(
    st.lists(st.lists(st.sampled_from(["i1", "i2", "i20"]) | texts | st.integers(-2, 40), max_size=25), max_size=3),
    st.sampled_from([1, 3, 1000, 0, -1]),
    st.booleans(),
)
def test_any_histories_are_answered_or_refused(sasrec: Run, histories: list[list[Any]], k: int, seen: bool) -> None:
    found, error = outcome(sasrec.recommend, histories, k=k, exclude_seen=seen)
    known = {f"i{number}" for number in range(1, 21)}
    if error is None:
        assert histories and all(
            own and {str(item) for item in own} <= known | set(found["title"]) for own in histories
        )
        assert set(found["query"]) <= set(range(len(histories))) and set(found["item_id"]) <= known
        assert found["score"].notna().all()
    else:
        assert error.kind in ("unknown", "value", "conflict", "missing")


@tried(300)
@given(values | st.lists(values | st.lists(values, max_size=2), max_size=3), st.sampled_from(["histories", "users"]))
def test_what_is_no_list_of_names_is_refused(sasrec: Run, asked: Any, key: str) -> None:
    _, error = outcome(sasrec.recommend, **{key: asked})
    assert error is not None and error.key in (key, "recommend")


@tried(200)
@given(st.lists(st.sampled_from(["u1", "u2"]) | texts, max_size=3) | texts)
def test_any_users_are_answered_or_refused(sasrec: Run, users: Any) -> None:
    found, error = outcome(sasrec.recommend, users=users, k=2)
    names = [users] if isinstance(users, str) else users
    assert (error is None) == (bool(users) and all(name in sasrec.users for name in names))
    assert error is not None or sorted(set(found["user_id"])) == sorted(set(names))


@pytest.mark.parametrize("users", ["a" * 5000, ",".join(f"u{n}" for n in range(3000)), "\x1b", "\ud800", " , ,"])
def test_users_of_any_words_are_answered_or_refused(
    sasrec: Run, users: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome(recommend_main, [str(sasrec.folder.resolve()), "--users", users])


@tried(400)
@given(
    st.text() | texts | st.lists(values, max_size=3).map(repr) | st.sampled_from(["[" * 9000, "[1,", "[NaN]", "[[]]"])
)
def test_any_text_is_a_history_or_refused(text: str) -> None:
    found, error = outcome(parse_history, text)
    assert error is not None or all(isinstance(item, str) for item in found)


@tried(150)
@given(broken(b'["i1", "i2"]\n["Amber River"]\n') | st.binary(max_size=40))
def test_queries_of_any_bytes_are_read_or_refused(sasrec: Run, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "queries.jsonl"
    file.write_bytes(content)
    try:
        outcome(lambda: list(read_queries(file)))
    except UnicodeDecodeError:  # the command says so, with the setting
        pass
    _, error = outcome(recommend_main, ["nowhere", "--histories", str(file)])
    assert error is not None


# ---------------------------------------------------------------------------------------------------- spaces to search

word = (
    st.sampled_from([*KINDS, "learning_rate", "alpha", "[0, 1]", "1,2", "1e-4,1", "0,0,0", "#", "1,2,inf", "nan,1"])
    | texts
)


@tried(500)
@given(st.lists(st.lists(word, max_size=4).map(" ".join), max_size=3))
def test_any_lines_are_a_space_or_refused(lines: list[str]) -> None:
    found, error = outcome(parse_space, lines)
    if error is None:
        for dimension in found.values():
            str(dimension)
            assert len(dimension.ends)


bound = st.sampled_from(
    ["0", "1", "-1", "1e400", "nan", "1e-300", "9" * 400, "", "x", "0x1", "2", "0.5", "1e308", "-1e308"]
)


@tried(400)
@given(st.sampled_from([*KINDS, "x"]), st.lists(bound, max_size=4).map(",".join))
def test_any_bounds_are_a_range_or_refused(kind: str, text: str) -> None:
    found, error = outcome(parse_dimension, "learning_rate", kind, text)
    if error is None:
        low, high = found.ends[0], found.ends[-1]
        assert kind == "choice" or low <= high
        outcome(str, found)


@tried(200)
@given(st.dictionaries(texts, values, max_size=2))
def test_any_mapping_is_a_space_or_refused(given_space: dict[str, Any]) -> None:
    outcome(as_space, given_space)


@tried(150)
@given(broken(b"learning_rate loguniform -8,0\nalpha choice [0, 0.5]\n") | st.binary(max_size=40))
def test_a_file_of_any_bytes_is_a_space_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "hyper.test").write_bytes(content)
    outcome(read_space, tmp_path / "hyper.test")


# -------------------------------------------------------------------------------------------------------------- tables

CSV = b'user_id,item_id,timestamp,rating,title\nu1,i1,100,5,Amber\nu1,i2,200,3,"B, C"\nu2,i1,300,1,Amber\n'
JSONL = b'{"user": "u1", "item": "i1", "time": 1}\n{"user": "u2", "item": "i2", "time": "2020-01-01"}\n'


@tried(300)
@given(st.data())
def test_a_broken_table_is_imported_whole_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    suffix, content = data.draw(
        st.sampled_from([(".csv", CSV), (".jsonl", JSONL), (".tsv", CSV.replace(b",", b"\t")), (".json", JSONL)])
    )
    file = tmp_path / f"table{suffix}"
    file.write_bytes(data.draw(broken(content) | st.binary(max_size=60)))
    folder, error = outcome(import_dataset, file, "mine", tmp_path / "sets", overwrite=True, progress=False)
    if error is None:
        found = read_atomic(folder / "mine.inter", Format(), required=("user_id", "item_id"), time="timestamp")
        assert len(found) == found.n_lines


@pytest.mark.parametrize("name", ["..", "", "a/b", "/x", "x" * 300, "\n", "a.b", "mine ", *ODD_TEXTS])
def test_a_name_of_any_text_makes_a_folder_of_its_own_or_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(CSV)
    folder, error = outcome(import_dataset, file, name, tmp_path / "sets", overwrite=True, progress=False)
    if error is None:
        assert os.path.dirname(folder.resolve()) == str((tmp_path / "sets").resolve()) and folder.name == name

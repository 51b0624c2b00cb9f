"""Recommendations as files: every line once, whatever was killed, in bounded memory."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from recbole_llm.experiment.recommend_command import _listed_users, _users, main
from recbole_llm.experiment.recommend_file import check_out, parse_history, read_queries, write_recommendations
from tests.processes import fresh_python
from tests.refusals import refused

TITLES = ('Плохо "кавычки"', "影, 子; 'x'", "two\nlines", "")
USERS = [f"u,{number}" for number in range(10)]


def lines_of(asked, k=2):
    """Two items for each user, whose titles a careless writer would break."""
    return pd.DataFrame(
        [
            {"user_id": user, "rank": rank, "item_id": f"{user}-{rank}", "title": TITLES[rank % 4], "score": rank / 3}
            for user in asked
            for rank in range(1, k + 1)
        ]
    )


class Killed(BaseException):
    pass


def killed_after(n_batches):
    """What gives lines, and is killed in the middle of a later batch."""
    calls = []

    def give(asked):
        calls.append(list(asked))
        if len(calls) > n_batches:
            raise Killed
        return lines_of(asked)

    return give, calls


def read(file):
    if file.suffix == ".csv":
        with file.open(encoding="utf-8", newline="") as text:
            return [{**line, "rank": int(line["rank"]), "score": float(line["score"])} for line in csv.DictReader(text)]
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return pd.read_parquet(file).to_dict("records")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_killed_file_is_gone_on_with_and_ends_as_one_that_was_not(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    file, facts = tmp_path / f"recs{suffix}", {"run": "r"}
    give, _ = killed_after(2)
    with pytest.raises(Killed):
        write_recommendations(file, USERS, give, facts, batch=3, show_progress=False)
    part = file.with_name(file.name + ".part")
    part.write_bytes(part.read_bytes() + b"half a li")  # a batch that was being written
    assert not file.exists()
    give, calls = killed_after(99)
    assert write_recommendations(file, USERS, give, facts, batch=4, show_progress=False) == 6
    assert calls == [USERS[6:]]
    assert read(file) == lines_of(USERS).to_dict("records")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("asked", [USERS, []])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_without_lines_is_written_too(tmp_path, suffix, asked):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    file = tmp_path / f"recs{suffix}"
    write_recommendations(file, asked, lambda now: lines_of(now)[:0], {}, show_progress=False)
    assert read(file) == [] and [path.name for path in tmp_path.iterdir()] == [file.name]
    if asked and suffix == ".parquet":
        assert list(pd.read_parquet(file).columns) == list(lines_of(USERS).columns)


@pytest.mark.parametrize("other", ["facts", "users", "note"])
def test_a_part_of_another_command_is_written_anew(tmp_path, other):
    file = tmp_path / "recs.csv"
    give, _ = killed_after(1)
    with pytest.raises(Killed):
        write_recommendations(file, USERS, give, {"k": 1}, batch=3, show_progress=False)
    if other == "note":
        (tmp_path / "recs.csv.progress.json").write_text("{")
    users, facts = USERS[::-1] if other == "users" else USERS, {"k": 2 if other == "facts" else 1}
    assert write_recommendations(file, users, lines_of, facts, batch=3, show_progress=False) == 0
    assert read(file) == lines_of(users).to_dict("records")


def test_queries_are_numbered_through(tmp_path):
    def give(asked):
        return lines_of(asked, k=1).drop(columns="user_id").assign(query=range(len(asked)))

    write_recommendations(tmp_path / "recs.jsonl", USERS, give, {}, batch=3, show_progress=False)
    assert [line["query"] for line in read(tmp_path / "recs.jsonl")] == list(range(10))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_users(tmp_path):
    """A million users' ten items: 10,000,000 lines, half a gigabyte of text."""
    code = """
        import resource, sys
        from pathlib import Path
        import pandas as pd
        from recbole_llm.experiment.recommend_file import write_recommendations

        def give(asked):
            lines = {"user_id": [user for user in asked for _ in range(10)], "rank": list(range(1, 11)) * len(asked)}
            return pd.DataFrame(lines).assign(item_id="12345", title="A title of usual length (1995)", score=0.5)

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        users = [f"u{number}" for number in range(1_000_000)]
        file = Path(sys.argv[1]) / "recs.csv"
        write_recommendations(file, users, lambda asked: give(asked[:1]), {}, batch=10_000, show_progress=False)
        before = peak()
        write_recommendations(file, users, give, {"all": 1}, batch=10_000, show_progress=False)
        assert file.stat().st_size > 400e6
        print(peak() - before)
    """
    assert float(fresh_python(str(tmp_path), code=code).stdout.splitlines()[-1]) < 60


@pytest.mark.parametrize(
    ("words", "key", "kind"),
    [
        ([], "", "missing"),
        (["saved/x"], "", "missing"),
        (["saved/x", "--user=all"], "", "missing"),
        (["saved/x", "--users=all", "--exclude"], "exclude", "unknown"),
        (["saved/x", "--users=all", "--history=a"], "", "value"),
        (["saved/x", "--users=all", "--k=0"], "k", "value"),
        (["saved/x", "--users=all", "--k=many"], "k", "value"),
        (["saved/x", "--history=[1, 2"], "history", "value"),
        (["saved/x", "--history=[1.5]"], "history", "value"),
        (["saved/x", "--histories=nowhere.jsonl"], "histories", "file"),
        (["saved/x", "--users=all", "--out=README.md"], "out", "value"),
        (["saved/x", "--users=all", "--out=recs.xlsx"], "out", "value"),
        (["saved/x", "--users= ,"], "users", "missing"),
        (["saved/x", "--history= ; "], "history", "missing"),
        (["saved/x", "--history=[]"], "history", "missing"),
    ],
)
def test_wrong_words_are_refused(words, key, kind):
    with refused(key, kind):
        main(words)


def test_a_file_of_histories_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "queries.jsonl").write_bytes(b'["caf\xe9"]\n')
    with refused("histories", "file", "is no UTF-8 text"):
        main(["nowhere", "--histories", str(tmp_path / "queries.jsonl")])


@pytest.mark.parametrize("text", ["[" * 100_000, '["a", 1.5]', "[1", "[" + "9" * 5000 + "]"])
def test_what_is_no_list_of_ids_or_titles_is_refused(text):
    with refused("history", "value"):
        parse_history(text)


def test_a_file_of_an_unknown_kind_is_refused(tmp_path):
    with refused("out", "value"):
        write_recommendations(tmp_path / "recs.xls", USERS, lines_of, {})


@pytest.mark.parametrize(
    ("text", "items"),
    [("a; b ;c", ["a", "b", "c"]), ('["a; b", 12]', ["a; b", "12"]), (" [7] ", ["7"]), ("одна; 二", ["одна", "二"])],
)
def test_histories_from_text(text, items):
    assert parse_history(text) == items


def test_users_are_found_by_ids_with_blanks_and_commas_at_their_edges(tmp_path):
    run = SimpleNamespace(users=["i", " i", "i ", "a,b", "NA", "x\u2028y"])
    file = tmp_path / "users.txt"
    file.write_text(" i\r\n\n  NA \ni\ni \na,b\nx\u2028y\n  \n", encoding="utf-8", newline="")
    assert _users(str(file), run) == [" i", "NA", "i", "i ", "a,b", "x\u2028y"]
    assert _users("a,b", run) == ["a,b"]
    assert _users("i, NA ,i , i", run) == ["i", "NA", "i ", " i"]
    assert _users("all", run) == run.users


def test_a_byte_order_mark_is_no_part_of_the_first_history(tmp_path):
    for number, line in enumerate(('["i1", "i2"]', "i1;i2")):
        (tmp_path / f"{number}.jsonl").write_text(f"{line}\n", encoding="utf-8-sig")
        file = tmp_path / f"{number}.jsonl"
        assert list(read_queries(file)) == [(f"{file}, line 1", ["i1", "i2"])]


# ------------------------------------------------------------------------------------------------- places that refuse

UNPRIVILEGED = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")


def test_a_place_that_takes_no_file_is_refused_before_anything_is_asked(tmp_path):
    for name in ("a.csv", "b.csv.part"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    for name, words in (
        ("a.csv", "a.csv is a folder"),
        ("b.csv", "b.csv.part is a folder"),
        ("file/c.csv", "Not a dir"),
    ):
        with refused("out", "file", words):
            check_out(tmp_path / name)
    check_out(tmp_path / "new" / "d.csv")


@UNPRIVILEGED
def test_closed_folders_and_files_are_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with refused("out", "file", "Permission denied"):
        check_out(tmp_path / "closed" / "new" / "a.csv")
    (tmp_path / "users.txt").write_text("u1")
    (tmp_path / "users.txt").chmod(0)
    with refused("users", "file", "Permission denied"):
        _listed_users(str(tmp_path / "users.txt"))


def test_unreadable_users_are_refused(tmp_path, monkeypatch):
    (tmp_path / "users.txt").write_text("u1")

    def closed(*words, **more):
        raise PermissionError(errno.EACCES, "Permission denied")

    for method in ("read_text", "is_file"):
        with monkeypatch.context() as patch, refused("users", "file", "users.txt cannot be .*Permission denied"):
            patch.setattr(Path, method, closed)
            _listed_users(str(tmp_path / "users.txt"))


def test_a_full_disk_is_one_line_and_the_file_is_gone_on_with(tmp_path, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    give, calls = killed_after(10)
    with (
        monkeypatch.context() as patch,
        refused("out", "environment", "no space is left in .* for the recommendations"),
    ):
        patch.setattr(os, "fsync", full)
        write_recommendations(tmp_path / "a.csv", USERS, give, {}, batch=4, show_progress=False)
    write_recommendations(tmp_path / "a.csv", USERS, give, {}, batch=4, show_progress=False)
    assert read(tmp_path / "a.csv") == lines_of(USERS).to_dict("records")

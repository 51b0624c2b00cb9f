"""Files that are split already: whose items the histories name, and one line for what is missing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from recbole_llm.data.loaders import eval_loader
from recbole_llm.data.rows import Rows, load_rows, row_histories, row_pairs
from recbole_llm.experiment.recommend import _rows_of_users
from recbole_llm.experiment.trained import Trained
from recbole_llm.settings.config import Config
from tests.refusals import refused

HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token"
PARTS = {
    "train": ["u1\tc b\ta", "u2\ta\tb", "u2\ta b\tc"],
    "valid": ["u1\tc b a\td", "u2\ta b c\te"],
    "test": ["u1\tc b a d\te", "u2\ta b c e\tNA", "u3\te\ta"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "ready"
    folder.mkdir()
    for part, lines in PARTS.items():
        (folder / f"ready.{part}.inter").write_text("\n".join([HEADER, *lines]) + "\n")
    (folder / "ready.item").write_text("item_id:token\ttitle:token\n" + "".join(f"{i}\tTitle {i}\n" for i in "edcba"))
    return folder


def load(folder: Path, model: str, **settings: Any) -> Rows:
    where = {"data_path": str(folder.parent), "benchmark_filename": ["train", "valid", "test"]}
    return load_rows(Config(model, folder.name, config_dict={**where, **settings}), False)


def read(rows: Rows, part: Any) -> list[str]:
    """The lines of a file, from the rows."""
    users, items = rows.whole.field2id_token["user_id"], rows.whole.field2id_token["item_id"]
    histories, lengths = row_histories(part)
    lists = [" ".join(items[row[:length]]) for row, length in zip(histories, lengths, strict=True)]
    pairs = row_pairs(part)
    return [f"{users[user]}\t{history}\t{items[item]}" for (user, item), history in zip(pairs, lists, strict=True)]


@pytest.mark.parametrize("model", ["SASRec", "Pop", "BIGRec"])
@pytest.mark.parametrize(
    "settings", [{}, {"load_col": {"inter": ["user_id", "item_id"], "item": ["item_id", "title"]}}]
)
def test_histories_are_of_the_items_without_a_setting(folder, model, settings):
    rows = load(folder, model, **settings)
    assert {"valid": read(rows, rows.valid), "test": read(rows, rows.test)} == {
        part: PARTS[part] for part in ("valid", "test")
    }
    if model != "Pop":
        assert read(rows, rows.train) == PARTS["train"]
    assert rows.evaluated() == load(folder, "SASRec").evaluated()


def test_an_alias_of_its_own_is_kept_and_the_histories_added(folder):
    rows = load(folder, "SASRec", alias_of_item_id=["item_id_list"])
    assert read(rows, rows.test) == PARTS["test"]


def test_other_names_of_the_columns_work_as_well(folder):
    for file in folder.glob("*.inter"):
        file.write_text(file.read_text().replace("item_id", "product").replace("user_id", "who"))
    (folder / "ready.item").unlink()
    rows = load(folder, "SASRec", USER_ID_FIELD="who", ITEM_ID_FIELD="product")
    assert len(rows.test) == 3 and row_histories(rows.test)[1].tolist() == [4, 4, 1]


def test_what_only_a_later_file_has_is_counted(folder, caplog):
    with caplog.at_level(logging.INFO):
        load(folder, "SASRec")
    assert "0 users and 2 items of the validation file are in no training row." in caplog.text
    assert "1 users and 3 items of the test file are in no training row." in caplog.text
    assert "ready.test.inter: 3 lines, 3 read" in caplog.text


@pytest.mark.parametrize(
    ("names", "message", "kind"),
    [
        (["train", "test"], "benchmark_filename: .* does not name three files", "value"),
        (["train", "valid", "tset"], "benchmark_filename: .* has no file ready.tset.inter", "file"),
        (["a", "b", "c"], "has no file ready.a.inter, ready.b.inter, ready.c.inter", "file"),
    ],
)
def test_three_files_or_a_clear_line(folder, names, message, kind):
    with refused("benchmark_filename", kind, message) as caught:
        load(folder, "SASRec", benchmark_filename=names)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "message", "key"),
    [
        (
            "user_id:token\thistory:token_seq\titem_id:token",
            "must hold each row's history as item_id_list:token_seq",
            "benchmark_filename",
        ),
        ("user_id:token\titem_id_list:token\titem_id:token", "the column has type token", "benchmark_filename"),
        (
            "who:token\titem_id_list:token_seq\titem_id:token",
            "USER_ID_FIELD: ready.test.inter has no column 'user_id'",
            "USER_ID_FIELD",
        ),
        ("user_id:token\titem_id_list:token_seq\titem_id:float", "column 'item_id' has type float; ids are text", ""),
    ],
)
def test_the_columns_needed_are_named(folder, header, message, key):
    file = folder / "ready.test.inter"
    file.write_text(file.read_text().replace(HEADER, header))
    with refused(key, "data", message) as caught:
        load(folder, "SASRec")
    assert "ready.test.inter" in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"rm_dup_inter": "first"},
        {"val_interval": {"item_id": ["a"]}},
        {"user_inter_num_interval": "[3,inf)"},
        {"item_inter_num_interval": "[2,inf)"},
        {"filter_inter_by_user_or_item": True},
        {"seq_len": {"item_id_list": 2}},
        {"unload_col": {"inter": ["item_id_list"]}, "load_col": None},
    ],
)
def test_a_setting_that_would_do_nothing_or_cost_the_newest_items_is_refused(folder, settings):
    with refused(next(iter(settings)), "conflict"):
        load(folder, "SASRec", **settings)
    rows = load(folder, "SASRec", user_inter_num_interval="[0,inf)", seq_len={"title": 2})  # these change no history
    assert read(rows, rows.test) == PARTS["test"]


def test_rows_that_stand_in_two_files_are_counted(folder, caplog):
    """One of three test rows is a validation row, two of three training rows; the others differ in one place."""
    (folder / "ready.test.inter").write_text(
        "\n".join([HEADER, "u1\tc b a\td", "u2\ta\tb", "u1\tc b\ta", "u1\tb c\ta", "u2\tc b\ta", "u1\tc b\td"]) + "\n"
    )
    with caplog.at_level(logging.WARNING):
        load(folder, "SASRec")
    assert "1 of 6 test rows are validation rows as well." in caplog.text
    assert "2 of 6 test rows are training rows as well." in caplog.text
    assert "validation rows are training rows" not in caplog.text and "seq_separator" not in caplog.text


def test_histories_that_were_not_taken_apart_are_told(folder, caplog):
    for file in folder.glob("*.inter"):
        file.write_text(file.read_text().replace(" ", ","))
    with caplog.at_level(logging.WARNING):
        load(folder, "SASRec")
    assert "No history has more than one item, and one is 'c,b'" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        rows = load(folder, "SASRec", seq_separator=",")
    assert "seq_separator" not in caplog.text
    assert read(rows, rows.test) == PARTS["test"]


def test_a_file_without_rows_is_told_of_by_its_setting(folder):
    (folder / "ready.test.inter").write_text(HEADER + "\n")
    with refused("dataset", "data", "0 test rows: check the files of benchmark_filename"):
        load(folder, "SASRec")


@pytest.mark.parametrize("longest", [1, 2, 3, 4, 5, 10])
def test_every_part_shows_the_newest_items_and_no_more_columns_than_a_model_takes(folder, longest):
    """Also the training part here, whose histories are all shorter than the longest of the test part."""
    rows = load(folder, "SASRec", MAX_ITEM_LIST_LENGTH=longest)
    for name, part in (("train", rows.train), ("valid", rows.valid), ("test", rows.test)):
        cut = []
        for line in PARTS[name]:
            user, history, target = line.split("\t")
            cut.append(f"{user}\t{' '.join(history.split(' ')[-longest:])}\t{target}")
        assert read(rows, part) == cut
        assert longest >= 4 or row_histories(part)[0].shape[1] == longest


@pytest.mark.parametrize("longest", [1, 2, 3, 4, 5, 10])
@pytest.mark.parametrize("order", [1, -1])
def test_users_are_recommended_by_all_they_did_whatever_the_order_of_lines(folder, longest, order):
    parts = {**PARTS, "test": ["u1\tc b a d e\tNA", *PARTS["test"]]}  # two rows of u1
    for part, lines in parts.items():
        table = [f"{HEADER}\twhen_list:float_seq", *(f"{line}\t1 2" for line in lines[::order])]
        (folder / f"ready.{part}.inter").write_text("\n".join(table) + "\n")
    rows = load(folder, "SASRec", MAX_ITEM_LIST_LENGTH=longest)
    asked = _rows_of_users(Trained(rows.test.config, None, rows), ["u1", "u2", "u3"])
    items, lengths = rows.whole.field2id_token["item_id"], asked["item_length"].tolist()
    shown = [items[row[:length]].tolist() for row, length in zip(asked["item_id_list"].numpy(), lengths, strict=True)]
    all_they_did = [["c", "b", "a", "d", "e", "NA"], ["a", "b", "c", "e", "NA"], ["e", "a"]]
    assert shown == [own[-longest:] for own in all_they_did]
    assert asked["item_id_list"].shape == (3, longest)


def test_rows_of_files_do_not_tell_all_that_a_user_had(folder):
    where = {"data_path": str(folder.parent), "benchmark_filename": ["train", "valid", "test"], "repeatable": False}
    config = Config("Pop", folder.name, config_dict=where)
    with refused("repeatable", "conflict", "rows of benchmark_filename tell of their histories only"):
        eval_loader(config, load_rows(config, False), "test")

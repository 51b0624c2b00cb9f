"""The evaluated rows and what each kind of model learns from, against the raw files."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

from recbole_llm.data.loaders import eval_loader, train_loader
from recbole_llm.data.rows import Rows, load_rows, row_histories, row_pairs, rows_digest
from recbole_llm.settings.config import Config
from tests.refusals import refused

# One item per day, the oldest first; c repeats an item, d and e have days with several.
USERS = {
    "a": "i1",
    "b": "i1 i2",
    "c": "i1 i2 i1",
    "d": "i3 i1 i4 i2 i5",
    "e": "i5 i4 i3 i2 i1 i6 i7 i8",
    "f": "i2 i3 i4 i5 i6 i7 i8 i1 i3 i2 i9 i10",
}
DAYS = {"d": [1, 1, 1, 2, 2], "e": [1, 2, 2, 2, 3, 4, 4, 4]}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shop"
    folder.mkdir()
    rows = [
        (user, item, day)
        for user, items in USERS.items()
        for item, day in zip(items.split(), DAYS.get(user, range(20)), strict=False)
    ]
    # Users are interleaved as in a log: by day, then by user, the order inside a day kept.
    rows.sort(key=lambda row: (row[2], row[0]))
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in rows)]
    (folder / "shop.inter").write_text("\n".join(lines) + "\n")
    items = sorted({item for _, item, _ in rows})
    lines = ["item_id:token\ttitle:token_seq", *(f"{item}\tTitle {item}" for item in items)]
    (folder / "shop.item").write_text("\n".join(lines) + "\n")
    return folder


def load(folder: Path, model: str, few_shot: bool = False, **settings: Any) -> Rows:
    return load_rows(config_of(folder, model, **settings), few_shot)


def config_of(folder: Path, model: str, **settings: Any) -> Config:
    return Config(model, folder.name, config_dict={"data_path": str(folder.parent), **settings})


def tokens(rows: Rows, part: Any) -> list[tuple[str, str]]:
    """(user, item) of interactions or rows, in the data set's own ids."""
    users, items = rows.whole.field2id_token["user_id"], rows.whole.field2id_token["item_id"]
    return [(users[user], items[item]) for user, item in row_pairs(part)]


def described(rows: Rows, part: Any) -> list[tuple[str, str, str]]:
    """(user, history, target) of rows, sorted."""
    names = rows.whole.field2id_token["item_id"]
    items, lengths = row_histories(part)
    texts = [" ".join(names[item] for item in line[:n]) for line, n in zip(items, lengths, strict=True)]
    return sorted((user, text, target) for (user, target), text in zip(tokens(rows, part), texts, strict=True))


def raw(folder: Path) -> dict[str, list[str]]:
    """Each user's items by time, equal times in the order of the file."""
    table = pd.read_csv(folder / f"{folder.name}.inter", sep="\t", names=["user", "item", "time"], header=0)
    table = table.sort_values("time", kind="stable")
    return {user: list(items) for user, items in table.groupby("user", sort=True)["item"]}


def test_leave_one_out_takes_the_last_items_in_time_then_file_order(shop):
    rows = load(shop, "SASRec")
    assert raw(shop) == {user: items.split() for user, items in USERS.items()}
    expected: dict[str, list[tuple[str, str, str]]] = {"train": [], "valid": [], "test": []}
    for user, items in raw(shop).items():
        own = [(user, " ".join(items[:place][-10:]), items[place]) for place in range(1, len(items))]
        n_evaluated = min(2, max(0, len(own) - 1))  # one row at least is for training
        expected["train"] += own[: len(own) - n_evaluated]
        for part, row in zip(("test", "valid"), reversed(own[len(own) - n_evaluated :]), strict=False):
            expected[part].append(row)
    assert {part: described(rows, getattr(rows, part)) for part in expected} == {
        part: sorted(own) for part, own in expected.items()
    }


@pytest.mark.parametrize("model", ["Pop", "BPR", "SASRec", "BIGRec"])
def test_every_model_is_judged_on_the_same_pairs(shop, model):
    assert load(shop, model).evaluated() == load(shop, "SASRec").evaluated()


@pytest.mark.parametrize(
    "eval_args",
    [
        {},
        {"split": {"LS": "test_only"}},
        {"split": {"RS": [0.5, 0.2, 0.3]}},
        {"split": {"RS": [0.6, 0.0, 0.4]}},
        {"split": {"RS": [0.5, 0.25, 0.25]}, "group_by": None},
        {"split": {"RS": [0.1, 0.4, 0.5]}, "group_by": "none"},
    ],
)
def test_a_general_model_learns_exactly_what_lies_before_the_split(shop, eval_args):
    rows = load(shop, "Pop", eval_args=eval_args)
    evaluated: dict[str, list[str]] = {}
    for user, item in [*tokens(rows, rows.valid), *tokens(rows, rows.test)]:
        evaluated.setdefault(user, []).append(item)
    learned: dict[str, list[str]] = {}
    for user, item in tokens(rows, rows.train):
        learned.setdefault(user, []).append(item)
    sequential = load(shop, "SASRec", eval_args=eval_args)
    trains = {user for user, _ in tokens(sequential, sequential.train)}
    one_cut = "group_by" in eval_args
    for user, items in raw(shop).items():
        n_evaluated = len(evaluated.get(user, []))
        assert sorted(evaluated.get(user, [])) == sorted(items[len(items) - n_evaluated :])
        before = items[: len(items) - n_evaluated] if user in trains or not one_cut else []
        assert sorted(learned.get(user, [])) == sorted(before)
    assert sum(map(len, evaluated.values())) > 0


def test_leave_one_out_counts_of_users_with_few_interactions(shop):
    rows = load(shop, "Pop")
    learned = pd.Series([user for user, _ in tokens(rows, rows.train)]).value_counts()
    assert learned.to_dict() == {"a": 1, "b": 2, "c": 2, "d": 3, "e": 6, "f": 10}


def test_a_user_with_one_interaction_is_skipped_and_counted(shop, caplog):
    with caplog.at_level(logging.WARNING):
        rows = load(shop, "SASRec")
    assert "1 users have a single interaction and so no history; they are skipped." in caplog.text
    assert "a" not in {user for part in (rows.train, rows.valid, rows.test) for user, _ in tokens(rows, part)}


def test_rows_of_benchmark_files_without_history_are_skipped_and_counted(tmp_path, caplog):
    folder = tmp_path / "ready"
    folder.mkdir()
    header = "user_id:token\titem_id_list:token_seq\titem_id:token"
    parts = {
        "train": ["u1\ti1\ti2", "u1\ti1 i2\ti3", "u2\t\ti1", "u2\ti1\ti3"],
        "valid": ["u1\ti1 i2 i3\ti4", "u2\t\ti4"],
        "test": ["u1\ti1 i2 i3 i4\ti5", "u2\ti1 i3\ti5", "u3\t\ti5"],
    }
    for part, lines in parts.items():
        (folder / f"ready.{part}.inter").write_text("\n".join([header, *lines]) + "\n")
    settings = {
        "benchmark_filename": ["train", "valid", "test"],
        "alias_of_item_id": ["item_id_list"],
        "load_col": {"inter": ["user_id", "item_id", "item_id_list"]},
    }
    with caplog.at_level(logging.WARNING):
        rows = load(folder, "SASRec", **settings)
    assert caplog.text.count("1 rows have no history; they are skipped.") == 3
    assert described(rows, rows.train) == [("u1", "i1", "i2"), ("u1", "i1 i2", "i3"), ("u2", "i1", "i3")]
    assert described(rows, rows.test) == [("u1", "i1 i2 i3 i4", "i5"), ("u2", "i1 i3", "i5")]
    general = load(folder, "Pop", **settings)
    assert general.evaluated() == rows.evaluated()
    told = "u1 i1, u1 i2, u1 i3, u2 i1, u2 i3"  # what the training rows tell of, each once
    assert ", ".join(sorted(" ".join(pair) for pair in tokens(general, general.train))) == told


def test_histories_of_benchmark_files_are_cut_to_their_newest_items(tmp_path):
    folder = tmp_path / "long"
    folder.mkdir()
    items = [f"i{number}" for number in range(1, 8)]
    for part in ("train", "valid", "test"):
        lines = ["user_id:token\titem_id_list:token_seq\titem_id:token", f"u1\t{' '.join(items[:5])}\ti6", "u1\ti1\ti2"]
        (folder / f"long.{part}.inter").write_text("\n".join(lines) + "\n")
    settings = {
        "benchmark_filename": ["train", "valid", "test"],
        "alias_of_item_id": ["item_id_list"],
        "load_col": {"inter": ["user_id", "item_id", "item_id_list"]},
        "MAX_ITEM_LIST_LENGTH": 3,
    }
    rows = load(folder, "SASRec", **settings)
    assert described(rows, rows.test) == [("u1", "i1", "i2"), ("u1", "i3 i4 i5", "i6")]
    assert row_histories(rows.test)[0].shape == (2, 3)


def test_samples_are_seeded_subsets_and_the_same_for_all_models(shop):
    sizes = {"train_sample_size": 5, "valid_sample_size": 2, "test_sample_size": 3}
    whole, rows = load(shop, "BIGRec"), load(shop, "BIGRec", few_shot=True, **sizes)
    for part, size in zip(("train", "valid", "test"), sizes.values(), strict=True):
        chosen, everything = getattr(rows, part), getattr(whole, part)
        assert len(chosen) == size
        places = [row_pairs(everything).tolist().index(pair) for pair in row_pairs(chosen).tolist()]
        assert places == sorted(set(places))  # in the order of the split, none twice
    again = load(shop, "SASRec", few_shot=True, **sizes)
    assert again.evaluated() == rows.evaluated() and rows_digest(again.train) == rows_digest(rows.train)
    assert load(shop, "Pop", **sizes).evaluated() == rows.evaluated()
    assert len(load(shop, "SASRec", **sizes).train) == len(whole.train)  # training rows only where few_shot says so
    other = load(shop, "SASRec", few_shot=True, seed=7, **sizes)
    assert rows_digest(other.train) != rows_digest(rows.train)
    # Each part draws on its own: another training size leaves the evaluated rows as they are.
    assert load(shop, "SASRec", few_shot=True, **{**sizes, "train_sample_size": 6}).evaluated() == rows.evaluated()


def test_a_sample_of_more_rows_than_there_are_is_all_of_them(shop):
    sizes = {"train_sample_size": 10_000, "test_sample_size": 10_000}
    assert rows_digest(load(shop, "BIGRec", few_shot=True, **sizes).train) == rows_digest(load(shop, "BIGRec").train)


def test_few_shot_rows_of_a_general_model_are_the_pairs_they_tell_of(shop):
    rows = load(shop, "Pop", few_shot=True, train_sample_size=3)
    sequential = load(shop, "SASRec", few_shot=True, train_sample_size=3)
    rows_of = described(sequential, sequential.train)
    told = {(user, item) for user, history, target in rows_of for item in [*history.split(), target]}
    assert sorted(tokens(rows, rows.train)) == sorted(told)


def test_the_digest_sees_targets_histories_and_order_but_not_padding(shop):
    rows = load(shop, "SASRec").train
    assert rows_digest(rows.copy(rows.inter_feat[np.arange(len(rows))])) == rows_digest(rows)
    assert rows_digest(rows.copy(rows.inter_feat[np.arange(len(rows))[::-1].copy()])) != rows_digest(rows)
    feat = rows.inter_feat[np.arange(len(rows))]
    feat["item_id_list"] = feat["item_id_list"].clone()
    feat["item_id_list"][0, -1] = 3  # beyond the length of a history of one
    assert rows_digest(rows.copy(feat)) == rows_digest(rows)
    feat["item_id_list"][0, 0] = 3
    assert rows_digest(rows.copy(feat)) != rows_digest(rows)


def test_a_general_model_draws_negatives_that_its_user_never_had(shop):
    config = config_of(shop, "BPR", train_batch_size=4)
    rows = load_rows(config, False)
    own: dict[int, set[int]] = {}
    for user, item in row_pairs(rows.train):
        own.setdefault(user, set()).add(item)
    n_seen = 0
    for batch in train_loader(config, rows):
        for user, item in zip(batch["user_id"].tolist(), batch["neg_item_id"].tolist(), strict=True):
            assert item not in own[user]
            n_seen += 1
    assert n_seen == len(rows.train)


def test_sampled_candidates_need_one_row_per_user(shop):
    config = config_of(shop, "SASRec", eval_args={"split": {"RS": [0.4, 0.2, 0.4]}, "mode": "uni3"})
    rows = load_rows(config, False)
    with refused("eval_args", "conflict", "sampled candidates need one row per user"):
        eval_loader(config, rows, "test")


@pytest.mark.parametrize(
    ("settings", "message", "key", "kind"),
    [
        (
            {"user_inter_num_interval": "[100,inf)"},
            "dataset: 'shop': no interaction is left of .*user_inter_num_interval",
            "dataset",
            "data",
        ),
        ({"eval_args": {"split": {"LS": "valid_only"}}}, "leaves .* training and 0 test rows", "eval_args", "conflict"),
        (
            {"eval_args": {"order": "RO"}},
            "eval_args: order: RO has no history before a row; give order: TO",
            "eval_args",
            "conflict",
        ),
        (
            {"TIME_FIELD": "when"},
            "TIME_FIELD: shop.inter has no column 'when', it has user_id, item_id, timestamp",
            "TIME_FIELD",
            "data",
        ),
        ({"USER_ID_FIELD": "who"}, "USER_ID_FIELD: shop.inter has no column 'who'", "USER_ID_FIELD", "data"),
    ],
)
def test_what_leaves_no_rows_is_named(shop, settings, message, key, kind):
    with refused(key, kind, message) as caught:
        load(shop, "SASRec", **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message", "key", "kind"),
    [
        (
            "user_id\titem_id\ttimestamp\n1\t1\t1\n",
            "bad.inter, line 1: column 'user_id' has no type; write user_id:token",
            "",
            "file",
        ),
        (
            "user_id:token,item_id:token,timestamp:float\n1,1,1\n",
            "bad.inter has no column .*columns are separated by",
            "ITEM_ID_FIELD",
            "data",
        ),
        (
            "user_id:token\titem_id:token\ttimestamp:float\n1\t1\tyesterday\n",
            "timestamp.* text that is no number",
            "",
            "data",
        ),
        (
            "user_id:token\titem_id:token\ttimestamp:float\n",
            "dataset: 'bad': no interaction is left",
            "dataset",
            "data",
        ),
    ],
)
def test_a_file_that_is_not_atomic_is_named(tmp_path, text, message, key, kind):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.inter").write_text(text)
    settings = {"data_path": str(tmp_path), "load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
    with refused(key, kind, message) as caught:
        load_rows(Config("SASRec", "bad", config_dict=settings), False)
    assert "\n" not in str(caught.value)


def test_histories_that_no_memory_holds_are_refused_before_they_are_padded(shop, monkeypatch):
    """Padding all lines takes more than one column of them, which is all that is free."""
    n_lines = sum(len(items.split()) for items in USERS.values())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * n_lines * 50_000))
    config = Config("SASRec", "shop", settings={"data_path": str(shop.parent), "MAX_ITEM_LIST_LENGTH": 50_000})
    with refused("MAX_ITEM_LIST_LENGTH", "environment", "the longest history has 11 items, set no more than that"):
        load_rows(config, few_shot=False)
    config["MAX_ITEM_LIST_LENGTH"] = 11
    assert len(load_rows(config, few_shot=False).test) == 4  # c, d, e and f have three interactions or more

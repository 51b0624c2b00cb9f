"""Labels of rows and of what stands in their histories, against the raw file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recbole.utils import get_model

from recbole_llm.data.labels import label_rule, row_labels
from recbole_llm.data.loaders import eval_loader, train_loader
from recbole_llm.data.rows import Rows, load_rows, row_histories, row_pairs, rows_digest
from recbole_llm.settings.config import Config
from tests.refusals import refused
from tests.worlds import make_world

Rated = list[tuple[str, int]]  # items with ratings, oldest first


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("data") / "rated", n_users=12, n_items=20, seed=3)


def config_of(folder: Path, model: str, threshold: Any = 4, **settings: Any) -> Config:
    labelled = {"eval_args": {"mode": "labeled"}, "threshold": {"rating": threshold} if threshold else None}
    return Config(model, folder.name, config_dict={"data_path": str(folder.parent), **labelled, **settings})


def load(folder: Path, model: str, few_shot: bool = False, **settings: Any) -> Rows:
    return load_rows(config_of(folder, model, **settings), few_shot)


def raw(folder: Path) -> dict[str, Rated]:
    """Each user's items and ratings by time."""
    lines = (folder / f"{folder.name}.inter").read_text().splitlines()[1:]
    users: dict[str, list[tuple[float, str, int]]] = {}
    for user, item, rating, time in (line.split("\t") for line in lines):
        users.setdefault(user, []).append((float(time), item, int(rating)))
    return {user: [(item, rating) for _, item, rating in sorted(own)] for user, own in users.items()}


def told(rows: Rows, part: Any) -> list[tuple[str, str, float, list[tuple[str, bool]]]]:
    """(user, target, label, history with labels) of rows."""
    users, names = (rows.whole.field2id_token[field] for field in ("user_id", "item_id"))
    items, lengths = row_histories(part)
    likes = part.inter_feat["label_list"].numpy() > 0
    return [
        (users[user], names[target], label, [(names[i], bool(like)) for i, like in zip(own[:n], like[:n], strict=True)])
        for (user, target), label, own, like, n in zip(
            row_pairs(part), row_labels(part), items, likes, lengths, strict=True
        )
    ]


@pytest.mark.parametrize("threshold", [3, 4, 4.5])
@pytest.mark.parametrize("longest", [3, 10])
def test_labels_and_labelled_histories_are_the_ratings_before_the_target(rated, threshold, longest):
    sequences = raw(rated)
    rows = load(rated, "TALLRec", threshold=threshold, MAX_ITEM_LIST_LENGTH=longest)
    n_rows = 0
    for part, places in ((rows.test, [-1]), (rows.valid, [-2]), (rows.train, None)):
        for user, target, label, history in told(rows, part):
            own = sequences[user]
            place = [item for item, _ in own].index(target)
            assert places is None or place == len(own) + places[0]
            assert label == (own[place][1] >= threshold)
            assert history == [(item, rating >= threshold) for item, rating in own[max(0, place - longest) : place]]
            assert target not in [item for item, _ in history]
            n_rows += 1
    assert n_rows == sum(len(own) - 1 for own in sequences.values())


@pytest.mark.parametrize("model", ["LR", "FM", "SASRec", "DIN", "TALLRec"])
def test_every_model_of_clicks_is_judged_on_the_same_rows_and_labels(rated, model):
    rows, reference = load(rated, model), load(rated, "TALLRec")
    for name in ("valid", "test"):
        assert (row_pairs(getattr(rows, name)) == row_pairs(getattr(reference, name))).all()
        assert (row_labels(getattr(rows, name)) == row_labels(getattr(reference, name))).all()
    assert rows.evaluated() == reference.evaluated()


def test_what_rows_depend_on_includes_their_labels(rated):
    four, three = load(rated, "TALLRec"), load(rated, "TALLRec", threshold=3)
    assert four.evaluated() != three.evaluated() and rows_digest(four.train) != rows_digest(three.train)
    assert rows_digest(four.train) == rows_digest(load(rated, "TALLRec").train)


def test_a_context_model_learns_the_labelled_interactions_before_the_split(rated):
    rows, sequences = load(rated, "FM"), raw(rated)
    users, names = (rows.whole.field2id_token[field] for field in ("user_id", "item_id"))
    pairs = row_pairs(rows.train)
    found = sorted((users[u], names[i], x) for (u, i), x in zip(pairs, row_labels(rows.train), strict=True))
    assert found == sorted((u, item, float(r >= 4)) for u, own in sequences.items() for item, r in own[:-2])


@pytest.mark.parametrize("size", [1, 5, 16])
def test_a_context_model_learns_from_what_few_shot_rows_tell(rated, size):
    rows = load(rated, "FM", few_shot=True, train_sample_size=size)
    shown = told(rows, load(rated, "TALLRec", few_shot=True, train_sample_size=size).train)
    assert len(shown) == size
    expected = {(user, target, label) for user, target, label, _ in shown}
    expected |= {(user, item, float(like)) for user, _, _, history in shown for item, like in history}
    users, names = (rows.whole.field2id_token[field] for field in ("user_id", "item_id"))
    pairs, labels = row_pairs(rows.train), row_labels(rows.train)
    found = [(users[u], names[i], x) for (u, i), x in zip(pairs, labels, strict=True)]
    assert len(found) == len(expected) and set(found) == expected


@pytest.mark.parametrize("size", [16, 64, 256])
def test_few_shot_sizes_are_rows_drawn_by_seed(tmp_path, size):
    folder = make_world(tmp_path / "many", n_users=60, n_items=40)
    one, same, other = (
        load(folder, "TALLRec", few_shot=True, train_sample_size=size, seed=seed).train for seed in (1, 1, 2)
    )
    assert len(one) == size
    assert (row_pairs(one) == row_pairs(same)).all() and not np.array_equal(row_pairs(one), row_pairs(other))


# ------------------------------------------------------------------------------------------------------- refusals


def rewritten(folder: Path, place: Path, header: str, column: Any) -> Path:
    """The world with another third column: its header, and what it holds given the rating; None leaves it out."""
    place.mkdir()
    lines = (folder / f"{folder.name}.inter").read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    cells[0][2] = header
    for row in cells[1:]:
        row[2] = column(int(row[2])) if column else None
    text = "\n".join("\t".join(cell for cell in row if cell is not None and cell != "") for row in cells)
    (place / f"{place.name}.inter").write_text(text + "\n")
    (place / f"{place.name}.item").write_text((folder / f"{folder.name}.item").read_text())
    return place


def test_a_column_of_labels_needs_no_threshold(rated, tmp_path):
    folder = rewritten(rated, tmp_path / "clicked", "label:float", lambda rating: str(int(rating >= 4)))
    config = config_of(folder, "TALLRec", threshold=None)
    assert label_rule(config) == "label = 1"
    found, expected = load_rows(config, False), load(rated, "TALLRec")
    assert told(found, found.test) == told(expected, expected.test)


def test_the_rule_is_stated(rated, caplog):
    with caplog.at_level("INFO"):
        rows = load(rated, "TALLRec")
    share = f"{row_labels(rows.test).mean():.1%} of 12 test rows"
    assert "A like is rating >= 4: " in caplog.text and share in caplog.text


@pytest.mark.parametrize(
    ("threshold", "settings", "message", "key"),
    [
        (
            None,
            {},
            "LABEL_FIELD: TALLRec predicts clicks, and 'rated' has no column 'label' for them; name the column",
            "LABEL_FIELD",
        ),
        (
            None,
            {"LABEL_FIELD": "rating"},
            "LABEL_FIELD: column 'rating' holds 5, not only 0 and 1; make labels by a",
            "LABEL_FIELD",
        ),
        (
            0.5,
            {},
            "threshold: with rating >= 0.5 all 12 valid rows have the label 1, .*; set another threshold",
            "threshold",
        ),
        (9, {}, "threshold: with rating >= 9 all 12 valid rows have the label 0", "threshold"),
    ],
)
def test_labels_that_cannot_be_judged_are_refused(rated, threshold, settings, message, key):
    with refused(key, "data", message):
        load(rated, "TALLRec", threshold=threshold, **settings)


def test_one_label_can_be_judged_by_logloss(rated):
    assert len(load(rated, "TALLRec", threshold=0.5, metrics=["LogLoss"]).test) == 12


def test_data_without_ratings_are_refused(rated, tmp_path):
    folder = rewritten(rated, tmp_path / "seen", "", None)
    message = (
        "'seen' has no column 'label' .* and no 'rating' to make it of; it has user_id, item_id, timestamp: choose"
    )
    with refused("LABEL_FIELD", "data", message):
        load(folder, "TALLRec", threshold=None)
    with refused("threshold", "data", "threshold: seen.inter has no column 'rating', it has user_id, item_id"):
        load(folder, "TALLRec")


def test_a_threshold_on_text_is_refused(rated, tmp_path):
    folder = rewritten(rated, tmp_path / "worded", "rating:token", lambda rating: f"r{rating}")
    with refused("threshold", "data", "threshold: column 'rating' of worded.inter has type token, not float"):
        load(folder, "TALLRec")


@pytest.mark.parametrize("missing", ["", "NA", "nan"])
@pytest.mark.parametrize("model", ["TALLRec", "FM"])
@pytest.mark.parametrize("column", ["rating", "label"])
def test_a_label_that_is_missing_is_no_mean_of_the_others(rated, tmp_path, missing, model, column):
    folder = make_world(tmp_path / "gaps", n_users=12, n_items=20, seed=3)
    file = folder / "gaps.inter"
    header, *lines = [line.split("\t") for line in file.read_text().splitlines()]
    at = header.index("rating:float")
    header[at] = f"{column}:float"
    for number, line in enumerate(lines):
        line[at] = str(number % 2 * 5) if column == "rating" else str(number % 2)
    whole = [line for number, line in enumerate(lines) if number % 7]
    settings = {"threshold": 4 if column == "rating" else None, "MAX_ITEM_LIST_LENGTH": 4}

    def written(own: list[list[str]]) -> Rows:
        file.write_text("\n".join(map("\t".join, [header, *own])) + "\n")
        load_col = {"inter": ["user_id", "item_id", column, "timestamp"], "item": ["item_id", "title"]}
        return load(folder, model, load_col=load_col, bad_lines="drop", **settings)

    expected = written(whole)
    for line in lines[::7]:
        line[at] = missing
    rows = written(lines)
    assert rows.evaluated() == expected.evaluated()
    assert rows.whole.reading.files[0].dropped == {f"no {column}": len(lines) - len(whole)}
    with refused("", "data", f"gaps.inter, line 2: has no {column}"):
        load(folder, model, load_col=None, **settings)


def presplit(folder: Path, sequences: dict[str, Rated], least: int) -> Path:
    """The rows of a leave-one-out split, labelled, in three files; the items' file as it is elsewhere."""
    folder.mkdir()
    lines: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for user, own in sequences.items():
        labels = [str(int(rating >= least)) for _, rating in own]
        for end in range(1, len(own)):
            part = {1: "test", 2: "valid"}.get(len(own) - end, "train")
            history = " ".join(item for item, _ in own[:end])
            lines[part].append("\t".join([user, history, " ".join(labels[:end]), own[end][0], labels[end]]))
    header = "user_id:token\titem_id_list:token_seq\tlabel_list:float_seq\titem_id:token\tlabel:float"
    for part, rows in lines.items():
        (folder / f"{folder.name}.{part}.inter").write_text("\n".join([header, *rows]) + "\n")
    return folder


@pytest.mark.parametrize("name", ["FM", "LR", "DeepFM"])
def test_a_context_model_learns_and_predicts_labels_of_presplit_files(rated, tmp_path, name):
    folder = presplit(tmp_path / "ready", raw(rated), 4)
    columns = {"inter": ["user_id", "item_id", "label", "label_list"]}
    settings = {"benchmark_filename": ["train", "valid", "test"], "load_col": columns}
    config = config_of(folder, name, threshold=None, **settings)
    rows, usual = load_rows(config, False), load(rated, name)
    assert sorted(zip(*triples(rows, rows.test), strict=True)) == sorted(zip(*triples(usual, usual.test), strict=True))
    assert sorted(set(zip(*triples(rows, rows.train), strict=True))) == sorted(
        zip(*triples(usual, usual.train), strict=True)
    )
    assert predicts(config, rows) == len(raw(rated))


def test_columns_that_few_shot_rows_do_not_tell_of_are_no_features(rated, tmp_path, caplog):
    folder = make_world(tmp_path / "shown", n_users=12, n_items=20, seed=3)
    file = folder / "shown.inter"
    header, *lines = file.read_text().splitlines()
    shown = [f"{line}\t{('phone', 'web')[number % 2]}" for number, line in enumerate(lines)]
    file.write_text("\n".join([f"{header}\tdevice:token", *shown]) + "\n")
    columns = {"inter": ["user_id", "item_id", "rating", "timestamp", "device"]}
    config = config_of(folder, "FM", train_sample_size=16, load_col=columns)
    with caplog.at_level("WARNING"):
        rows = load_rows(config, True)
    assert "FM learns without 'device' of the .inter file" in caplog.text
    assert predicts(config, rows) == len(raw(rated))
    caplog.clear()
    config = config_of(folder, "FM", load_col=columns)
    assert predicts(config, load_rows(config, False)) == len(raw(rated)) and "learns without" not in caplog.text


def triples(rows: Rows, part: Any) -> tuple[list[str], list[str], list[float]]:
    """Users, items and labels of rows, by outside ids."""
    pairs = row_pairs(part)
    users, items = (rows.whole.field2id_token[name] for name in ("user_id", "item_id"))
    return users[pairs[:, 0]].tolist(), items[pairs[:, 1]].tolist(), row_labels(part).tolist()


def predicts(config: Config, rows: Rows) -> int:
    """How many test rows RecBole's model of these rows gives a probability, after a loss on what it learns from."""
    config["train_neg_sample_args"] = {"distribution": "none", "alpha": 1.0}
    model = get_model(config["model"])(config, rows.train)
    assert model.calculate_loss(next(iter(train_loader(config, rows)))).isfinite()
    scores = [model.predict(batch[0]) for batch in eval_loader(config, rows, "test")]
    assert all(((own > 0) & (own < 1)).all() for own in scores)
    return sum(map(len, scores))


@pytest.mark.parametrize("column", ["label", "label_list"])
def test_rows_of_other_labels_have_another_digest(rated, column):
    part = load(rated, "TALLRec", llm_path="tiny").test
    before = rows_digest(part)
    part.inter_feat[column] = 1 - part.inter_feat[column]
    assert rows_digest(part) != before

"""What selectors are told of rows without any model is what the data says."""

from __future__ import annotations

import numpy as np

from tests.selection.rows import inputs_of


def test_labels_are_likes(clicks):
    expected = clicks.pool.rows["label"].tolist()
    assert clicks.data.labels().tolist() == expected and set(expected) == {0, 1}
    assert clicks.data.valid_labels().tolist() == clicks.pool.valid_data.inter_feat["label"].tolist()


def test_rows_without_labels_have_none(make):
    inputs = inputs_of(*make())
    assert inputs.data.labels() is None and inputs.data.valid_labels() is None and inputs.get("labels") is None


def test_history_lengths_count_all_training_interactions_of_a_user(make):
    config, rows, model = make(train_sample_size=None, coreset_unit="user")
    users = rows.train.inter_feat["user_id"].numpy()
    lengths = inputs_of(config, rows, model, np.array([0, len(users) - 1])).data.history_lengths()
    assert lengths.tolist() == [(users == users[0]).sum() + 1, (users == users[-1]).sum() + 1]
    config, rows, model = make()  # a sample of the rows still tells of the interactions in their histories
    lengths = inputs_of(config, rows, model).data.history_lengths()
    assert (lengths > rows.train.inter_feat["item_length"].numpy()).all()


def test_texts_are_titles(make):
    inputs = inputs_of(*make()).data
    titles = inputs.model.catalog.titles
    row = inputs.pool.rows[0:1]
    items = [*row["item_id_list"][0, : row["item_length"].item()].tolist(), row["item_id"].item()]
    assert inputs.texts()[0] == "; ".join(titles[item] for item in items)
    assert len(inputs.target_texts()) == len(inputs.pool.valid_data)

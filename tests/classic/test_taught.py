"""A classic model that learns another's lists: the loss, and which rows it is of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.classic.taught import Lessons, list_loss, taught
from recbole_llm.data.loaders import train_loader
from recbole_llm.data.rows import SAMPLE_ID, load_rows
from recbole_llm.settings.config import Config
from recbole_llm.settings.training import STUDENTS


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.5, 20))
def test_the_loss_is_a_weighted_mean_of_log_probabilities(seed, k, decay):
    generator = np.random.default_rng(seed)
    scores = torch.from_numpy(generator.normal(size=(4, 9)))
    items = np.stack([generator.permutation(np.arange(1, 9))[:k] for _ in range(4)])
    items[1, k // 2 :] = 0  # a short list
    items[2] = 0  # none at all
    expected = []
    for row in (0, 1, 3):
        own = [item for item in items[row] if item]
        parts = np.exp(-np.arange(len(own)) / decay)
        if own:
            log_probs = scores[row].log_softmax(0).numpy()
            expected.append(-(parts / parts.sum()) @ log_probs[own])
    found = list_loss(scores, torch.from_numpy(items), decay)
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-9)


def test_no_list_is_no_loss():
    scores = torch.randn(2, 5, requires_grad=True)
    loss = list_loss(scores, torch.zeros(2, 3, dtype=torch.int64), 1.0)
    loss.backward()
    assert float(loss) == 0 and not scores.grad.any()


@pytest.mark.parametrize("name", STUDENTS)
def test_rows_without_a_list_count_in_the_own_loss_alone(world, name):
    config = Config(name, world.name, settings={"data_path": str(world.parent), "train_batch_size": 16})
    rows = load_rows(config, False)
    batch = next(iter(train_loader(config, rows)))
    ids = batch[SAMPLE_ID].numpy()
    items = np.random.default_rng(0).integers(1, rows.whole.item_num, size=(len(ids), 3))

    def loss(numbers: np.ndarray, lists: np.ndarray, weight: float) -> float:
        torch.manual_seed(0)
        model = taught(config.model_class)(config, rows.train, Lessons.of(numbers, lists, weight, 2.0)).eval()
        return float(model.calculate_loss(batch)), float(
            list_loss(model.full_sort_predict(batch)[torch.from_numpy(np.isin(ids, numbers))],
                      torch.from_numpy(lists[[list(numbers).index(one) for one in ids if one in numbers]]), 2.0)
        ) if np.isin(ids, numbers).any() else 0.0  # fmt: skip

    own = loss(ids.max() + 1 + np.arange(2), items[:2], 1.0)[0]  # lists of other rows
    assert loss(ids, items, 0.0)[0] == pytest.approx(own, rel=1e-5)
    whole, lists = loss(ids, items, 1.0)
    assert whole == pytest.approx(lists, rel=1e-5) != pytest.approx(own, rel=1e-3)
    half, lists = loss(ids[:8], items[:8], 0.5)
    assert half == pytest.approx(0.75 * own + 0.25 * lists, rel=1e-5)

"""Batches hold every row once and stay inside their budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.llm.rows import length_batches
from recbole_llm.prompt.batches import epoch_steps, micro_batches
from tests.refusals import refused


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths, budget):
    batches = micro_batches(lengths, budget)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))

    def padded(batch):
        longest = max(lengths[row] for row in batch)
        return len(batch) * longest

    assert all(len(batch) == 1 or padded(batch) <= budget for batch in batches)
    assert [lengths[row] for row in rows] == sorted(lengths)


def test_rows_by_length_waste_less_padding_than_as_they_come():
    lengths = [1, 40] * 10
    assert len(micro_batches(lengths, 80)) < len(length_batches(lengths, 80, "as given"))


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 4), st.integers(0, 5))
def test_an_epoch_visits_every_row_once_in_the_expected_number_of_steps(n_rows, batch_size, window, seed):
    lengths = np.random.default_rng(0).integers(1, 99, n_rows)
    generator = np.random.default_rng(seed)
    steps = epoch_steps(n_rows, batch_size, generator, lengths=lengths, length_window=window)
    assert len(steps) == -(-n_rows // batch_size)
    assert sorted(row for step in steps for row in step) == list(range(n_rows))
    assert sum(len(step) < batch_size for step in steps) == (n_rows % batch_size > 0)


@pytest.mark.parametrize("window", [0, 3])
def test_the_order_follows_the_seed_and_changes_every_epoch(window):
    lengths = np.arange(40) % 7

    def epochs(seed):
        generator = np.random.default_rng(seed)
        return [
            [step.tolist() for step in epoch_steps(40, 8, generator, lengths=lengths, length_window=window)]
            for _ in range(2)
        ]

    assert epochs(1) == epochs(1)
    assert epochs(1) != epochs(2)
    assert epochs(1)[0] != epochs(1)[1]


def test_a_length_window_brings_rows_of_similar_length_together():
    lengths = np.random.default_rng(0).integers(1, 100, 256)

    def spread(window):
        steps = epoch_steps(256, 8, np.random.default_rng(0), lengths=lengths, length_window=window)
        return np.mean([np.ptp(lengths[step]) for step in steps])

    assert spread(16) < spread(4) < spread(0)


def test_sizes_that_cannot_work_name_their_key():
    with refused("micro_batch_tokens", "value", "micro_batch_tokens: 0 is not a positive"):
        micro_batches([1], 0)
    with refused("train_batch_size", "value", "train_batch_size: 0 is not a positive"):
        epoch_steps(3, 0, np.random.default_rng(0))

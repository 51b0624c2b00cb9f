"""The adapter of an LLM that learns nothing."""

from __future__ import annotations

import pytest
import torch

from recbole_llm.adapter.frozen import FrozenAdapter
from tests.families import make_model


def test_nothing_of_a_frozen_llm_is_trained_or_accepted() -> None:
    model = make_model("llama", 64, hidden_size=8, n_layers=1)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    adapter = FrozenAdapter()
    attached = adapter.attach(model)
    assert not any(weight.requires_grad for weight in attached.parameters())
    assert adapter.trainable_groups(attached) == adapter.trainable_state(attached) == {}
    adapter.load_trainable_state(attached, {})
    with pytest.raises(ValueError, match="a frozen LLM has no trained weights, and 1 are given"):
        adapter.load_trainable_state(attached, {"weight": torch.zeros(1)})
    with adapter.untuned(attached) as untuned:
        assert untuned is attached
    assert all(torch.equal(weight, before[name]) for name, weight in attached.named_parameters())

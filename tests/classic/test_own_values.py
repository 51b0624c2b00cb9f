"""What a model changes of itself: found whatever it is, written down and read back as it was."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from recbole_llm.classic.own_values import OwnValues, pack, unpack

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
SHAPES = st.lists(st.integers(0, 3), max_size=3)
TENSORS = st.builds(torch.zeros, SHAPES) | st.builds(lambda shape: torch.ones(shape, dtype=torch.int64), SHAPES)
ARRAYS = st.builds(lambda shape: np.full(shape, 7, dtype=np.uint8), SHAPES)
VALUES = st.recursive(
    PLAIN | TENSORS | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, and of one kind all through."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(value, other[key]) for key, value in one.items())
    return bool(one == other)


@given(VALUES)
def test_a_value_comes_back_as_it_was(value):
    tensors: dict[str, torch.Tensor] = {}
    told = json.loads(json.dumps(pack(value, "x", tensors)))
    assert same(unpack(told, tensors, "cpu"), value)


def test_graphs_and_generators_come_back():
    graph = torch.sparse_coo_tensor(torch.tensor([[0, 0, 2], [1, 1, 0]]), torch.tensor([1.0, 2.0, 3.0]), (3, 2))
    tensors: dict[str, torch.Tensor] = {}
    draws = torch.Generator().manual_seed(5)
    torch.rand(3, generator=draws)
    told = json.loads(json.dumps(pack([graph, graph.coalesce(), draws], "x", tensors)))
    loose, tight, other = unpack(told, tensors, "cpu")
    assert not loose.is_coalesced() and loose._nnz() == 3 and torch.equal(loose.to_dense(), graph.to_dense())
    assert tight.is_coalesced() and torch.equal(tight.to_dense(), graph.to_dense())
    assert torch.equal(torch.rand(4, generator=other), torch.rand(4, generator=draws))


@pytest.mark.parametrize("value", [{1, 2}, torch.zeros(1, dtype=torch.complex64), object(), np.array(["a"], object)])
def test_what_cannot_be_written_down_is_said(value):
    with pytest.raises(TypeError, match="^graph/0: a "):
        pack([value], "graph", {})


class Part(nn.Module):
    """Changes itself in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.steps, self.table = nn.Parameter(torch.zeros(2)), 0, np.zeros(3)
        self.known, self.draws, self.seen = torch.zeros(2), torch.Generator().manual_seed(1), [1]
        self.register_buffer("kept", torch.zeros(1))
        self.register_buffer("aside", torch.zeros(1), persistent=False)

    def change(self, what: str) -> None:
        """Change one attribute."""
        changes = {
            "steps": lambda: setattr(self, "steps", 2),
            "table": lambda: self.table.__setitem__(1, 5.0),
            "known": lambda: self.known.add_(1),
            "draws": lambda: torch.rand(1, generator=self.draws),
            "seen": lambda: self.seen.append(3),
            "aside": lambda: self.aside.add_(2),
            "later": lambda: setattr(self, "later", torch.ones(1)),
        }
        changes[what]()


@given(st.sets(st.sampled_from(["steps", "table", "known", "draws", "seen", "aside", "later"])))
def test_what_has_changed_is_found_and_put_into_another_model(changed):
    models = [nn.Sequential(Part(), nn.Linear(1, 1)) for _ in range(2)]
    owns = [OwnValues(model) for model in models]
    for what in changed:
        models[0][0].change(what)
    with torch.no_grad():
        models[0][0].weight.add_(1)
        models[0][0].kept.add_(1)  # weights and what is saved with them are held elsewhere
    found = owns[0].changed()
    assert set(found) == {f"0.{what}" for what in changed}
    tensors: dict[str, torch.Tensor] = {}
    told = {name: pack(value, name, tensors) for name, value in found.items()}
    owns[1].restore({name: unpack(value, tensors, "cpu") for name, value in told.items()})
    for what in changed - {"draws"}:
        assert same(getattr(models[1][0], what), getattr(models[0][0], what))
    drawn = [torch.rand(2, generator=model[0].draws) for model in models]
    assert torch.equal(*drawn)

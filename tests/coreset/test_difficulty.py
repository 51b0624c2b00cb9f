"""EL2N and GraNd against numbers worked out by hand and one backward pass per row."""

import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recbole_llm.coreset import el2n as el2n_module
from recbole_llm.coreset import el2n_scores, grand_scores, parameter_losses
from recbole_llm.coreset import grand as grand_module
from tests.refusals import refused

ITEMS = np.array([[1.0, 0], [0, 1], [-1, 1], [0.5, 0.5]])
STATES = np.array([[1.0, 0], [0, 2], [1, 1]])
TARGETS = np.array([0, 2, 3])


def test_el2n_numbers(monkeypatch):
    expected = [0.627579843575, 0.738056264915, 0.826181239309]
    logits = STATES @ ITEMS.T
    np.testing.assert_allclose(el2n_scores(logits, TARGETS), expected, atol=1e-8)
    monkeypatch.setattr(el2n_module, "_BLOCK_ELEMENTS", 8)
    tensor = el2n_scores(torch.tensor(logits, requires_grad=True), torch.tensor(TARGETS))
    np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-8)
    single = el2n_scores(logits.astype(np.float32), TARGETS)
    assert single.dtype == np.float64
    padding = np.concatenate([np.full((3, 1), -np.inf), logits], axis=1)  # an item that cannot be the answer
    np.testing.assert_allclose(el2n_scores(padding, TARGETS + 1), expected, atol=1e-8)
    assert el2n_scores(np.array([[800.0, 0]]), [0]).tolist() == [0]


def test_el2n_times_the_state_is_the_gradient_of_the_output_matrix():
    def losses(params, batch):
        return F.cross_entropy(batch["state"] @ params.T, batch["target"], reduction="none")

    batch = {"state": torch.tensor(STATES), "target": torch.tensor(TARGETS)}
    norms = grand_scores(losses, torch.tensor(ITEMS), batch)
    np.testing.assert_allclose(norms, [0.627579843575, 1.476112529830, 1.168396713609], atol=1e-8)
    np.testing.assert_allclose(
        norms, el2n_scores(STATES @ ITEMS.T, TARGETS) * np.linalg.norm(STATES, axis=1), atol=1e-12
    )


class Tied(nn.Module):
    """The item table is input and output at once."""

    def __init__(self):
        super().__init__()
        self.items = nn.Embedding(9, 4)
        self.dense = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def losses(self, batch):
        state = self.norm(self.dense(self.items(batch["history"]).mean(dim=1)))
        return F.cross_entropy(state @ self.items.weight.T, batch["target"], reduction="none")


def test_grand_of_all_weights_equals_one_backward_pass_per_row(monkeypatch):
    torch.manual_seed(0)
    model = Tied().double().eval()
    batch = {"history": torch.randint(0, 9, (7, 3)), "target": torch.randint(0, 9, (7,))}
    names = [name for name, _ in model.named_parameters()]
    params, losses = parameter_losses(model, names, lambda model, batch: model.losses(batch))
    gradients = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in model.losses(batch)]
    expected = [sum(part.square().sum().item() for part in row) ** 0.5 for row in gradients]
    np.testing.assert_allclose(grand_scores(losses, params, batch), expected, rtol=1e-12)
    monkeypatch.setattr(grand_module, "_CHUNK_ELEMENTS", 2 * len(params))
    np.testing.assert_allclose(grand_scores(losses, params, batch), expected, rtol=1e-12)


def test_a_recurrent_network_is_done_row_by_row(caplog):
    torch.manual_seed(0)
    model = nn.ModuleDict({"table": nn.Embedding(9, 4), "gru": nn.GRU(4, 4, batch_first=True)}).double().eval()

    def loss(model, batch):
        state = model["gru"](model["table"](batch["history"]))[0][:, -1]
        return F.cross_entropy(state @ model["table"].weight.T, batch["target"], reduction="none")

    batch = {"history": torch.randint(0, 9, (5, 3)), "target": torch.randint(0, 9, (5,))}
    params, losses = parameter_losses(model, [name for name, _ in model.named_parameters()], loss)
    gradients = [torch.autograd.grad(row, list(model.parameters()), retain_graph=True) for row in loss(model, batch)]
    expected = [sum(part.square().sum().item() for part in row) ** 0.5 for row in gradients]
    with caplog.at_level(logging.INFO):
        np.testing.assert_allclose(grand_scores(losses, params, batch), expected, rtol=1e-12)
    assert "one backward pass per row" in caplog.text


def test_wrong_input_is_named():
    with refused("EL2N", "value", "target 4 is no item: ids go from 0 to 3"):
        el2n_scores(STATES @ ITEMS.T, [0, 4, 1])
    with refused("EL2N", "numeric", "hold NaN"):
        el2n_scores(np.array([[np.nan, 1]]), [0])
    with pytest.raises(ValueError, match="are needed"):
        el2n_scores(np.zeros((2, 3)), [0])

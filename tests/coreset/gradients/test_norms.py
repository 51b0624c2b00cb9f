"""Norms from one backward pass equal those from one backward pass per row, for every family and any batch."""

import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from recbole_llm.adapter import LoraAdapter
from recbole_llm.coreset import GradientNorms, effort_scores, effort_weights, losses_per_row
from recbole_llm.coreset.gradients.recorder import linear_square_norms
from recbole_llm.llm import answer_log_probs
from tests.families import FAMILIES, make_family
from tests.refusals import refused

LENGTHS = [(9, 3), (4, 1), (12, 5), (6, 2), (9, 2)]  # prompt and answer tokens of five rows

# Of models in double precision, which compute norms and probabilities in single precision all the same.
DOUBLE = 1e-6


def one_by_one(model, losses, names=None):
    """One backward pass per row, of the row alone."""
    own = dict(model.named_parameters())
    weights = [own[name] for name in names or [name for name, weight in own.items() if weight.requires_grad]]
    norms = []
    for row in losses:
        gradients = torch.autograd.grad(row(), weights, allow_unused=True)
        norms.append(sum(float(g.double().square().sum()) for g in gradients if g is not None) ** 0.5)
    return np.array(norms)


@pytest.fixture(params=FAMILIES)
def llm(request):
    """An LLM with LoRA whose B has left zero, and five rows."""
    model, tokenizer = make_family(request.param)
    model = LoraAdapter(r=3, dropout=0.3).attach(model)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    return model.eval(), [(torch.randint(10, 300, (p,)), torch.randint(10, 300, (a,))) for p, a in LENGTHS]


def padded(rows, side="left", extra=0):
    """Input ids, mask and labels."""
    width = max(len(p) + len(a) for p, a in rows) + extra
    table = torch.zeros(3, len(rows), width, dtype=torch.long)
    table[2] = -100
    for place, (prompt, answer) in enumerate(rows):
        length = len(prompt) + len(answer)
        where = slice(width - length, width) if side == "left" else slice(0, length)
        labels = torch.cat([torch.full_like(prompt, -100), answer])
        table[:, place, where] = torch.stack([torch.cat([prompt, answer]), torch.ones(length).long(), labels])
    return table


def answer_losses(model, batch):
    log_probs, rows = answer_log_probs(model, *batch)
    return losses_per_row(-log_probs, rows, batch.shape[1])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, DOUBLE), (torch.float32, 1e-5)])
def test_lora_of_every_family(llm, dtype, tolerance):
    model, rows = llm
    model = model.to(dtype)
    expected = one_by_one(model, [lambda row=row: answer_losses(model, padded([row]))[0] for row in rows])
    whole = GradientNorms(model)(lambda: answer_losses(model, padded(rows)))
    np.testing.assert_allclose(whole, expected, rtol=tolerance)
    assert whole.dtype == torch.float64


def test_batches_padding_and_order_change_nothing(llm):
    model, rows = llm
    model = model.double()
    expected = effort_scores(model, answer_losses, [padded(rows)])
    for batches in (
        [padded([row]) for row in rows],
        [padded(rows[:2], extra=7), padded(rows[2:])],
        [padded(rows, side="right", extra=3)],
    ):
        np.testing.assert_allclose(effort_scores(model, answer_losses, batches), expected, rtol=DOUBLE)
    order = [3, 1, 4, 0, 2]
    moved = effort_scores(model, answer_losses, [padded([rows[place] for place in order])])
    np.testing.assert_allclose(moved, expected[order], rtol=DOUBLE)
    assert effort_scores(model, answer_losses, []).shape == (0,)


def test_the_model_is_left_as_it_was(llm):
    model, rows = llm
    model.train()
    before = {name: (weight.clone(), weight.requires_grad) for name, weight in model.named_parameters()}
    first = effort_scores(model, answer_losses, [padded(rows)])
    assert model.training and all(module.training for module in model.modules())
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name][0]) and weight.requires_grad == before[name][1]
        assert weight.grad is None
    np.testing.assert_array_equal(effort_scores(model, answer_losses, [padded(rows)]), first)  # no dropout
    assert not any(module._forward_hooks for module in model.modules() if isinstance(module, nn.Linear))


def test_chosen_weights(llm):
    model, rows = llm
    model = model.double()
    everything = effort_weights(model)
    assert everything == [name for name, weight in model.named_parameters() if weight.requires_grad]
    last, reference = effort_weights(model, "last"), effort_weights(model, "reference")
    assert all(".1." in name for name in last) and len(last) == len(everything) // 2
    assert len(reference) == 1 and "lora_B" in reference[0] and ("v_proj" in reference[0] or "c_attn" in reference[0])
    singles = [lambda row=row: answer_losses(model, padded([row]))[0] for row in rows]
    for names in (last, reference):
        found = effort_scores(model, answer_losses, [padded(rows)], names)
        np.testing.assert_allclose(found, one_by_one(model, singles, names), rtol=DOUBLE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("which", ["all", "last"])
def test_a_below_a_b_of_zeros_is_skipped_and_nothing_is_missed(family, which):
    """Its gradient is exactly 0, as a pass of each row's own shows; once B has left zero, it counts."""
    model, _ = make_family(family)
    model = LoraAdapter(r=3, dropout=0.0).attach(model.double()).double().eval()
    torch.manual_seed(1)
    rows = [(torch.randint(10, 300, (p,)), torch.randint(10, 300, (a,))) for p, a in LENGTHS]
    singles = [lambda row=row: answer_losses(model, padded([row]))[0] for row in rows]
    kept = effort_weights(model, which)
    both = [name for b in kept for name in (b.replace("lora_B", "lora_A"), b)]
    assert kept and all(".lora_B." in name for name in kept)
    assert (one_by_one(model, singles, [name for name in both if "lora_A" in name]) == 0).all()
    expected = one_by_one(model, singles, both)
    np.testing.assert_allclose(effort_scores(model, answer_losses, [padded(rows)], kept), expected, rtol=DOUBLE)
    with torch.no_grad():
        dict(model.named_parameters())[kept[0]].add_(0.1)
    assert set(effort_weights(model, which)) - set(kept) == {kept[0].replace("lora_B", "lora_A")}


def test_layers_below_the_lowest_weight_keep_no_graph(llm):
    """So that they cost a forward pass without memory."""
    model, rows = llm
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    needed = []
    for layer in layers:
        layer.register_forward_hook(
            lambda _layer, _args, output: needed.append(
                torch.as_tensor(output[0] if isinstance(output, tuple) else output).requires_grad
            )
        )
    effort_scores(model, answer_losses, [padded(rows)], effort_weights(model, "last"))
    assert needed == 2 * [False, True]  # the first batch is checked


def test_other_weights_are_done_row_by_row_and_the_log_says_so(llm, caplog):
    model, rows = llm
    model = model.double()
    names = [
        name
        for name, weight in model.named_parameters()
        if weight.requires_grad
        or "norm" in name
        or "ln_" in name
        or "embed" in name
        or "wte" in name
        or "lm_head" in name
    ]
    singles = [lambda row=row: answer_losses(model, padded([row]))[0] for row in rows]
    expected = one_by_one(model.requires_grad_(True), singles, names)
    with caplog.at_level(logging.INFO):
        norms = GradientNorms(model, names)
        for _ in range(2):
            found = norms(lambda: answer_losses(model, padded(rows)))
            np.testing.assert_allclose(found, expected, rtol=DOUBLE)
        alone = [lambda row=row: answer_losses(model, padded([row])) for row in rows]
        found = norms(lambda: answer_losses(model, padded(rows)), alone)
        np.testing.assert_allclose(found, expected, rtol=DOUBLE)
    assert caplog.text.count("one backward pass per row") <= 2 and "one backward pass per row" in caplog.text


class Mixed(nn.Module):
    """Linear maps used in every way: with bias, twice, tied, transposed, on many dimensions, changed in place."""

    def __init__(self, d=6):
        super().__init__()
        self.first = nn.Linear(d, d)
        self.conv = Conv1D(d, d)
        self.twice = nn.Linear(d, d, bias=False)
        self.tied = nn.Linear(d, d, bias=False)
        self.tied.weight = self.twice.weight
        self.wide = nn.Linear(d, 40)
        self.out = nn.Linear(40, 1)
        self.idle = nn.Linear(d, d)

    def losses(self, x):
        x = F.relu(self.first(x), inplace=True)
        x = self.tied(self.twice(self.conv(x).tanh()).tanh()) + self.twice(x)
        pairs = x[:, :, None] * x[:, None]
        return self.out(self.wide(pairs).tanh().mean(dim=(1, 2))).squeeze(1).square()


@pytest.mark.parametrize("length", [1, 3, 30])
def test_every_use_of_a_linear_map(length):
    torch.manual_seed(0)
    model = Mixed().double()
    x = torch.randn(4, length, 6).double()
    expected = one_by_one(model, [lambda row=row: model.losses(x[row : row + 1])[0] for row in range(4)])
    np.testing.assert_allclose(GradientNorms(model)(lambda: model.losses(x)), expected, rtol=1e-10)


def test_a_row_alone_is_run_once_and_never_among_the_others():
    """One pass for the linear maps of the batch, its check, and then a pass of one row for each row."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 1)).double()
    tokens, seen = torch.randint(9, (5, 3)), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))

    def losses(rows):
        return model(rows).sum(dim=(1, 2)).square()

    alone = [lambda row=row: losses(tokens[row : row + 1]) for row in range(5)]
    expected = one_by_one(model, [lambda own=own: own()[0] for own in alone])
    seen.clear()
    found = GradientNorms(model)(lambda: losses(tokens), alone)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert seen == [5, 5, 1, 1, 1, 1, 1]


def test_a_layer_that_does_not_see_the_rows_is_done_row_by_row(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)).double()
    x = torch.randn(3, 5, 4).double()

    def losses(x):
        hidden = model[0](x.reshape(-1, 4)).tanh()
        return model[1](hidden.reshape(len(x), -1, 4)).sum(dim=(1, 2)).square()

    expected = one_by_one(model, [lambda row=row: losses(x[row : row + 1])[0] for row in range(3)])
    norms = GradientNorms(model)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            np.testing.assert_allclose(norms(lambda: losses(x)), expected, rtol=1e-10)
    assert (
        caplog.text.count(
            "2 parameters are not per-row linear layers; using one backward pass per row (first: 0.weight"
        )
        == 1
    )


class Routed(nn.Module):
    """A layer sees those tokens alone whose first number is above 0."""

    def __init__(self):
        super().__init__()
        self.expert, self.out = nn.Linear(4, 4), nn.Linear(4, 1)
        self.out.requires_grad_(False)

    def losses(self, x):
        flat = x.reshape(-1, 4)
        sent = flat[:, 0] > 0
        found = torch.zeros_like(flat).masked_scatter(sent[:, None], self.expert(flat[sent]).tanh())
        return self.out(found.reshape(x.shape)).sum(dim=(1, 2)).square()


@pytest.mark.parametrize("aligned", [0, 1, 2])
def test_an_expert_that_sees_as_many_tokens_as_there_are_rows_is_done_row_by_row(aligned, caplog):
    """Though in the batches before it saw one token of each row."""
    torch.manual_seed(0)
    model = Routed().double()
    norms = GradientNorms(model)
    for sent in [[[1, 0], [0, 1], [1, 0]]] * aligned + [[[1, 0], [0, 0], [1, 1]]]:
        x = torch.randn(3, 2, 4).double()
        x[..., 0] = 2 * torch.tensor(sent) - 1
        expected = one_by_one(model, [lambda row=row, x=x: model.losses(x[row : row + 1])[0] for row in range(3)])
        with caplog.at_level(logging.INFO):
            np.testing.assert_allclose(norms(lambda x=x: model.losses(x)), expected, rtol=1e-10)
    assert caplog.text.count("one backward pass per row") == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_layer_that_sees_the_rows_second_is_done_row_by_row(dtype, caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 1)).to(dtype)
    x = torch.randn(3, 3, 4, dtype=dtype)

    def losses(x):
        moved = model[2](model[:2](x).transpose(0, 1)).transpose(0, 1)
        return model[3](moved.tanh()).sum(dim=(1, 2)).square()

    expected = one_by_one(model, [lambda row=row: losses(x[row : row + 1])[0] for row in range(3)])
    with caplog.at_level(logging.INFO):
        found = GradientNorms(model)(lambda: losses(x))
    np.testing.assert_allclose(found, expected, rtol={torch.float64: 1e-10, torch.float32: 1e-5}.get(dtype, 0.05))
    assert "2 parameters are not per-row linear layers" in caplog.text and "(first: 2.weight)" in caplog.text


def test_only_the_first_batches_are_run_twice():
    """One, or three where inputs are [rows, q]; batches of one row need no check."""
    for shape, passes in (((3, 2, 4), [1, 2, 1, 1, 1, 1]), ((3, 4), [1, 2, 2, 2, 1, 1])):
        model, calls, counted = nn.Linear(4, 1), [], []
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        norms = GradientNorms(model)
        for n_rows in (1, 3, 3, 3, 3, 3):
            calls.clear()
            x = torch.randn(n_rows, *shape[1:])
            norms(lambda x=x, model=model: model(x).flatten(1).sum(dim=1).square())
            counted.append(len(calls))
        assert counted == passes


def test_low_rank_numbers():
    a = torch.tensor([[1.0, 0, -1], [0.5, 0.5, 0]])
    inputs = torch.tensor([[1.0, 2, 0], [0, 1, 1], [2, 0, 1]]) @ a.T
    gradients = 2 * torch.tensor([[0.1, -0.2], [0.3, 0], [-0.1, 0.4]])
    assert linear_square_norms(inputs[None], gradients[None]).item() == pytest.approx(0.72, abs=1e-6)


@pytest.mark.parametrize("length, p, q", [(2, 50, 60), (80, 5, 6), (1, 1, 1)])
def test_both_forms_equal_the_gradient_itself(length, p, q):
    torch.manual_seed(0)
    inputs, gradients = torch.randn(3, length, q).double(), torch.randn(3, length, p).double()
    expected = torch.einsum("rtp,rtq->rpq", gradients, inputs).square().sum(dim=(1, 2))
    torch.testing.assert_close(linear_square_norms(inputs, gradients), expected)


def test_position_wise_numbers():
    model = nn.Linear(2, 2).double()
    model.weight.data = torch.tensor([[0.5, -0.2], [0.1, 0.3]]).double()
    model.bias.data = torch.tensor([0.1, -0.1]).double()
    c = torch.tensor([[[1.0, 0], [0.5, -1]], [[2, 1], [9, 9]]]).double()
    mask = torch.tensor([[1.0, 1], [1, 0]])

    def losses():
        tokens = F.softplus(-(model(c).tanh() @ torch.tensor([1.0, -2]).double()))
        return (tokens * mask).sum(dim=1) / mask.sum(dim=1)

    np.testing.assert_allclose(losses().detach(), [0.364891705297, 0.715184809489], atol=1e-7)
    found = GradientNorms(model, ["weight"])(losses)
    np.testing.assert_allclose(found, [0.553968170126, 2.032566135811], atol=1e-7)


def test_losses_per_row():
    tokens, rows = torch.tensor([1.0, 2, 6]), torch.tensor([0, 2, 2])
    assert losses_per_row(tokens, rows, 4).tolist() == [1, 0, 4, 0]
    assert losses_per_row(tokens, rows, 4, mean=False).tolist() == [1, 0, 8, 0]


def test_wrong_input_is_named():
    model = nn.Linear(2, 1)
    with refused("", "unknown", "no weight 'wait'"):
        GradientNorms(model, ["wait"])
    with refused("", "missing", "no weight is trainable"):
        GradientNorms(nn.Linear(2, 1).requires_grad_(False))
    with refused("", "numeric", "1 of 2 rows of a batch have a loss of NaN or infinity .first 1"):
        GradientNorms(model)(lambda: model(torch.tensor([[1.0, 2], [torch.nan, 2]])).squeeze(1))
    with refused("", "numeric", "gradients of a batch hold NaN"):
        GradientNorms(model)(lambda: (model(torch.ones(2, 2)).squeeze(1) * 0).sqrt())
    with pytest.raises(ValueError, match="losses must be"):
        GradientNorms(model)(lambda: model(torch.ones(2, 2)))
    with refused("", "conflict", "no trainable ones for 'reference'"):
        effort_weights(nn.Sequential(nn.Linear(2, 1)), "reference")
    with refused("", "value", "'first' is not allowed"):
        effort_weights(model, "first")

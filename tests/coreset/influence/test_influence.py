"""Influence against numbers worked out by hand, one backward pass per row, and retraining without a row."""

import copy
import logging
from importlib import import_module

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import nn
from torch.nn import functional as F

from recbole_llm.coreset import MeanLoss, influence_scores, inverse_hvp, parameter_losses, row_influence
from recbole_llm.coreset.influence.derivative import StagedLosses
from recbole_llm.coreset.influence.losses import frozen
from tests.members import in_threads
from tests.refusals import refused

DOUBLE = {"dtype": torch.float64}
X = torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, -1], [-1, 1]], **DOUBLE)
Y = torch.tensor([1.0, 2, 2, 1, 0], **DOUBLE)
THETA = torch.tensor([0.5, 0.5], **DOUBLE)


def ridge(theta, rows):
    return 0.5 * (X[rows] @ theta - Y[rows]) ** 2 + 0.05 * theta.square().sum()


def logistic(theta, batch, decay=0.05):
    features, labels = batch
    return F.softplus((1 - 2 * labels) * (features @ theta)) + 0.5 * decay * theta.square().sum()


def plain_logistic(theta, batch):
    return logistic(theta, batch, decay=0.0)


def waves(first, last):
    i = torch.arange(first, last, **DOUBLE)
    features = torch.stack([torch.ones_like(i), i.sin(), (1.7 * i).cos()], dim=1)
    return features, ((3 * i).sin() + 0.5 * i.sin() > 0).double()


def fit(batch, keep=None, start=None):
    """Newton's method."""
    features, labels = batch if keep is None else (batch[0][keep], batch[1][keep])
    theta = torch.zeros(features.shape[1], **DOUBLE) if start is None else start
    for _ in range(15 if start is None else 6):
        loss = MeanLoss(logistic, theta, [(features, labels)])
        theta = theta - torch.linalg.solve(loss.hessian(), loss.gradient())
    return theta


def one_by_one(losses, params, batch):
    """Gradients ``[n, m]`` by one backward pass per row."""
    point = params.clone().requires_grad_()
    rows = losses(point, batch)
    return torch.stack([torch.autograd.grad(row, point, retain_graph=True)[0].reshape(-1) for row in rows])


def test_ridge_numbers():
    train = MeanLoss(ridge, THETA, [[0, 1, 2], [3, 4]])
    torch.testing.assert_close(train.gradient(), torch.tensor([-0.45, -0.35], **DOUBLE))
    torch.testing.assert_close(train.hessian(), torch.tensor([[1.5, -0.4], [-0.4, 0.9]], **DOUBLE))
    torch.testing.assert_close(train.hessian(chunk_size=1), train.hessian())
    h = inverse_hvp(train.hvp, train.gradient())
    expected = [0.176470588235, 0.836134453782, 0.997899159664, 0.109243697479, -0.052521008403]
    np.testing.assert_allclose(influence_scores(lambda p: ridge(p, slice(None)), THETA, h), expected, atol=1e-8)
    np.testing.assert_allclose(train.scores(h), expected, atol=1e-8)
    whole = row_influence(train, damping=0.0)
    np.testing.assert_allclose(whole.scores, np.array(expected) / 5, atol=1e-8)
    assert whole.largest_eigenvalue == pytest.approx(1.7) and whole.gradient_norm == pytest.approx(0.570087712550)
    damped = [0.158680555556, 0.724652777778, 0.877430555556, 0.106597222222, -0.046180555556]
    for method in ("cg", "exact", "lissa"):
        np.testing.assert_allclose(row_influence(train, method=method, damping=0.1).scores * 5, damped, atol=1e-8)
        by_ratio = row_influence(train, method=method, damping_ratio=0.1 / 1.7)
        np.testing.assert_allclose(by_ratio.scores * 5, damped, atol=1e-7)
        assert by_ratio.damping == pytest.approx(0.1)


def test_at_the_minimum_of_the_same_loss_all_influence_is_zero(caplog):
    theta = torch.linalg.solve(X.T @ X / 5 + 0.1 * torch.eye(2, **DOUBLE), X.T @ Y / 5)
    with caplog.at_level(logging.WARNING):
        for dtype in (torch.float64, torch.float32):
            found = row_influence(MeanLoss(ridge_of(dtype), theta.to(dtype), [[0, 1], [2, 3, 4]]))
            assert not found.scores.any() and 0 < found.gradient_norm < 1e-6
    assert caplog.text.count("stationary point") == 2
    off = theta + 1e-4
    for dtype in (torch.float64, torch.float32):
        assert row_influence(MeanLoss(ridge_of(dtype), off.to(dtype), [slice(None)])).scores.all()


def ridge_of(dtype):
    x, y = X.to(dtype), Y.to(dtype)
    return lambda theta, rows: 0.5 * (x[rows] @ theta - y[rows]) ** 2 + 0.05 * theta.square().sum()


def test_gradient_size_is_the_root_mean_square_of_the_rows_norms():
    rng = np.random.default_rng(1)
    features = torch.from_numpy(rng.normal(size=(400, 300)))
    loss = MeanLoss(
        lambda theta, rows: (features[rows] @ theta).exp(), torch.zeros(300, **DOUBLE), [slice(0, 9), slice(9, 400)]
    )
    assert loss.gradient_size() == pytest.approx(float(features.square().sum(dim=1).mean().sqrt()), rel=0.1)


def test_logistic_numbers_and_leaving_one_out():
    train, valid = waves(0, 60), waves(100, 120)
    theta = fit(train)
    np.testing.assert_allclose(theta, [0.044215506091, 0.508621706996, -0.082336596329], atol=1e-10)
    loss = MeanLoss(logistic, theta, [train])
    np.testing.assert_allclose(loss.hessian()[0], [0.291756265992, 0.006479601179, 0.003775506165], atol=1e-10)
    target = MeanLoss(plain_logistic, theta, [valid])
    np.testing.assert_allclose(target.gradient(), [0.05664602939, -0.055216396423, -0.002061927303], atol=1e-10)
    scores = row_influence(loss, target, damping=0.0).scores.numpy()
    expected = [0.001345945825, 0.000363781637, 0.000363832831, -0.001303146684, 0.002774812498]
    np.testing.assert_allclose(scores[:5], expected, atol=1e-9)

    before = plain_logistic(theta, valid).mean()
    without = [fit(train, torch.arange(60) != row, theta) for row in range(60)]
    true = np.array([float(plain_logistic(other, valid).mean() - before) for other in without])
    expected = [0.001652708064, 0.000484327061, 0.000565330352, -0.001216646483, 0.003117147185]
    np.testing.assert_allclose(true[:5], expected, atol=1e-9)
    assert pearsonr(scores, true)[0] == pytest.approx(0.99905, abs=1e-5)
    assert np.polyfit(scores, true, 1)[0] == pytest.approx(1.0087, abs=1e-4)
    assert scores.argmax() == true.argmax() == 24
    assert spearmanr(scores, true)[0] >= 0.95


@pytest.mark.parametrize("seed", [0, 1])
def test_rank_correlation_with_retraining_on_another_convex_model(seed):
    """Noisy labels, eight features, the default damping: influence on validation tells which rows helped."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=8)

    def rows(count):
        features = rng.normal(size=(count, 8))
        labels = features @ weights + rng.normal(size=count) > 0
        return torch.tensor(features), torch.tensor(labels).double()

    train, valid = rows(80), rows(40)
    theta = fit(train)
    scores = row_influence(MeanLoss(logistic, theta, [train]), MeanLoss(plain_logistic, theta, [valid])).scores
    refitted = [fit(train, torch.arange(80) != row, theta) for row in range(80)]
    true = [float(plain_logistic(other, valid).mean()) for other in refitted]
    assert spearmanr(scores, true)[0] >= 0.95


def tail(weight, batch):
    """Position-wise tail of a network: z = W c + b, loss softplus(-a . tanh z), mean over a row's tokens."""
    c, mask = batch
    z = c @ weight.T + torch.tensor([0.1, -0.1], **DOUBLE)
    losses = F.softplus(-(z.tanh() @ torch.tensor([1.0, -2], **DOUBLE))) * mask
    return losses.sum(dim=1) / mask.sum(dim=1)


def test_position_wise_numbers_with_any_padding():
    weight = torch.tensor([[0.5, -0.2], [0.1, 0.3]], **DOUBLE)
    direction = torch.tensor([[1.0, 2], [-1, 0.5]], **DOUBLE)
    for width in (2, 5):
        c = torch.full((2, width, 2), 9.0, **DOUBLE)
        c[0, :2], c[1, :1] = torch.tensor([[1.0, 0], [0.5, -1]]), torch.tensor([[2.0, 1]])
        mask = torch.arange(width) < torch.tensor([[2], [1]])
        batch = (c, mask)
        np.testing.assert_allclose(tail(weight, batch), [0.364891705297, 0.715184809489], atol=1e-11)
        scores = influence_scores(lambda w, batch=batch: tail(w, batch), weight, direction)
        np.testing.assert_allclose(scores, [-0.576840403172, -2.306494154061], atol=1e-11)
        gradients = one_by_one(tail, weight, batch)
        np.testing.assert_allclose(scores, gradients @ direction.reshape(-1), atol=1e-12)
        np.testing.assert_allclose(gradients.norm(dim=1), [0.553968170126, 2.032566135811], atol=1e-11)
        hvp = MeanLoss(tail, weight, [batch]).hvp(direction)
        expected = [[2.135342679678, 1.031921745739], [-1.310814476455, -0.344528708275]]
        np.testing.assert_allclose(hvp, expected, atol=1e-10)


class TinyAttention(nn.Module):
    """A sequential recommender in small: attention, its output projection, layer norm, tied item table."""

    def __init__(self, items=12, d=8):
        super().__init__()
        self.items = nn.Embedding(items, d)
        self.project = nn.Linear(d, 3 * d)
        self.dense = nn.Linear(d, d)
        self.norm = nn.LayerNorm(d)
        self.dropout = nn.Dropout(0.5)

    def losses(self, batch):
        x = self.items(batch["history"])
        query, key, value = self.project(x).chunk(3, dim=-1)
        mask = (batch["history"] > 0)[:, None, :].expand(-1, x.shape[1], -1)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        state = self.norm(self.dropout(self.dense(context)) + x)[:, 0]
        return F.cross_entropy(state @ self.items.weight.T, batch["target"], reduction="none")


@pytest.fixture
def recommender():
    torch.manual_seed(0)
    model = TinyAttention().double().eval()
    history = torch.randint(1, 12, (30, 5))
    history[::3, 3:] = 0
    return model, {"history": history, "target": torch.randint(1, 12, (30,))}


def batches_of(batch, sizes):
    return [
        dict(zip(batch, parts, strict=True)) for parts in zip(*(v.split(sizes) for v in batch.values()), strict=True)
    ]


@pytest.mark.parametrize("names", [["dense.weight"], ["dense.weight", "norm.bias", "items.weight"]])
def test_a_network_agrees_with_one_backward_pass_per_row(recommender, names):
    model, batch = recommender
    params, losses = parameter_losses(model, names, lambda model, batch: model.losses(batch))
    assert params.shape == (sum(dict(model.named_parameters())[name].numel() for name in names),)
    gradients = one_by_one(losses, params, batch)
    direction = torch.randn_like(params)
    whole, parts = (MeanLoss(losses, params, batches_of(batch, sizes)) for sizes in (30, [7, 1, 22]))
    for loss in (whole, parts):
        torch.testing.assert_close(loss.gradient(), gradients.mean(dim=0), atol=1e-12, rtol=0)
        torch.testing.assert_close(loss.scores(direction), gradients @ direction, atol=1e-12, rtol=0)
        torch.testing.assert_close(loss.hvp(direction), whole.hessian() @ direction, atol=1e-10, rtol=0)
    hessian = whole.hessian()
    torch.testing.assert_close(hessian, hessian.T, atol=1e-12, rtol=0)
    one = 2 * direction + 3 * params
    torch.testing.assert_close(whole.scores(one), 2 * whole.scores(direction) + 3 * whole.scores(params))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_influence_follows_a_permutation_and_not_the_batches(recommender):
    model, batch = recommender
    params, losses = parameter_losses(model, ["dense.weight"], lambda model, batch: model.losses(batch))
    settings = {"damping_ratio": 2.0}
    scores = row_influence(MeanLoss(losses, params, batches_of(batch, 8)), **settings).scores
    order = torch.randperm(30)
    moved = {name: values[order] for name, values in batch.items()}
    torch.testing.assert_close(
        row_influence(MeanLoss(losses, params, batches_of(moved, 13)), **settings).scores,
        scores[order],
        rtol=1e-6,
        atol=1e-9,
    )
    for method in ("exact", "lissa"):
        other = row_influence(MeanLoss(losses, params, batches_of(batch, 30)), method=method, **settings).scores
        torch.testing.assert_close(other, scores, rtol=1e-5, atol=1e-9)


def test_sampled_steps_use_the_sample(recommender):
    model, batch = recommender
    params, losses = parameter_losses(model, ["dense.weight"], lambda model, batch: model.losses(batch))
    rows = batches_of(batch, 1)
    loss = MeanLoss(losses, params, batches_of(batch, 30), sample=lambda step: rows[step % 30])
    direction = torch.randn_like(params)
    steps = torch.stack([loss.hvp(direction, step=step) for step in range(30)])
    torch.testing.assert_close(steps.mean(dim=0), loss.hvp(direction))
    assert not torch.allclose(steps[0], steps[1])


@pytest.mark.parametrize("gathered", [1, 2**24])
@pytest.mark.parametrize("count", [2, 3])
def test_processes_that_share_the_batches_find_what_one_finds(recommender, count, gathered, monkeypatch):
    """To the bit, however many batches they tell one another of at once; each computes its own alone."""
    shared, batch = recommender
    module = import_module("recbole_llm.coreset.influence.mean_loss")
    monkeypatch.setattr(module, "GATHERED", gathered)
    direction = torch.linspace(-1, 1, shared.dense.weight.numel(), **DOUBLE)
    batches = batches_of(batch, [7, 1, 9, 4, 9])

    def find():
        computed, model = [], copy.deepcopy(shared)

        def counting(model, batch):
            computed.append(len(batch["target"]))
            return model.losses(batch)

        params, losses = parameter_losses(model, ["dense.weight"], counting)
        loss = MeanLoss(losses, params, batches, sample=lambda step: batches[step])
        found = [loss.gradient(), loss.hvp(direction), loss.hvp(direction, step=2), loss.hessian()]
        n_computed = list(computed)
        return [*found, loss.scores(direction), torch.tensor(loss.gradient_size())], n_computed

    ((one, all_of_them),) = in_threads(1, [module], find)
    several = in_threads(count, [module], find)
    for found, _ in several:
        assert [torch.equal(*pair) for pair in zip(found, one, strict=True)] == [True] * len(one)
    assert sorted(sum((computed for _, computed in several), [])) == sorted(all_of_them)
    assert all(len(computed) < len(all_of_them) for _, computed in several)


def test_an_operation_without_forward_mode_is_done_by_two_backward_passes(caplog):
    class Square(torch.autograd.Function):
        """Has a double backward, and no forward mode."""

        @staticmethod
        def forward(x):
            return x * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return 2 * x * gradient

    def losses(theta):
        return Square.apply(X @ theta - Y)

    direction = torch.tensor([0.3, -2.0], **DOUBLE)
    with caplog.at_level(logging.INFO):
        found = influence_scores(losses, THETA, direction)
    torch.testing.assert_close(found, 2 * (X @ THETA - Y) * (X @ direction))
    assert "two backward passes" in caplog.text


def test_a_linear_loss_has_a_zero_hessian():
    loss = MeanLoss(lambda theta, batch: X @ theta, THETA, [None])
    assert loss.hvp(THETA).tolist() == [0, 0] and not loss.hessian().any()
    with refused("influence", "numeric", "no eigenvalue of the Hessian is above 0"):
        row_influence(loss)
    np.testing.assert_allclose(row_influence(loss, damping=0.5).scores, X @ X.mean(dim=0) / 0.5 / 5)


def test_frozen_weights_ask_for_no_gradient_until_the_end(recommender):
    weights = list(recommender[0].parameters())
    weights[0].requires_grad_(False)
    before = [weight.requires_grad for weight in weights]
    with pytest.raises(KeyError), frozen(iter(weights)):
        assert not any(weight.requires_grad for weight in weights)
        raise KeyError
    assert [weight.requires_grad for weight in weights] == before


def test_where_the_loss_is_not_convex_a_relative_damping_is_raised(caplog):
    curves = torch.tensor([[2.0, -0.5], [2.0, -1.1]], **DOUBLE)  # mean Hessian diag(2, -0.8)

    def losses(theta, rows):
        return 0.5 * (curves[rows] * theta.square()).sum(dim=1)

    loss = MeanLoss(losses, torch.ones(2, **DOUBLE), [[0], [1]])
    with caplog.at_level(logging.WARNING):
        found = row_influence(loss, damping_ratio=0.1)
    assert found.damping == pytest.approx(0.8 + 0.2) and "not convex" in caplog.text
    assert (found.smallest_eigenvalue, found.largest_eigenvalue) == (pytest.approx(-0.8), pytest.approx(2))
    expected = curves @ (torch.tensor([2, -0.8], **DOUBLE) / torch.tensor([3, 0.2], **DOUBLE)) / 2
    for method in ("cg", "exact", "lissa"):
        np.testing.assert_allclose(row_influence(loss, method=method, damping_ratio=0.1).scores, expected, rtol=1e-7)
    with refused("inverse_hvp", "numeric", "not positive definite"):
        row_influence(loss, damping=0.1)
    for steps in ({}, {"steps": 10}):
        with refused(
            "influence", "numeric", "LiSSA diverges .* damping of 0.79 .*: raise the damping above 0.8, or use"
        ):
            row_influence(loss, method="lissa", damping=0.79, scale=25.0, **steps)
    caplog.clear()
    assert row_influence(loss, damping_ratio=0.5).damping == pytest.approx(1) and not caplog.text


def test_lissa_tells_its_residual_and_warns_where_it_has_not_converged(caplog, monkeypatch):
    module = import_module("recbole_llm.coreset.influence.influence")
    assert module._MOST_STEPS == 5000  # as in the paper; here half as many show the same
    monkeypatch.setattr(module, "_MOST_STEPS", 2500)
    curves = torch.tensor(np.geomspace(1e-4, 1, 20))
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(30, 20)))

    def losses(theta, rows):
        return features[rows] @ theta + 0.5 * (curves * theta.square()).sum()

    loss = MeanLoss(losses, torch.zeros(20, **DOUBLE), [slice(None)])
    with caplog.at_level(logging.WARNING):
        assert row_influence(loss, method="lissa", damping_ratio=0.01).residual < 1e-6
        assert not caplog.text
        found = row_influence(loss, method="lissa", damping_ratio=0.0)
        assert found.steps == 2500 and found.residual > 0.01
    assert caplog.text.count("LiSSA stopped after 2500 steps at a relative residual") == 1
    rows = MeanLoss(
        losses, torch.zeros(20, **DOUBLE), [slice(None)], sample=lambda step: slice(step % 30, step % 30 + 1)
    )
    assert row_influence(rows, method="lissa", damping_ratio=0.01, steps=5).residual is None


def test_wrong_input_is_named(recommender):
    model, batch = recommender
    with refused("", "unknown", "TinyAttention has no weight 'dence.weight'"):
        parameter_losses(model, ["dence.weight"], None)
    with pytest.raises(ValueError, match="eval mode"):
        parameter_losses(model.train(), ["dense.weight"], None)
    with refused("influence", "numeric", "2 of 5 rows of a batch have a loss of NaN or infinity .first 1"):
        MeanLoss(
            lambda theta, batch: ridge(theta, batch) / torch.tensor([1, 0, 1, 0, 1]), THETA, [slice(None)]
        ).gradient()
    with refused("influence", "missing", "no rows"):
        MeanLoss(ridge, THETA, []).gradient()
    with pytest.raises(ValueError, match="losses must be"):
        influence_scores(lambda theta: theta.sum(), THETA, THETA)
    with refused("influence", "numeric", "direction holds NaN"):
        influence_scores(lambda theta: X @ theta, THETA, [1, float("nan")])
    with pytest.raises(ValueError, match="3 elements and the weights 2"):
        influence_scores(lambda theta: X @ theta, THETA, torch.zeros(3))


def test_losses_through_states_are_the_same_losses():
    generator = torch.Generator().manual_seed(0)
    rows, items = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (9, 6))
    targets, params = torch.arange(9) % 6, torch.randn(16, generator=generator, dtype=torch.float64)
    batches = [torch.arange(5), torch.arange(5, 9)]

    def states(weights: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        return torch.tanh(rows[batch] @ weights.view(4, 4))

    def losses(found: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(found @ items.T, targets[batch], reduction="none")

    staged = MeanLoss(StagedLosses(states, losses), params, batches)
    whole = MeanLoss(lambda weights, batch: losses(states(weights, batch), batch), params, batches)
    direction = torch.randn(16, generator=generator, dtype=torch.float64)
    for name in ("scores", "hvp"):
        torch.testing.assert_close(
            getattr(staged, name)(direction), getattr(whole, name)(direction), atol=1e-12, rtol=0
        )
    with refused("influence", "numeric"):
        staged.scores(direction * torch.nan)

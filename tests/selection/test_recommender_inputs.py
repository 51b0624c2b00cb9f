"""What selectors are told of rows by the auxiliary recommender equals a computation row by row."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recbole_llm.data.rows import take_sample
from recbole_llm.selection import recommender_inputs
from recbole_llm.selection.pool import Pool
from recbole_llm.selection.recommender_inputs import RecommenderInputs, influence_weights, weighted
from recbole_llm.selection.tail import TransformerTail
from tests.refusals import refused
from tests.selection import rows as shared
from tests.selection.rows import N_ROWS, Make


def inputs_of(config: Any, rows: Any, model: Any, places: np.ndarray | None = None) -> RecommenderInputs:
    """All rows by default; the recommender in double precision."""
    inputs = shared.inputs_of(config, rows, model, places).recommender
    inputs.auxiliary.model = copy.deepcopy(inputs.auxiliary.model).double()
    return inputs


@pytest.fixture(scope="module")
def plain(make: Make) -> RecommenderInputs:
    return inputs_of(*make())


def row_losses(recommender: Any, rows: Any) -> torch.Tensor:
    """Cross entropy over all items but padding. Returns: [rows]."""
    state = recommender.forward(rows["item_id_list"], rows["item_length"])
    logits = (state @ recommender.item_embedding.weight.T)[:, 1:]
    return logits.logsumexp(dim=1) - logits[torch.arange(len(rows)), rows["item_id"] - 1]


def gradients(recommender: Any, rows: Any, names: list[str]) -> torch.Tensor:
    """One backward pass per row. Returns: [rows, weights]."""
    weights = [dict(recommender.named_parameters())[name] for name in names]
    found = []
    for row in range(len(rows)):
        (loss,) = row_losses(recommender, rows[row : row + 1])
        parts = torch.autograd.grad(loss, weights, materialize_grads=True)
        found.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(found)


def hessian(recommender: Any, rows: Any, name: str, weights: np.ndarray) -> torch.Tensor:
    """Of the weighted sum of all rows' losses, one column after the other."""
    parameter = dict(recommender.named_parameters())[name]
    total = row_losses(recommender, rows) @ torch.from_numpy(weights)
    (gradient,) = torch.autograd.grad(total, parameter, create_graph=True)
    columns = [torch.autograd.grad(part, parameter, retain_graph=True)[0] for part in gradient.reshape(-1)]
    return torch.stack([column.reshape(-1) for column in columns])


def test_el2n_is_the_distance_of_the_probabilities_from_the_target(plain):
    recommender, rows = plain.auxiliary.model, plain.pool.rows
    state = recommender.forward(rows["item_id_list"], rows["item_length"])
    probabilities = (state @ recommender.item_embedding.weight.T)[:, 1:].softmax(dim=1)
    error = probabilities - F.one_hot(rows["item_id"] - 1, probabilities.shape[1])
    np.testing.assert_allclose(plain.el2n(), error.norm(dim=1).detach(), rtol=1e-10)


def test_grand_is_the_norm_of_each_rows_gradient_by_all_weights(plain):
    recommender = plain.auxiliary.model
    names = [name for name, _ in recommender.named_parameters()]
    expected = gradients(recommender, plain.pool.rows, names).norm(dim=1)
    np.testing.assert_allclose(plain.grand(), expected, rtol=1e-8)


@pytest.mark.parametrize(
    ("unit", "target"),
    [
        *[("row", "train"), ("user", "valid")],
        *[pytest.param(*more, marks=pytest.mark.slow) for more in (("row", "valid"), ("user", "train"))],
    ],
)
def test_influence_is_that_of_dense_algebra(make, unit, target):
    """Of each row; or of each user, whose loss is the mean over all rows of the user."""
    config, rows, model = make(coreset_unit=unit, influence_target=target, damping_ratio=2.0)
    users = rows.train.inter_feat["user_id"].numpy()
    last = {user: place for place, user in enumerate(users.tolist())}
    pool = np.array(sorted(last.values() if unit == "user" else range(N_ROWS)))
    inputs = inputs_of(config, rows, model, pool)
    found = inputs.influence()
    recommender = inputs.auxiliary.model
    (name,) = influence_weights(recommender, "attention")
    facts = inputs.reported["influence"]
    assert facts["weights"] == [name] == ["trm_encoder.layer.1.multi_head_attention.dense.weight"]

    units = pool.tolist() if unit == "row" else users[pool].tolist()
    owner = np.array([units.index(own) for own in (range(N_ROWS) if unit == "row" else users.tolist())])
    mean = np.zeros((len(pool), N_ROWS))
    mean[owner, np.arange(N_ROWS)] = 1 / np.bincount(owner)[owner]  # mean over the rows of a unit
    own = torch.from_numpy(mean) @ gradients(recommender, rows.train.inter_feat, [name])
    matrix = hessian(recommender, rows.train.inter_feat, name, mean.mean(axis=0))
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert facts["largest_eigenvalue"] == pytest.approx(float(eigenvalues[-1]), rel=1e-3)
    evaluated = gradients(recommender, rows.valid.inter_feat, [name]) if target == "valid" else own
    damped = matrix + facts["damping"] * torch.eye(len(matrix))
    expected = own @ torch.linalg.solve(damped, evaluated.mean(dim=0)) / len(pool)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7 * float(expected.abs().max()))


def test_absolute_damping_and_single_row_steps_are_the_recursion_of_the_public_code(make):
    damp, scale, steps = 0.01, 0.05, 4
    config, rows, model = make(
        influence_method="lissa",
        influence_damping=damp * scale,
        influence_scale=scale,
        influence_steps=steps,
        influence_step_rows=1,
    )
    inputs = inputs_of(config, rows, model)
    found = inputs.influence()
    recommender = inputs.auxiliary.model
    (name,) = influence_weights(recommender, "attention")
    own = gradients(recommender, inputs.pool.rows, [name])
    start = own.mean(dim=0)
    seed, estimate = model.stage_seed("influence"), start
    for step in range(steps):
        row = int(np.random.default_rng([seed, step]).integers(N_ROWS, size=1)[0])
        parameter = dict(recommender.named_parameters())[name]
        (loss,) = row_losses(recommender, inputs.pool.rows[row : row + 1])
        (gradient,) = torch.autograd.grad(loss, parameter, create_graph=True)
        (image,) = torch.autograd.grad(gradient.reshape(-1) @ estimate, parameter)
        estimate = start + (1 - damp) * estimate - image.reshape(-1) / scale
    expected = own @ estimate / scale / N_ROWS  # that code does not divide by the scale, which changes no order
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))
    assert inputs.reported["influence"]["damping"] == pytest.approx(0.01 * 0.05)


def test_influence_is_the_same_through_the_whole_recommender(make, monkeypatch, caplog):
    for settings in ({"coreset_unit": "user"}, {"influence_weights": "ffn", "influence_target": "valid"}):
        inputs = inputs_of(*make(damping_ratio=2.0, **settings))
        found = inputs.influence()
        with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
            patch.setattr(TransformerTail, "inputs", lambda self, batch: None)
            whole = inputs.influence()
        assert "through the whole of SASRec in every step" in caplog.text
        np.testing.assert_allclose(found, whole, rtol=1e-6, atol=1e-9 * np.abs(whole).max())


def test_a_recommender_without_attention_has_no_tail(make):
    inputs = inputs_of(*make(recommender="GRU4Rec", recommender_config={"hidden_size": 8, "epochs": 1}))
    recommender = inputs.auxiliary.model
    assert TransformerTail.of(recommender, ["dense.weight"]) is None
    with refused("influence_weights", "conflict", "GRU4Rec has no ffn block; set influence_weights: all"):
        influence_weights(recommender, "ffn")


def test_weights_make_the_mean_over_rows_one_over_users(make):
    _, rows, _ = make()
    users = rows.train.inter_feat["user_id"].numpy()
    owners = np.unique(users, return_inverse=True)[1]
    weights = weighted(rows.train.inter_feat, owners)[recommender_inputs.WEIGHT].double().numpy()
    values = np.random.default_rng(0).normal(size=len(users))
    by_user = [values[users == user].mean() for user in np.unique(users)]
    assert (weights * values).mean() == pytest.approx(np.mean(by_user), rel=1e-6)


def test_batches_change_nothing_but_rounding(make, monkeypatch):
    whole = inputs_of(*make(damping_ratio=2.0))
    cut = inputs_of(*make(damping_ratio=2.0, eval_batch_size=5))
    for name, tolerance in (("el2n", 1e-10), ("grand", 1e-10), ("influence", 1e-5)):
        np.testing.assert_allclose(getattr(cut, name)(), getattr(whole, name)(), rtol=tolerance, atol=1e-9)
    monkeypatch.setattr(recommender_inputs, "_LOGITS", 3 * whole.pool.data.item_num)
    assert [len(batch) for batch in whole._batches(whole.pool.rows)] == [3] * (N_ROWS // 3)


def test_a_recurrent_recommender_is_differentiated_without_cudnn(make):
    """cuDNN's GRU has no derivatives in eval mode; there is no GPU here to refuse them, so the flag is looked at."""
    small = {"hidden_size": 8, "embedding_size": 8, "epochs": 1}
    config, rows, model = make(recommender="GRU4Rec", influence_weights="all", recommender_config=small)
    inputs = inputs_of(config, rows, model)
    seen: list[bool] = []
    inputs.auxiliary.model.gru_layers.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.enabled))
    with torch.backends.cudnn.flags(enabled=True):
        for compute in (inputs.influence, inputs.grand):
            seen.clear()
            assert np.isfinite(compute()).all()
            assert seen and not any(seen)
        seen.clear()
        inputs.el2n()  # without a derivative, cuDNN may compute
        assert seen and all(seen) and torch.backends.cudnn.enabled


def test_a_transformer_is_differentiated_with_cudnn_as_it_is(plain):
    recommender, seen = plain.auxiliary.model, []
    hook = recommender.item_embedding.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.enabled))
    with torch.backends.cudnn.flags(enabled=True):
        plain.grand()
    hook.remove()
    assert seen and all(seen)


def test_influence_is_of_one_recommender_and_of_its_validation_rows(make):
    config, rows, _ = make(coreset="dealrec", influence_target="valid")
    fewer = take_sample(rows.valid, len(rows.valid) - 1, 0, "valid")

    def facts(fingerprint: str, valid: Any) -> Any:
        recommender: Any = SimpleNamespace(fingerprint=fingerprint)
        given = RecommenderInputs(recommender, config, Pool(rows.train, np.arange(4), valid))
        return given.facts(RecommenderInputs.declared["influence"])

    assert facts("a", rows.valid) != facts("b", rows.valid) and facts("a", rows.valid) != facts("a", fewer)

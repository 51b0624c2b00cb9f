"""Masks drawn by row and token: right on average, independent where they should be, the same whatever stands beside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recbole_llm.adapter.dropout import NOBODY, TokenDraws, TokenDropout, draw_by_token, normal_numbers, path_terms
from recbole_llm.adapter.gates import GateNetwork
from recbole_llm.adapter.reclora_peft import MetaGate

WIDTH = 256


def paths_of(tokens: list[list[int]]) -> Tensor:
    ids = np.array(tokens)
    terms = path_terms(ids, np.broadcast_to(np.arange(ids.shape[1]), ids.shape))
    return torch.from_numpy(terms.cumsum(axis=1).view(np.int64))


def layers(p: float = 0.25, count: int = 2) -> tuple[TokenDraws, nn.Sequential]:
    model = nn.Sequential(*(nn.Dropout(p) for _ in range(count)))
    return draw_by_token(model), model.train()


def masks(draws: TokenDraws, layer: nn.Module, paths: Tensor, rows: list[int], seed: int = 1) -> np.ndarray:
    """Which numbers are kept, float64 [all of them]."""
    with draws.step(seed):
        draws.use_rows(rows)
        draws.use_tokens(paths)
        return (layer(torch.ones(*paths.shape, WIDTH)) != 0).double().numpy().ravel()


TOKENS = np.random.default_rng(0).integers(0, 100, (16, 20)).tolist()


@pytest.mark.parametrize("p", [0.01, 0.05, 0.5, 0.9])
def test_the_share_that_is_kept_and_its_scale(p):
    draws, model = layers(p)
    with draws.step(3):
        draws.use_rows(range(16))
        draws.use_tokens(paths_of(TOKENS))
        found = model[0](torch.full((16, 20, WIDTH), 2.0))
    kept = (found != 0).double()
    deviation = (p * (1 - p)) ** 0.5
    assert float(kept.mean()) == pytest.approx(1 - p, abs=5 * deviation / kept.numel() ** 0.5)
    assert found[found != 0].numpy() == pytest.approx(2 / (1 - p))
    # every token, and every feature, has its share: the spread of their means is that of independent draws
    for axes in ((0, 1), 2):
        means = kept.mean(dim=axes)
        spread = deviation / (kept.numel() / means.numel()) ** 0.5
        assert float(means.std()) == pytest.approx(spread, rel=0.25)
        assert float((means - (1 - p)).abs().max()) < 6 * spread


def test_rows_tokens_features_steps_and_layers_are_independent():
    draws, model = layers()
    paths = paths_of(TOKENS)
    usual = masks(draws, model[0], paths, list(range(16)))
    table = usual.reshape(16, 20, WIDTH)
    others = {
        "layer": masks(draws, model[1], paths, list(range(16))),
        "step": masks(draws, model[0], paths, list(range(16)), seed=2),
        "rows": masks(draws, model[0], paths, list(range(16, 32))),
        "next row": np.roll(table, 1, axis=0).ravel(),
        "next token": np.roll(table, 1, axis=1).ravel(),
        "next feature": np.roll(table, 1, axis=2).ravel(),
        "far feature": np.roll(table, 100, axis=2).ravel(),
    }
    for name, other in others.items():
        found = float(np.corrcoef(usual, other)[0, 1])
        assert abs(found) < 5 / len(usual) ** 0.5, name
    features = np.corrcoef(table.reshape(-1, WIDTH).T)  # of all pairs
    assert np.abs(features - np.eye(WIDTH)).max() < 6 / 320**0.5
    tokens = np.corrcoef(table.reshape(-1, WIDTH))
    assert np.abs(tokens - np.eye(320)).max() < 6.5 / WIDTH**0.5


def test_a_token_keeps_its_mask_whatever_shares_the_pass_and_wherever_it_stands():
    draws, model = layers()
    both = masks(draws, model[0], paths_of([[5, 6, 7], [5, 6, 8]]), [4, 9]).reshape(2, 3, WIDTH)
    alone = masks(draws, model[0], paths_of([[5, 6, 8]]), [9]).reshape(3, WIDTH)
    np.testing.assert_array_equal(alone, both[1])
    assert (both[0, :2] != both[1, :2]).any()  # another row, the same tokens
    shifted = torch.cat([torch.full((1, 2), 123), paths_of([[5, 6, 8]])], dim=1)  # padding on the left
    np.testing.assert_array_equal(masks(draws, model[0], shifted, [9]).reshape(5, WIDTH)[2:], both[1])


def test_tokens_of_trees_are_known_by_what_is_before_them():
    draws, model = layers()
    with draws.step(1):
        draws.use_rows([4, 9], by_path=True)
        draws.use_tokens(paths_of([[5, 6, 7], [5, 6, 8], [6, 5, 8]]), [NOBODY] * 3)
        found = model[0](torch.ones(3, 3, WIDTH)) != 0
    assert torch.equal(found[0, :2], found[1, :2])
    assert not torch.equal(found[0, 2], found[1, 2]) and not torch.equal(found[1, 2], found[2, 2])


def test_without_a_step_it_is_the_dropout_of_torch():
    draws, model = layers(p=0.3)
    x = torch.randn(2, 3, 8)
    draws.use_rows([0, 1])
    draws.use_tokens(paths_of(TOKENS)[:2, :3])
    torch.manual_seed(5)
    found = model[0](x)
    torch.manual_seed(5)
    assert torch.equal(found, nn.functional.dropout(x, 0.3))
    assert model[0].eval()(x) is x and isinstance(model[0], TokenDropout)
    with draws.step(1):  # of tokens that nobody told of
        draws.use_rows([0, 1])
        draws.use_tokens(paths_of(TOKENS)[:2, :4])
        torch.manual_seed(5)
        assert torch.equal(model[0].train()(x), found)


def test_the_number_type_stays_and_the_gradient_has_the_mask():
    draws, model = layers()
    x = torch.ones(16, 20, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    with draws.step(1):
        draws.use_rows(range(16))
        draws.use_tokens(paths_of(TOKENS))
        found = model[0](x)
    found.sum().backward()
    assert found.dtype == torch.bfloat16 and x.grad is not None and torch.equal(x.grad, found)


def test_gates_are_drawn_by_row():
    torch.manual_seed(0)
    for gate in (GateNetwork("noisy", 6, 4, noise=1.0), MetaGate(6, 4, dropout=0.5)):
        model, states = nn.ModuleDict({"gate": gate}).train(), torch.randn(3, 6)
        draws = draw_by_token(model)
        assert draws.facts()
        with draws.step(1):
            draws.use_rows([7, 8, 9])
            together, twice = gate(states), gate(states.repeat(2, 1))
            draws.use_rows([9])
            alone = gate(states[2:])
        torch.testing.assert_close(alone, together[2:])
        torch.testing.assert_close(twice, together.repeat(2, 1))
        with draws.step(2):
            draws.use_rows([7, 8, 9])
            assert not torch.allclose(gate(states), together)
        assert not torch.allclose(gate.eval()(states), together)


def test_normal_numbers_are_normal():
    words = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    found = normal_numbers(np.concatenate([words, np.array([0, 2**64 - 1], dtype=np.uint64)])).numpy()
    assert np.isfinite(found).all() and abs(found.mean()) < 0.03 and abs(found.std() - 1) < 0.02
    assert abs((found > 1).mean() - 0.1587) < 0.01


def test_a_model_without_dropout_draws_nothing():
    assert draw_by_token(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0))).facts() == {}

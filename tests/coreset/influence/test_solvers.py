"""The three solvers against each other, dense algebra and numbers worked out by hand."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.coreset import extreme_eigenvalues, inverse_hvp, solve
from tests.refusals import refused

# Ridge regression: five rows, two weights, not at the optimum.
X = np.array([[1.0, 0], [0, 1], [1, 1], [2, -1], [-1, 1]])
H = np.array([[1.5, -0.4], [-0.4, 0.9]])
V = np.array([-0.45, -0.35])
METHODS = {"cg": {}, "exact": {}, "lissa": {"scale": 2.0, "steps": 3000}}


def product(vector, step=None):
    return H @ vector


def sampled(vector, step=None):
    """Row ``step`` modulo 5 stands in for all."""
    row = X[step % 5]
    return row * (row @ vector) + 0.1 * vector


def random_spectrum(seed, eigenvalues):
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))
    return basis * eigenvalues @ basis.T


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "damping, expected", [(0.0, [-0.457983193277, -0.592436974790]), (0.1, [-0.409722222222, -0.513888888889])]
)
def test_ridge_numbers(method, damping, expected):
    found = inverse_hvp(product, V, method, damping, **METHODS[method])
    np.testing.assert_allclose(found, expected, atol=1e-8)
    tensors = inverse_hvp(lambda vector: torch.tensor(H) @ vector, torch.tensor(V), method, damping, **METHODS[method])
    assert isinstance(tensors, torch.Tensor)
    np.testing.assert_allclose(tensors.numpy(), found, atol=1e-12)
    np.testing.assert_allclose(inverse_hvp(None, V, method, damping, H, **METHODS[method]), found, atol=1e-12)


@pytest.mark.parametrize(
    "steps, expected",
    [
        (0, V),
        (1, [-0.842, -0.683]),
        (2, [-1.1846, -0.99838]),
        (10, [-2.810511289395, -2.909850701749]),
        (100, [-4.096589504402, -5.137623459278]),
        (4000, [-4.097222222222, -5.138888888889]),
    ],
)
def test_recursion_numbers(steps, expected):
    raw = inverse_hvp(product, V, "lissa", 0.1, scale=10.0, rescale=False, steps=steps)
    np.testing.assert_allclose(raw, expected, atol=1e-11)
    np.testing.assert_allclose(inverse_hvp(product, V, "lissa", 0.1, scale=10.0, steps=steps), raw / 10, atol=1e-12)


@pytest.mark.parametrize(
    "steps, expected",
    [
        (1, [-0.846, -0.693]),
        (2, [-1.27908, -0.95984]),
        (5, [-1.94740555136, -1.89665505088]),
        (50, [-3.984541031292, -4.927263220835]),
    ],
)
def test_sampled_recursion_numbers(steps, expected):
    raw = inverse_hvp(sampled, V, "lissa", 0.1, scale=10.0, rescale=False, steps=steps)
    np.testing.assert_allclose(raw, expected, atol=1e-11)


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.0, 2.0), st.sampled_from([(), (2, -1)]))
def test_methods_agree_with_dense_algebra(seed, size, damping, shape):
    rng = np.random.default_rng(seed)
    hessian = random_spectrum(seed, rng.uniform(0.2, 3, size))
    vector = rng.normal(size=size)
    if shape and size % 2 == 0:
        vector = vector.reshape(shape)
    expected = np.linalg.solve(hessian + damping * np.eye(size), vector.reshape(-1)).reshape(vector.shape)

    def hvp(given_vector):
        assert given_vector.shape == vector.shape
        return (hessian @ given_vector.reshape(-1)).reshape(vector.shape)

    for method in METHODS:
        found = (
            inverse_hvp(hvp, vector, method, damping, scale=4.0)
            if method == "lissa"
            else solve(hvp, vector, method, damping).vector
        )
        np.testing.assert_allclose(found, expected, atol=1e-8)


def test_single_precision_and_the_number_of_steps():
    hessian = torch.tensor(random_spectrum(0, np.linspace(0.01, 1, 40)), dtype=torch.float32)
    vector = torch.linspace(-1, 1, 40)
    found = solve(lambda v: hessian @ v, vector, damping=0.1)
    assert found.vector.dtype == torch.float32 and found.steps <= 30 and found.residual < 1e-5
    exact = solve(None, vector, "exact", 0.1, matrix=hessian)
    torch.testing.assert_close(found.vector, exact.vector, rtol=1e-3, atol=1e-4)


def test_sampled_steps_are_numbered_on_and_averages_come_close():
    seen = []

    def hvp(vector, step=None):
        seen.append(step)
        return 5 * X[step % 5] * (X[step % 5] @ vector) / 5 + 0.1 * vector

    inverse_hvp(hvp, V, "lissa", 0.1, scale=10.0, steps=3, repeats=2)
    assert seen == [0, 1, 2, 3, 4, 5]
    order = np.random.default_rng(0).integers(5, size=20_000)

    def drawn(vector, step=None):
        return sampled(vector, order[step])

    target = inverse_hvp(product, V, damping=0.1)
    last = inverse_hvp(drawn, V, "lissa", 0.1, scale=25.0, steps=5_000)
    mean = inverse_hvp(drawn, V, "lissa", 0.1, scale=25.0, steps=20_000, average=True)
    both = inverse_hvp(drawn, V, "lissa", 0.1, scale=25.0, steps=10_000, repeats=2, average=True)
    assert np.linalg.norm(mean - target) < 0.05 * np.linalg.norm(target)
    assert np.linalg.norm(mean - target) < np.linalg.norm(last - target)
    assert np.linalg.norm(both - target) < 0.05 * np.linalg.norm(target)


@pytest.mark.parametrize(
    "eigenvalues", [[3.0], [0.2, 5], [-7, 0.1, 2, 2.5], np.linspace(-9, 4, 60), [-2, -1, -0.5], [0, 0, 0]]
)
def test_extreme_eigenvalues(eigenvalues):
    matrix = random_spectrum(1, np.array(eigenvalues, dtype=float))
    expected, error = [min(eigenvalues), max(eigenvalues)], 1e-4 * np.abs(eigenvalues).max()
    np.testing.assert_allclose(extreme_eigenvalues(lambda v: matrix @ v, np.zeros(len(matrix))), expected, atol=error)
    tensor = torch.tensor(matrix)

    def product(v):
        return (tensor @ v.double().reshape(-1)).reshape(1, -1)

    for dtype in (torch.float64, torch.float32):
        found = extreme_eigenvalues(product, torch.zeros(1, len(matrix), dtype=dtype))
        np.testing.assert_allclose(found, expected, atol=2 * error)
    few = extreme_eigenvalues(product, torch.zeros(1, len(matrix)), steps=3)
    assert min(eigenvalues) - 1e-6 <= few[0] <= few[1] <= max(eigenvalues) + 1e-6


def test_a_zero_vector_warns(caplog):
    with caplog.at_level(logging.WARNING):
        found = inverse_hvp(product, np.zeros(2))
    assert found.tolist() == [0, 0] and "stationary point" in caplog.text


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        (torch.float64, (5e-320, 1e-170, 1e-3, 1e160, 8e307)),
        (torch.float32, (1e-40, 1e-23, 1e20, 1e38)),
        (torch.float16, (6e-5, 1e-4, 300.0, 3e4)),
    ],
)
def test_vectors_of_any_size_are_solved_like_those_of_size_one(method, dtype, sizes):
    """The system is linear; only what a number type can represent limits it."""
    one = torch.tensor([0.5, 1.0], dtype=dtype)
    for size in sizes:
        options = {"scale": 4.0, "steps": 200} if method == "lissa" else {}
        found = inverse_hvp(lambda vector: 2 * vector, one * size, method, **options)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double() / size, one.double() / 2, rtol=1e-2, atol=0)


def test_too_few_steps_warn(caplog):
    matrix = random_spectrum(0, np.linspace(0.001, 1, 30))
    with caplog.at_level(logging.WARNING):
        found = solve(None, np.ones(30), matrix=matrix, steps=3)
    assert found.steps == 3 and found.residual > 1e-3 and "after 3 steps" in caplog.text


def test_a_diverging_recursion_names_eigenvalue_and_scale():
    big = random_spectrum(0, np.array([0.5, 1, 60]))
    with refused("inverse_hvp", "numeric", r"Hessian behind it is about 60: raise the scale above 30\.1"):
        inverse_hvp(None, np.ones(3), "lissa", 0.2, big, scale=25.0)
    inverse_hvp(None, np.ones(3), "lissa", 0.2, big, scale=30.2, steps=2000)
    negative = random_spectrum(0, np.array([-0.5, 1, 2]))
    with refused("inverse_hvp", "numeric", r"about -0\.5: raise the damping above 0\.5"):
        inverse_hvp(None, np.ones(3), "lissa", 0.2, negative, scale=2.0)
    with refused("inverse_hvp", "numeric", "diverges"):  # only the samples are too large
        inverse_hvp(lambda v, step=None: (1.0 if step is None else 70.0) * v, np.ones(3), "lissa", 0.2, scale=25.0)


def test_a_recursion_that_diverges_slowly_is_no_solution(caplog):
    slow = np.diag([-0.3, 1.0])
    for steps in (1000, 2000, 5000):
        with refused("inverse_hvp", "numeric", r"diverges in step \d+; .* about -0\.3: raise the damping above 0\.3"):
            inverse_hvp(None, np.ones(2), "lissa", 0.25, slow, scale=25.0, steps=steps)
    with caplog.at_level(logging.WARNING):
        found = solve(None, np.ones(2), "lissa", 0.25, slow, scale=25.0, steps=10)  # has hardly grown
    expected = np.linalg.norm((slow + 0.25 * np.eye(2)) @ found.vector - 1) / 2**0.5
    assert found.residual == pytest.approx(expected) and expected < 1
    assert "LiSSA stopped after 10 steps at a relative residual of 8" in caplog.text
    raw = solve(None, np.ones(2), "lissa", 0.25, slow, scale=25.0, steps=10, rescale=False)
    assert raw.residual == found.residual


@pytest.mark.parametrize("method", METHODS)
def test_a_list_is_a_vector_and_nan_is_named(method):
    np.testing.assert_allclose(inverse_hvp(product, V.tolist(), method, **METHODS[method]), np.linalg.solve(H, V))
    with refused("inverse_hvp", "numeric", "the Hessian, or its product with a vector, holds NaN or infinity"):
        inverse_hvp(None, V, method, matrix=H * np.nan)
    with refused("inverse_hvp", "numeric"):
        extreme_eigenvalues(lambda vector: vector * np.nan, V)


def test_indefinite_singular_and_wrong_input():
    indefinite = np.diag([1.0, -0.5])
    with refused("inverse_hvp", "numeric", "not positive definite.*raise the damping"):
        inverse_hvp(None, np.ones(2), "cg", 0.1, indefinite)
    np.testing.assert_allclose(inverse_hvp(None, np.ones(2), "exact", 0.1, indefinite), [1 / 1.1, -1 / 0.4])
    np.testing.assert_allclose(inverse_hvp(None, np.ones(2), "cg", 0.6, indefinite), [1 / 1.6, 10])
    with refused("inverse_hvp", "numeric", "singular"):
        inverse_hvp(None, np.ones(2), "exact", 0.0, np.ones((2, 2)))
    with refused("inverse_hvp", "unknown", "there is no method 'minres'"):
        inverse_hvp(product, V, "minres")
    with refused("", "value", "damping: -1"):
        inverse_hvp(product, V, damping=-1)
    with refused("", "value", "scale: 0"):
        inverse_hvp(product, V, "lissa", scale=0)
    with refused("inverse_hvp", "numeric", "NaN or infinity"):
        inverse_hvp(product, np.array([np.nan, 1]))
    with pytest.raises(ValueError, match="matrix must be"):
        inverse_hvp(None, V, "exact", matrix=np.eye(3))
    with pytest.raises(ValueError, match="give hvp, or the matrix"):
        inverse_hvp(None, V)

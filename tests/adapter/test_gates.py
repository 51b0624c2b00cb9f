import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional as F

from recbole_llm.adapter import GateNetwork, gate_statistics, instance_lora
from recbole_llm.adapter.gates import GATES, CurrentGates, Replayable, rank_gates

EXACT = {"rtol": 0, "atol": 1e-9}
A4 = torch.tensor([[1, 0, 1], [0, 1, 0], [2, 0, 0], [0, 0, 1]], dtype=torch.float64)
B4 = torch.tensor([[1, 0, 1, 0], [0, 1, 0, -1]], dtype=torch.float64)
X3 = torch.tensor([[[1, 2, -1]]], dtype=torch.float64)
SHAPES = st.fixed_dictionaries(
    {name: st.integers(1, 4) for name in ("b", "t", "m", "o", "expert_rank", "k")} | {"seed": st.integers(0, 99)}
)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def random_case(b, t, m, o, expert_rank, k, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (b, t, m), "A": (expert_rank * k, m), "B": (o, expert_rank * k), "gates": (b, k)}
    case = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return case | {"gates": case["gates"].softmax(dim=1)}


def over_experts(x, A, B, gates, scaling):
    """The sum over experts written out: what the paper says, without the rank-dimension identity."""
    k = gates.shape[1]
    down, up = A.reshape(k, -1, A.shape[1]), B.reshape(len(B), k, -1)
    per_expert = torch.einsum("oke,kem,btm->btko", up, down, x)
    return scaling * torch.einsum("bk,btko->bto", gates, per_expert)


@pytest.mark.parametrize(
    ("gate", "scaling", "expected"),
    [((0.75, 0.25), 4, (2, 7)), ((0.75, 0.25), 2, (1, 3.5)), ((0.5, 0.5), 4, (4, 6)), ((0, 1), 4, (8, 4))],
)
def test_worked_example(gate, scaling, expected):
    torch.testing.assert_close(instance_lora(X3, A4, B4, double(gate), scaling)[0, 0], double(*expected), **EXACT)


def test_worked_gradients():
    logits = double((math.log(3), 0)).requires_grad_()
    gates = logits.softmax(dim=1)
    gates.retain_grad()
    instance_lora(X3, A4, B4, gates, 4).sum().backward()
    torch.testing.assert_close(gates.grad, double((8, 12)), **EXACT)
    torch.testing.assert_close(logits.grad, double((-0.75, 0.75)), **EXACT)
    gates = double((0.75, 0.25)).requires_grad_()
    instance_lora(X3, A4, torch.zeros_like(B4), gates, 4).sum().backward()
    assert not gates.grad.any()


@settings(max_examples=40)
@given(SHAPES)
def test_forward_and_all_gradients_equal_the_sum_over_experts(shape):
    case = {name: tensor.requires_grad_() for name, tensor in random_case(**shape).items()}
    found, expected = instance_lora(**case, scaling=1.7), over_experts(**case, scaling=1.7)
    torch.testing.assert_close(found, expected, **EXACT)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = [torch.autograd.grad((y * weights).sum(), tuple(case.values())) for y in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_gradients_equal_finite_differences():
    case = random_case(b=2, t=3, m=2, o=3, expert_rank=2, k=3, seed=0)
    inputs = tuple(tensor.requires_grad_() for tensor in case.values())
    assert gradcheck(lambda *tensors: instance_lora(*tensors, 0.5), inputs)


@settings(max_examples=20)
@given(SHAPES)
def test_invariants(shape):
    case = random_case(**shape)
    k, b = shape["k"], shape["b"]
    rank = shape["expert_rank"] * k
    lora = F.linear(F.linear(case["x"], case["A"]), case["B"]) * 8 / rank
    uniform = torch.full_like(case["gates"], 1 / k)
    torch.testing.assert_close(instance_lora(**case | {"gates": uniform}, scaling=8 / rank * k), lora, **EXACT)
    torch.testing.assert_close(instance_lora(**case | {"gates": torch.ones(b, 1).double()}, scaling=8 / rank), lora)
    expected = instance_lora(**case, scaling=2.0)
    torch.testing.assert_close(instance_lora(**case | {"gates": 3 * case["gates"]}, scaling=2.0), 3 * expected, **EXACT)
    experts = torch.randperm(k, generator=torch.Generator().manual_seed(0))
    ranks = torch.arange(rank).reshape(k, -1)[experts].flatten()
    moved = case | {"A": case["A"][ranks], "B": case["B"][:, ranks], "gates": case["gates"][:, experts]}
    torch.testing.assert_close(instance_lora(**moved, scaling=2.0), expected, **EXACT)
    rows = torch.arange(b).flip(0)
    moved = case | {"x": case["x"][rows], "gates": case["gates"][rows]}
    torch.testing.assert_close(instance_lora(**moved, scaling=2.0), expected[rows], **EXACT)


def test_a_one_hot_gate_is_one_expert_alone():
    case = random_case(b=3, t=2, m=4, o=5, expert_rank=2, k=3, seed=3)
    for k in range(3):
        gates = F.one_hot(torch.full((3,), k), 3).double()
        A, B = case["A"][2 * k : 2 * k + 2], case["B"][:, 2 * k : 2 * k + 2]
        expected = F.linear(F.linear(case["x"], A), B) * 0.7
        torch.testing.assert_close(instance_lora(**case | {"gates": gates}, scaling=0.7), expected, **EXACT)


def test_gates_of_fewer_instances_serve_consecutive_rows():
    case = random_case(b=6, t=2, m=3, o=2, expert_rank=1, k=2, seed=4)
    two = case["gates"][:2]
    users = case | {"gates": two[[0, 0, 0, 1, 1, 1]]}
    found = instance_lora(**case | {"gates": two}, scaling=1.0)
    assert torch.equal(found, instance_lora(**users, scaling=1.0))


def test_arrays_in_array_out():
    case = random_case(b=2, t=2, m=3, o=2, expert_rank=2, k=2, seed=5)
    found = instance_lora(**{name: tensor.numpy() for name, tensor in case.items()}, scaling=1.5)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, instance_lora(**case, scaling=1.5).numpy(), atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gates": torch.ones(4, 2)}, "6 rows cannot use the gates of 4 instances"),
        ({"gates": torch.ones(12, 2)}, "6 rows cannot use the gates of 12"),
        ({"gates": torch.ones(6, 3)}, "3 experts cannot share rank 4"),
        ({"gates": torch.ones(6)}, "needed"),
        ({"gates": torch.ones(0, 2)}, "needed"),
        ({"gates": torch.tensor([[1.0, 1.0]] * 4 + [[1.0, math.nan]] * 2)}, "row 4 is not finite"),
        ({"x": torch.ones(6, 3)}, "rows are mixed up"),
    ],
)
def test_inputs_that_do_not_fit_are_errors(change, message):
    case = {"x": torch.ones(6, 2, 3), "A": torch.ones(4, 3), "B": torch.ones(2, 4), "gates": torch.ones(6, 2)}
    with pytest.raises(ValueError, match=message):
        instance_lora(**case | change, scaling=1.0)


# ---------------------------------------------------------------------------------------------------- gate networks


def network(kind="linear", d=3, k=4, **kwargs):
    torch.manual_seed(0)
    return GateNetwork(kind, d, k, **kwargs)


def test_worked_softmax():
    gate = network(d=3, k=2)
    gate.weight.data = torch.tensor([[1.0, 2, 0], [0, 1, 1]])
    torch.testing.assert_close(gate(torch.tensor([[1.0, 0, -1]])), torch.tensor([[0.88079708, 0.11920292]]))


def test_large_logits_do_not_overflow():
    gate = network(d=1, k=4)
    gate.weight.data = torch.tensor([[1000.0], [1001], [-1000], [0]])
    torch.testing.assert_close(gate(torch.ones(1, 1)), torch.tensor([[0.26894142, 0.73105858, 0, 0]]))


def test_softmax_gradient():
    """d logit_k = w_k (d w_k - sum_j w_j d w_j), and d W = d logit h'."""
    gate, h, upstream = network(d=3, k=4), torch.randn(5, 3), torch.randn(5, 4)
    w = gate(h)
    w.backward(upstream)
    w = w.detach()
    logits = w * (upstream - (w * upstream).sum(dim=1, keepdim=True))
    torch.testing.assert_close(gate.weight.grad, logits.T @ h)


@pytest.mark.parametrize("kind", GATES)
def test_gates_are_distributions_of_each_row_alone(kind):
    gate, h = network(kind).eval(), torch.randn(6, 3)
    gates = gate(h)
    torch.testing.assert_close(gates.sum(dim=1), torch.ones(6))
    assert (gates >= 0).all() and gates.std(dim=0).min() > 0
    torch.testing.assert_close(torch.cat([gate(row[None]) for row in h]), gates)


def test_mlp_is_two_layers_with_a_gelu():
    gate, h = network("mlp", hidden_size=5), torch.randn(2, 3)
    hidden = torch.nn.functional.gelu(h @ gate.hidden_weight.T + gate.hidden_bias)
    torch.testing.assert_close(gate(h), (hidden @ gate.weight.T + gate.bias).softmax(dim=1))
    assert gate.hidden_weight.shape == (5, 3)


def test_topk_keeps_the_largest_logits_and_their_odds():
    gate, h = network("topk", top_k=2), torch.randn(5, 3)
    gates, dense = gate(h), (h @ gate.weight.T).softmax(dim=1)
    assert ((gates > 0).sum(dim=1) == 2).all()
    kept = torch.where(dense >= dense.sort(dim=1).values[:, -2:-1], dense, 0)
    torch.testing.assert_close(gates, kept / kept.sum(dim=1, keepdim=True))
    gates[:, 0].sum().backward()
    assert torch.isfinite(gate.weight.grad).all() and gate.weight.grad.any()
    assert torch.equal(network("topk", top_k=4)(h), network()(h))


def test_of_equal_logits_the_lower_experts_are_kept():
    gate = network("topk", d=3, k=20, top_k=4)
    with torch.no_grad():
        gate.weight.copy_(torch.eye(3)[[0, *[1] * 19]])
    assert gate(torch.tensor([[1.0, 0.5, 0.0]]))[0].nonzero()[:, 0].tolist() == [0, 1, 2, 3]


def test_noise_is_in_training_only():
    gate, h = network("noisy", noise=0.1), torch.randn(2000, 3)
    assert not torch.equal(gate.train()(h), gate(h))
    assert torch.equal(gate.eval()(h), network()(h))
    added = gate.train()(h).log() - gate.eval()(h).log()
    added = added - added.mean(dim=1, keepdim=True)  # a softmax does not see what is common to all
    assert float(added.std().detach()) == pytest.approx(0.1 * math.sqrt(3 / 4), rel=0.1)


@pytest.mark.parametrize("kind", GATES)
def test_nothing_known_gives_uniform_gates(kind):
    gates = network(kind).train()(torch.tensor([[0.0, 0, 0], [1, 2, 3]]))
    torch.testing.assert_close(gates[0], torch.full((4,), 0.25))
    assert not torch.equal(gates[1], gates[0])


def test_gates_are_float32_under_autocast_and_in_half_precision():
    gate, h = network(d=64), torch.randn(3, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gate(h), gate(h)) and gate(h).dtype == torch.float32
        inside = gate(h)
    assert torch.equal(inside, gate(h))
    assert copy.deepcopy(gate).to(torch.bfloat16)(h.to(torch.bfloat16)).dtype == torch.float32
    assert copy.deepcopy(gate).double()(h).dtype == torch.float64


@pytest.mark.parametrize(
    ("h", "message"),
    [
        (torch.ones(2, 5), "5 entries, the gate takes 3"),
        (torch.ones(2, 1, 3), "needed"),
        (torch.tensor([[1.0, 1, 1], [1, math.inf, 1]]), "row 1 is not finite"),
    ],
)
def test_wrong_representations_are_errors(h, message):
    with pytest.raises(ValueError, match=message):
        network()(h)


@pytest.mark.parametrize(
    ("kind", "options"), [("conv", {}), ("topk", {"top_k": 1}), ("topk", {"top_k": 5}), ("topk", {"top_k": 0})]
)
def test_networks_that_make_no_sense_are_errors(kind, options):
    with pytest.raises(ValueError, match="gate|top_k"):
        network(kind, **options)


def test_number_of_parameters():
    """K = 4, d = 64: 256 shared, 57,344 were it one network per linear map of a 7B Llama."""
    linear = sum(parameter.numel() for parameter in GateNetwork("linear", 64, 4).parameters())
    assert linear == 256 and linear * 32 * 7 == 57_344
    mlp = sum(parameter.numel() for parameter in GateNetwork("mlp", 64, 4, hidden_size=128).parameters())
    assert mlp == 64 * 128 + 128 + 128 * 4 + 4


# ------------------------------------------------------------------------------------------------------------ helpers


def test_rank_gates_repeat_each_gate_for_its_expert():
    assert rank_gates(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 6).tolist() == [[1, 1, 1, 2, 2, 2], [3, 3, 3, 4, 4, 4]]


def test_current_gates_are_those_of_the_innermost_context():
    current, outer, inner = CurrentGates(), torch.ones(1, 2), torch.zeros(1, 2)
    x = torch.ones(1, 1, 1)
    with current.use(outer):
        with pytest.raises(KeyError), current.use(inner):
            assert current.of_rows(x) is inner
            raise KeyError
        assert current.of_rows(x) is outer
    with pytest.raises(RuntimeError, match="whose rows"):
        current.of_rows(x)


def test_a_replayable_result_takes_many_backward_passes():
    gate, h = network("mlp"), torch.randn(2, 3, requires_grad=True)
    upstream = torch.randn(2, 2, 4)
    gate(h).backward(upstream.sum(dim=0))
    expected = [tensor.grad.clone() for tensor in (h, *gate.parameters())]
    for tensor in (h, *gate.parameters()):
        tensor.grad = None
    gates = Replayable.apply(gate, h, *gate.parameters())
    for gradient in upstream:
        gates.backward(gradient)
    for tensor, gradient in zip((h, *gate.parameters()), expected, strict=True):
        torch.testing.assert_close(tensor.grad, gradient)


def test_statistics_say_how_experts_are_used():
    gates = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]])
    found = gate_statistics(gates)
    assert found["gate_usage"] == pytest.approx([1.75 / 3, 1.25 / 3])
    entropies = [0, 1, -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))]
    assert found["gate_entropy"] == pytest.approx(sum(entropies) / 3)
    assert gate_statistics(torch.full((3, 5), 0.2))["gate_entropy"] == pytest.approx(1)
    alone = gate_statistics(torch.ones(3, 1))
    assert alone["gate_usage"] == pytest.approx([1]) and alone["gate_entropy"] == 1


def test_gates_of_some_rows_are_theirs_and_those_around_come_back():
    gates = CurrentGates()
    factors = torch.arange(12.0, requires_grad=True).view(6, 2)
    with gates.of([2, 0], 3):
        assert gates.factors is None
    with gates.use(factors):
        with pytest.raises(KeyError), gates.of([2, 0], 3):  # three rows, with and without their history
            assert torch.equal(gates.factors, factors[[2, 0, 5, 3]])
            (gradient,) = torch.autograd.grad(gates.factors.sum(), factors)
            assert gradient[:, 0].tolist() == [1, 0, 1, 1, 0, 1]
            raise KeyError
        assert gates.factors is factors
    with gates.use(factors), gates.of(range(6), 6):
        assert gates.factors is factors
    with gates.use(factors), gates.of([1, 2, 0], 3):  # all of them, in another order
        assert torch.equal(gates.factors, factors[[1, 2, 0, 4, 5, 3]])

"""Mo-SARA on whole models: its branch, its counts of weights, token and sequence gates, files."""

import pytest
import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from recbole_llm.adapter import MoSaraAdapter, mo_sara_branch
from recbole_llm.adapter.mosara_peft import MoSaraConfig
from recbole_llm.adapter.ranks import weight_of
from tests.adapter.training import damage
from tests.families import FAMILIES, make_family
from tests.refusals import refused

IDS = torch.randint(5, 200, (3, 7), generator=torch.Generator().manual_seed(0))
STATES = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
GATES = ("token", "sequence")


def attach(family="llama", gates="token", learned=True, **options):
    defaults = {"representation_size": 6, "dropout": 0.0, "r": 3, "num_experts": 4, "target_modules": "all"}
    adapter = MoSaraAdapter(gating=gates, **{**defaults, **options})
    model = adapter.attach(make_family(family)[0]).eval()
    if learned:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, weight in sorted(model.named_parameters()):
                if weight.requires_grad and "lora_gate" not in name:
                    weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    return adapter, model


def layers_of(model):
    return [module for module in model.modules() if hasattr(module, "lora_lam")]


def context(model, gates):
    from contextlib import nullcontext

    return nullcontext() if gates == "token" else model.instances(STATES)


def run(model, gates):
    with torch.no_grad(), context(model, gates):
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gates", GATES)
def test_a_layer_computes_the_branch(family, gates):
    _, model = attach(family, gates)
    layer = layers_of(model)[0]
    x = torch.randn(3, 4, layer.in_features)
    with torch.no_grad(), context(model, gates):
        found = layer(x) - layer.get_base_layer()(x)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    lam, v = layer.lora_lam["default"], layer.lora_v["default"]
    flat = x.reshape(12, -1)
    if gates == "token":
        routed = flat @ down.T @ layer.lora_router_in["default"].T @ layer.lora_router_out["default"].T
        weights = routed.softmax(dim=1)
        assert weights.std() > 1e-3
    else:
        weights = model.instance_gates(STATES).repeat_interleave(4, dim=0)
    expected = mo_sara_branch(flat, up, down, lam, weights, v).view(3, 4, -1)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)


def test_the_vectors_are_those_of_the_weight_and_one_diagonal_is_its_best_approximation():
    _, model = attach(learned=False, num_experts=1)
    for layer in layers_of(model):
        weight = weight_of(layer.get_base_layer())
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        best = left[:, :3] * values[:3] @ right[:3]
        torch.testing.assert_close(up * values[:3] @ down, best, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.lora_lam["default"][0], values[:3], rtol=0.06, atol=0)


@pytest.mark.parametrize("gates", GATES)
def test_before_training_the_llm_answers_as_it_is_and_v_alone_has_a_gradient(gates):
    _, model = attach(gates=gates, learned=False)
    bare = make_family("llama")[0]
    with torch.no_grad():
        torch.testing.assert_close(run(model, gates), bare(input_ids=IDS).logits)
    with context(model, gates):
        F.cross_entropy(model(input_ids=IDS).logits.flatten(0, 1), IDS.flatten()).backward()
    moved = {
        name.split(".")[-2]
        for name, weight in model.named_parameters()
        if weight.grad is not None and weight.grad.any()
    }
    assert moved == {"lora_v"}


@pytest.mark.parametrize("gates", GATES)
def test_counts_of_weights(gates):
    """E k + o for each layer; with token gates also k + E; U and V^T learn nothing."""
    adapter, model = attach(gates=gates)
    expected = sum(4 * 3 + layer.out_features + (3 + 4 if gates == "token" else 0) for layer in layers_of(model))
    assert sum(weight.numel() for weight in adapter.trainable_groups(model)["llm"]) == expected
    assert len(adapter.trainable_groups(model)["gate"]) == (gates == "sequence")
    assert not any("lora_A" in name or "lora_B" in name for name in adapter.trainable_state(model))


@pytest.mark.parametrize("gates", GATES)
def test_it_learns_and_its_vectors_stay(gates):
    adapter, model = attach(gates=gates, learned=False)
    before = {
        name: weight.clone() for name, weight in model.state_dict().items() if "lora_A" in name or "lora_B" in name
    }
    optimiser = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=0.02)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        with context(model.train(), gates):
            loss = F.cross_entropy(model(input_ids=IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in before.items())
    assert adapter.trainable_groups(model)["llm"]


@pytest.mark.parametrize("gates", GATES)
def test_a_saved_adapter_comes_back_in_ours_and_in_peft(gates, tmp_path):
    adapter, model = attach(gates=gates)
    adapter.save(model, tmp_path / "adapter", "f")
    make_family("llama")[0].save_pretrained(tmp_path / "llm")
    again = adapter.attach(make_family("llama")[0]).eval()
    adapter.load(again, tmp_path / "adapter", "f")
    bare = AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    theirs = PeftModel.from_pretrained(bare, str(tmp_path / "adapter")).eval()
    for other in (again, theirs):
        torch.testing.assert_close(run(other, gates), run(model, gates), rtol=0, atol=1e-5)
    other, attached = attach(gates="token" if gates == "sequence" else "sequence")
    with refused("", "file"):
        other.load(attached, tmp_path / "adapter", "f")


def test_an_untrained_adapter_is_not_saved(tmp_path):
    adapter, model = attach(learned=False)
    with refused("", "file", "every v is zero"):
        adapter.save(model, tmp_path, "f")
    adapter, model = attach()
    adapter.save(model, tmp_path, "f")
    damage(tmp_path, lambda tensors: {name: tensor * ("lora_v" not in name) for name, tensor in tensors.items()})
    with refused("", "file"):
        adapter.load(model, tmp_path, "f")


def test_it_is_not_merged():
    for gates in GATES:
        _, model = attach(gates=gates)
        with pytest.raises(ValueError, match="cannot be merged"), context(model, gates):
            model.merge_adapter()


def test_ranks_go_by_the_spectrum_and_states_by_the_gates():
    adapter, model = attach(rank_rule="sara", sara_threshold=0.5)
    for layer in layers_of(model):
        values = torch.linalg.svdvals(weight_of(layer.get_base_layer()))
        rank = len(layer.lora_A["default"].weight)
        assert values[:rank].sum() >= 0.5 * values.sum() * (1 - 1e-5) > values[: rank - 1].sum() * (1 - 1e-4)
    assert not adapter.needs_states and MoSaraAdapter.reads_states({"mosara_gates": "sequence"})
    assert adapter.row_inputs(model, [[1]]) == {} == adapter.row_facts(model, [[1]])


def test_more_ranks_than_singular_vectors_are_refused_and_all_of_them_are_not():
    model = make_family("llama")[0]
    layers = [module for name, module in model.named_modules() if name.endswith(("q_proj", "v_proj"))]
    fewest = min(min(layer.weight.shape) for layer in layers)
    with refused("lora_r", "conflict", f"{fewest + 1} is above the {fewest} singular vectors of model.layers"):
        attach(r=fewest + 1, target_modules="auto", learned=False)
    _, whole = attach(r=fewest, target_modules="auto", learned=False)
    layer = next(layer for layer in layers_of(whole) if min(layer.get_base_layer().weight.shape) == fewest)
    down, up, lam = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.lora_lam["default"].mean(0)
    torch.testing.assert_close((up * lam) @ down, layer.get_base_layer().weight, atol=0.05, rtol=0.05)
    attach(r=fewest + 1, rank_rule="sara", target_modules="auto", learned=False)  # which counts them


@pytest.mark.parametrize("gates", GATES)
def test_a_second_adapter_may_be_gated_in_the_other_way(gates):
    """Each adapter keeps its own gates, and one that goes takes nothing of the other with it."""
    _, model = attach(gates=gates)
    expected, other = run(model, gates), next(kind for kind in GATES if kind != gates)
    options = {"r": 2, "num_experts": 2, "target_modules": ["q_proj"], "representation_size": 6}
    model.add_adapter("second", MoSaraConfig(gating=other, task_type="CAUSAL_LM", **options))
    assert torch.equal(run(model, gates), expected)
    model.set_adapter("second")
    torch.testing.assert_close(run(model, other), make_family("llama")[0](input_ids=IDS).logits)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert not any("second" in name for name in model.state_dict())
    assert torch.equal(run(model, gates), expected)


def test_another_gating_is_refused():
    with pytest.raises(ValueError, match="no gating 'row'; choose from token, sequence"):
        MoSaraConfig(gating="row")


def test_rows_are_read_by_sequence_gates_alone():
    asked = []

    def states(histories):
        asked.append([list(history) for history in histories])
        return STATES[: len(histories)].numpy()

    for gates in GATES:
        adapter = attach(gates=gates)[0].with_states(states, 6)
        adapter.prepare_rows([[4], [7, 2]])
    assert asked == [[[4], [7, 2]]]

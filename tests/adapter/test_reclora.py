"""RecLoRA on whole models: its mixes against the pure function, iLoRA's layer, gates, files."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn import functional as F

from recbole_llm.adapter import ILoraAdapter, RecLoraAdapter, mixed_lora
from recbole_llm.adapter.reclora_peft import MetaGate, RecLoraConfig
from tests.families import FAMILIES, make_family
from tests.processes import forked_python
from tests.refusals import refused

IDS = torch.randint(5, 200, (3, 7), generator=torch.Generator().manual_seed(0))
STATES = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))


def attach(family="llama", learned=True, **options):
    defaults = {"representation_size": 6, "dropout": 0.0, "r": 2, "num_loras": 3, "target_modules": "all"}
    adapter = RecLoraAdapter(**{**defaults, **options})
    model = adapter.attach(make_family(family)[0]).eval()
    if learned:
        fill(model)
    return adapter, model


def fill(model):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def run(model, states=STATES, gates=None):
    with torch.no_grad(), model.instances(states if gates is None else None, gates=gates):
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mix", ["product", "factors"])
def test_a_layer_computes_the_mixture(family, mix):
    """Each layer's branch is the pure function's, of its own A and B and the row's gates."""
    _, model = attach(family, mix=mix, alpha=6.0)
    gates = model.instance_gates(STATES).detach()
    layer = next(module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "mix"))
    x = torch.randn(3, 4, layer.in_features)
    with torch.no_grad(), model.instances(gates=gates):
        found = layer(x) - layer.get_base_layer()(x)
    down = layer.lora_A["default"].weight.detach().unflatten(0, (3, 2))
    up = layer.lora_B["default"].weight.detach().unflatten(1, (3, 2)).permute(1, 0, 2)
    torch.testing.assert_close(found, mixed_lora(x, down, up, gates, 6.0 / 2, mix), rtol=1e-4, atol=1e-5)


def test_the_product_mix_is_iloras_layer_of_the_rank_of_all_loras():
    _, model = attach(num_loras=4, r=2, alpha=5.0)
    ilora = ILoraAdapter(r=8, num_experts=4, alpha=5.0, dropout=0.0, target_modules="all", representation_size=6)
    other = ilora.attach(make_family("llama")[0]).eval()
    other.load_state_dict(
        {key: value for key, value in model.state_dict().items() if "lora_gate" not in key}, strict=False
    )
    gates = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25] * 4, [0.0, 0.0, 1.0, 0.0]])
    torch.testing.assert_close(run(model, gates=gates), run(other, gates=gates), rtol=0, atol=1e-5)
    assert (run(model, gates=gates) - run(other, gates=gates.roll(1, 1))).abs().max() > 1e-3


@pytest.mark.parametrize("mix", ["product", "factors"])
def test_an_update_that_is_merged_for_one_row_is_that_rows(mix):
    _, model = attach(mix=mix)
    expected = run(model)
    with model.instances(STATES[[1]]):
        model.merge_adapter()
        with torch.no_grad():
            merged = model(input_ids=IDS).logits
        model.unmerge_adapter()
    torch.testing.assert_close(merged[1], expected[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(run(model), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mix", ["product", "factors"])
def test_a_second_adapter_may_mix_in_the_other_way_and_the_first_is_merged_by_its_own(mix):
    _, model = attach(mix=mix)
    expected, other = run(model), "factors" if mix == "product" else "product"
    options = {"r": 6, "num_experts": 3, "target_modules": ["q_proj"], "representation_size": 6}
    model.add_adapter("second", RecLoraConfig(mix=other, task_type="CAUSAL_LM", **options))
    assert torch.equal(run(model), expected)
    with model.instances(STATES[[1]]):
        model.merge_adapter()
    with torch.no_grad():
        merged = model(input_ids=IDS).logits
    torch.testing.assert_close(merged[1], expected[1], rtol=0, atol=1e-4)


def test_another_mix_is_refused():
    with pytest.raises(ValueError, match="no mix 'sum'; choose from product, factors"):
        RecLoraConfig(mix="sum")


def test_before_training_the_llm_answers_as_it_is():
    _, model = attach(learned=False)
    bare = make_family("llama")[0]
    with torch.no_grad():
        torch.testing.assert_close(run(model), bare(input_ids=IDS).logits)


@pytest.mark.parametrize("mix", ["product", "factors"])
def test_only_factors_give_all_loras_one_direction_at_the_start(mix):
    """B = 0: under factors the gradients of all B are one matrix times their gates, under product they are not."""
    _, model = attach(learned=False, mix=mix, num_loras=2)
    with model.instances(STATES[:1]):
        logits = model(input_ids=IDS[:1]).logits
    F.cross_entropy(logits.flatten(0, 1), IDS[:1].flatten()).backward()
    up = next(module for module in model.modules() if hasattr(module, "mix")).lora_B["default"].weight.grad
    one, two = (part.flatten() for part in up.unflatten(1, (2, 2)).unbind(1))
    cosine = float(F.cosine_similarity(one, two, dim=0))
    assert (abs(cosine) > 1 - 1e-4) == (mix == "factors"), cosine


def test_gates_are_the_formula():
    gate = MetaGate(6, 3, hidden_size=5, temperature=2.0).eval().double()
    with torch.no_grad():
        gate.norm_weight.copy_(torch.rand(6)), gate.norm_bias.copy_(torch.rand(6))
    states = STATES.double()
    c = states.numpy()
    normed = (c - c.mean(1, keepdims=True)) / np.sqrt(c.var(1, keepdims=True) + 1e-5)
    normed = normed * gate.norm_weight.detach().numpy() + gate.norm_bias.detach().numpy()
    hidden = np.maximum(normed @ gate.hidden_weight.detach().numpy().T + gate.hidden_bias.detach().numpy(), 0)
    logits = (hidden @ gate.weight.detach().numpy().T + gate.bias.detach().numpy()) / 2.0
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(gate(states).detach().numpy(), expected, rtol=1e-10)
    torch.testing.assert_close(gate(torch.zeros(1, 6).double()), torch.full((1, 3), 1 / 3).double())
    gate.top_k = 2
    assert ((gate(states) == 0).sum(dim=1) == 1).all()
    gate.top_k, gate.square_root = None, True
    torch.testing.assert_close(gate(states).square().sum(1), torch.ones(3).double())


def test_the_same_user_twice_gets_the_same_gates_and_all_weights_learn():
    adapter, model = attach()
    model.train()
    gates = adapter.gates(model.eval(), STATES[[0, 0, 1]])
    assert torch.equal(gates[0], gates[1]) and not torch.equal(gates[0], gates[2])
    with model.train().instances(STATES):
        F.cross_entropy(model(input_ids=IDS).logits.flatten(0, 1), IDS.flatten()).backward()
    groups = adapter.trainable_groups(model)
    assert len(groups["gate"]) == 6 and all(weight.grad.any() for group in groups.values() for weight in group)


@pytest.mark.parametrize("mix", ["product", "factors"])
def test_a_saved_adapter_answers_the_same_in_a_new_process(mix, tmp_path):
    adapter, model = attach(mix=mix)
    adapter.save(model, tmp_path / "adapter", "f")
    model.base_model.model.config.save_pretrained(tmp_path / "llm")
    bare = make_family("llama")[0]
    bare.save_pretrained(tmp_path / "llm")
    torch.save({"ids": IDS, "states": STATES, "expected": run(model)}, tmp_path / "input.pt")
    forked_python(
        f"""
        import sys, torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM
        from recbole_llm.adapter import RecLoraAdapter
        folder = sys.argv[1]
        base = lambda: AutoModelForCausalLM.from_pretrained(folder + "/llm")
        ids, states, expected = torch.load(folder + "/input.pt").values()
        options = dict(representation_size=6, r=2, num_loras=3, target_modules="all", dropout=0.0, mix="{mix}")
        adapter = RecLoraAdapter(**options)
        ours = adapter.attach(base()).eval()
        adapter.load(ours, folder + "/adapter", "f")
        theirs = PeftModel.from_pretrained(base(), folder + "/adapter").eval()
        for model in (ours, theirs):
            with torch.no_grad(), model.instances(states):
                torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=1e-5)
        """,
        tmp_path,
    )
    other, attached = attach(mix="factors" if mix == "product" else "product")
    with refused("", "conflict", "mix"):
        other.load(attached, tmp_path / "adapter", "f")


def test_bad_settings_are_refused():
    for key, bad in {"num_loras": 0, "temperature": 0.0, "mix": "sum", "gate_dropout": 1.0}.items():
        with refused(f"reclora_{key}", "value"):
            RecLoraAdapter(**{key: bad})
    with refused("reclora_gate_top_k", "conflict"):
        RecLoraAdapter(num_loras=2, gate_top_k=3)


def test_peft_itself_loads_the_folder_for_training(tmp_path):
    adapter, model = attach()
    adapter.save(model, tmp_path, "f")
    theirs = PeftModel.from_pretrained(make_family("llama")[0], str(tmp_path), is_trainable=True)
    assert any("lora_gate" in name for name, weight in theirs.named_parameters() if weight.requires_grad)

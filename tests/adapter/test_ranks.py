"""Ranks by singular values: what peft is told, what equals plain LoRA, and what is refused."""

import numpy as np
import pytest
import torch
from peft import PeftModel

from recbole_llm.adapter import ILoraAdapter, LoraAdapter, RecLoraAdapter, allocate_ranks
from recbole_llm.adapter.ranks import spectra_of, target_layers, weight_of
from recbole_llm.adapter.targets import find_target_modules
from tests.adapter.training import logits, train
from tests.families import FAMILIES, make_family
from tests.refusals import refused


def ranks_of(model):
    """Rank and scale of every layer, by its name in the bare LLM."""
    layers = {name: module for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}
    return {
        name: (module.lora_A["default"].weight.shape[0], module.scaling["default"]) for name, module in layers.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", ["auto", "all"])
def test_layers_are_those_that_peft_adapts_and_weights_are_out_by_in(family, targets):
    bare = make_family(family)[0]
    layers = target_layers(bare, find_target_modules(bare, targets))
    tuned = LoraAdapter(target_modules=targets).attach(make_family(family)[0])
    assert layers.keys() == ranks_of(tuned).keys()
    for layer in layers.values():
        x = torch.randn(2, weight_of(layer).shape[1])
        bias = layer.bias if getattr(layer, "bias", None) is not None else 0
        torch.testing.assert_close(x @ weight_of(layer).T + bias, layer(x))


@pytest.mark.parametrize("rule", [{"sara_threshold": 0.5}, {"sara_budget": 40}, {}])
def test_every_layer_has_the_rank_of_its_spectrum_and_the_scale_of_lora(rule):
    bare = make_family("llama")[0]
    layers = target_layers(bare, find_target_modules(bare, "all"))
    limits = {name.removeprefix("sara_"): value for name, value in rule.items()}
    expected = allocate_ranks(spectra_of(layers), **(limits or {"budget": 4 * len(layers)}), r_min=2, r_max=9)
    adapter = LoraAdapter(r=4, alpha=8, target_modules="all", rank_rule="sara", sara_r_min=2, sara_r_max=9, **rule)
    found = ranks_of(adapter.attach(bare))
    assert {name: rank for name, (rank, _) in found.items()} == expected and len(set(expected.values())) > 1
    assert all(scale == pytest.approx(2.0) for _, scale in found.values())
    if rule != {"sara_threshold": 0.5}:
        assert sum(expected.values()) <= rule.get("sara_budget", 4 * len(layers))


def test_threshold_1_is_lora_of_full_rank():
    """On square maps of full rank: the same start, and the same weights after training."""
    width = make_family("llama")[0].config.hidden_size
    targets = {"target_modules": ["q_proj", "o_proj"], "dropout": 0.0}
    sara = LoraAdapter(r=4, alpha=4, rank_rule="sara", sara_threshold=1.0, **targets)
    plain = LoraAdapter(r=width, alpha=width, **targets)
    models = [train(adapter.attach(make_family("llama")[0])) for adapter in (sara, plain)]
    states = [adapter.trainable_state(model) for adapter, model in zip((sara, plain), models, strict=True)]
    assert states[0].keys() == states[1].keys()
    for name, weight in states[0].items():
        torch.testing.assert_close(weight, states[1][name])
    torch.testing.assert_close(logits(models[0]), logits(models[1]))


def test_experts_share_their_ranks_evenly():
    rule = {"rank_rule": "sara", "sara_budget": 30, "dropout": 0.0}
    plain = ranks_of(LoraAdapter(r=4, **rule).attach(make_family("llama")[0]))
    experts = ranks_of(ILoraAdapter(r=4, num_experts=4, **rule).attach(make_family("llama")[0]))
    whole = ranks_of(RecLoraAdapter(r=4, num_loras=3, **rule).attach(make_family("llama")[0]))
    for name, (rank, _) in plain.items():
        assert experts[name][0] == -(-rank // 4) * 4 and whole[name][0] == 3 * rank
    assert all(scale == pytest.approx(16 / 4) for _, scale in experts.values())


def test_a_saved_adapter_comes_back_in_ours_and_in_peft(tmp_path):
    adapter = LoraAdapter(rank_rule="sara", sara_budget=20, target_modules="all", dropout=0.0)
    with refused("sara_budget", "conflict", "14 matrices"):
        LoraAdapter(rank_rule="sara", sara_budget=13, target_modules="all").attach(make_family("llama")[0])
    model = train(adapter.attach(make_family("llama")[0]))
    adapter.save(model, tmp_path, "f")
    again = adapter.attach(make_family("llama")[0])
    adapter.load(again, tmp_path, "f")
    theirs = PeftModel.from_pretrained(make_family("llama")[0], str(tmp_path))
    for other in (again, theirs):
        torch.testing.assert_close(logits(other), logits(model))
    with refused("", "file"):
        LoraAdapter(target_modules="all").load(
            LoraAdapter(target_modules="all").attach(make_family("llama")[0]), tmp_path, "f"
        )


def test_what_is_remembered_is_not_computed_again():
    known = {}

    def remember(names, compute):
        if not known:
            known.update(compute())
        return {name: known[name] for name in names}

    adapter = LoraAdapter(rank_rule="sara").with_spectra(remember)
    first = ranks_of(adapter.attach(make_family("llama")[0]))
    known.update({name: np.ones_like(values) for name, values in known.items()})  # what is asked for is what is known
    second = {name: rank for name, (rank, _) in ranks_of(adapter.attach(make_family("llama")[0])).items()}
    assert second == allocate_ranks(known, budget=8 * len(known)) != {name: rank for name, (rank, _) in first.items()}


def test_facts_of_plain_lora_know_nothing_of_rules():
    plain = LoraAdapter().facts()
    assert set(plain) == {"adapter", "r", "alpha", "dropout", "target_modules", "seed"}
    assert set(LoraAdapter(rank_rule="sara").facts()) - set(plain) == {
        *("rank_rule", "sara_threshold", "sara_budget", "sara_r_min", "sara_r_max")
    }


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        ({"sara_threshold": 0.5}, "sara_threshold"),
        ({"sara_budget": 9}, "sara_budget"),
        ({"rank_rule": "sara", "sara_budget": 9, "sara_threshold": 0.5}, "sara_budget"),
        ({"rank_rule": "sara", "sara_r_min": 4, "sara_r_max": 3}, "sara_r_max"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(bad, key):
    with refused(key, "conflict"):
        LoraAdapter(**bad)

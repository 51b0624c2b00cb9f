import pytest
import torch

from recbole_llm.adapter import FullAdapter
from tests.adapter.training import logits, train
from tests.families import make_family
from tests.refusals import refused


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_tied_embeddings_stay_tied(family, tmp_path):
    adapter = FullAdapter()
    model = train(adapter.attach(make_family(family)[0]))
    adapter.save(model, tmp_path, "f1")
    other_adapter = FullAdapter()
    other = other_adapter.attach(make_family(family, seed=1)[0])
    other_adapter.load(other, tmp_path, "f1")
    for tuned in (model, other):
        assert tuned.get_output_embeddings().weight is tuned.get_input_embeddings().weight
    assert torch.equal(logits(other), logits(model))


def test_every_weight_learns_and_the_copy_does_not():
    adapter = FullAdapter()
    model, reference = adapter.attach(make_family("llama")[0]), make_family("llama")[0]
    train(model)
    before = dict(reference.named_parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert sum(not torch.equal(p, before[name]) for name, p in model.named_parameters()) == len(before)
    with adapter.untuned(model) as untuned:
        assert not any(parameter.requires_grad for parameter in untuned.parameters())
        assert not untuned.training


def test_a_quantised_model_cannot_be_trained_in_full():
    model = make_family("llama")[0]
    model.is_quantized = True
    with refused("adapter", "conflict"):
        FullAdapter().attach(model)


def test_untuned_needs_attach():
    with pytest.raises(ValueError, match="attach"), FullAdapter().untuned(make_family("llama")[0]):
        pass


@pytest.mark.parametrize("quant", ["8bit", "4bit"])
def test_a_quantised_llm_is_refused_before_it_is_loaded(quant):
    with refused("adapter", "conflict", "leave quant empty or use adapter: lora"):
        FullAdapter.from_settings({"quant": quant})
    assert FullAdapter.from_settings({"quant": None}).facts() == FullAdapter.from_settings({}).facts()

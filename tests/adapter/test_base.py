"""What holds for every adapter."""

import pytest
import torch

from recbole_llm.adapter import FullAdapter, LoraAdapter
from recbole_llm.adapter.base import MANIFEST
from tests.adapter.training import IDS, damage, logits, train
from tests.families import FAMILIES, make_family, save_family
from tests.processes import forked_python
from tests.refusals import refused

ADAPTERS = {"lora": lambda: LoraAdapter(target_modules="all"), "full": FullAdapter}
NEW_PROCESS = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from recbole_llm.adapter import FullAdapter, LoraAdapter
folder, ids = sys.argv[1], torch.tensor([[5, 6, 7, 8, 9, 10]])
base = lambda: AutoModelForCausalLM.from_pretrained(folder + "/llm")
results = {}
with torch.no_grad():
    for adapter in (LoraAdapter(target_modules="all"), FullAdapter()):
        model = adapter.attach(base()).eval()
        adapter.load(model, f"{folder}/{adapter.name}", "f1")
        results[adapter.name] = model(input_ids=ids).logits
    results["peft"] = PeftModel.from_pretrained(base(), folder + "/lora").eval()(input_ids=ids).logits
    results["transformers"] = AutoModelForCausalLM.from_pretrained(folder + "/full").eval()(input_ids=ids).logits
torch.save(results, folder + "/results.pt")
"""


def trained(kind, folder, family="llama"):
    """An adapter trained and saved."""
    adapter = ADAPTERS[kind]()
    model = train(adapter.attach(make_family(family)[0]))
    adapter.save(model, folder, "f1")
    return adapter, model


def fresh(kind, family="llama"):
    adapter = ADAPTERS[kind]()
    return adapter, adapter.attach(make_family(family)[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ADAPTERS)
def test_untuned_is_the_base_model_before_and_after_training(kind, family):
    base = logits(make_family(family)[0])
    adapter, model = fresh(kind, family)
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    with adapter.untuned(model) as untuned:
        assert torch.equal(logits(untuned), base)
    train(model)
    with adapter.untuned(model) as untuned:
        assert torch.equal(logits(untuned), base)
    assert (logits(model) - base).abs().max() > 1e-2
    assert {name for name, p in model.named_parameters() if p.requires_grad} == learns


def test_in_a_new_process_a_saved_adapter_gives_equal_logits(tmp_path):
    save_family("llama", tmp_path / "llm")
    models = {kind: trained(kind, tmp_path / kind)[1] for kind in ADAPTERS}
    forked_python(NEW_PROCESS, tmp_path)
    results = torch.load(tmp_path / "results.pt")
    for name, kind in {"lora": "lora", "peft": "lora", "full": "full", "transformers": "full"}.items():
        torch.testing.assert_close(results[name], logits(models[kind]), atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ADAPTERS)
def test_save_and_load_give_equal_weights(kind, family, tmp_path):
    first, model = trained(kind, tmp_path, family)
    adapter, other = fresh(kind, family)
    adapter.load(other, tmp_path, "f1")
    state, expected = adapter.trainable_state(other), first.trainable_state(model)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_trainable_state_is_a_copy_and_comes_back_bit_equal(kind):
    adapter, model = fresh(kind)
    train(model)
    state, expected = adapter.trainable_state(model), logits(model)
    train(model)
    assert not torch.equal(logits(model), expected)
    adapter.load_trainable_state(model, state)
    assert torch.equal(logits(model), expected)
    assert all(not tensor.requires_grad for tensor in state.values())


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_state_that_does_not_fit_is_an_error(kind):
    adapter, model = fresh(kind)
    state = adapter.trainable_state(model)
    name = next(iter(state))
    for wrong in ({}, state | {"other": state[name]}, state | {name: state[name][:1]}):
        with pytest.raises(ValueError, match="does not fit"):
            adapter.load_trainable_state(model, wrong)


def first_renamed(tensors):
    name = sorted(tensors)[0]
    return {("x." + key if key == name else key): tensor for key, tensor in tensors.items()}


def first_missing(tensors):
    return {name: tensors[name] for name in sorted(tensors)[1:]}


def first_reshaped(tensors):
    name = sorted(tensors)[0]
    return tensors | {name: tensors[name][:1].clone()}


@pytest.mark.parametrize("change", [first_renamed, first_missing, first_reshaped, lambda tensors: {}])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_tensors_that_do_not_fit_stop_the_run(kind, change, tmp_path):
    trained(kind, tmp_path)
    damage(tmp_path, change)
    adapter, model = fresh(kind)
    with refused("", "file", "do not fit|cannot be loaded"):
        adapter.load(model, tmp_path, "f1")


@pytest.mark.parametrize("kind", ADAPTERS)
def test_changed_files_and_other_llms_stop_the_run(kind, tmp_path):
    trained(kind, tmp_path)
    adapter, model = fresh(kind)
    with refused("", "conflict", "LLM f1, not on f2"):
        adapter.load(model, tmp_path, "f2")
    weights = next(tmp_path.glob("*.safetensors"))
    content = weights.read_bytes()
    for planted in (b"", content[:-4], content[:-4] + b"abcd"):
        weights.write_bytes(planted)
        with refused("", "file"):
            adapter.load(model, tmp_path, "f1")
    weights.unlink()
    with refused("", "file", "not those that were saved"):
        adapter.load(model, tmp_path, "f1")


@pytest.mark.parametrize("note", [None, "", "{", "[]", '{"adapter": "lora"}'])
def test_a_folder_without_a_readable_note_stops_the_run(note, tmp_path):
    trained("lora", tmp_path)
    (tmp_path / MANIFEST).unlink() if note is None else (tmp_path / MANIFEST).write_text(note)
    adapter, model = fresh("lora")
    with refused("", "file", MANIFEST):
        adapter.load(model, tmp_path, "f1")


def test_one_kind_of_adapter_is_not_read_as_another(tmp_path):
    trained("full", tmp_path)
    adapter, model = fresh("lora")
    with refused("", "conflict", "adapter: full"):
        adapter.load(model, tmp_path, "f1")


@pytest.mark.parametrize("kind", ADAPTERS)
def test_gradient_checkpointing_changes_no_gradient(kind):
    found = []
    for checkpointing in (False, True):
        model = make_family("llama")[0]
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        adapter = LoraAdapter(dropout=0.0) if kind == "lora" else FullAdapter()
        model = adapter.attach(model).train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0] and found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)

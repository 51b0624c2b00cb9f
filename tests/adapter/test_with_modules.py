"""Modules beside the LLM are trained, saved and loaded with its adapter, which alone loads as before."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from recbole_llm.adapter import AdapterWithModules, FullAdapter, ILoraAdapter, LoraAdapter
from tests.adapter.training import IDS, logits, train
from tests.families import make_family, save_family
from tests.processes import forked_python
from tests.refusals import refused

NEW_PROCESS = """
import sys, torch
from torch import nn
from transformers import AutoModelForCausalLM
from recbole_llm.adapter import AdapterWithModules, LoraAdapter
folder = sys.argv[1]
module = nn.Linear(3, 3)
adapter = AdapterWithModules(LoraAdapter(), {"projector": module})
model = adapter.attach(AutoModelForCausalLM.from_pretrained(folder + "/llm"))
adapter.load(model, folder + "/adapter", "f1")
with torch.no_grad():
    torch.save([model.eval()(input_ids=torch.tensor([[5, 6, 7, 8, 9, 10]])).logits, module(torch.eye(3))],
               folder + "/results.pt")
"""


def attach(inner=None, width=3):
    """An adapter with a linear map beside it, and the model, both as new."""
    torch.manual_seed(0)
    module = nn.Linear(3, width)
    adapter = AdapterWithModules(inner or LoraAdapter(), {"projector": module})
    return adapter, adapter.attach(make_family("llama")[0]), module


def learned(inner=None):
    adapter, model, module = attach(inner)
    train(model)
    with torch.no_grad():
        module.weight.add_(1)
    return adapter, model, module


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    save_family("llama", folder / "llm")
    adapter, model, module = learned()
    adapter.save(model, folder / "adapter", "f1")
    return folder, logits(model), module(torch.eye(3)).detach()


def test_in_a_new_process_everything_comes_back(saved):
    folder, expected, mapped = saved
    forked_python(NEW_PROCESS, folder)
    found = torch.load(folder / "results.pt")
    assert torch.equal(found[0], expected) and torch.equal(found[1], mapped)


def test_peft_loads_the_llms_part_alone(saved):
    folder, expected, _ = saved
    assert {file.name for file in (folder / "adapter").glob("*.safetensors")} == {
        "adapter_model.safetensors",
        "projector.safetensors",
    }
    assert set(load_file(folder / "adapter" / "projector.safetensors")) == {"weight", "bias"}
    theirs = PeftModel.from_pretrained(make_family("llama")[0], folder / "adapter")
    assert torch.equal(logits(theirs), expected)


def test_the_trainable_state_is_a_copy_and_goes_both_ways():
    adapter, model, module = learned()
    state = adapter.trainable_state(model)
    assert {"projector.weight", "projector.bias"} < set(state)
    before, mapped = logits(model), module(torch.eye(3)).detach()
    train(model)
    module.weight.data.zero_()
    adapter.load_trainable_state(model, state)
    assert torch.equal(logits(model), before) and torch.equal(module(torch.eye(3)).detach(), mapped)
    for wrong in ({**state, "other": torch.ones(1)}, {k: v for k, v in state.items() if k != "projector.bias"}):
        with pytest.raises(ValueError, match="does not fit"):
            adapter.load_trainable_state(model, wrong)


def test_every_weight_that_learns_is_in_one_group_and_the_llms_come_first():
    adapter, model, module = attach(ILoraAdapter(representation_size=6))
    groups = adapter.trainable_groups(model)
    assert list(groups) == ["llm", "gate", "modules"]
    assert [p.data_ptr() for p in groups["modules"]] == [p.data_ptr() for p in module.parameters()]
    assert [tuple(p.shape) for p in groups["gate"]] == [(4, 6)]
    names = {p.data_ptr(): name for name, p in model.named_parameters() if p.requires_grad}
    assert {names[p.data_ptr()] for p in groups["llm"]} == {name for name in names.values() if "lora_gate" not in name}


def test_what_the_inner_adapter_can_do_it_can_do():
    adapter, model, _ = attach(ILoraAdapter(representation_size=6))
    assert adapter.name == "ilora" and adapter.num_experts == 4
    assert adapter.gates(model, torch.ones(2, 6)).shape == (2, 4)
    with adapter.instances(model, torch.ones(1, 6)):
        model(input_ids=IDS)
    with adapter.untuned(model) as untuned:
        untuned(input_ids=IDS)
    with pytest.raises(AttributeError):
        _ = adapter.something
    assert copy.copy(adapter).name == "ilora"


def test_full_fine_tuning_takes_modules_along(tmp_path):
    adapter, model, module = learned(FullAdapter())
    adapter.save(model, tmp_path / "adapter", "f1")
    other, again, fresh = attach(FullAdapter())
    other.load(again, tmp_path / "adapter", "f1")
    assert torch.equal(logits(again), logits(model)) and torch.equal(fresh.weight, module.weight)


def test_facts_name_the_modules():
    adapter, _, _ = attach()
    assert adapter.facts() == {
        **LoraAdapter().facts(),
        "modules": {"projector.weight": [3, 3], "projector.bias": [3]},
    }


@pytest.mark.parametrize("change", ["changed", "lost", "without", "reshaped"])
def test_another_module_than_was_saved_is_refused(saved, tmp_path, change):
    adapter, model, _ = learned()
    folder = tmp_path / "adapter"
    (adapter.inner if change == "without" else adapter).save(model, folder, "f1")
    file = folder / "projector.safetensors"
    if change == "changed":
        save_file({key: value + 1 for key, value in load_file(file).items()}, file)
    if change == "lost":
        file.unlink()
    other, again, _ = attach(width=5 if change == "reshaped" else 3)
    message = "are not those that were saved" if change in ("changed", "lost") else "projector.safetensors does not fit"
    with refused("", "file", message):
        other.load(again, folder, "f1")


def test_the_note_ties_the_module_to_its_owner(saved):
    folder, _, _ = saved
    note = json.loads((folder / "adapter" / "recbole_llm.json").read_text())
    assert set(note["sha256"]) == {"adapter_model.safetensors", "projector.safetensors"}
    adapter, model, _ = attach()
    with refused("", "conflict"):
        adapter.load(model, folder / "adapter", "f2")

"""Weights that depend on whose row is computed: where states come from, and who needs none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from recbole_llm.adapter import Adapter, AdapterWithModules, FullAdapter, ILoraAdapter, LoraAdapter
from recbole_llm.adapter.gates import gate_statistics
from recbole_llm.adapter.states import PermutedStates, SequenceStates
from tests.adapter.test_ilora import IDS, STATES, fill_up_projections
from tests.families import make_family
from tests.refusals import refused

WIDTH = STATES.shape[1]
HISTORIES = [[4], [7, 2], [1, 2, 3]]


def states_of(histories: Any) -> np.ndarray:
    """A state that follows from the history alone; zeros of an empty one."""
    rows = [np.random.default_rng(list(history)).normal(size=WIDTH) * bool(history) for history in histories]
    return np.array(rows, dtype=np.float32).reshape(len(rows), WIDTH)


def attached(**options: Any) -> tuple[ILoraAdapter, Any]:
    """iLoRA with a source of states, and a model whose adapter has learned."""
    adapter = ILoraAdapter(dropout=0.0, **options).with_states(states_of, WIDTH)
    model = adapter.attach(make_family("llama")[0]).eval()
    fill_up_projections(model)
    return adapter, model


@pytest.mark.parametrize("adapter", [LoraAdapter(), FullAdapter(), AdapterWithModules(LoraAdapter(), {})])
def test_an_adapter_whose_weights_are_the_same_for_all_rows_reads_no_states(adapter: Adapter):
    def states(histories: Any) -> np.ndarray:
        raise AssertionError("nobody asks for states")

    assert not adapter.needs_states
    same = adapter.with_states(states, WIDTH)
    model = same.attach(make_family("llama")[0]).eval()
    same.prepare_rows(HISTORIES)
    with torch.no_grad(), same.conditioned_on(model, HISTORIES):
        inside = model(input_ids=IDS).logits
    with torch.no_grad():
        assert torch.equal(inside, model(input_ids=IDS).logits)
    assert same.row_inputs(model, HISTORIES) == same.row_facts(model, HISTORIES) == {}


@pytest.mark.parametrize("wrap", [lambda adapter: adapter, lambda adapter: AdapterWithModules(adapter, {})])
def test_gates_are_those_of_the_states_of_the_histories(wrap):
    adapter, model = attached()
    adapter, states = wrap(adapter), torch.from_numpy(states_of(HISTORIES))
    assert adapter.needs_states
    with torch.no_grad(), adapter.instances(model, states):
        expected = model(input_ids=IDS).logits
    with torch.no_grad(), adapter.conditioned_on(model, HISTORIES):
        assert torch.equal(model(input_ids=IDS).logits, expected)
    inputs = adapter.row_inputs(model, HISTORIES)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS, **inputs).logits, expected)
    assert torch.equal(inputs["instance_gates"], adapter.gates(model, states))
    assert adapter.row_facts(model, HISTORIES) == gate_statistics(inputs["instance_gates"])
    assert adapter.row_inputs(model, []) == {}


def test_the_gradient_of_conditioned_passes_reaches_the_gate_network_and_that_of_row_inputs_does_not():
    adapter, model = attached()
    with adapter.conditioned_on(model, HISTORIES):
        model(input_ids=IDS).logits.sum().backward()
    assert model.base_model.lora_gate["default"].weight.grad.abs().sum() > 0
    assert not adapter.row_inputs(model, HISTORIES)["instance_gates"].requires_grad


def test_noise_of_gates_is_not_in_row_inputs_and_training_goes_on_in_its_mode():
    adapter, model = attached(gate="noisy", gate_noise=2.0)
    model.train()
    first, again = (adapter.row_inputs(model, HISTORIES)["instance_gates"] for _ in range(2))
    assert torch.equal(first, again) and all(module.training for module in model.modules())
    with adapter.conditioned_on(model, HISTORIES):
        assert not torch.equal(model.base_model.current_gates.factors, adapter._fixed_gates(model, HISTORIES))


def test_states_have_to_be_there_before_rows_are_named():
    adapter = ILoraAdapter(representation_size=WIDTH)
    model = adapter.attach(make_family("llama")[0])
    with pytest.raises(ValueError, match="with_states"):
        adapter.conditioned_on(model, HISTORIES)


def test_permuted_states_are_those_of_another_trained_row_and_always_the_same():
    own, others = SequenceStates(states_of), PermutedStates(states_of, seed=3)
    trained = [[item, item + 1] for item in range(40)]
    with refused("ilora_permuted", "conflict", "epochs > 0"):
        others.of(trained)
    others.prepare([*trained, *trained])
    known, found = own.of(trained), others.of(trained)
    source = torch.cdist(found, known).argmin(dim=1)
    assert torch.equal(found, known[source]) and (source != torch.arange(40)).all() and len(source.unique()) > 13
    assert torch.equal(others.of(trained[::-1]), found.flip(0))  # by the history, not by its place
    again = PermutedStates(states_of, seed=4)
    again.prepare(trained)
    assert not torch.equal(again.of(trained), found)


def test_one_history_has_no_other():
    others = PermutedStates(states_of, seed=0)
    others.prepare([[1, 2], [1, 2]])
    with refused("ilora_permuted", "conflict"):
        others.of([[1, 2]])


def test_the_control_experiment_is_another_training_with_the_same_configuration_of_peft():
    plain, control = (ILoraAdapter(permuted=permuted).with_states(states_of, WIDTH) for permuted in (False, True))
    assert isinstance(control.states, PermutedStates) and not isinstance(plain.states, PermutedStates)
    assert plain.facts() | {"permuted": True} == control.facts() != plain.facts()
    settings = {"lora_r": 8, "ilora_num_experts": 2, "ilora_permuted": True, "seed": 5}
    assert ILoraAdapter.from_settings(settings) == ILoraAdapter(r=8, num_experts=2, permuted=True, seed=5)

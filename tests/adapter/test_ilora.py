"""Instance-wise LoRA on whole models.

The oracle is ordinary LoRA of peft whose rank dimension is multiplied, by a hook, with K times the gates.
"""

import copy
import dataclasses

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from recbole_llm.adapter import ILoraAdapter, LoraAdapter
from recbole_llm.adapter.gates import GATES
from recbole_llm.adapter.ilora_layer import ILoraLinear
from recbole_llm.adapter.ilora_peft import ILoraConfig
from recbole_llm.llm.generation import beam_search
from recbole_llm.llm.loss import answer_loss
from tests.adapter.training import damage
from tests.families import FAMILIES, make_family, save_family
from tests.processes import forked_python
from tests.refusals import refused

AUTHORS = {"alpha": 32, "dropout": 0.1, "target_modules": "all"}
IDS = torch.randint(5, 200, (3, 7), generator=torch.Generator().manual_seed(0))
STATES = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
NEW_PROCESS = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from recbole_llm.adapter import ILoraAdapter
folder = sys.argv[1]
base = lambda: AutoModelForCausalLM.from_pretrained(folder + "/llm")
ids, states = torch.load(folder + "/input.pt").values()
adapter = ILoraAdapter(representation_size=6, gate="mlp", alpha=32, target_modules="all")
ours = adapter.attach(base()).eval()
adapter.load(ours, folder + "/adapter", "f1")
theirs = PeftModel.from_pretrained(base(), folder + "/adapter", adapter_name="other").eval()
results = {}
for name, model in {"ours": ours, "peft": theirs}.items():
    with torch.no_grad(), model.instances(states):
        results[name] = model(input_ids=ids).logits
torch.save(results, folder + "/results.pt")
"""
WITHOUT_PLUGIN = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1] + "/llm")
PeftModel.from_pretrained(model, sys.argv[1] + "/adapter")
"""


def attach(family="llama", learned=True, **options):
    """An adapter and its model; `learned`: with values in place of B's zeros, as after training."""
    adapter = ILoraAdapter(**{**AUTHORS, "representation_size": 6, "dropout": 0.0, **options})
    model = adapter.attach(make_family(family)[0]).eval()
    if learned:
        fill_up_projections(model)
    return adapter, model


def fill_up_projections(model):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def run(model, states=STATES, ids=IDS, **kwargs):
    with torch.no_grad(), model.instances(states):
        return model(input_ids=ids, **kwargs).logits


def gradients(model, backward):
    """What `backward` leaves at each weight, with the same dropout every time."""
    model.zero_grad()
    torch.manual_seed(0)
    backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_all_close(found, expected, **tolerance):
    assert found and found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def hooked_lora(family, model, factors):
    """Plain LoRA with the weights of `model`, and hooks that multiply its rank dimension."""
    plain = LoraAdapter(alpha=32, dropout=0.0, target_modules="all").attach(make_family(family)[0]).eval()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if "lora_gate" not in key})
    for name, module in plain.named_modules():
        if name.endswith("lora_A.default"):
            module.register_forward_hook(lambda _module, _args, output: output * factors()[:, None])
    return plain


# ------------------------------------------------------------------------------------------------- the computation


@pytest.mark.parametrize("scale", ["expert_rank", "rank"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_all_gradients_equal_lora_with_hooks(family, scale):
    _, model = attach(family, scale=scale)
    weight = model.base_model.lora_gate["default"].weight.detach().clone().requires_grad_()
    factor = 4 if scale == "expert_rank" else 1
    plain = hooked_lora(family, model, lambda: factor * (STATES @ weight.T).softmax(dim=1).repeat_interleave(2, dim=1))

    def backward(tuned):
        F.cross_entropy(tuned(input_ids=IDS).logits.flatten(0, 1), IDS.flatten()).backward()

    with model.instances(STATES):
        torch.testing.assert_close(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)
        found = gradients(model, lambda: backward(model))
    expected = gradients(plain, lambda: backward(plain)) | {"base_model.lora_gate.default.weight": weight.grad}
    assert weight.grad.any()
    assert_all_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_uniform_gates_and_a_single_expert_are_lora(family):
    _, model = attach(family)
    plain = hooked_lora(family, model, lambda: torch.ones(1, 1))
    uniform = run(model, torch.zeros(3, 6))
    torch.testing.assert_close(uniform, plain(input_ids=IDS).logits, rtol=0, atol=1e-5)
    _, single = attach(family, num_experts=1)
    torch.testing.assert_close(run(single), uniform, rtol=0, atol=1e-5)
    assert (run(model) - uniform).abs().max() > 1e-3


def test_weights_start_as_those_of_lora_with_the_same_seed():
    adapter, model = attach(learned=False, seed=3)
    plain = LoraAdapter(alpha=32, target_modules="all", seed=3)
    expected = plain.trainable_state(plain.attach(make_family("llama")[0]))
    state = adapter.trainable_state(model)
    assert state.keys() - expected.keys() == {"base_model.lora_gate.default.weight"}
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    again = adapter.trainable_state(attach(learned=False, seed=3)[1])
    assert all(torch.equal(state[name], again[name]) for name in state)


def test_permuted_rows_and_rows_alone_give_the_same():
    _, model = attach()
    expected = run(model)
    torch.testing.assert_close(run(model, STATES.flip(0), IDS.flip(0)), expected.flip(0), rtol=0, atol=1e-5)
    for row in range(3):
        torch.testing.assert_close(run(model, STATES[[row]], IDS[[row]]), expected[[row]], rtol=0, atol=1e-5)


def test_padding_on_the_left_changes_nothing():
    _, model = attach()
    ids = torch.cat([torch.full((3, 4), 3), IDS], dim=1)
    mask = torch.ones_like(ids)
    mask[:, :4] = 0
    padded = run(model, ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    torch.testing.assert_close(padded[:, 4:], run(model), rtol=0, atol=1e-5)


def test_gates_are_computed_once_for_all_layers():
    _, model = attach()
    calls = []
    model.base_model.lora_gate["default"].register_forward_hook(lambda *_: calls.append(1))
    run(model)
    assert len(calls) == 1 and sum(isinstance(module, ILoraLinear) for module in model.modules()) == 14


def test_float64_models_compute_in_float64():
    _, model = attach()
    model.double()
    plain = hooked_lora("llama", model.float(), lambda: torch.ones(1, 1, dtype=torch.float64)).double()
    uniform = run(model.double(), torch.zeros(3, 6).double())
    torch.testing.assert_close(uniform, plain(input_ids=IDS).logits, rtol=0, atol=1e-9)


def test_autocast_keeps_gates_in_float32_and_logits_near():
    _, model = attach()
    expected = run(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(model)
        assert model.instance_gates(STATES).dtype == torch.float32
    assert torch.isfinite(found).all() and (found.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_weights_are_float32_on_a_bfloat16_model():
    adapter = ILoraAdapter(**AUTHORS, representation_size=6)
    model = adapter.attach(make_family("llama")[0].to(torch.bfloat16))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    fill_up_projections(model)
    found = gradients(model, lambda: instances_loss(model).backward())
    assert len(found) == 29 and all(torch.isfinite(gradient).all() for gradient in found.values())


def instances_loss(model, states=STATES, ids=IDS):
    with model.instances(states):
        return answer_loss(model, ids, torch.ones_like(ids), ids)


# ----------------------------------------------------------------------------------------------------- training


def test_gates_learn_from_the_second_step_on_and_the_loss_falls():
    adapter, model = attach(learned=False)
    gate = model.base_model.lora_gate["default"].weight
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for step in range(12):
        optimiser.zero_grad()
        loss = instances_loss(model.train())
        loss.backward()
        assert bool(gate.grad.any()) == (step > 0)  # B starts at zero, and the gates' gradient is proportional to it
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses


@pytest.mark.parametrize("kind", GATES)
def test_every_kind_of_gate_learns(kind):
    _, model = attach(gate=kind)
    found = gradients(model, lambda: instances_loss(model.train()).backward())
    gate = {name: gradient for name, gradient in found.items() if "lora_gate" in name}
    assert len(gate) == (4 if kind == "mlp" else 1) and all(gradient.any() for gradient in gate.values())


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(reentrant, family, kind):
    _, model = attach(family, gate=kind)

    def backward():
        with model.instances(STATES):
            answer_loss(model.train(), IDS, torch.ones_like(IDS), IDS).backward()

    expected = gradients(model, backward)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_all_close(gradients(model, backward), expected)


@pytest.mark.parametrize("enabled_before", [False, True])
def test_checkpointed_forward_passes_of_several_contexts_keep_their_own_gates(enabled_before):
    _, model = attach()

    def backward():
        train = model.train()
        explicit = train(input_ids=IDS, labels=IDS, instance_gates=model.instance_gates(STATES + 1)).loss
        (instances_loss(train) + 2 * instances_loss(train, STATES.flip(0)) + explicit).backward()

    expected = gradients(model, backward)
    if enabled_before:
        bare = make_family("llama")[0]
        bare.gradient_checkpointing_enable({"use_reentrant": True})
        state = model.state_dict()
        model = ILoraAdapter(**{**AUTHORS, "dropout": 0.0}, representation_size=6).attach(bare)
        model.load_state_dict(state)
    else:
        model.gradient_checkpointing_enable()
    assert_all_close(gradients(model, backward), expected)


def test_reentrant_checkpointing_outside_the_context_is_an_error():
    _, model = attach()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(RuntimeError, match="whose rows"):
        instances_loss(model.train()).backward()


def test_the_gradient_reaches_the_sequence_representations():
    _, model = attach()
    states = STATES.clone().requires_grad_()
    instances_loss(model, states).backward()
    assert states.grad.abs().sum(dim=1).gt(0).all()


# ------------------------------------------------------------------------------------------------ rows and caches


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_with_beams_gives_each_user_what_it_gives_alone(family):
    _, model = attach(family)
    states = torch.randn(5, 6, generator=torch.Generator().manual_seed(3)) * 3
    lengths = (7, 4, 6, 5, 3)
    ids = torch.randint(5, 200, (5, 7), generator=torch.Generator().manual_seed(4))
    mask = (torch.arange(7) >= 7 - torch.tensor(lengths)[:, None]).long()
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with model.instances(states):
        together = model.generate(input_ids=ids, attention_mask=mask, **options)[:, -4:].view(5, 3, 4)
    for user, length in enumerate(lengths):
        with model.instances(states[[user]]):
            alone = model.generate(input_ids=ids[[user], -length:], attention_mask=mask[[user], -length:], **options)
        assert torch.equal(alone[:, -4:], together[user])


def test_generate_from_embeddings_gives_the_same_tokens():
    _, model = attach()
    embedded = model.get_input_embeddings()(IDS)
    options = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with model.instances(STATES * 3):
        expected = model.generate(input_ids=IDS, **options)[:, -4:]
        assert torch.equal(model.generate(inputs_embeds=embedded, **options), expected)


@pytest.mark.parametrize("source", [[2, 0, 1], [1, 1, 1, 0, 0, 0], [2], [0, 2]])
@pytest.mark.parametrize("family", FAMILIES)
def test_gates_given_to_the_forward_pass_follow_rows_that_repeat_leave_and_move(family, source):
    _, model = attach(family)
    gates = model.instance_gates(STATES).detach()
    with torch.no_grad():
        cache = model(input_ids=IDS[:, :-1], instance_gates=gates, use_cache=True).past_key_values
        cache.reorder_cache(torch.tensor(source))
        step = model(input_ids=IDS[source, -1:], past_key_values=cache, instance_gates=gates[source]).logits[:, -1]
    torch.testing.assert_close(step, run(model)[source, -1], rtol=0, atol=1e-4)


def test_rows_with_a_cache_are_not_taken_for_those_of_the_context():
    """Our beam search sorts, drops and moves rows: a count that happens to fit would give users each other's gates."""
    adapter, model = attach()
    prompts = [row.tolist() for row in IDS]
    with adapter.instances(model, STATES), pytest.raises(RuntimeError, match="one with a cache needs"):
        beam_search(model, prompts, eos_token_id=2, pad_token_id=0, num_beams=2, max_new_tokens=3)
    with adapter.instances(model, STATES), adapter.untuned(model) as untuned:
        found = beam_search(untuned, prompts, eos_token_id=2, pad_token_id=0, num_beams=2, max_new_tokens=3)
    bare = make_family("llama")[0]
    assert found == beam_search(bare, prompts, eos_token_id=2, pad_token_id=0, num_beams=2, max_new_tokens=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_untuned_is_the_base_model_with_and_without_gates(family):
    adapter, model = attach(family)
    bare = make_family(family)[0]
    with torch.no_grad():
        expected = bare(input_ids=IDS).logits
        with adapter.untuned(model) as untuned:
            assert torch.equal(untuned(input_ids=IDS).logits, expected)
            with adapter.instances(model, STATES[:2]):
                assert torch.equal(untuned(input_ids=IDS).logits, expected)
    assert (run(model) - expected).abs().max() > 1e-3


def test_missing_gates_and_gates_of_another_batch_are_errors():
    adapter, model = attach()
    with pytest.raises(RuntimeError, match="whose rows"):
        model(input_ids=IDS)
    run(model)
    with pytest.raises(RuntimeError, match="whose rows"):  # the context is over
        model(input_ids=IDS)
    with adapter.instances(model, STATES[:2]), pytest.raises(ValueError, match="3 rows cannot use the gates of 2"):
        model(input_ids=IDS)
    with pytest.raises(ValueError, match="3 rows cannot use the gates of 2"):
        model(input_ids=IDS, instance_gates=torch.ones(2, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gates": torch.ones(3, 2)}, "2 experts, the adapter has 4"),
        ({"gates": torch.full((3, 4), torch.nan)}, "row 0 is not finite"),
        ({"representations": torch.full((3, 6), torch.inf)}, "row 0 is not finite"),
        ({"representations": torch.ones(3, 5)}, "5 entries, the gate takes 6"),
        ({}, "either"),
        ({"gates": torch.ones(3, 4), "representations": STATES}, "either"),
    ],
)
def test_wrong_instances_are_errors(options, message):
    _, model = attach()
    with pytest.raises(ValueError, match=message), model.instances(**options):
        pass


def test_a_wrapped_model_and_a_copy_have_their_gates():
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    adapter, model = attach()
    with adapter.instances(Wrapper(model), STATES), torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, run(model))
    torch.testing.assert_close(adapter.gates(Wrapper(model), STATES), model.instance_gates(STATES))
    other = copy.deepcopy(model)
    with other.instances(STATES), pytest.raises(RuntimeError, match="whose rows"):
        model(input_ids=IDS)
    assert torch.equal(run(other), run(model))


# -------------------------------------------------------------------------------------------------- other uses of peft


def test_merging_needs_one_instance_and_is_undone():
    _, model = attach("gpt2")
    expected, before = run(model), {name: p.clone() for name, p in model.named_parameters()}
    for context in (torch.no_grad(), model.instances(STATES)):
        with context, pytest.raises(ValueError, match="no single update"):
            model.merge_adapter()
    for safe in (False, True):
        with model.instances(STATES[[1]]):
            model.merge_adapter(safe_merge=safe)
        merged = model(input_ids=IDS).logits
        torch.testing.assert_close(merged[1], expected[1], rtol=0, atol=1e-4)
        assert (merged[0] - expected[0]).abs().max() > 1e-3
        model.unmerge_adapter()
        assert_all_close(dict(model.named_parameters()), before, rtol=0, atol=1e-6)
    with model.instances(STATES[[2]]):
        bare = model.merge_and_unload()
    torch.testing.assert_close(bare(input_ids=IDS).logits[2], expected[2], rtol=0, atol=1e-4)
    assert not any("lora" in name for name, _ in bare.named_parameters())


def test_what_cannot_be_merged_or_was_not_is_refused():
    _, model = attach()
    layer = next(module for module in model.modules() if isinstance(module, ILoraLinear))
    with pytest.raises(ValueError, match="nothing is merged"):
        layer.lora_variant["default"].unmerge(layer, "default", layer.get_base_layer().weight)
    weight = layer.get_base_layer().weight
    weight.requires_grad_(False).data = (100 * weight).to(torch.int8)
    with model.instances(STATES[:1]), pytest.raises(ValueError, match="quantised weights"):
        layer.merge()


def test_a_second_adapter_may_have_other_experts():
    _, model = attach()
    expected = run(model)
    config = ILoraConfig(r=6, num_experts=3, target_modules=["q_proj"], representation_size=2, task_type="CAUSAL_LM")
    model.add_adapter("second", config)
    torch.testing.assert_close(run(model), expected)
    model.set_adapter("second")
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learns and all("second" in name for name in learns) and "base_model.lora_gate.second.weight" in learns
    assert model.instance_gates(torch.ones(1, 2)).shape == (1, 3)
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="2 are active"):
        model.instance_gates(STATES)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert set(model.base_model.lora_gate) == {"default"}
    torch.testing.assert_close(run(model), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "unsupported variant"),
        ({"target_modules": ["embed_tokens"]}, "unsupported variant"),
        ({"rank_pattern": {"q_proj": 2}}, "4 experts cannot share rank 2 evenly"),
        ({"r": 6}, "4 experts cannot share rank 6 evenly"),
        ({"lora_bias": True}, "does not take lora_bias"),
        ({"layer_replication": [(0, 1)]}, "does not take layer_replication"),
        ({"scale": "alpha"}, "no scale 'alpha'; choose from expert_rank, rank"),
    ],
)
def test_what_experts_have_no_meaning_for_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(make_family("llama")[0], ILoraConfig(**{"target_modules": ["q_proj"], **options}))


def test_what_peft_does_with_plain_lora_is_refused():
    _, model = attach()
    assert not model.base_model.supports_lora_conversion()
    with pytest.raises(NotImplementedError, match="added up"):
        model.add_weighted_adapter(["default"], [1.0], "sum")
    with model.instances(STATES), pytest.raises(ValueError, match="mixed adapters"):
        model(input_ids=IDS, adapter_names=["default"] * 3)


# ------------------------------------------------------------------------------------------------------ save and load


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with an LLM, an adapter and inputs; and the logits they give."""
    folder = tmp_path_factory.mktemp("ilora")
    save_family("llama", folder / "llm")
    adapter, model = attach(gate="mlp")
    adapter.save(model, folder / "adapter", "f1")
    torch.save({"ids": IDS, "states": STATES}, folder / "input.pt")
    return folder, run(model)


def test_in_a_new_process_a_saved_adapter_gives_equal_logits(saved):
    folder, expected = saved
    forked_python(NEW_PROCESS, folder)
    for name, logits in torch.load(folder / "results.pt").items():
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5, msg=name)


def test_without_the_plugin_peft_does_not_load_it_as_plain_lora(saved):
    assert "KeyError: 'ILORA'" in forked_python(WITHOUT_PLUGIN, saved[0], status=1).stderr


def test_names_in_the_file_hold_no_adapter_name(saved):
    names = set(load_file(saved[0] / "adapter" / "adapter_model.safetensors"))
    gate = {name for name in names if "lora_gate" in name}
    assert gate == {f"base_model.lora_gate.{part}" for part in ("weight", "bias", "hidden_weight", "hidden_bias")}
    assert not any("default" in name for name in names)


def test_low_memory_loading_leaves_nothing_behind(saved):
    folder, expected = saved
    model = PeftModel.from_pretrained(make_family("llama")[0], folder / "adapter", low_cpu_mem_usage=True).eval()
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(run(model), expected, rtol=0, atol=1e-5)


def test_trainable_state_has_the_gate_and_comes_back(saved):
    adapter, model = attach(gate="mlp")
    state, expected = adapter.trainable_state(model), run(model)
    gate = model.base_model.lora_gate["default"]
    with torch.no_grad():
        gate.weight.add_(1.0)
        gate.hidden_weight.mul_(2.0)
    assert not torch.equal(run(model), expected)
    adapter.load_trainable_state(model, state)
    assert torch.equal(run(model), expected)


def test_a_lost_gate_and_other_settings_stop_the_run(saved, tmp_path):
    folder = saved[0] / "adapter"
    for options, kind, message in (
        ({"gate": "linear"}, "conflict", "gate mlp, not linear"),
        ({"gate": "mlp", "num_experts": 2}, "conflict", r"num_experts \d, not 2"),
        ({"gate": "mlp", "representation_size": 7}, "file", "do not fit"),
        ({"gate": "mlp", "scale": "rank"}, "conflict", "scale expert_rank, not rank"),
        ({"gate": "mlp", "alpha": 16}, "conflict", "lora_alpha 32, not 16"),
    ):
        adapter, model = attach(**options)
        with refused("", kind, message):
            adapter.load(model, folder, "f1")
    adapter, model = attach()
    adapter.save(model, tmp_path, "f1")
    with refused("", "conflict"):
        adapter.load(model, tmp_path, "f2")
    with refused("", "conflict", "adapter: ilora"):
        lora = LoraAdapter()
        lora.load(lora.attach(make_family("llama")[0]), tmp_path, "f1")
    noisy, other = attach(gate="noisy")
    with refused("", "conflict", "gate linear, not noisy"):
        noisy.load(other, tmp_path, "f1")
    damage(tmp_path, lambda tensors: {name: tensor for name, tensor in tensors.items() if "lora_gate" not in name})
    with refused("", "file", "1 missing"):
        adapter.load(model, tmp_path, "f1")


def test_an_untrained_adapter_is_not_saved(tmp_path):
    adapter, model = attach(learned=False)
    with refused("", "file", "every B is zero"):
        adapter.save(model, tmp_path, "f1")


# ----------------------------------------------------------------------------------------------------------- settings


def test_parameter_counts_of_the_papers_llm():
    """Llama-2-7B, r = 8, all seven kinds of linear maps: 19,988,480 of LoRA and 4 x 64 of the gate."""
    with torch.device("meta"):
        llm = LlamaForCausalLM(LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008))
    model = ILoraAdapter(**AUTHORS).attach(llm)
    counts = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(count for name, count in counts.items() if "lora_gate" not in name) == 19_988_480
    assert counts["base_model.lora_gate.default.weight"] == 256


def test_from_settings_shares_the_keys_of_lora():
    settings = {"adapter": "ilora", "lora_r": 6, "lora_alpha": 3, "lora_dropout": 0.2, "lora_target_modules": "auto"}
    adapter = ILoraAdapter.from_settings(settings | {"seed": 7, "ilora_num_experts": 3, "ilora_gate": "topk"})
    expected = ILoraAdapter(r=6, alpha=3, dropout=0.2, target_modules="auto", seed=7, num_experts=3, gate="topk")
    assert adapter == expected
    assert ILoraAdapter.from_settings({}) == ILoraAdapter()


def test_facts_name_every_setting():
    facts = ILoraAdapter(target_modules=["q_proj"]).facts()
    settings = {field.name for field in dataclasses.fields(ILoraAdapter)} - {"states"}
    settings -= {name for name in settings if name.startswith(("sara", "rank_rule", "spectra"))}  # of a rank rule alone
    assert facts.keys() == settings | {"adapter"}
    assert facts["adapter"] == "ilora" and facts["target_modules"] == ["q_proj"]


@pytest.mark.parametrize(
    ("bad", "named", "key", "kind"),
    [
        ({"num_experts": 0}, "num_experts", "ilora_num_experts", "value"),
        ({"num_experts": 3}, "equal parts", "ilora_num_experts", "conflict"),
        ({"num_experts": 16}, "equal parts", "ilora_num_experts", "conflict"),
        ({"num_experts": 2.0}, "num_experts", "ilora_num_experts", "value"),
        ({"gate": "conv"}, "gate", "ilora_gate", "value"),
        ({"scale": "none"}, "scale", "ilora_scale", "value"),
        ({"gate": "topk", "gate_top_k": 1}, "gate_top_k", "ilora_gate_top_k", "value"),
        ({"gate": "topk", "gate_top_k": 5}, "gate_top_k", "ilora_gate_top_k", "conflict"),
        ({"gate_noise": -0.1}, "gate_noise", "ilora_gate_noise", "value"),
        ({"gate_hidden_size": 0}, "gate_hidden_size", "ilora_gate_hidden_size", "value"),
        ({"representation_size": 0}, "representation_size", "", "value"),
        ({"r": 0}, "lora_r: 0", "lora_r", "value"),
        ({"dropout": 1.0}, "dropout", "lora_dropout", "value"),
    ],
)
def test_settings_out_of_range_are_named(bad, named, key, kind):
    with refused(key, kind, named):
        ILoraAdapter(**bad)

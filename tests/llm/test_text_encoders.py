"""Encoders beside the LLM: vectors of texts as the makers' files say, and what is wrong with a folder in one line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from recbole_llm.llm import folders
from recbole_llm.llm.text_encoders import SentenceEncoder, find_text_encoder, load_text_encoder
from tests.encoders import WORDS, save_encoder
from tests.families import save_family
from tests.refusals import refused

TEXTS = ["a b c", "b", "c c c a b a b", "a b c"]
MODULES = "sentence_transformers.models"
SIZE = {"word_embedding_dimension": 16}


def modules(*kinds: str) -> list[dict[str, object]]:
    """As sentence-transformers writes them."""
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    return [
        {"idx": place, "name": str(place), "type": f"{MODULES}.{kind}", "path": paths.get(kind, f"{place}_{kind}")}
        for place, kind in enumerate(kinds)
    ]


@torch.no_grad()
def states(folder: Path, *texts: str) -> list[torch.Tensor]:
    """Last states of each text alone. Returns: [tokens, d] of each."""
    model = AutoModel.from_pretrained(folder).eval()
    ids = [torch.tensor([[1, *map(WORDS.index, text.split()), 2]]) for text in texts]
    return [model(input_ids=own).last_hidden_state[0] for own in ids]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, lambda own: own.mean(dim=0)),
        ({"modules": modules("Transformer")}, lambda own: own.mean(dim=0)),
        ({"modules": modules("Transformer", "Pooling"), "1_Pooling__config": SIZE}, lambda own: own.mean(dim=0)),
        (
            {
                "modules": modules("Transformer", "Pooling", "Normalize"),
                "1_Pooling__config": {**SIZE, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
            },
            lambda own: own[0] / own[0].norm(),
        ),
        (
            {
                "modules": modules("Transformer", "Pooling"),
                "1_Pooling__config": {**SIZE, "pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False},
            },
            lambda own: own[-1],
        ),
        (
            {"modules": modules("Transformer", "Pooling"), "1_Pooling__config": {**SIZE, "pooling_mode": "max"}},
            lambda own: own.amax(dim=0),
        ),
        (
            {
                "modules": modules("Transformer", "Pooling"),
                "1_Pooling__config": {**SIZE, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            },
            lambda own: torch.cat([own[0], own.mean(dim=0)]),
        ),
    ],
    ids=["plain", "no pooling", "nothing said", "cls, normalised", "last", "max", "two ways"],
)
def test_vectors_are_those_of_each_text_alone_pooled_as_the_files_say(tmp_path, kind, files, expected):
    folder = save_encoder(tmp_path / "encoder", kind, **files)
    recipe, alone = find_text_encoder(folder), torch.stack([expected(own) for own in states(folder, *TEXTS)])
    for max_batch_tokens in (1, 8192):
        vectors = load_text_encoder(recipe, max_batch_tokens=max_batch_tokens).encode(TEXTS)
        assert vectors.dtype == np.float32 and np.array_equal(vectors[0], vectors[3])
        np.testing.assert_allclose(vectors, alone, atol=1e-5)


@pytest.mark.parametrize(("kind", "places"), [("bert", 12), ("roberta", 11)])
def test_a_long_text_loses_its_beginning(tmp_path, caplog, kind, places):
    folder = save_encoder(tmp_path / "encoder", kind)
    text = "a " * 20 + "b c"
    with caplog.at_level(logging.WARNING):
        vector = load_text_encoder(find_text_encoder(folder)).encode([text, "a"])[0]
    assert f"1 of 2 texts lost their beginning: over {places} tokens" in caplog.text
    kept = " ".join(text.split()[-(places - 2) :])
    np.testing.assert_allclose(vector, states(folder, kept)[0].mean(dim=0), atol=1e-5)


def test_a_causal_model_may_be_an_encoder(tmp_path):
    folder = save_family("llama", tmp_path / "encoder")
    (folder / "modules.json").write_text(json.dumps(modules("Transformer", "Pooling")))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32, "pooling_mode": "lasttoken"}')
    encoder = load_text_encoder(find_text_encoder(folder))
    assert isinstance(encoder, SentenceEncoder)
    alone = [encoder.encode([text])[0] for text in TEXTS]
    np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-5)
    assert encoder.encode([]).shape == (0, 32)


def test_a_recipe_depends_on_contents_and_use_not_on_the_place(tmp_path):
    one, other = save_encoder(tmp_path / "one"), save_encoder(tmp_path / "other")
    facts = find_text_encoder(one).facts()
    assert find_text_encoder(other).facts() == facts
    (other / "modules.json").write_text(json.dumps(modules("Transformer", "Normalize")))
    assert find_text_encoder(other).facts() == facts | {"modules": [["Transformer", ""], ["Normalize", "{}"]]}
    (other / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    assert find_text_encoder(other).max_tokens == 5 == load_text_encoder(find_text_encoder(other)).max_tokens
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    assert find_text_encoder(other).fingerprint != facts["fingerprint"]


def test_a_model_in_a_folder_of_its_own_is_found(tmp_path):
    folder = tmp_path / "encoder"
    save_encoder(folder / "0_Transformer")
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "type": f"{MODULES}.Transformer", "path": "0_Transformer"}])
    )
    vectors = load_text_encoder(find_text_encoder(folder)).encode(TEXTS)
    expected = [own.mean(dim=0).numpy() for own in states(folder / "0_Transformer", *TEXTS)]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules": "{"}, "modules.json of .* cannot be read"),
        ({"modules": [{"path": ""}]}, "modules.json of .* is not as sentence-transformers writes it .KeyError"),
        ({"config": "{"}, "is neither a folder with a model nor one that the Hugging Face hub gave"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(tmp_path, files, message):
    with refused("coreset_encoder", "file", f"^coreset_encoder: .*{message}") as caught:
        find_text_encoder(save_encoder(tmp_path / "encoder", **files))
    assert "\n" not in str(caught.value)


def test_files_that_do_not_load_are_told_in_one_line(tmp_path):
    folder = save_encoder(tmp_path / "encoder")
    recipe = find_text_encoder(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with refused(
        "coreset_encoder", "file", "^coreset_encoder: .* cannot be loaded: .*; fetch or save it again"
    ) as caught:
        load_text_encoder(recipe)
    assert "\n" not in str(caught.value)
    (other := tmp_path / "other").mkdir()
    save_encoder(other, modules=modules("Transformer", "Pooling", "Dense"))  # without the files of the last two
    with refused("coreset_encoder", "file", "^coreset_encoder: .* cannot be loaded: .*; fetch or save it again"):
        load_text_encoder(find_text_encoder(other))
    with refused("coreset_encoder", "file", "^coreset_encoder: there is no folder .*absent; give an existing"):
        find_text_encoder(tmp_path / "absent")


def test_missing_weights_are_told(tmp_path):
    folder = save_encoder(tmp_path / "encoder")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with refused(
        "coreset_encoder", "file", "lacks 1 weights, first encoder.layer.1.output.dense.weight; fetch or save"
    ):
        load_text_encoder(find_text_encoder(folder))


def test_without_the_extra_the_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "find_spec", lambda name: None)
    with refused(
        "coreset_encoder", "environment", r"^coreset_encoder: .* run `pip install 'recbole-llm\[text-encoders\]'`"
    ):
        find_text_encoder(save_encoder(tmp_path / "encoder"))

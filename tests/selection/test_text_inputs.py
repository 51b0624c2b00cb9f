"""What selectors are told of rows by an encoder of texts is a vector of what the LLM reads in each."""

from __future__ import annotations

import numpy as np
import torch

from recbole_llm.llm.encoder import TextEncoder
from recbole_llm.llm.text_encoders import find_text_encoder, load_text_encoder
from recbole_llm.prompt import Example
from tests.encoders import save_encoder
from tests.refusals import refused
from tests.selection.rows import N_ROWS, inputs_of


def test_embeddings_are_means_of_the_untuned_llms_states_over_prompt_and_answer(make):
    inputs = inputs_of(*make()).text
    with torch.no_grad():
        for name, weight in inputs.model.llm.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)  # tuned: it has no part in the vectors
    found, model = inputs.embeddings(), inputs.model
    assert found.dtype == np.float32 and found.shape == (N_ROWS, 32)
    row = inputs.data.pool.rows[0:1]
    history, target = model.histories(row)[0], row["item_id"].item()
    text = f'{model.prompts.text(Example(history))}"{model.catalog.titles[target]}"'
    tokens = torch.tensor([model.backbone.tokenizer(text)["input_ids"]])
    with model.untuned() as llm, torch.no_grad():
        states = llm(input_ids=tokens, output_hidden_states=True).hidden_states[-1][0]
    np.testing.assert_allclose(found[0], states.mean(dim=0), atol=1e-5)
    valid = inputs.valid_embeddings()
    assert valid.shape == (len(inputs.data.pool.valid_data), 32)


def test_vectors_by_the_llm_are_of_the_numbers_that_their_facts_tell(make):
    found = {}
    for half in (False, True):
        inputs = inputs_of(*make(enable_amp=half))
        model, facts = inputs.model, inputs.text.facts(inputs.text.declared["embeddings"])["encoder"]
        titles = [inputs.data.titles(history) for history in inputs.pool.histories]
        for pooling, texts, vectors in (
            ("mean", inputs.text.embedded, inputs.text.embeddings()),
            ("last", titles, inputs.llm.llm_vectors()),
        ):
            with model.untuned() as llm, torch.autocast("cpu", torch.bfloat16, enabled=half):
                expected = TextEncoder(llm, model.backbone.tokenizer, pooling, max_tokens=4096).encode(texts)
            np.testing.assert_array_equal(vectors, expected)
            found[half, pooling] = vectors
        assert facts.get("autocast") == ("bfloat16" if half else None)
        assert facts.keys() - {"autocast"} == {"llm", "pooling", "max_tokens", "dtype", "quant"}
    assert not any(np.array_equal(found[False, pooling], found[True, pooling]) for pooling in ("mean", "last"))


def test_a_row_that_is_too_long_keeps_its_answer_and_its_newest_items(make, monkeypatch):
    config, rows, model = make()
    before = inputs_of(config, rows, model)
    facts = [
        inputs.facts(inputs.declared[name])
        for inputs, name in ((before.text, "embeddings"), (before.llm, "llm_vectors"))
    ]
    monkeypatch.setattr(model.llm.config, "max_position_embeddings", 24)
    inputs = inputs_of(config, rows, model)
    titles = [inputs.data.titles(history) for history in inputs.pool.histories]
    for name, own, texts, place in (
        ("embeddings", inputs.text, inputs.text.embedded, 0),
        ("llm_vectors", inputs.llm, titles, 1),
    ):
        whole = model.backbone.tokenizer(texts)["input_ids"]
        long = [row for row, tokens in enumerate(whole) if len(tokens) > 24]
        assert long
        declared = own.declared[name]
        found = declared.compute(own)
        assert own.facts(declared) != facts[place]
        for row in long[:3]:
            kept = torch.tensor([[whole[row][0], *whole[row][-23:]]])
            assert whole[row][0] == model.backbone.bos_token_id
            with model.untuned() as llm, torch.no_grad():
                states = llm(input_ids=kept, output_hidden_states=True).hidden_states[-1][0]
            np.testing.assert_allclose(found[row], states.mean(dim=0) if place == 0 else states[-1], atol=1e-5)


def test_slots_of_item_vectors_are_no_text(make):
    texts = inputs_of(*make()).text.embedded
    assert inputs_of(*make("GORACS", llm_recommender="LLaRA")).text.embedded == texts


def untitle(model, items):
    model.catalog.has_title[list(items)] = False
    for item in items:
        model.catalog.titles[item] = None


def test_validation_rows_that_cannot_be_read_are_left_out(make):
    config, rows, model = make()
    untitle(model, rows.valid.inter_feat["item_id"][:2].tolist())
    readable = sum(example is not None for example in model.token_pairs(rows.valid.inter_feat))
    assert 0 < readable < len(rows.valid)
    assert len(inputs_of(config, rows, model).text.valid_embeddings()) == readable
    untitle(model, range(model.catalog.n_items))
    with refused("coreset", "data", "^coreset: no validation row has titles in field 'title'"):
        inputs_of(config, rows, model, np.zeros(0, dtype=int)).text.valid_embeddings()


def test_an_encoder_of_texts_takes_the_place_of_the_llm(make, tmp_path):
    folder = save_encoder(tmp_path / "encoder", max_tokens=512)
    inputs = inputs_of(*make(coreset_encoder=str(folder)))
    expected = load_text_encoder(find_text_encoder(folder)).encode(inputs.text.embedded)
    np.testing.assert_allclose(inputs.get("embeddings"), expected, atol=1e-6)
    assert len(np.unique(expected, axis=0)) > 1
    own = inputs.model.stages.used["embeddings"]
    other = inputs_of(*make(coreset_encoder=str(save_encoder(tmp_path / "copy", max_tokens=512))))
    other.get("embeddings")
    assert other.model.stages.used["embeddings"] == own  # what it is decides, not where
    llm = inputs_of(*make())
    llm.get("embeddings")
    assert llm.model.stages.used["embeddings"] != own


def test_the_answer_is_no_part_of_a_clicks_text(clicks):
    row, model = clicks.pool.rows[0:1], clicks.model
    example = Example(model.histories(row)[0], row["item_id"].item(), model.likes(row)[0])
    expected = model.prompts.text(example)
    assert clicks.text.embedded[0] == expected

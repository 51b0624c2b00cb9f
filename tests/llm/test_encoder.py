import logging
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from recbole_llm.adapter import FullAdapter, LoraAdapter
from recbole_llm.llm.encoder import TextEncoder
from tests.families import FAMILIES, make_family
from tests.refusals import refused

TITLES = ["Toy Story", "GoldenEye", "Dead Man Walking, or: the longest of all titles here", "Ä", "Toy Story", "Babe"]


@torch.no_grad()
def alone(model, token_ids):
    """Last entry of hidden_states for one text, unpadded: [tokens, d]."""
    return model(input_ids=torch.tensor([token_ids]), output_hidden_states=True).hidden_states[-1][0]


def perturb(model):
    """What training does to a model, in one line."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_equal_those_of_each_text_alone(family, pooling):
    model, tokenizer = make_family(family)
    states = [alone(model, tokenizer(title)["input_ids"]) for title in TITLES]
    expected = torch.stack([state[-1] if pooling == "last" else state.mean(0) for state in states]).numpy()
    for max_batch_tokens in (1, 24, 8192):
        vectors = TextEncoder(model, tokenizer, pooling, max_batch_tokens).encode(TITLES)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, expected, atol=2e-5)


@cache
def gpt2():
    return make_family("gpt2")


@settings(max_examples=15)
@given(st.lists(st.text(max_size=12), max_size=8), st.integers(1, 60))
def test_any_texts_keep_their_order_and_equal_texts_are_bit_equal(texts, max_batch_tokens):
    encoder = TextEncoder(*gpt2(), max_batch_tokens=max_batch_tokens)
    vectors = encoder.encode(texts + texts[:1])
    assert vectors.shape == (len(texts + texts[:1]), 32) and np.isfinite(vectors).all()
    assert np.array_equal(vectors[len(texts) :], vectors[: len(texts[:1])])
    for text, vector in zip(texts, vectors, strict=False):
        np.testing.assert_allclose(vector, encoder.encode([text])[0], atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_text_is_bos_or_else_eos(family):
    model, tokenizer = make_family(family)
    token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    vectors = TextEncoder(model, tokenizer).encode(["", "Toy Story"])
    np.testing.assert_allclose(vectors[0], alone(model, [token])[-1].numpy(), atol=2e-5)


def test_an_eos_that_the_tokenizer_adds_is_left_out():
    model, tokenizer = make_family("llama")
    expected = TextEncoder(model, tokenizer).encode(TITLES)
    specials = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=specials
    )
    assert tokenizer("Babe")["input_ids"][-1] == tokenizer.eos_token_id
    assert np.array_equal(TextEncoder(model, tokenizer).encode(TITLES), expected)


def test_a_long_text_loses_its_end_and_is_counted(caplog):
    model, tokenizer = make_family("llama")
    token_ids = tokenizer("Seven Usual Suspects")["input_ids"]
    encoder = TextEncoder(model, tokenizer, max_tokens=4)
    with caplog.at_level(logging.WARNING):
        vector = encoder.encode(["Seven Usual Suspects", "a"])[0]
    assert len(token_ids) > 4 and "1 of 2 texts" in caplog.text
    np.testing.assert_allclose(vector, alone(model, token_ids[:4])[-1].numpy(), atol=2e-5)
    assert TextEncoder(model, tokenizer, max_tokens=10**6).fingerprint_facts()["max_tokens"] == 512


@pytest.mark.parametrize(("family", "n_first"), [("llama", 1), ("gpt2", 0)])
@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_a_long_text_may_lose_its_beginning_behind_bos(family, n_first, max_tokens, caplog):
    model, tokenizer = make_family(family)
    token_ids = tokenizer("Seven Usual Suspects")["input_ids"]
    assert (token_ids[0] == tokenizer.bos_token_id) == bool(n_first) and len(token_ids) > 5
    encoder = TextEncoder(model, tokenizer, max_tokens=max_tokens, truncation_side="left")
    with caplog.at_level(logging.WARNING):
        vector = encoder.encode(["Seven Usual Suspects", ""])[0]
    assert "1 of 2 texts lost their beginning" in caplog.text
    kept = token_ids[:n_first] + token_ids[len(token_ids) - max_tokens + n_first :]
    assert len(kept) == max_tokens
    np.testing.assert_allclose(vector, alone(model, kept)[-1].numpy(), atol=2e-5)
    whole = TextEncoder(model, tokenizer, max_tokens=max_tokens)
    short, long = [""], ["", "Seven Usual Suspects"]
    assert encoder.fingerprint_facts(short) == whole.fingerprint_facts(short) == whole.fingerprint_facts(long)
    assert encoder.fingerprint_facts(long) != encoder.fingerprint_facts(short)


@pytest.mark.parametrize("adapter", [LoraAdapter(target_modules="all"), FullAdapter()], ids=lambda a: a.name)
def test_inside_untuned_vectors_are_the_base_models(adapter):
    model, tokenizer = make_family("qwen2")
    expected = TextEncoder(model, tokenizer).encode(TITLES)
    tuned = adapter.attach(model)
    perturb(tuned)
    assert np.array_equal(
        TextEncoder(tuned, tokenizer, untuned=lambda: adapter.untuned(tuned)).encode(TITLES), expected
    )
    assert not np.allclose(TextEncoder(tuned, tokenizer).encode(TITLES), expected, atol=1e-2)


def test_a_context_that_yields_nothing_serves_as_untuned():
    model, tokenizer = make_family("llama")
    expected = TextEncoder(model, tokenizer).encode(TITLES)
    tuned = LoraAdapter().attach(model)
    perturb(tuned)
    assert np.array_equal(TextEncoder(tuned, tokenizer, untuned=tuned.disable_adapter).encode(TITLES), expected)


def test_the_models_mode_gradients_and_head_are_left_alone():
    model, tokenizer = make_family("llama")
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    model.lm_head.register_forward_pre_hook(lambda *_: pytest.fail("the vocabulary projection ran"))
    TextEncoder(model, tokenizer).encode(TITLES)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_vector_that_is_not_finite_names_its_text():
    model, tokenizer = make_family("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer("Ä")["input_ids"][1:]] = float("nan")
    with refused("", "numeric", "'Ä'.*1 of 5"):
        TextEncoder(model, tokenizer).encode(TITLES)


def test_facts_change_with_what_the_vectors_depend_on():
    model, tokenizer = make_family("llama")
    facts = TextEncoder(model, tokenizer).fingerprint_facts()
    assert TextEncoder(model, tokenizer, max_batch_tokens=1).fingerprint_facts() == facts
    assert TextEncoder(model, tokenizer, pooling="mean").fingerprint_facts() != facts
    assert TextEncoder(model, tokenizer, max_tokens=3).fingerprint_facts() != facts
    assert TextEncoder(model.to(torch.bfloat16), tokenizer).fingerprint_facts() != facts


@pytest.mark.parametrize(
    ("bad", "key", "kind"),
    [
        ({"pooling": "first"}, "pooling", "unknown"),
        ({"truncation_side": "both"}, "truncation_side", "unknown"),
        ({"max_tokens": 0}, "", "value"),
        ({"max_batch_tokens": 0}, "", "value"),
    ],
)
def test_bad_settings_are_named(bad, key, kind):
    with refused(key, kind, next(iter(bad))):
        TextEncoder(*make_family("llama"), **bad)

"""Code tokens behind an LLM's vocabulary: the same as an LLM whose embeddings were resized and hold these rows."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from recbole_llm.adapter import LoraAdapter
from recbole_llm.llm.backbone import make_backbone
from recbole_llm.llm.code_tokens import CodedBackbone, CodeTokens
from recbole_llm.llm.loss import answer_loss
from tests.families import FAMILIES, make_family


def with_codes(family: str, n: int = 5) -> tuple[CodedBackbone, CodeTokens]:
    backbone = CodedBackbone.of(make_backbone(*make_family(family)), [f"<a_{code}>" for code in range(n)])
    rng = np.random.default_rng(0)
    starts = rng.normal(size=(n, 3))
    starts[-1] = 0
    generator = torch.Generator().manual_seed(0)
    return backbone, CodeTokens(backbone.model, backbone.first_code, starts, np.zeros((1, 1)), generator)


def resized(backbone: CodedBackbone, tokens: CodeTokens) -> torch.nn.Module:
    """A copy of the LLM with rows of its own for the tokens, by transformers."""
    model = copy.deepcopy(backbone.model)
    model.resize_token_embeddings(backbone.first_code + len(tokens), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[backbone.first_code :] = tokens.rows_in
        rows = tokens.rows_in if tokens.rows_out is None else tokens.rows_out
        model.get_output_embeddings().weight[backbone.first_code :] = rows
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_resized_embeddings(family):
    backbone, tokens = with_codes(family)
    assert (tokens.rows_out is None) == backbone.model.config.tie_word_embeddings
    other, first = resized(backbone, tokens), backbone.first_code
    before = {name: weight.clone() for name, weight in backbone.model.state_dict().items()}
    tokens.attach(backbone.model)
    ids = torch.tensor([[5, first, first + 4, 7, first + 2], [6, 8, first + 1, first + 1, 9]])
    labels = ids.clone()
    labels[:, :2] = -100
    mask = torch.ones_like(ids)
    assert torch.allclose(backbone.model(ids).logits, other(ids).logits, atol=1e-4)
    answer_loss(backbone.model, ids, mask, labels).backward()
    answer_loss(other, ids, mask, labels).backward()
    expected = other.get_input_embeddings().weight.grad[first:]
    torch.testing.assert_close(tokens.rows_in.grad, expected, atol=1e-4, rtol=1e-3)
    if tokens.rows_out is not None:
        expected = other.get_output_embeddings().weight.grad[first:]
        torch.testing.assert_close(tokens.rows_out.grad, expected, atol=1e-4, rtol=1e-3)
    assert all(torch.equal(before[name], weight) for name, weight in backbone.model.state_dict().items())


def test_under_lora_the_rows_learn_and_the_llm_does_not():
    backbone, tokens = with_codes("llama")
    model = LoraAdapter(r=2).attach(backbone.model)
    tokens.attach(model)
    ids = torch.tensor([[5, backbone.first_code, backbone.first_code + 1, 6]])
    answer_loss(model, ids, torch.ones_like(ids), ids).backward()
    assert tokens.rows_in.grad is not None and tokens.rows_in.grad.any(dim=1).tolist() == [True, True] + [False] * 3
    learned = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert learned and all("lora" in name for name in learned)
    assert tokens.codes.grad is None and not tokens.codes.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_begin_as_images_of_codewords_as_long_as_the_others(family):
    backbone, tokens = with_codes(family)
    old = backbone.model.get_input_embeddings().weight.detach()
    lengths = tokens.rows_in.detach().norm(dim=1)
    torch.testing.assert_close(lengths[:-1], old.norm(dim=1).mean().expand(4), atol=1e-3, rtol=1e-3)
    noise = tokens.rows_in.detach()[-1] - old.mean(dim=0)
    assert 0 < noise.std() < 0.05 * old.std()


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_restart_begin_like_new_ones_and_the_others_stay(family):
    backbone, tokens = with_codes(family)
    before = [rows.detach().clone() for rows in (tokens.rows_in, tokens.rows_out) if rows is not None]
    starts = np.random.default_rng(1).normal(size=(2, 3))
    tokens.start_rows(backbone.model, 2, starts, torch.Generator().manual_seed(1))
    fresh = CodeTokens(backbone.model, backbone.first_code, starts, np.zeros((1, 1)), torch.Generator().manual_seed(1))
    for rows, old, new in zip((tokens.rows_in, tokens.rows_out), before, (fresh.rows_in, fresh.rows_out), strict=False):
        assert torch.equal(rows[[0, 1, 4]], old[[0, 1, 4]]) and torch.equal(rows[2:4], new)
        assert not torch.isclose(rows[2:4], old[2:4]).all(dim=1).any() and rows.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_text_without_codes_computes_as_before_beside_the_logits_of_the_codes(family):
    backbone, tokens = with_codes(family)
    ids = torch.tensor([[5, 6, 7]])
    expected = backbone.model(ids).logits
    tokens.attach(backbone.model)
    logits = backbone.model(ids).logits
    assert torch.equal(logits[..., : backbone.first_code], expected)
    assert logits.shape[2] == backbone.first_code + len(tokens)


def test_an_output_embedding_without_a_weight_is_refused(monkeypatch):
    backbone = CodedBackbone.of(make_backbone(*make_family("llama")), ["<a_0>"])
    head = backbone.model.get_output_embeddings()
    head.weight = None
    with pytest.raises(TypeError, match="with a weight is needed, not Linear"):
        CodeTokens(backbone.model, backbone.first_code, np.ones((1, 3)), np.zeros((1, 1)), torch.Generator())


def test_codes_are_written_by_their_names_and_text_as_before():
    backbone, _ = with_codes("gpt2")
    text = backbone.tokenizer.encode("Babe", add_special_tokens=False)
    first = backbone.first_code
    assert backbone.decode([first + 1, first]) == "<a_1><a_0>"
    assert backbone.decode([*text, first, *text]) == "Babe<a_0>Babe" and backbone.decode(text) == "Babe"

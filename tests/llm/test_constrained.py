"""A constrained search generates nothing but titles, each once, with the scores of D3."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList

from recbole_llm.llm import Assistant, TitleConstraint, TitleTrie, beam_item_scores, beam_search, search_titles
from recbole_llm.llm.assistant import grouped_logsumexp
from recbole_llm.llm.constrained import log_probs_at
from recbole_llm.llm.title_scoring import TitleScoring
from tests.families import FAMILIES, make_family
from tests.refusals import refused

EOS = 2
WORDS = ("Heat", "Babe", "Seven", "Toy", "Story", "II", "2", "Man", "é", "🎬", "the")


def draw_titles(n, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 4))) for _ in range(n)]


def make_world(family, n_titles=60, seed=0):
    model, tokenizer = make_family(family, seed=seed)
    quoted = [f'"{title}"' for title in draw_titles(n_titles, seed)]
    trie = TitleTrie(tokenizer(quoted, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return model, trie, {"pad_token_id": pad}


def make_prompts(model, n, seed=0):
    draw = random.Random(seed)
    return [draw.choices(range(3, model.config.vocab_size), k=draw.randint(1, 8)) for _ in range(n)]


def brute_scores(model, trie, prompt):
    """log p(title | prompt) of every title by a full pass each: float64 [titles]."""
    scores = []
    for path, length in zip(trie.paths, trie.lengths, strict=True):
        answer = torch.from_numpy(trie.tokens[path[:length]])
        with torch.no_grad():
            logits = model(torch.cat((torch.tensor(prompt), answer))[None]).logits[0, len(prompt) - 1 : -1]
        scores.append(logits.double().log_softmax(-1).gather(1, answer[:, None]).sum().item())
    return np.array(scores)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_beam_is_a_title_and_no_title_comes_twice(family):
    model, trie, special = make_world(family)
    found = search_titles(model, make_prompts(model, 100), trie, num_beams=5, **special)
    assert len(found) == 100
    for beams in found:
        titles = [trie.title(beam.token_ids) for beam in beams]
        assert len(titles) == 5 and None not in titles and len(set(titles)) == 5
        assert all(beam.finished for beam in beams)
        assert [beam.score for beam in beams] == sorted((beam.score for beam in beams), reverse=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_beams_as_titles_find_all_of_them_with_their_likelihoods(family):
    model, trie, special = make_world(family, n_titles=15)
    prompts = make_prompts(model, 3)
    for length_penalty in (0.0, 1.0):
        found = search_titles(
            model, prompts, trie, num_beams=trie.n_titles + 3, length_penalty=length_penalty, **special
        )
        for prompt, beams in zip(prompts, found, strict=True):
            expected = brute_scores(model, trie, prompt) / trie.lengths**length_penalty
            titles = [trie.title(beam.token_ids) for beam in beams]
            assert sorted(titles) == list(range(trie.n_titles))
            np.testing.assert_allclose([beam.score for beam in beams], expected[titles], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("renormalize", [False, True])
def test_candidates_and_logits_processor_agree(family, renormalize):
    model, trie, special = make_world(family)
    prompts, constraint = make_prompts(model, 20), TitleConstraint(trie, renormalize=renormalize)
    masked = beam_search(
        model,
        prompts,
        eos_token_id=trie.eos_token_id,
        num_beams=5,
        max_new_tokens=trie.max_length,
        length_penalty=0.0,
        logits_processor=LogitsProcessorList([constraint]),
        return_beams=True,
        **special,
    )
    found = search_titles(model, prompts, trie, num_beams=5, renormalize=renormalize, **special)
    for ours, theirs in zip(found, masked, strict=True):
        assert [beam.token_ids for beam in ours] == [beam.token_ids for beam in theirs.beams]
        np.testing.assert_allclose([b.score for b in ours], [b.score for b in theirs.beams], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_processor_serves_generate_too(family):
    model, trie, special = make_world(family)
    prompt = make_prompts(model, 1)[0]
    output = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=5,
        num_return_sequences=5,
        max_new_tokens=trie.max_length,
        length_penalty=0.0,
        early_stopping=False,
        do_sample=False,
        eos_token_id=trie.eos_token_id,
        logits_processor=LogitsProcessorList([TitleConstraint(trie, n_prompt_tokens=len(prompt))]),
        **special,
    )
    answers = [row[: row.index(trie.eos_token_id) + 1] for row in output[:, len(prompt) :].tolist()]
    found = search_titles(model, [prompt], trie, num_beams=5, **special)[0]
    assert [trie.title(answer) for answer in answers] == [trie.title(beam.token_ids) for beam in found]


TITLES = st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=4), min_size=1, max_size=10)


@settings(max_examples=25)
@given(TITLES, st.integers(0, 10**6))
def test_processor_keeps_allowed_scores_and_nothing_else(titles, seed):
    trie = TitleTrie(titles, EOS)
    draw = np.random.default_rng(seed)
    for length in range(trie.max_length + 2):
        generated = torch.from_numpy(draw.integers(2, 7, size=(6, length)))
        scores = torch.from_numpy(draw.normal(size=(6, 9)))
        found = TitleConstraint(trie)(generated, scores)
        shares = TitleConstraint(trie, renormalize=True)(generated, scores)
        for row, prefix in enumerate(generated.tolist()):
            allowed = trie.allowed(prefix) or [EOS]  # who has ended, or is nowhere, may only end
            assert found[row].isfinite().nonzero().squeeze(1).tolist() == allowed
            assert torch.equal(found[row, allowed], scores[row, allowed])
            torch.testing.assert_close(shares[row, allowed], scores[row, allowed].log_softmax(0))


@given(TITLES, st.floats(0, 1), st.integers(0, 10**6))
def test_assistant_adds_up_to_the_probability_of_the_items(titles, lm_weight, seed):
    """The sum over a title's steps is log q of the items that share it."""
    scores = torch.from_numpy(np.random.default_rng(seed).normal(scale=20, size=(3, len(titles))))
    trie, assistant = TitleTrie(titles, EOS), Assistant(scores, lm_weight)
    log_q = scores.log_softmax(dim=1)
    steps = assistant.node_log_ratios(trie)
    for item, title in enumerate(titles):
        same = [other for other, tokens in enumerate(titles) if tokens == title]
        row = trie.title_of_item[item]
        expected = log_q[:, same].logsumexp(dim=1)
        torch.testing.assert_close(assistant.title_log_probs(trie)[:, row], expected)
        torch.testing.assert_close(steps[:, trie.paths[row, : trie.lengths[row]]].sum(dim=1), expected)


def test_assistant_step_is_the_share_of_the_items_behind_a_token():
    trie = TitleTrie([None, [5, 6], [5, 7], [8]], EOS)
    assistant = Assistant(torch.tensor([[9.0, math.log(0.1), math.log(0.3), math.log(0.6)]]), 0.5)  # q sums to 1
    steps = assistant.node_log_ratios(trie)[0].exp()
    for prefix, share in {(5,): 0.4, (8,): 0.6, (5, 6): 0.25, (5, 7): 0.75, (5, 6, EOS): 1.0}.items():
        assert float(steps[trie.find(np.array([prefix]))[0]]) == pytest.approx(share, abs=1e-6)


SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in ((0.0, True), (1.0, True), (0.5, False))]


@pytest.mark.parametrize(("lm_weight", "renormalize"), [(0.0, False), (1.0, False), (0.5, True), *SLOW])
def test_assisted_search_mixes_both_scores(lm_weight, renormalize):
    model, trie, special = make_world("llama", n_titles=20)
    prompts = make_prompts(model, 7)
    scores = torch.randn(7, trie.n_items, generator=torch.Generator().manual_seed(0)) * 2
    options = {"num_beams": trie.n_titles, "renormalize": renormalize, **special}
    alone = beam_item_scores(trie, search_titles(model, prompts, trie, **options))
    found = search_titles(model, prompts, trie, assistant=Assistant(scores, lm_weight), max_batch_tokens=600, **options)
    mixed = beam_item_scores(trie, found)
    log_q = Assistant(scores, lm_weight).title_log_probs(trie)[:, trie.title_of_item]
    torch.testing.assert_close(mixed, lm_weight * alone + (1 - lm_weight) * log_q, atol=1e-4, rtol=1e-5)


def test_items_out_of_the_question_are_not_found():
    model, trie, special = make_world("llama", n_titles=20)
    scores = torch.zeros(2, trie.n_items)
    wanted = trie.items(trie.tokens[trie.paths[4, : trie.lengths[4]]])
    scores[:, [item for item in range(trie.n_items) if item not in wanted]] = -math.inf
    found = search_titles(model, make_prompts(model, 2), trie, assistant=Assistant(scores, 0.5), num_beams=4, **special)
    assert [[trie.title(beam.token_ids) for beam in beams] for beams in found] == [[4], [4]]


def test_item_scores_of_beams():
    model, trie, special = make_world("qwen2", n_titles=30)
    found = search_titles(model, make_prompts(model, 4), trie, num_beams=3, **special)
    scores = beam_item_scores(trie, found)
    assert scores.shape == (4, 30)
    for row, beams in enumerate(found):
        named = {item for beam in beams for item in trie.items(beam.token_ids)}
        assert set(scores[row].isfinite().nonzero().squeeze(1).tolist()) == named
        assert scores[row].max().item() == pytest.approx(beams[0].score)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 10**6))
def test_grouped_logsumexp(groups, seed):
    values = torch.from_numpy(np.random.default_rng(seed).normal(scale=300, size=(2, len(groups))))
    values[0, 0] = -math.inf
    found = grouped_logsumexp(values, torch.tensor(groups), 5)
    for group in range(5):
        columns = [column for column, own in enumerate(groups) if own == group]
        torch.testing.assert_close(found[:, group], values[:, columns].logsumexp(dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_rows", [0, 1, 2, 7])
def test_a_few_rows_at_a_time_give_what_all_at_once_give(monkeypatch, dtype, n_rows):
    logits = 9 * torch.randn(n_rows, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    tokens = torch.arange(4 * n_rows).view(n_rows, 4) % 11
    before = logits.clone()
    for cached in (1, 33 // torch.get_num_threads(), 2**18):
        monkeypatch.setattr("recbole_llm.llm.constrained._CACHED", cached)
        found = log_probs_at(logits, tokens)
        assert found.dtype == torch.float32 and torch.equal(logits, before)
        torch.testing.assert_close(found, logits.float().log_softmax(dim=1).gather(1, tokens))


def test_mistakes_are_named():
    trie = TitleTrie([[5], [6]], EOS)
    with refused("lm_weight", "value"):
        Assistant(torch.zeros(1, 2), 1.5)
    with pytest.raises(ValueError, match=r"\[prompts, 2\]"):
        Assistant(torch.zeros(1, 3), 0.5).title_log_probs(trie)
    for broken in (math.nan, -math.inf):
        with pytest.raises(ValueError, match="assistant's scores"):
            Assistant(torch.full((1, 2), broken), 0.5).title_log_probs(trie)
    constraint = TitleConstraint(trie, assistant=Assistant(torch.zeros(1, 2), 0.5))
    generated, logits = torch.empty(1, 0, dtype=torch.long), torch.zeros(1, 9)
    with pytest.raises(ValueError, match="prompt of each row"):
        constraint(generated, logits)
    with pytest.raises(ValueError, match="prompt of each row"):
        constraint.candidates(generated, logits)
    model, trie, special = make_world("llama")
    with pytest.raises(ValueError, match="2 prompts, but the assistant scores 1"):
        search_titles(model, [[5], [6]], trie, assistant=Assistant(torch.zeros(1, 60), 0.5), **special)


def test_scores_that_are_kept_are_of_these_settings():
    trie = TitleTrie([None, [5, 6], [8]], EOS)
    given = [(0.0, False, "tree"), (1.0, False, "tree"), (0.0, True, "tree"), (0.0, False, "rows")]
    told = [TitleScoring(trie, penalty, among, None).facts(way) for penalty, among, way in given]
    assert len(set(map(str, told))) == len(given)
    assert TitleConstraint(trie, renormalize=True).facts() != TitleConstraint(trie, renormalize=False).facts()

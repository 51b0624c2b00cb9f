"""Beam search returns what ``generate`` returns, however it is batched, and computes each prompt once."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LogitsProcessorList, MistralConfig, MistralForCausalLM

from recbole_llm.kept import KeptRows
from recbole_llm.llm import beam_state
from recbole_llm.llm.generation import Generation, beam_search
from recbole_llm.llm.rows import length_batches
from recbole_llm.llm.search import BeamSearch
from tests.families import FAMILIES, make_family
from tests.refusals import refused

NEW_TOKENS = 12
EOS_BIASES = {"never": -50.0, "late": 1.1, "early": 1.8}
# When answers end is the search's matter, positions and cache are the family's: the fast cases vary one of both. Every
# architecture's beams are compared with those of `generate` in test_families.py.
FAST = {("llama", "late"), ("llama", "early"), ("gpt2", "late")}
CASES = [
    pytest.param(family, bias, id=f"{family}-{name}", marks=[] if (family, name) in FAST else pytest.mark.slow)
    for family in FAMILIES
    for name, bias in EOS_BIASES.items()
]


def make_model(family="llama", seed=0, eos_bias=0.0):
    """A model of which EOS is made more or less probable, and its token ids for EOS and padding."""
    model, tokenizer = make_family(family, seed=seed)
    eos = tokenizer.eos_token_id
    pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    bias = torch.zeros(model.config.vocab_size)
    bias[eos] = eos_bias
    model.get_output_embeddings().bias = nn.Parameter(bias)
    return model, {"eos_token_id": eos, "pad_token_id": pad}


def make_prompts(model, n=6, seed=0, prefix=()):
    draw = random.Random(seed)
    return [[*prefix, *draw.choices(range(3, model.config.vocab_size), k=draw.randint(1, 25))] for _ in range(n)]


def generate(model, prompts, special, num_beams, max_new_tokens=NEW_TOKENS, length_penalty=1.0, **options):
    """The library's own search, left padded: list of (tokens, finished), and scores (None for greedy search)."""
    width = max(map(len, prompts))
    ids = torch.tensor([[special["pad_token_id"]] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        length_penalty=length_penalty if num_beams > 1 else None,
        do_sample=False,
        early_stopping=False if num_beams > 1 else None,
        return_dict_in_generate=True,
        output_scores=True,
        **special,
        **options,
    )
    answers = []
    for row in output.sequences[:, width:].tolist():
        end = row.index(special["eos_token_id"]) if special["eos_token_id"] in row else len(row)
        answers.append((row[:end], end < len(row)))
    return answers, getattr(output, "sequences_scores", None)


def texts(generations):
    return [(generation.token_ids, generation.finished) for generation in generations]


@pytest.mark.parametrize(("family", "eos_bias"), CASES)
def test_equals_generate(family, eos_bias):
    for seed, num_beams, length_penalty in [
        (0, 4, 1.0),
        (1, 4, 1.0),
        (2, 7, 1.0),
        (3, 2, 0.0),
        (4, 3, 2.0),
        (5, 1, 1.0),
    ]:
        model, special = make_model(family, seed, eos_bias)
        prompts = make_prompts(model, seed=seed)
        expected, scores = generate(model, prompts, special, num_beams, length_penalty=length_penalty)
        found = beam_search(
            model, prompts, num_beams=num_beams, max_new_tokens=NEW_TOKENS, length_penalty=length_penalty, **special
        )
        assert texts(found) == expected
        if scores is not None:
            np.testing.assert_allclose([generation.score for generation in found], scores, atol=1e-5)
        if eos_bias == EOS_BIASES["never"]:
            assert not any(generation.finished for generation in found)
        if eos_bias == EOS_BIASES["early"]:
            assert any(generation.finished for generation in found)


@pytest.mark.parametrize(("family", "eos_bias"), CASES)
def test_all_beams_equal_those_of_generate(family, eos_bias):
    for seed, num_beams, length_penalty in [(0, 4, 1.0), (3, 2, 0.0), (4, 3, 2.0)]:
        model, special = make_model(family, seed, eos_bias)
        prompts = make_prompts(model, seed=seed)
        expected, scores = generate(
            model,
            prompts,
            special,
            num_beams,
            length_penalty=length_penalty,
            num_return_sequences=num_beams,
        )
        found = beam_search(
            model,
            prompts,
            num_beams=num_beams,
            max_new_tokens=NEW_TOKENS,
            length_penalty=length_penalty,
            return_beams=True,
            **special,
        )
        beams = [beam for generation in found for beam in generation.beams]
        assert texts(beams) == expected
        np.testing.assert_allclose([beam.score for beam in beams], scores, atol=1e-5)


@pytest.mark.parametrize(("family", "eos_bias"), CASES)
def test_returning_all_beams_changes_no_answer(family, eos_bias):
    model, special = make_model(family, eos_bias=eos_bias)
    prompts = make_prompts(model, prefix=[5, 9, 7])
    alone = beam_search(model, prompts, max_new_tokens=NEW_TOKENS, **special)
    found = beam_search(model, prompts, max_new_tokens=NEW_TOKENS, return_beams=True, **special)
    small = beam_search(model, prompts, max_new_tokens=NEW_TOKENS, return_beams=True, max_batch_tokens=1, **special)
    assert texts(found) == texts(alone) and not any(generation.beams for generation in alone)
    for generation, unbatched in zip(found, small, strict=True):
        assert texts(generation.beams) == texts(unbatched.beams)
        assert len(generation.beams) == 4 and texts(generation.beams[:1]) == texts([generation])
        scores = [beam.score for beam in generation.beams]
        assert scores == sorted(scores, reverse=True) and generation.beams[0].score == generation.score
        assert len({(tuple(beam.token_ids), beam.finished) for beam in generation.beams}) == 4


def test_one_beam_is_the_only_one():
    model, special = make_model(eos_bias=1.1)
    for generation in beam_search(model, make_prompts(model), num_beams=1, return_beams=True, **special):
        assert texts(generation.beams) == texts([generation])


@pytest.mark.parametrize(("family", "eos_bias"), CASES)
def test_batching_and_sharing_the_prefix_change_nothing(family, eos_bias):
    model, special = make_model(family, eos_bias=eos_bias)
    prompts = make_prompts(model, n=4, prefix=[5, 9, 7, 7, 30])
    prompts.append(prompts[0])  # a duplicate
    prompts.append(prompts[0][:5])  # nothing but the common beginning
    expected = [beam_search(model, [prompt], max_new_tokens=8, **special)[0] for prompt in prompts]
    for share_prefix in (True, False):
        for max_batch_tokens in (1, 300, 100_000):
            found = beam_search(
                model,
                prompts,
                max_new_tokens=8,
                share_prefix=share_prefix,
                max_batch_tokens=max_batch_tokens,
                **special,
            )
            assert texts(found) == texts(expected)
            np.testing.assert_allclose([g.score for g in found], [g.score for g in expected], atol=1e-5)


def test_batches_that_a_broken_search_has_finished_are_not_searched_again(tmp_path, monkeypatch):
    model, special = make_model()
    prompts, searched, run = make_prompts(model), [], BeamSearch.run

    def search(dies_at=99, prompts=prompts, **options):
        def run_or_die(self, own, passes):
            if len(searched) == dies_at:
                raise KeyboardInterrupt
            searched.append(sorted(own))
            return run(self, own, passes)

        searched.clear()
        monkeypatch.setattr(BeamSearch, "run", run_or_die)
        settings = {"num_beams": 2, "max_new_tokens": 4, "max_batch_tokens": 60, "return_beams": True, **options}
        return beam_search(model, prompts, **special, **settings, keep=lambda *own: KeptRows(tmp_path, *own))

    options = {"num_beams": 2, "max_new_tokens": 4, "max_batch_tokens": 60, "return_beams": True}
    expected, everything = beam_search(model, prompts, **special, **options), list(range(len(prompts)))
    with pytest.raises(KeyboardInterrupt):
        search(dies_at=2)
    before = list(searched)
    assert search() == expected and len(before) == 2
    assert sorted(row for batch in [*before, *searched] for row in batch) == everything
    for other in (
        {"num_beams": 3},
        {"length_penalty": 0.5},
        {"prompts": prompts[::-1]},
        {"forbidden_token_ids": [5]},
        {"logits_processor": LogitsProcessorList()},
    ):
        search(**other)
        assert sorted(row for batch in searched for row in batch) == everything


@pytest.mark.parametrize("family", FAMILIES)
def test_score_is_the_mean_log_probability_of_a_full_pass(family):
    model, special = make_model(family, eos_bias=2.0)
    prompts = make_prompts(model)
    for prompt, generation in zip(prompts, beam_search(model, prompts, max_new_tokens=4, **special), strict=True):
        answer = generation.token_ids + [special["eos_token_id"]] * generation.finished
        with torch.no_grad():
            log_probs = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        mean = sum(log_probs[len(prompt) - 1 + step, token].item() for step, token in enumerate(answer)) / len(answer)
        assert generation.score == pytest.approx(mean, abs=1e-5)
        assert len(answer) == 4 or generation.finished


def count_inputs(model, run):
    """Tokens that are not padding, and rows, of every forward pass inside `run`."""
    tokens, rows = [], []

    def record(module, args, kwargs):
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        tokens.append(int(mask[:, -ids.shape[1] :].sum()))
        rows.append(len(ids))

    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    run()
    handle.remove()
    return tokens, rows


@pytest.mark.parametrize("family", FAMILIES)
def test_each_prompt_is_computed_once(family):
    model, special = make_model(family)
    prompts = make_prompts(model, prefix=[5, 9, 7])
    total = sum(map(len, prompts))
    tokens, _ = count_inputs(
        model, lambda: beam_search(model, prompts, max_new_tokens=1, share_prefix=False, **special)
    )
    assert sum(tokens) == total
    tokens, _ = count_inputs(model, lambda: beam_search(model, prompts, max_new_tokens=1, **special))
    assert tokens[0] == 3
    assert sum(tokens) == total - 3 * (len(prompts) - 1)


def test_finished_rows_leave_the_batch():
    model, special = make_model(eos_bias=1.1)
    prompts = make_prompts(model, n=10)
    special.update(max_new_tokens=20, max_batch_tokens=10**6, share_prefix=False)
    _, rows = count_inputs(model, lambda: beam_search(model, prompts, **special))
    assert rows[:2] == [10, 40]
    assert rows[1:] == sorted(rows[1:], reverse=True)
    assert len(set(rows)) > 3 and all(n % 4 == 0 for n in rows[1:])
    assert all(after == before or after <= 0.75 * before for before, after in itertools.pairwise(rows[1:]))


def test_rows_that_stay_though_they_are_finished_change_no_answer(monkeypatch):
    model, special = make_model(eos_bias=1.1)
    prompts = make_prompts(model, n=10)
    special.update(max_new_tokens=20, max_batch_tokens=10**6, return_beams=True)
    found = []
    for share in (0.0, 0.25, 1.0):  # dropped at once, a quarter at a time, never
        monkeypatch.setattr(beam_state, "FINISHED_SHARE", share)
        answers = beam_search(model, prompts, **special)
        found.append([[(beam.token_ids, round(beam.score, 4)) for beam in answer.beams] for answer in answers])
    assert found[0] == found[1] == found[2]


def test_forbidden_tokens_are_suppressed_as_in_generate():
    model, special = make_model(eos_bias=1.0)
    prompts = make_prompts(model)
    free = beam_search(model, prompts, max_new_tokens=NEW_TOKENS, **special)
    forbidden = sorted({token for generation in free for token in generation.token_ids[:2]})
    found = beam_search(model, prompts, max_new_tokens=NEW_TOKENS, forbidden_token_ids=forbidden, **special)
    assert not {token for generation in found for token in generation.token_ids} & set(forbidden)
    for option in ({"suppress_tokens": forbidden}, {"bad_words_ids": [[token] for token in forbidden]}):
        assert texts(found) == generate(model, prompts, special, 4, **option)[0]


def test_lora_and_gradient_checkpointing():
    base, special = make_model(eos_bias=1.0)
    prompts = make_prompts(base, prefix=[5, 9, 7])
    untuned = texts(beam_search(base, prompts, max_new_tokens=NEW_TOKENS, **special))
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.5) if "lora_B" in name else None
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    model.train()
    model.base_model.model.model.norm.eval()  # one submodule in its own mode
    modes = [module.training for module in model.modules()]
    found = texts(beam_search(model, prompts, max_new_tokens=NEW_TOKENS, **special))
    assert [module.training for module in model.modules()] == modes
    assert model.config.use_cache is False
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert found != untuned
    assert found == generate(model.eval(), prompts, special, 4, use_cache=True)[0]


def test_modes_are_restored_after_an_error():
    model, special = make_model()
    model.train()
    with pytest.raises(IndexError):
        beam_search(model, [[10**6]], **special)
    assert all(module.training for module in model.modules())


def test_half_precision_runs_and_is_deterministic():
    model, special = make_model()
    model.to(torch.bfloat16)
    prompts = make_prompts(model)
    first, second = (beam_search(model, prompts, max_new_tokens=NEW_TOKENS, **special) for _ in range(2))
    assert first == second
    assert all(math.isfinite(generation.score) for generation in first)


def test_sliding_window_shares_no_prefix_and_equals_generate():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
        initializer_range=0.3,
    )
    model, special = MistralForCausalLM(config).eval(), {"eos_token_id": 2, "pad_token_id": 0}
    prompts = make_prompts(model, prefix=[5, 9, 7, 8])
    expected, _ = generate(model, prompts, special, 4)
    assert texts(beam_search(model, prompts, max_new_tokens=NEW_TOKENS, **special)) == expected


def test_vocabulary_smaller_than_the_beams():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=5, num_key_value_heads=2, initializer_range=0.5, sliding_window=None, **shape)
    model, special = MistralForCausalLM(config).eval(), {"eos_token_id": 2, "pad_token_id": 0}
    prompts = [[3, 4], [1, 3, 3], [4]]
    expected, _ = generate(model, prompts, special, num_beams=8)
    assert texts(beam_search(model, prompts, num_beams=8, max_new_tokens=NEW_TOKENS, **special)) == expected


def test_enough_beams_find_the_best_allowed_answer():
    """A constraint through a logits processor, against scoring every allowed answer by a full pass."""
    model, special = make_model()
    eos = special["eos_token_id"]
    allowed = [[10, 11, eos], [10, 12, 13, eos], [20, eos], [21, 11, 11, 14, eos], [10, 12, eos]]

    def constrain(generated, scores):
        masked = torch.full_like(scores, -math.inf)
        for row, prefix in enumerate(generated.tolist()):
            following = [answer[len(prefix)] for answer in allowed if answer[: len(prefix)] == prefix != answer]
            masked[row, following] = scores[row, following]
        return masked

    def score(prompt, answer):
        log_probs = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return log_probs.gather(1, torch.tensor(answer)[:, None]).mean().item()

    prompts = make_prompts(model)
    found = beam_search(model, prompts, num_beams=len(allowed), logits_processor=constrain, **special)
    for prompt, generation in zip(prompts, found, strict=True):
        best = max(allowed, key=lambda answer: score(prompt, answer))
        assert generation.token_ids == best[:-1] and generation.finished
        assert generation.score == pytest.approx(score(prompt, best), abs=1e-5)


def test_equal_scores_go_to_the_lowest_token():
    model, special = make_model()
    nn.init.zeros_(model.get_output_embeddings().weight)
    found = beam_search(model, [[5, 6], [7]], max_new_tokens=3, forbidden_token_ids=[0, 1, 2, 4], **special)
    assert [generation.token_ids for generation in found] == [[3, 3, 3]] * 2
    assert found[0].score == pytest.approx(-math.log(model.config.vocab_size), abs=1e-5)


LENGTHS = st.lists(st.integers(1, 50), max_size=30)


def padded(batches, lengths, overhead):
    """What batches cost: their padded sizes, and an overhead each."""
    return sum(overhead + len(batch) * max(lengths[row] for row in batch) for batch in batches)


@given(LENGTHS, st.integers(1, 120), st.sampled_from(["longest first", "shortest first", "as given"]))
def test_length_batches_partition_the_rows_within_the_budget(lengths, budget, order):
    batches = length_batches(lengths, budget, order, overhead=20)
    taken = [row for batch in batches for row in batch]
    assert all(len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget for batch in batches)
    rows = list(range(len(lengths)))
    sign = {"longest first": -1, "shortest first": 1, "as given": 0}[order]
    assert taken == sorted(rows, key=lambda row: sign * lengths[row])


@given(LENGTHS, st.integers(1, 120), st.integers(0, 300))
def test_batches_by_length_cost_no_more_than_full_ones(lengths, budget, overhead):
    falling = sorted(lengths, reverse=True)
    full = length_batches(falling, budget, "as given")
    for order in ("longest first", "shortest first"):
        found = length_batches(lengths, budget, order, overhead)
        assert padded(found, lengths, overhead) <= padded(full, falling, overhead)


@given(st.lists(st.integers(1, 12), max_size=9), st.integers(0, 30))
def test_where_all_rows_fit_batches_by_length_are_the_cheapest(lengths, overhead):
    found = padded(length_batches(lengths, 10**6, overhead=overhead), lengths, overhead)
    falling = sorted(lengths, reverse=True)

    def cheapest(start):
        ends = range(start + 1, len(falling) + 1)
        return min((overhead + (end - start) * falling[start] + cheapest(end) for end in ends), default=0)

    assert found == cheapest(0)


def test_mistakes_are_named():
    model, special = make_model()
    assert beam_search(model, [], **special) == []
    with refused("num_beams", "value", "num_beams: 0"):
        beam_search(model, [[5]], num_beams=0, **special)
    with refused("max_new_tokens", "value", "max_new_tokens: -1"):
        beam_search(model, [[5]], max_new_tokens=-1, **special)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        beam_search(model, [[5], []], **special)
    model.get_output_embeddings().weight.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="prompt 0"):
        beam_search(model, [[5]], **special)


def test_one_new_token_is_the_most_probable_one():
    model, special = make_model(eos_bias=50.0)
    found = beam_search(model, [[5, 6, 7]], max_new_tokens=1, **special)
    assert found == [Generation([], found[0].score, True)]
    assert found[0].score == pytest.approx(0.0, abs=1e-5)

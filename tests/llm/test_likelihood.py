"""Likelihoods from the tree of titles are those of one full pass per title, and rank the catalogue alike."""

import math

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from recbole_llm.adapter import LoraAdapter
from recbole_llm.kept import KeptRows, keep_nothing
from recbole_llm.llm import Assistant, TitleTrie, title_likelihoods, title_scores, title_scoring, title_walk
from recbole_llm.llm.likelihood import MAX_ROW_TITLES, choose_way
from tests.families import FAMILIES, make_family
from tests.llm.test_constrained import brute_scores, draw_titles, make_prompts, make_world
from tests.refusals import refused

EOS = 2
# Log-probabilities of up to 100 in float32, whose last place is 4e-6 to 8e-6 there, summed over a title's tokens.
SINGLE = {"rtol": 1e-6, "atol": 1e-5}


def node_log_probs(trie, probabilities):
    """[1, nodes] from a dictionary of prefix to the probability of its last token; 1 where nothing is said."""
    log_probs = torch.zeros(1, trie.n_nodes, dtype=torch.float64)
    for prefix, probability in probabilities.items():
        log_probs[0, trie.find(np.array([prefix]))[0]] = math.log(probability)
    return log_probs


def test_ghost_tokens_decide_only_where_lengths_divide():
    first, second = (5, EOS), (6, 7, 8, EOS)
    trie = TitleTrie([first, second], EOS)
    log_probs = node_log_probs(trie, {(5,): 0.5, first: 0.5, (6,): 0.2})
    np.testing.assert_allclose(title_scores(trie, log_probs), [[-1.386294, -1.609438]], atol=1e-6)
    np.testing.assert_allclose(title_scores(trie, log_probs, length_penalty=1.0), [[-0.693147, -0.402359]], atol=1e-6)


@pytest.mark.parametrize(
    "lm_weight, expected",
    [
        (1.0, [-1.049822, -1.272966, -1.609438]),
        (0.5, [-1.676204, -1.238469, -1.060132]),
        (0.0, [-2.302585, -1.203973, -0.510826]),
    ],
)
def test_numeric_example_with_an_assistant(lm_weight, expected):
    trie = TitleTrie([(5, 6), (5, 7), (8,)], EOS)
    log_probs = node_log_probs(trie, {(5,): 0.7, (8,): 0.2, (5, 6): 0.5, (5, 7): 0.4})
    assistant = Assistant(torch.tensor([[0.1, 0.3, 0.6]], dtype=torch.float64).log(), lm_weight)
    np.testing.assert_allclose(title_scores(trie, log_probs, assistant=assistant), [expected], atol=1e-6)
    shares = title_scores(trie, log_probs, renormalize=True).exp()
    np.testing.assert_allclose(shares, [[0.432099, 0.345679, 0.222222]], atol=1e-6)
    assert shares.sum().item() == pytest.approx(1.0)


def test_an_assistant_that_decides_alone_ignores_what_the_model_rules_out():
    trie = TitleTrie([(5, 6), (5, 7), (8,)], EOS)
    log_probs = node_log_probs(trie, {(5,): 0.7, (5, 6): 0.5})
    log_probs[0, trie.find(np.array([(8,)]))[0]] = -math.inf
    opinion = torch.tensor([[0.1, 0.3, 0.6]], dtype=torch.float64).log()
    torch.testing.assert_close(title_scores(trie, log_probs, assistant=Assistant(opinion, 0.0)), opinion)
    half = title_scores(trie, log_probs, assistant=Assistant(opinion, 0.5))
    assert half[0, 2] == -math.inf and half[0, :2].isfinite().all()


PIECES = [
    pytest.param(family, piece, marks=[] if family == "llama" or piece == 7 else pytest.mark.slow)
    for family in FAMILIES
    for piece in (1, 7, 128)
]


@pytest.mark.parametrize(("family", "piece"), PIECES)
def test_equals_one_full_pass_per_title(family, piece, monkeypatch):
    monkeypatch.setattr(title_walk, "PIECE", piece)
    model, trie, special = make_world(family, n_titles=25)
    prompts = make_prompts(model, 4)
    found = title_likelihoods(model, prompts, trie, **special)
    assert found.dtype == torch.float64 and found.shape == (4, 25)
    for row, prompt in enumerate(prompts):
        expected = brute_scores(model, trie, prompt)[trie.title_of_item]
        np.testing.assert_allclose(found[row], expected, **SINGLE)
        in_order = expected[np.argsort(-found[row].numpy(), kind="stable")]
        assert (np.diff(in_order) <= 2 * (SINGLE["atol"] + SINGLE["rtol"] * np.abs(in_order[1:]))).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_batching_changes_nothing(family):
    model, trie, special = make_world(family)
    prompts = make_prompts(model, 9)
    expected = torch.cat([title_likelihoods(model, [prompt], trie, **special) for prompt in prompts])
    for max_batch_tokens in (1, 300, 10**6):
        found = title_likelihoods(model, prompts, trie, max_batch_tokens=max_batch_tokens, **special)
        torch.testing.assert_close(found, expected, **SINGLE)


def test_a_killed_computation_goes_on_after_its_last_batch(tmp_path, monkeypatch):
    """With the bits of one that was not killed; another assistant's scores are computed anew."""
    model, trie, special = make_world("llama", n_titles=9)
    prompts = make_prompts(model, 4)
    batches, score = [], title_scoring.title_scores

    def dying(trie, log_probs, **options):
        batches.append(len(log_probs))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return score(trie, log_probs, **options)

    def find(lm_weight=0.5, keep=lambda name, facts: KeptRows(tmp_path, name, facts)):
        torch.manual_seed(0)
        assistant = Assistant(torch.randn(4, trie.n_items, dtype=torch.float64), lm_weight)
        options = {"assistant": assistant, "max_batch_tokens": 1, "keep": keep}
        return title_likelihoods(model, prompts, trie, **special, **options)

    whole = find(keep=keep_nothing)
    monkeypatch.setattr(title_scoring, "title_scores", dying)
    with pytest.raises(KeyboardInterrupt):
        find()
    found, n_batches = find(), len(batches)
    assert n_batches == 3 + 2 and torch.equal(found, whole)
    assert torch.equal(find(), whole) and len(batches) == n_batches
    assert not torch.equal(find(lm_weight=0.75), found)


@pytest.mark.parametrize("family", FAMILIES)
def test_renormalised_likelihoods(family, monkeypatch):
    """Among the allowed tokens only: computed from every node, and from the few that lead to a choice."""
    monkeypatch.setattr(title_walk, "PIECE", 5)
    model, trie, special = make_world(family, n_titles=25)
    prompts = make_prompts(model, 3)
    found = title_likelihoods(model, prompts, trie, renormalize=True, **special)
    titles = [trie.items(trie.tokens[path[:length]])[0] for path, length in zip(trie.paths, trie.lengths, strict=True)]
    torch.testing.assert_close(found[:, titles].logsumexp(dim=1), torch.zeros(3, dtype=torch.float64))
    for row, prompt in enumerate(prompts):
        for title in range(trie.n_titles):
            answer, expected = trie.tokens[trie.paths[title, : trie.lengths[title]]].tolist(), 0.0
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 :].double()
            for step, token in enumerate(answer):
                allowed = trie.allowed(answer[:step])
                expected += logits[step, allowed].log_softmax(0)[allowed.index(token)].item()
            assert found[row, titles[title]].item() == pytest.approx(expected, abs=1e-5)


def test_options_are_those_of_the_formula():
    model, trie, special = make_world("gpt2", n_titles=20)
    prompts = make_prompts(model, 5)
    plain = title_likelihoods(model, prompts, trie, **special)
    lengths = torch.from_numpy(trie.lengths[trie.title_of_item]).double()
    mean = title_likelihoods(model, prompts, trie, length_penalty=1.0, **special)
    torch.testing.assert_close(mean, plain / lengths, **SINGLE)
    assistant = Assistant(torch.randn(5, 20, generator=torch.Generator().manual_seed(0)), 0.3)
    log_q = assistant.title_log_probs(trie)[:, trie.title_of_item]
    found = title_likelihoods(model, prompts, trie, assistant=assistant, max_batch_tokens=1, **special)
    torch.testing.assert_close(found, 0.3 * plain + 0.7 * log_q, **SINGLE)


def test_items_of_one_title_have_equal_scores_and_untitled_ones_none():
    model, tokenizer = make_family("qwen2")
    names = [None, "Heat", "Heat 2", "Heat", "He"]
    rows = [None if name is None else tokenizer.encode(name) for name in names]
    trie = TitleTrie(rows, tokenizer.eos_token_id)
    found = title_likelihoods(model, make_prompts(model, 3), trie, pad_token_id=0)
    assert (found[:, 0] == -math.inf).all() and found[:, 1:].isfinite().all()
    assert torch.equal(found[:, 1], found[:, 3])
    assert len(set(found[0, [1, 2, 4]].tolist())) == 3


def count_tokens(model, run):
    """Tokens that are not padding in all forward passes inside `run`."""
    counts = []

    def record(module, args, kwargs):
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        counts.append(int(mask.sum()) if mask.ndim == 2 else ids.numel())

    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    run()
    handle.remove()
    return sum(counts)


def test_prompts_and_beginnings_of_titles_are_computed_once(monkeypatch):
    monkeypatch.setattr(title_walk, "PIECE", 16)
    model, trie, special = make_world("llama")
    prompts = make_prompts(model, 5)
    n_prompt_tokens, n_beginnings = sum(map(len, prompts)), trie.n_nodes - 1 - trie.n_titles
    counted = count_tokens(model, lambda: title_likelihoods(model, prompts, trie, **special))
    assert counted == n_prompt_tokens + 5 * n_beginnings
    n_forced = sum(
        all(trie.n_children[other] < 2 for other in range(node, trie.ends[node])) for node in range(trie.n_nodes)
    )
    counted = count_tokens(model, lambda: title_likelihoods(model, prompts, trie, renormalize=True, **special))
    assert counted == n_prompt_tokens + 5 * (trie.n_nodes - 1 - n_forced) < n_prompt_tokens + 5 * n_beginnings


def test_lora_eager_attention_and_training_mode():
    base, trie, special = make_world("llama", n_titles=20)
    prompts = make_prompts(base, 3)
    untuned = title_likelihoods(base, prompts, trie, **special)
    base.set_attn_implementation("eager")
    torch.testing.assert_close(title_likelihoods(base, prompts, trie, **special), untuned, **SINGLE)
    model = LoraAdapter(dropout=0.5).attach(base).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3) if "lora_B" in name else None
    found = title_likelihoods(model, prompts, trie, **special)
    assert model.training and not torch.allclose(found, untuned)
    expected = np.stack([brute_scores(model.eval(), trie, prompt)[trie.title_of_item] for prompt in prompts])
    np.testing.assert_allclose(found, expected, **SINGLE)


def test_each_pass_is_given_the_inputs_of_its_rows():
    model, trie, special = make_world("llama", n_titles=20)
    prompts, seen = make_prompts(model, 6), []

    def forward(module, args, kwargs):
        places = kwargs.pop("user").tolist()
        if kwargs["past_key_values"].get_seq_length() == 0:  # the prompts themselves, padded on the left
            rows = zip(kwargs["input_ids"].tolist(), kwargs["attention_mask"].sum(dim=1).tolist(), strict=True)
            assert [row[-n:] for row, n in rows] == [list(prompts[place]) for place in places]
        seen.append((len(places), len(kwargs["input_ids"]), places))
        return args, kwargs

    model.register_forward_pre_hook(forward, with_kwargs=True)
    found = title_likelihoods(
        model, prompts, trie, max_batch_tokens=260, row_inputs={"user": torch.arange(6)}, **special
    )
    assert sorted({place for _, _, places in seen for place in places}) == list(range(6))
    assert all(n_inputs == n_rows for n_inputs, n_rows, _ in seen)
    model._forward_pre_hooks.clear()
    assert torch.equal(found, title_likelihoods(model, prompts, trie, max_batch_tokens=260, **special))


def test_half_precision_is_close_and_deterministic():
    model, trie, special = make_world("llama", n_titles=20)
    prompts = make_prompts(model, 3)
    exact = title_likelihoods(model, prompts, trie, **special)
    model.to(torch.bfloat16)
    first, second = (title_likelihoods(model, prompts, trie, **special) for _ in range(2))
    assert torch.equal(first, second) and (first / exact - 1).abs().max() < 0.1


def test_a_window_wider_than_prompt_and_title_is_no_obstacle():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=400, num_key_value_heads=2, sliding_window=30, initializer_range=0.2, **shape)
    model = MistralForCausalLM(config).eval()
    trie = TitleTrie(
        [[ord(letter) for letter in title[:12]] for title in draw_titles(10, seed=1) if title.isascii()], EOS
    )
    prompt = list(range(40, 52))
    found = title_likelihoods(model, [prompt], trie, pad_token_id=0)
    np.testing.assert_allclose(found[0], brute_scores(model, trie, prompt)[trie.title_of_item], **SINGLE)
    with refused("grounding", "conflict", "do not attend to all of"):
        title_likelihoods(model, [prompt * 3], trie, pad_token_id=0)


def test_mistakes_are_named(monkeypatch):
    model, trie, special = make_world("llama", n_titles=5)
    assert title_likelihoods(model, [], trie, **special).shape == (0, 5)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        title_likelihoods(model, [[5], []], trie, **special)
    with pytest.raises(ValueError, match="2 prompts, but the assistant scores 1"):
        title_likelihoods(model, [[5], [6]], trie, assistant=Assistant(torch.zeros(1, 5), 0.5), **special)
    with (
        monkeypatch.context() as patch,
        refused("attn_implementation", "conflict", "attn_implementation: flash_attention_2"),
    ):
        patch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
        title_likelihoods(model, [[5]], trie, **special)
    model.get_output_embeddings().weight.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="prompt 0"):
        title_likelihoods(model, [[5]], trie, **special)


def test_with_a_kernel_that_takes_no_mask_few_titles_are_rows_and_many_are_refused(monkeypatch):
    model, _ = make_family("llama")
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    most = MAX_ROW_TITLES
    assert choose_way(model, 8, most) == "rows"
    with refused("grounding", "conflict", "flash_attention_2 takes no mask per pair of tokens"):
        choose_way(model, 8, most + 1)

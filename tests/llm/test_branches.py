"""Several answers in one forward pass: who sees whom, and the same loss and gradients as one pass per answer."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import MistralConfig, MistralForCausalLM

from recbole_llm.adapter import LoraAdapter
from recbole_llm.adapter.dropout import path_terms
from recbole_llm.llm import answer_loss
from recbole_llm.llm.branch_batch import AnswerTree, BranchBatch, branch_batch
from recbole_llm.llm.branches import BranchScorer
from recbole_llm.llm.loss import IGNORE_INDEX
from tests.families import FAMILIES, WITH_ATTENTION, make_family
from tests.llm.test_loss import largest_tensor

EOS, PAD = 2, 0
answers_of_a_row = st.lists(st.lists(st.integers(3, 5), max_size=4), min_size=1, max_size=4)

# ------------------------------------------------------------------------------------------------------- the layout


def tree_of(*answers: Sequence[int]) -> AnswerTree:
    return AnswerTree.of([[*answer, EOS] for answer in answers])


def lay_out(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]) -> BranchBatch:
    return branch_batch(prompts, [[[*answer, EOS] for answer in own] for own in answers], PAD)


def test_two_answers_stand_behind_one_prompt_and_do_not_see_each_other():
    """Prompt of 3, answers of 2 tokens and EOS; EOS is only ever predicted, so it is no input."""
    batch = lay_out([[1, 7, 8]], [[[20, 21], [30, 31]]])
    assert batch.input_ids.tolist() == [[1, 7, 8, 20, 21, 30, 31]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4]]
    expected = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 1, 1],
    ]
    assert batch.attention_mask.tolist() == [[[[bool(seen) for seen in row] for row in expected]]]
    assert batch.query_columns[batch.queries].tolist() == [2, 3, 4, 2, 5, 6] and not batch.query_rows.any()
    assert batch.targets.tolist() == [20, 21, EOS, 30, 31, EOS]
    assert batch.answers.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(batch.query_columns) == 5  # the last prompt token is asked once for both


def test_shorter_rows_are_padded_on_the_left():
    batch = lay_out([[1, 7, 8], [9]], [[[20, 21], [30]], [[40], [50]]])
    assert batch.input_ids.tolist() == [[1, 7, 8, 20, 21, 30], [PAD, PAD, PAD, 9, 40, 50]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3], [0, 0, 0, 0, 1, 1]]
    seen = batch.attention_mask[1, 0]
    assert [row.nonzero()[:, 0].tolist() for row in seen] == [[0], [1], [2], [3], [3, 4], [3, 5]]


@pytest.mark.parametrize(
    "answers", [[[5, 6]], [[5, 6], [5, 6]], [[5, 6, 7], [5, 6]], [[5], [5, 6], [5, 6, 7]], [[], []]]
)
def test_answers_along_one_chain_need_no_mask_per_pair(answers):
    """One answer, equal ones, and ones that others begin with: the longest one's tokens, and an ordinary mask."""
    batch = lay_out([[1, 7], [8]], [answers, answers])
    longest = max(answers, key=len)
    assert batch.input_ids.tolist() == [[1, 7, *longest], [PAD, 8, *longest]]
    assert batch.attention_mask.tolist() == [[1] * (2 + len(longest)), [0] + [1] * (1 + len(longest))]
    assert batch.position_ids[0].tolist() == list(range(2 + len(longest)))
    assert len(batch.targets) == 2 * sum(len(answer) + 1 for answer in answers)


def test_a_common_beginning_is_computed_once():
    tree = tree_of([5, 6, 7], [5, 6, 8, 9], [4])
    assert tree.tokens == [5, 6, 7, 8, 9, 4] and tree.parents == [-1, 0, 1, 1, 3, -1]
    assert not tree.is_chain and tree_of([5, 6], [5, 6]).tokens == [5, 6]


@given(answers_of_a_row)
def test_a_tree_holds_every_answer_and_each_beginning_once(answers):
    tree = tree_of(*answers)
    paths = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    beginnings = {tuple(answer[:n]) for answer in answers for n in range(1, len(answer) + 1)}
    assert len(paths) == len(beginnings) and set(paths) == beginnings
    for index, answer in enumerate(answers):
        own = [(paths[before] if before >= 0 else (), token) for i, before, token in tree.predictions if i == index]
        assert own == [(tuple(answer[:n]), token) for n, token in enumerate([*answer, EOS])]


@given(
    st.lists(st.tuples(st.lists(st.integers(3, 9), min_size=1, max_size=4), answers_of_a_row), min_size=1, max_size=3)
)
def test_every_token_sees_its_own_past_and_nothing_else(rows):
    """What a position sees, read in order, is the prompt and its branch; its own position is how many that are."""
    k = min(len(answers) for _, answers in rows)
    prompts, answers = [prompt for prompt, _ in rows], [answers[:k] for _, answers in rows]
    batch = lay_out(prompts, answers)
    mask = batch.attention_mask
    n_tokens = mask.shape[-1]
    if mask.ndim == 2:
        mask = (torch.ones(n_tokens, n_tokens).tril() * mask[:, None]).bool()[:, None]
    steps: dict[tuple[int, int], list[int]] = {}
    for query, row, answer, target in torch.stack(
        [batch.queries, batch.rows, batch.answers, batch.targets], 1
    ).tolist():
        assert batch.query_rows[query] == row
        column = int(batch.query_columns[query])
        seen = mask[row, 0, column].nonzero()[:, 0]
        before = steps.setdefault((row, answer), [])
        assert batch.input_ids[row, seen].tolist() == [*prompts[row], *before]
        assert batch.position_ids[row, seen].tolist() == list(range(len(prompts[row]) + len(before)))
        before.append(target)
    assert steps == {(r, a): [*answers[r][a], EOS] for r in range(len(rows)) for a in range(k)}
    asked = torch.stack([batch.query_rows, batch.query_columns], dim=1)
    assert len(asked.unique(dim=0)) == len(asked)


@pytest.mark.parametrize(("prompts", "answers"), [([], []), ([[]], [[[5]]]), ([[1]], [[[], []]]), ([[1]], [[]])])
def test_nothing_to_compute_is_an_error(prompts, answers):
    with pytest.raises(ValueError, match="every prompt needs a token, and an answer of at least one token"):
        branch_batch(prompts, answers, PAD)


# ------------------------------------------------------------------------------------------------ one pass or several


def make_rows(vocab_size: int, k: int = 2, n_rows: int = 5, seed: int = 0) -> tuple[list[list[int]], Any]:
    """Prompts of different lengths; answers that differ, share a beginning, are equal, or are EOS alone."""
    draw = random.Random(seed)

    def tokens(n: int) -> list[int]:
        return [draw.randrange(3, vocab_size) for _ in range(n)]

    prompts, answers = [tokens(draw.randint(2, 12)) for _ in range(n_rows)], []
    for row in range(n_rows):
        own = [tokens(draw.randint(1, 5)) for _ in range(k)]
        if row == 1:
            own = [own[0]] * k
        if row == 2:
            common = tokens(2)
            own = [[*common, *answer] for answer in own]
        if row == 3:
            own[-1] = []
        answers.append([[*answer, EOS] for answer in own])
    return prompts, answers


def mean_losses(model: nn.Module, prompts: Any, answers: Any) -> list[Tensor]:
    """Mean loss of each kind of answer, in one pass."""
    found = BranchScorer(model, PAD).log_probs(prompts, answers)
    return [-found.values[found.answers == kind].mean() for kind in range(len(answers[0]))]


def separate_losses(model: nn.Module, prompts: Any, answers: Any) -> list[Tensor]:
    """The same, with a pass of padded rows and labels for each."""
    return [padded_loss(model, prompts, [own[kind] for own in answers]) for kind in range(len(answers[0]))]


def padded_loss(model: nn.Module, prompts: Any, answers: Any) -> Tensor:
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    labels = torch.full_like(ids, IGNORE_INDEX)
    for row, answer in enumerate(answers):
        labels[row, -len(answer) :] = torch.tensor(answer)
    return answer_loss(model, ids, mask, labels)


def weighted(model: nn.Module, losses: Sequence[Tensor]) -> tuple[list[float], dict[str, Tensor]]:
    """Losses, and all gradients of their sum with unequal weights."""
    model.zero_grad()
    sum((place + 1) * loss for place, loss in enumerate(losses)).backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return [loss.item() for loss in losses], gradients


def check_equal(model: nn.Module, rows: Any) -> None:
    (ours, our_gradients), (theirs, their_gradients) = (
        weighted(model, compute(model, *rows)) for compute in (mean_losses, separate_losses)
    )
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert our_gradients.keys() == their_gradients.keys() and any(g.any() for g in their_gradients.values())
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def count_passes(model: nn.Module, run: Callable[[], Any]) -> list[int]:
    """Number of dimensions of the mask of every forward pass inside ``run``."""
    dimensions: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: dimensions.append(kwargs["attention_mask"].ndim), with_kwargs=True
    )
    run()
    handle.remove()
    return dimensions


@pytest.mark.parametrize(("family", "attention"), WITH_ATTENTION)
def test_one_pass_has_the_loss_and_all_gradients_of_separate_ones(family, attention, caplog):
    model, tokenizer = make_family(family)
    model.set_attn_implementation(attention)
    for k in (2, 3):
        rows = make_rows(len(tokenizer), k)
        check_equal(model, rows)
        scorer = BranchScorer(model, PAD)
        assert scorer.takes_branches() and count_passes(model, lambda s=scorer, r=rows: s.log_probs(*r)) == [4]
    assert "one forward pass each" not in caplog.text


@pytest.mark.parametrize(("family", "attention"), WITH_ATTENTION)
def test_gradient_checkpointing_and_lora_change_nothing(family, attention):
    found = []
    for checkpointing in (False, True):
        model, tokenizer = make_family(family)
        model.set_attn_implementation(attention)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        tuned = LoraAdapter(dropout=0.0).attach(model).train()
        with torch.no_grad():
            for name, weight in tuned.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        for module in tuned.modules():  # GPT-2 has dropout of its own
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        rows = make_rows(len(tokenizer))
        check_equal(tuned, rows)
        found.append(weighted(tuned, mean_losses(tuned, *rows)))
    (plain, plain_gradients), (checkpointed, gradients) = found
    assert plain == pytest.approx(checkpointed, abs=1e-6)
    assert set(gradients) == {name for name, weight in tuned.named_parameters() if "lora_" in name}
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "attention"), WITH_ATTENTION)
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_half_precision_is_close(family, attention, how):
    model, tokenizer = make_family(family)
    model.set_attn_implementation(attention)
    rows = make_rows(len(tokenizer))
    exact = [loss.item() for loss in separate_losses(model, *rows)]
    if how == "weights":
        model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        scorer = BranchScorer(model, PAD)
        together = [loss.item() for loss in mean_losses(model, *rows)]
        assert scorer.takes_branches() and scorer.log_probs(*rows).values.dtype == torch.float32
        apart = [loss.item() for loss in separate_losses(model, *rows)]
    assert together == pytest.approx(apart, rel=0.01) and together == pytest.approx(exact, rel=0.02)


def test_whether_branches_work_is_found_out_in_the_weights_own_number_type():
    """Under autocast rounding would exceed what the comparison of float32 weights allows."""
    model, _ = make_family("llama")
    dtypes = []
    model.lm_head.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert BranchScorer(model, PAD).takes_branches()
    assert set(dtypes) == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_answer_is_the_plain_loss(family):
    model, tokenizer = make_family(family)
    prompts, answers = make_rows(len(tokenizer), k=1)
    (loss,) = mean_losses(model, prompts, answers)
    assert loss.item() == pytest.approx(padded_loss(model, prompts, [own[0] for own in answers]).item(), abs=1e-6)
    scorer = BranchScorer(model, PAD)
    assert count_passes(model, lambda: scorer.log_probs(prompts, answers)) == [2]  # an ordinary mask, nothing probed


def test_equal_answers_cost_one():
    model, tokenizer = make_family("llama")
    prompts, answers = make_rows(len(tokenizer), k=1)
    twice = [own * 2 for own in answers]
    one, both = branch_batch(prompts, answers, PAD), branch_batch(prompts, twice, PAD)
    assert torch.equal(one.input_ids, both.input_ids) and torch.equal(one.attention_mask, both.attention_mask)
    assert len(both.query_rows) == len(one.query_rows)  # nor are their logits computed twice
    losses = mean_losses(model, prompts, twice)
    assert losses[0].item() == losses[1].item() == pytest.approx(mean_losses(model, prompts, answers)[0].item())


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from(FAMILIES))
def test_random_trees_have_the_log_probabilities_of_single_sequences(seed, k, family):
    """Answers over three tokens, so that they branch off everywhere, against one unpadded sequence each."""
    model, _ = MODELS[family]
    draw = random.Random(seed)
    prompts = [draw.choices(range(3, 300), k=draw.randint(1, 6)) for _ in range(3)]
    answers = [[[*draw.choices([5, 6, 7], k=draw.randint(0, 5)), EOS] for _ in range(k)] for _ in prompts]
    with torch.no_grad():
        found = BranchScorer(model, PAD).log_probs(prompts, answers)
        for row, prompt in enumerate(prompts):
            for index, answer in enumerate(answers[row]):
                logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
                expected = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
                own = found.values[(found.rows == row) & (found.answers == index)]
                torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-5)


MODELS = {family: make_family(family) for family in FAMILIES}


def test_no_logits_of_whole_sequences_are_made():
    model, _ = make_family("llama")
    model.resize_token_embeddings(5000)
    prompts, answers = [list(range(3, 103))] * 4, [[[5, 6, 7, EOS], [5, 8, 9, EOS]]] * 4
    scorer = BranchScorer(model, PAD)
    assert scorer.takes_branches()
    n_queries = len(branch_batch(prompts, answers, PAD).query_rows)
    model.requires_grad_(False)  # gradients of the output embedding are as large as itself
    assert n_queries == 4 * 6
    assert largest_tensor(lambda: scorer.log_probs(prompts, answers)) <= max(n_queries * 5000, 5000 * 32)


# -------------------------------------------------------------------------------------------------------- falling back


class Stubborn(nn.Module):
    """A model around a model, whose attention cannot be told which pairs of tokens see each other."""

    def __init__(self, module: nn.Module, refuses: bool) -> None:
        super().__init__()
        self.module, self.refuses = module, refuses
        self.config = module.config

    def get_output_embeddings(self) -> nn.Module:
        return self.module.get_output_embeddings()

    def forward(self, attention_mask: Tensor, **inputs: Any) -> Any:
        if attention_mask.ndim == 4:
            if self.refuses:
                raise ValueError("attention_mask must have two dimensions\nand no more")
            attention_mask = attention_mask.diagonal(dim1=2, dim2=3)[:, 0].long()
        return self.module(attention_mask=attention_mask, **inputs)


@pytest.mark.parametrize("refuses", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_cannot_branch_takes_a_pass_per_answer_and_says_so_once(family, refuses, caplog):
    model, tokenizer = make_family(family)
    stubborn, rows = Stubborn(model, refuses).train(), make_rows(len(tokenizer), k=3)
    model.eval()
    scorer = BranchScorer(stubborn, PAD)
    with caplog.at_level(logging.DEBUG):
        values = [scorer.log_probs(*rows) for _ in range(3)]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "Using one forward pass per answer" in lines[0]
    assert ("attention_mask must have two dimensions)" if refuses else "does not keep to a mask") in lines[0]
    assert stubborn.training and not model.training  # as it was before the question
    assert count_passes(stubborn, lambda: scorer.log_probs(*rows)) == [2, 2, 2]
    assert torch.equal(values[0].values, values[2].values)
    reference = BranchScorer(model, PAD).log_probs(*rows)
    for kind in range(3):
        for row in range(len(rows[0])):
            own, expected = (v.values[(v.rows == row) & (v.answers == kind)] for v in (values[0], reference))
            torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)
    check_equal(stubborn, rows)


@pytest.mark.parametrize("in_one_pass", [True, False])
def test_a_prompt_may_lack_all_answers_but_one(in_one_pass):
    model, tokenizer = make_family("llama")
    prompts, answers = make_rows(len(tokenizer), k=3)
    answers = [[own[0] if row else [], own[1] if row % 2 else [], own[2]] for row, own in enumerate(answers)]
    scorer = BranchScorer(model.eval() if in_one_pass else Stubborn(model, refuses=True).eval(), PAD)
    found = scorer.log_probs(prompts, answers)
    for row, own in enumerate(answers):
        for kind, answer in enumerate(own):
            values = found.values[(found.rows == row) & (found.answers == kind)]
            alone = BranchScorer(model, PAD).log_probs([prompts[row]], [[answer]]).values if answer else torch.empty(0)
            torch.testing.assert_close(values, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("refuses", [True, False])
def test_an_answer_that_all_prompts_lack_costs_no_pass(refuses):
    model, tokenizer = make_family("llama")
    prompts, answers = make_rows(len(tokenizer), k=3)
    answers = [[own[0], [], own[2]] for own in answers]
    scorer = BranchScorer(Stubborn(model, refuses).eval(), PAD)
    scorer.log_probs(prompts, answers)  # finds out that it does not branch
    found = []
    assert count_passes(scorer.model, lambda: found.append(scorer.log_probs(prompts, answers))) == [2, 2]
    for row, own in enumerate(answers):
        for kind, answer in enumerate(own):
            values = found[0].values[(found[0].rows == row) & (found[0].answers == kind)]
            alone = BranchScorer(model, PAD).log_probs([prompts[row]], [[answer]]).values if answer else torch.empty(0)
            torch.testing.assert_close(values, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("in_one_pass", [True, False])
def test_what_is_drawn_by_token_is_told_rows_and_tokens_before_each_pass(in_one_pass):
    told = []

    class Draws:
        def use_tokens(self, paths: Tensor, lines: Sequence[int] | None = None) -> None:
            told.append((paths, lines))

    model, tokenizer = make_family("llama")
    prompts, answers = make_rows(len(tokenizer), k=2)
    answers = [[own[0] if row else [], own[1]] for row, own in enumerate(answers)]
    scorer = BranchScorer(model.eval() if in_one_pass else Stubborn(model, refuses=True).eval(), PAD, Draws())
    scorer.log_probs(prompts, answers)
    everybody = list(range(len(prompts)))
    assert [lines for _, lines in told] == ([None] if in_one_pass else [everybody[1:], everybody])
    known = {
        (row if lines is None else lines[row], path)
        for paths, lines in told
        for row, line in enumerate(paths.tolist())
        for path in line
    }
    for row, own in enumerate(answers):
        for answer in filter(None, own):
            sequence = np.array([*prompts[row], *answer[:-1]])
            path = path_terms(sequence, np.arange(len(sequence))).sum()  # of the last token that is read
            assert (row, int(path.view(np.int64))) in known


def test_sliding_windows_take_a_pass_per_answer(caplog):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=60, num_key_value_heads=2, sliding_window=4, initializer_range=0.3, **shape)
    model, rows = MistralForCausalLM(config).eval(), make_rows(60)
    scorer = BranchScorer(model, PAD)
    assert not scorer.takes_branches()
    assert "layers that do not attend to the whole context" in caplog.text
    check_equal(model, rows)
    assert count_passes(model, lambda: scorer.log_probs(*rows)) == [2, 2]


def test_a_window_that_is_switched_off_does_not_count():
    model, _ = make_family("qwen2")
    model.config.sliding_window, model.config.use_sliding_window = 4, False
    assert BranchScorer(model, PAD).takes_branches()


def test_answers_without_branches_are_never_asked_about():
    """Of a model that cannot branch, equal answers still cost one pass, and nothing is said."""
    model, tokenizer = make_family("llama")
    prompts, answers = make_rows(len(tokenizer), k=1)
    stubborn = Stubborn(model, refuses=True)
    scorer = BranchScorer(stubborn, PAD)
    assert count_passes(stubborn, lambda: scorer.log_probs(prompts, [own * 2 for own in answers])) == [2]


def test_a_batch_moves_with_all_its_tensors():
    batch = lay_out([[1, 7, 8]], [[[20], [30]]])
    moved = batch.to("meta")
    assert all(tensor.device.type == "meta" for tensor in vars(moved).values())
    assert np.array_equal(batch.to("cpu").input_ids, batch.input_ids)

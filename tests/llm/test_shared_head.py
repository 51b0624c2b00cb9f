"""What prompts begin with, computed once: the loss and all gradients are those of whole rows, or nothing is shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from recbole_llm.adapter import LoraAdapter
from recbole_llm.adapter.dropout import draw_by_token
from recbole_llm.llm.answer_reader import AnswerReader
from recbole_llm.llm.branch_batch import branch_batch
from recbole_llm.llm.branches import BranchScorer
from recbole_llm.llm.shared_head import LEAST_SPARED, head_size
from recbole_llm.llm.trunks import TrunkScorer
from tests.families import WITH_ATTENTION, make_family
from tests.llm.test_branches import PAD, make_rows

HEAD = [5, 9, 4, 7, 7, 6]
tokens = st.lists(st.integers(3, 5), min_size=1, max_size=6)


def rows_behind(head: list[int], vocab_size: int, k: int) -> tuple[list[list[int]], Any]:
    prompts, answers = make_rows(vocab_size, k)
    return [[*head, *prompt] for prompt in prompts], answers


def losses_and_gradients(scorer: BranchScorer, rows: Any, whole: bool) -> tuple[list[float], dict[str, Tensor]]:
    scorer.model.zero_grad()
    losses = scorer.log_probs(*rows, lines_are_rows=whole).losses(len(rows[1][0]))
    (losses * torch.arange(1, len(losses) + 1)).sum().backward()
    gradients = {name: own.grad.clone() for name, own in scorer.model.named_parameters() if own.grad is not None}
    return losses.tolist(), gradients


def count_tokens(model: nn.Module, run: Any) -> list[tuple[int, int]]:
    """Rows and tokens of every forward pass."""
    shapes: list[tuple[int, int]] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    run()
    handle.remove()
    return shapes


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(("family", "attention"), WITH_ATTENTION)
def test_loss_and_all_gradients_are_those_of_whole_rows(family, attention, k):
    model, tokenizer = make_family(family)
    model.set_attn_implementation(attention)
    rows = rows_behind(HEAD, len(tokenizer), k)
    scorer = BranchScorer(model, PAD, shares_heads=True)
    assert scorer.head_size(*rows) == len(HEAD)
    assert count_tokens(model, lambda: scorer.log_probs(*rows, lines_are_rows=False))[0] == (1, len(HEAD))
    (ours, our_gradients), (theirs, their_gradients) = (
        losses_and_gradients(scorer, rows, whole) for whole in (False, True)
    )
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert our_gradients.keys() == their_gradients.keys() and any(own.any() for own in their_gradients.values())
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, atol=1e-4, rtol=1e-4, msg=name)


@given(tokens, st.lists(tokens, min_size=1, max_size=4), st.lists(tokens, min_size=1, max_size=3))
def test_rows_behind_a_head_are_laid_out_as_whole_ones(head, prompts, answers):
    """Each query sees the same tokens at the same positions, whoever's pass they are in."""
    whole = branch_batch([[*head, *prompt] for prompt in prompts], [answers] * len(prompts), PAD)
    cut = branch_batch([[*head, *prompt] for prompt in prompts], [answers] * len(prompts), PAD, len(head))
    assert cut.head.tolist() == head and cut.attention_mask.shape[-1] == (cut.input_ids.shape[1] + len(head))
    assert whole.targets.tolist() == cut.targets.tolist() and whole.queries.tolist() == cut.queries.tolist()
    for number in whole.queries.tolist():
        seen = []
        for batch, before in ((whole, []), (cut, head)):
            row, column = int(batch.query_rows[number]), int(batch.query_columns[number])
            ids = torch.tensor([*before, *batch.input_ids[row].tolist()])
            positions = torch.tensor([*range(len(before)), *batch.position_ids[row].tolist()])
            if batch.attention_mask.ndim == 4:
                sees = batch.attention_mask[row, 0, column]
            else:
                sees = (batch.attention_mask[row] == 1) & (torch.arange(len(ids)) <= column + len(before))
            seen.append((ids[sees].tolist(), positions[sees].tolist()))
        assert seen[0] == seen[1]


def test_a_head_is_shared_where_it_spares_something():
    answers = [[[7]]] * 3
    assert head_size([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 9]], answers) == 2
    assert head_size([[1, 2], [1, 2], [1, 2]], answers) == 1  # a token of each prompt stays
    assert head_size([[1, 2, 3]], answers[:1]) == 0 and head_size([[1], [2], [3]], answers) == 0
    long = int(2 / LEAST_SPARED)
    assert head_size([[1, *[2] * long], [1, *[3] * long], [1, *[4] * long]], answers) == 0


def test_nothing_is_shared_where_rows_differ_or_no_cache_is_kept():
    model, tokenizer = make_family("llama")
    rows = rows_behind(HEAD, len(tokenizer), 1)
    assert BranchScorer(model, PAD).head_size(*rows) == 0  # weights may depend on the row: nobody said they do not
    model.gradient_checkpointing_enable({"use_reentrant": False})
    scorer = BranchScorer(model, PAD, shares_heads=True)
    assert scorer.head_size(*rows) == len(HEAD)  # in eval mode nothing is computed again
    model.train()
    assert scorer.head_size(*rows) == 0


def test_dropout_that_is_drawn_by_row_is_not_shared():
    model, tokenizer = make_family("llama")
    tuned = LoraAdapter(r=2, dropout=0.5).attach(model).train()
    draws = draw_by_token(tuned)
    scorer, rows = BranchScorer(tuned, PAD, draws, shares_heads=True), rows_behind(HEAD, len(tokenizer), 1)
    with draws.step(1):
        draws.use_rows(range(len(rows[0])))
        assert scorer.head_size(*rows) == 0
    assert scorer.head_size(*rows) == len(HEAD)


def test_passes_whose_lines_are_rows_keep_them_whole():
    """Gradient norms of rows are read from the tokens of each line."""
    model, tokenizer = make_family("llama")
    scorer, rows = TrunkScorer(model, PAD, shares_heads=True), rows_behind(HEAD, len(tokenizer), 1)
    assert len(count_tokens(model, lambda: scorer.log_probs(*rows))) == 1
    for whole in (True, False):
        reader = AnswerReader(scorer, lines_are_rows=whole)
        assert len(count_tokens(model, lambda r=reader: r.read(*rows))) == (1 if whole else 2)

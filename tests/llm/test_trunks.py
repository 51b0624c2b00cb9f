"""Rows in one tree: who sees whom, and the same loss and gradients as every row apart."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recbole_llm.adapter import LoraAdapter
from recbole_llm.llm.branches import BranchScorer
from recbole_llm.llm.item_slots import ItemProjector, ItemSlots
from recbole_llm.llm.trunks import TokenTree, TrunkScorer, n_shared, tree_size, trunk_batch
from tests.families import FAMILIES, WITH_ATTENTION, make_family
from tests.llm.test_branches import Stubborn, padded_loss

EOS, PAD = 2, 0
tokens_of = st.lists(st.integers(3, 5), max_size=6)
rows_of = st.lists(
    st.tuples(st.lists(st.integers(3, 5), min_size=1, max_size=6), st.tuples(tokens_of, tokens_of)),
    min_size=1,
    max_size=5,
)

# ------------------------------------------------------------------------------------------------------- the layout


def test_a_growing_history_stands_once_and_each_row_hangs_behind_its_last_title():
    """History 7, 8 behind the head 1; the tail is 9, the answers are 20, 21 and 30."""
    prompts, answers = [[1, 7, 9], [1, 7, 8, 9]], [[[20, 21, EOS]], [[30, EOS]]]
    tree = TokenTree.of(prompts, answers)
    assert tree.tokens == [1, 7, 8, 9, 30, 9, 20, 21]
    assert tree.positions == [0, 1, 2, 3, 4, 2, 3, 4]
    assert tree.runs == [(0, 5, -1), (5, 8, 1)]
    batch = trunk_batch([[0, 1]], prompts, answers, PAD)
    expected = [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 1, 1, 1],
    ]
    assert batch.attention_mask.tolist() == [[[[bool(seen) for seen in row] for row in expected]]]
    asked = zip(batch.rows.tolist(), batch.query_columns[batch.queries].tolist(), batch.targets.tolist(), strict=True)
    assert sorted(asked) == [(0, 5, 20), (0, 6, 21), (0, 7, EOS), (1, 3, 30), (1, 4, EOS)]


@given(rows_of, st.randoms())
def test_every_token_sees_its_own_past_and_nothing_else(rows, draw):
    """What a position sees, read in order, is its row's prompt and answer so far; its own position is how many."""
    prompts = [prompt for prompt, _ in rows]
    answers = [[[*answer, EOS] for answer in own] for _, own in rows]
    order = list(range(len(rows)))
    draw.shuffle(order)
    cut = draw.randint(1, len(order))
    trees = [tree for tree in (order[:cut], order[cut:]) if tree]
    batch = trunk_batch(trees, prompts, answers, PAD)
    mask = batch.attention_mask
    if mask.ndim == 2:
        mask = (torch.ones(mask.shape[1], mask.shape[1]).tril() * mask[:, None]).bool()[:, None]
    found: dict[tuple[int, int], set[tuple[int, ...]]] = {}
    for query, row, answer, target in torch.stack(
        [batch.queries, batch.rows, batch.answers, batch.targets], 1
    ).tolist():
        line, column = int(batch.query_rows[query]), int(batch.query_columns[query])
        seen = mask[line, 0, column].nonzero()[:, 0]
        assert row in trees[line] and batch.position_ids[line, seen].tolist() == list(range(len(seen)))
        found.setdefault((row, answer), set()).add((*batch.input_ids[line, seen].tolist(), target))
    for row, prompt in enumerate(prompts):
        for index, answer in enumerate(answers[row]):
            assert found[row, index] == {(*prompt, *answer[: n + 1]) for n in range(len(answer))}
    for tree, line in zip(trees, batch.input_ids, strict=True):
        own = [prompts[row] for row in tree], [answers[row] for row in tree]
        beginnings = {
            (*prompt, *answer[:-1])[:n]
            for prompt, answers_to in zip(*own, strict=True)
            for answer in answers_to
            for n in range(1, len(prompt) + len(answer))
        }
        assert tree_size(*own) == len(TokenTree.of(*own).tokens) == len(beginnings) <= len(line)


@given(tokens_of, tokens_of)
def test_the_common_beginning(one, other):
    expected = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert n_shared(one, other) == expected


@pytest.mark.parametrize(("prompts", "answers"), [([], []), ([[]], [[[5]]]), ([[1]], [[[], []]]), ([[1]], [[]])])
def test_nothing_to_compute_is_an_error(prompts, answers):
    with pytest.raises(ValueError, match="every prompt needs a token, and an answer of at least one token"):
        TokenTree.of(prompts, answers)


def test_rows_apart_need_no_mask_per_pair():
    """A tree of one row with one answer is a chain: an ordinary mask, padding on the left."""
    batch = trunk_batch([[1], [0]], [[1, 7], [1, 7, 8]], [[[5, EOS]], [[6, EOS]]], PAD)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert batch.input_ids.tolist() == [[1, 7, 8, 6], [PAD, 1, 7, 5]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 0, 1, 2]]


# ------------------------------------------------------------------------------------------------ trunk equals rows


def make_users(vocab_size: int, k: int, seed: int = 0, slots: int = 0) -> tuple[list[list[int]], Any, list[list[int]]]:
    """Rows of three users whose histories grow; the rows of each user, in a mixed order, are a trunk."""
    draw = random.Random(seed)

    def tokens(n: int) -> list[int]:
        return [draw.randrange(3, vocab_size) for _ in range(n)]

    head, tail = tokens(4), tokens(3)
    prompts, answers, trees = [], [], []
    for n_items in (1, 4, 6):
        history = list(head)
        trees.append([])
        for item in range(n_items):
            history += [*tokens(draw.randint(1, 4)), *([-1 - item % slots] if slots else [])]
            trees[-1].append(len(prompts))
            prompts.append([*history, *tail])
            answers.append([[*tokens(draw.randint(0, 4)), EOS] for _ in range(k)])
        draw.shuffle(trees[-1])
    return prompts, answers, trees


def row_weights(n_rows: int) -> Tensor:
    return torch.linspace(0.5, 2.0, n_rows)


def trunk_losses(model: nn.Module, prompts: Any, answers: Any, trees: Any, weights: Tensor) -> list[Tensor]:
    """Losses by kind of answer, each row with its weight, in one pass."""
    found = TrunkScorer(model, PAD).tree_log_probs(trees, prompts, answers)
    kinds = range(len(answers[0]))
    return [-(found.values * weights[found.rows])[found.answers == kind].sum() for kind in kinds]


def row_losses(model: nn.Module, prompts: Any, answers: Any, trees: Any, weights: Tensor) -> list[Tensor]:
    """The same, with an ordinary pass for each row and answer."""
    rows = [row for tree in trees for row in tree]
    return [
        sum(
            len(answers[row][kind]) * weights[row] * padded_loss(model, [prompts[row]], [answers[row][kind]])
            for row in rows
        )
        for kind in range(len(answers[0]))
    ]


def gradients_of(model: nn.Module, losses: Sequence[Tensor]) -> tuple[list[float], dict[str, Tensor]]:
    """Losses, and the gradients of their sum with unequal weights, per row."""
    model.zero_grad()
    (sum((place + 1) * loss for place, loss in enumerate(losses)) / 10).backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return [loss.item() / 10 for loss in losses], gradients


def check_equal(model: nn.Module, users: Any, weights: Tensor | None = None) -> None:
    weights = row_weights(len(users[0])) if weights is None else weights
    (ours, our_gradients), (theirs, their_gradients) = (
        gradients_of(model, compute(model, *users, weights)) for compute in (trunk_losses, row_losses)
    )
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert our_gradients.keys() == their_gradients.keys() and any(g.any() for g in their_gradients.values())
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def tuned(family: str, attention: str, checkpointing: bool = False) -> tuple[nn.Module, int]:
    """A model with LoRA away from zero, in training mode, without dropout."""
    model, tokenizer = make_family(family)
    model.set_attn_implementation(attention)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    whole = LoraAdapter(dropout=0.0).attach(model).train()
    with torch.no_grad():
        for name, weight in whole.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    for module in whole.modules():  # GPT-2 has dropout of its own
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return whole, len(tokenizer)


@pytest.mark.parametrize(("family", "attention"), WITH_ATTENTION)
def test_trunks_have_the_loss_and_all_gradients_of_rows_apart(family, attention):
    """Users of 1, 4 and 6 rows, so that the shorter trees are padded on the left; both targets; weighted rows."""
    model, tokenizer = make_family(family)
    model.set_attn_implementation(attention)
    assert TrunkScorer(model, PAD).takes_trunks(64)
    for k in (1, 2, 3):
        check_equal(model, make_users(len(tokenizer), k, seed=k))


@pytest.mark.parametrize(("family", "attention"), WITH_ATTENTION)
def test_gradient_checkpointing_and_lora_change_nothing(family, attention):
    found = []
    for checkpointing in (False, True):
        model, vocabulary = tuned(family, attention, checkpointing)
        users = make_users(vocabulary, 2)
        check_equal(model, users)
        found.append(gradients_of(model, trunk_losses(model, *users, row_weights(len(users[0])))))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_of_some_rows_only(family):
    """A coreset: the rows that were not chosen hang nothing, and the trunk ends at the last one that was."""
    model, tokenizer = make_family(family)
    prompts, answers, trees = make_users(len(tokenizer), 2)
    chosen = [[row for row in tree if row % 3 == 1] for tree in trees]
    chosen = [tree for tree in chosen if tree]
    check_equal(model, (prompts, answers, chosen))
    longest = max(len(prompts[row]) for tree in chosen for row in tree)
    batch = trunk_batch(chosen, prompts, answers, PAD)
    assert len(chosen) < len(trees) and sorted(set(batch.rows.tolist())) == sorted(sum(chosen, []))
    assert int(batch.position_ids.max()) < longest + 5


def test_order_padding_and_company_change_nothing():
    model, tokenizer = make_family("llama")
    prompts, answers, trees = make_users(len(tokenizer), 2)
    whole = torch.cat([tree_values(model, [tree], prompts, answers) for tree in trees])
    for layout in (trees[::-1], [sum(trees, [])], [sum(trees[::2], []), trees[1]], [tree[::-1] for tree in trees]):
        torch.testing.assert_close(tree_values(model, layout, prompts, answers), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def tree_values(model: nn.Module, trees: Any, prompts: Any, answers: Any) -> Tensor:
    """Log-probabilities by row, answer and step."""
    found = TrunkScorer(model, PAD).tree_log_probs(trees, prompts, answers)
    steps = torch.arange(len(found.values))  # predictions of an answer stand in their order
    order = sorted(steps.tolist(), key=lambda n: (int(found.rows[n]), int(found.answers[n]), n))
    return found.values[order]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_may_hold_more_tokens_than_the_llm_has_positions(family):
    """What counts is how deep it is."""
    model, tokenizer = make_family(family)
    users = make_users(len(tokenizer), 2)
    deepest = max(len(prompt) + 5 for prompt in users[0])
    model.config.max_position_embeddings = deepest
    if family == "gpt2":
        positions = model.transformer.wpe
        positions.weight.data, positions.num_embeddings = positions.weight.data[:deepest].clone(), deepest
    assert tree_size(users[0], users[1]) > deepest
    check_equal(model, (*users[:2], [sum(users[2], [])]))


@pytest.mark.parametrize("hybrid", [True, False])
def test_slots_of_items_hold_their_vectors_in_trunks(hybrid):
    """LLaRA's prompts: negative ids stand for items; gradients reach the projector."""
    model, tokenizer = make_family("llama")
    torch.manual_seed(0)
    slots = ItemSlots(model, ItemProjector(torch.randn(5, 8), 32), EOS)
    slots.hybrid = hybrid
    model.add_module("projector", slots.projector)
    users = make_users(len(tokenizer), 2, slots=4)
    if hybrid:
        check_equal(model, users)
    else:
        weights = row_weights(len(users[0]))
        ours, theirs = (compute(model, *users, weights) for compute in (trunk_losses, row_losses))
        torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), atol=1e-4, rtol=1e-5)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(FAMILIES))
def test_random_rows_have_the_log_probabilities_of_branches_apart(seed, family):
    """Prompts over three tokens, so that rows share anything, against the rows apart."""
    model, _ = MODELS[family]
    draw = random.Random(seed)
    prompts = [draw.choices([5, 6, 7], k=draw.randint(1, 6)) for _ in range(5)]
    answers = [[[*draw.choices([5, 6, 7], k=draw.randint(0, 4)), EOS] for _ in range(2)] for _ in prompts]
    with torch.no_grad():
        apart = BranchScorer(model, PAD).log_probs(prompts, answers)
    ours = tree_values(model, [[3, 0, 1], [2, 4]], prompts, answers)
    order = sorted(range(len(apart.values)), key=lambda n: (int(apart.rows[n]), int(apart.answers[n]), n))
    torch.testing.assert_close(ours, apart.values[order], atol=1e-4, rtol=1e-5)


MODELS = {family: make_family(family) for family in FAMILIES}


@pytest.mark.parametrize("refuses", [True, False])
def test_a_model_that_takes_no_trees_is_found_out_and_the_log_says_so_once(refuses, caplog):
    model, _ = make_family("llama")
    scorer = TrunkScorer(Stubborn(model, refuses), PAD)
    assert not scorer.takes_trunks(32) and not scorer.takes_trunks(32)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "Computing every row by itself" in lines[0]


def test_a_trunk_costs_its_tokens_and_rows_apart_all_of_theirs():
    prompts, answers, trees = make_users(300, 1)
    tree = trees[-1]
    together = tree_size([prompts[row] for row in tree], [answers[row] for row in tree])
    longest = max(len(prompts[row]) for row in tree)
    tails = sum(3 + len(answers[row][0]) - 1 for row in tree)
    assert together == longest - 3 + tails
    assert together < sum(len(prompts[row]) + len(answers[row][0]) - 1 for row in tree) / 2

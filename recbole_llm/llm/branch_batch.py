"""Several answers to one prompt, laid out for one forward pass.

A prompt is computed once and its answers are branches after it: a branch sees the prompt and itself, never another
answer, and its positions continue from the prompt's end. The common beginning of answers is computed once as well, so k
answers form a tree whose root is the last prompt token, and equal answers cost one. A token that nothing follows, such
as EOS, predicts nothing and is no input at all. An item slot, a negative id, is an input and no answer token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from recbole_llm.adapter.dropout import path_terms
from recbole_llm.llm.loss import positions_from_mask

Tokens = Sequence[int]
SixTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class AnswerTree:
    """The answers to one prompt as a tree of tokens.

    Attributes:
        tokens: the tokens that something follows, each once; a token comes after the one before it.
        parents: index in ``tokens`` of the token before each; -1 is the last prompt token.
        predictions: (answer, index of the token before, token) of every answer token but item slots, answer by answer.
    """

    tokens: list[int]
    parents: list[int]
    predictions: list[tuple[int, int, int]]

    @classmethod
    def of(cls, answers: Sequence[Tokens]) -> AnswerTree:
        """Grow the tree, one answer after the other."""
        tokens: list[int] = []
        parents: list[int] = []
        predictions: list[tuple[int, int, int]] = []
        indices: dict[tuple[int, int], int] = {}
        for index, answer in enumerate(answers):
            before = -1
            for step, token in enumerate(answer, start=1):
                if token >= 0:  # an item slot is an input, and no token of the vocabulary that could be predicted
                    predictions.append((index, before, token))
                if step == len(answer):
                    break
                if (before, token) not in indices:
                    indices[before, token] = len(tokens)
                    tokens.append(token)
                    parents.append(before)
                before = indices[before, token]
        return cls(tokens, parents, predictions)

    @property
    def is_chain(self) -> bool:
        """Whether there is a single branch, for which a causal mask will do."""
        return all(parent == position - 1 for position, parent in enumerate(self.parents))


@dataclass(frozen=True)
class BranchBatch:
    """Prompts with their answers, padded on the left; what one forward pass takes and what is asked of it.

    Attributes:
        input_ids: int64 [rows, tokens].
        attention_mask: int64 [rows, tokens]; or, where an answer branches off another, bool [rows, 1, tokens, tokens],
            True where the token of the third axis sees that of the fourth.
        position_ids: int64 [rows, tokens].
        query_rows: int64 [q], rows of the positions whose next token is asked for, each position once.
        query_columns: int64 [q].
        queries: int64 [n], which of the q positions predicts each answer token.
        targets: int64 [n], the answer tokens.
        rows: int64 [n], the row of each answer token.
        answers: int64 [n], which of its row's answers it belongs to.
        paths: int64 [rows, tokens], hashes of the tokens that each sees, for what is drawn by token; without those of
            the head.
        head: int64 [h], tokens before those of every row; the masks have them, the other columns do not.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    query_rows: Tensor
    query_columns: Tensor
    queries: Tensor
    targets: Tensor
    rows: Tensor
    answers: Tensor
    paths: Tensor
    head: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def to(self, device: str | torch.device) -> BranchBatch:
        """This batch on another device."""
        return BranchBatch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))

    def behind(self, head: Tokens) -> BranchBatch:
        """This batch, its rows continued from tokens that each of them begins with."""
        before = self.attention_mask.new_ones((*self.attention_mask.shape[:-1], len(head)))
        mask = torch.cat([before, self.attention_mask], dim=-1)
        return replace(self, attention_mask=mask, position_ids=self.position_ids + len(head), head=torch.tensor(head))


def branch_batch(
    prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]], pad_token_id: int, n_head: int = 0
) -> BranchBatch:
    """Lay out prompts and their answers for one forward pass.

    Args:
        prompts: token ids of each prompt.
        answers: the answers to each prompt, EOS at the end of each.
        pad_token_id: any token id, as padding is masked.
        n_head: tokens that all prompts begin with and that are the batch's head, fewer than any prompt has.

    Raises:
        ValueError: no prompt, an empty prompt, or a prompt without an answer token.
    """
    if n_head:
        rests = [prompt[n_head:] for prompt in prompts]
        return branch_batch(rests, answers, pad_token_id).behind(prompts[0][:n_head])
    trees = [AnswerTree.of(own) for own in answers]
    if not prompts or not all(prompts) or not all(tree.predictions for tree in trees):
        raise ValueError("every prompt needs a token, and an answer of at least one token")
    lengths = [len(prompt) + len(tree.tokens) for prompt, tree in zip(prompts, trees, strict=True)]
    width = max(lengths)
    input_ids = np.full((len(prompts), width), pad_token_id, dtype=np.int64)
    starts = [width - len(tree.tokens) for tree in trees]  # column of each row's first branch token
    for row, (prompt, tree) in enumerate(zip(prompts, trees, strict=True)):
        input_ids[row, width - lengths[row] :] = [*prompt, *tree.tokens]
    mask = (np.arange(width) >= width - np.array(lengths)[:, None]).astype(np.int64)
    if all(tree.is_chain for tree in trees):
        ordinary = positions_from_mask(torch.from_numpy(mask))
        paths = hash_paths(input_ids, ordinary.numpy(), mask)
        tensors = torch.from_numpy(input_ids), torch.from_numpy(mask), ordinary
        return BranchBatch(*tensors, *_queries(trees, starts), paths)
    seen = np.stack([_seen(own, start, tree) for own, start, tree in zip(mask, starts, trees, strict=True)])
    # A token sees as many others, itself included, as stand before it plus one: the count is its position.
    positions = np.where(mask, seen.sum(axis=2) - 1, 0)
    runs = [
        (row, start + place, start + place + 1, start + parent)
        for row, (start, tree) in enumerate(zip(starts, trees, strict=True))
        for place, parent in enumerate(tree.parents)
    ]
    paths = hash_paths(input_ids, positions, mask, runs)
    tensors = torch.from_numpy(input_ids), torch.from_numpy(seen[:, None]), torch.from_numpy(positions)
    return BranchBatch(*tensors, *_queries(trees, starts), paths)


def only(batch: BranchBatch, asked: Tensor) -> BranchBatch:
    """The batch with log-probabilities asked for at some answer tokens [n] alone."""
    needed, queries = batch.queries[asked].unique(return_inverse=True)
    return replace(
        batch,
        query_rows=batch.query_rows[needed],
        query_columns=batch.query_columns[needed],
        queries=queries,
        targets=batch.targets[asked],
        rows=batch.rows[asked],
        answers=batch.answers[asked],
    )


def hash_paths(
    input_ids: np.ndarray, positions: np.ndarray, mask: np.ndarray, runs: Sequence[tuple[int, int, int, int]] = ()
) -> Tensor:
    """Hashes of the tokens that each token sees, itself included: the same wherever they stand.

    Args:
        input_ids: int64 [rows, tokens].
        positions: int64 [rows, tokens].
        mask: int64 [rows, tokens], 1 for a token, 0 for padding.
        runs: (row, start, end, parent) of chains that do not follow the token before them, parents first; a negative
            parent is the start of the sequence.

    Returns:
        int64 [rows, tokens].
    """
    terms = path_terms(input_ids, positions) * mask.astype(np.uint64)
    paths = terms.cumsum(axis=1)
    for row, start, end, parent in runs:
        before = paths[row, parent] if parent >= 0 else np.uint64(0)
        paths[row, start:end] = before + terms[row, start:end].cumsum()
    return torch.from_numpy(paths.view(np.int64))


def _seen(mask: np.ndarray, start: int, tree: AnswerTree) -> np.ndarray:
    """Which tokens each token of a row sees. Returns: bool [tokens, tokens]; padding sees itself, never nothing."""
    width = len(mask)
    seen: np.ndarray = np.tri(width, dtype=bool) & (mask == 1)
    np.fill_diagonal(seen, True)
    for position, parent in enumerate(tree.parents):
        column = start + position
        seen[column] = seen[start + parent]
        seen[column, column] = True
    return seen


def _queries(trees: Sequence[AnswerTree], starts: Sequence[int]) -> SixTensors:
    """The index tensors of a batch."""
    entries = [
        (row, starts[row] + before, token, answer)
        for row, tree in enumerate(trees)
        for answer, before, token in tree.predictions
    ]
    rows, columns, targets, answers = (torch.tensor(values) for values in zip(*entries, strict=True))
    indices, queries = torch.unique(torch.stack([rows, columns]), dim=1, return_inverse=True)
    return indices[0], indices[1], queries, targets, rows, answers

"""Rows with a common beginning in one forward pass: a shared trunk, and a branch for each row.

The rows of a user repeat one history that grows by an item from row to row. As a tree of tokens it stands once: behind
each item hang what follows the history in the prompt, and the answers. A branch sees its way to the root and nothing
else, and its positions count that way, so every row is computed as it would be alone, whatever its prompt looks like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llm.adapter.dropout import NOBODY
from recbole_llm.llm.branch_batch import BranchBatch, Tokens, hash_paths, only
from recbole_llm.llm.branches import N_FILLERS, AnswerLogProbs, BranchScorer
from recbole_llm.llm.capabilities import FastPath, find, masks_of_pairs
from recbole_llm.llm.sample import MIN_TOKENS, Sample


@dataclass(frozen=True)
class TokenTree:
    """Prompts with their answers, in which what sequences begin with in common stands once.

    Attributes:
        tokens: the tokens that something follows; a token comes after the one before it.
        positions: positions of each token in its sequences.
        runs: (start, end, parent) of the chains that the tree consists of: tokens ``start`` to ``end`` - 1 follow one
            another, and the first of them follows the token ``parent``; -1 is the start of the sequence.
        predictions: (row, answer, token before, token) of every answer token but item slots, by the slots of tokens.
    """

    tokens: list[int]
    positions: list[int]
    runs: list[tuple[int, int, int]]
    predictions: list[tuple[int, int, int, int]]

    @classmethod
    def of(cls, prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]]) -> TokenTree:
        """Grow the tree of some rows.

        Args:
            prompts: token ids of each row's prompt.
            answers: the answers to each prompt.

        Raises:
            ValueError: no row, an empty prompt, or a row without an answer token.
        """
        sequences = _sequences(prompts, answers)
        tokens: list[int] = []
        positions: list[int] = []
        runs: list[tuple[int, int, int]] = []
        predictions: list[tuple[int, int, int, int]] = []
        before: list[int] = []
        slots: list[int] = []
        for own, row, index in sequences:
            shared = n_shared(before, own)
            start, end = len(tokens), len(tokens) + len(own) - shared
            if end > start:
                runs.append((start, end, slots[shared - 1] if shared else -1))
                tokens += own[shared:]
                positions += range(shared, len(own))
            before, slots = own, [*slots[:shared], *range(start, end)]
            answer, last = answers[row][index], len(prompts[row]) - 1
            steps = ((slots[last + step], token) for step, token in enumerate(answer) if token >= 0)  # no item slots
            predictions += [(row, index, *step) for step in steps]
        return cls(tokens, positions, runs, predictions)

    @property
    def is_chain(self) -> bool:
        """Whether there is a single branch, for which a causal mask will do."""
        return all(parent == start - 1 for start, _, parent in self.runs)

    def seen(self) -> np.ndarray:
        """Which tokens each token sees: those on its way to the root, and itself. Returns: bool [tokens, tokens]."""
        seen = np.zeros((len(self.tokens), len(self.tokens)), dtype=bool)
        for start, end, parent in self.runs:
            if parent >= 0:
                seen[start:end] = seen[parent]
            seen[start:end, start:end] = np.tri(end - start, dtype=bool)
        return seen


def tree_size(prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]]) -> int:
    """Tokens of the tree of some rows (:meth:`TokenTree.of`), without growing it."""
    size, before = 0, list[int]()
    for own, _, _ in _sequences(prompts, answers):
        size += len(own) - n_shared(before, own)
        before = own
    return size


def n_shared(one: list[int], other: list[int]) -> int:
    """Tokens that two sequences begin with in common."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # one[:low] is common, one[:high] is not
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _sequences(prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]]) -> list[tuple[list[int], int, int]]:
    """What goes into the LLM: prompt and answer without its last token, row and answer of each.

    In the order of tokens: there the longest beginning that a sequence shares with any before it is the one that it
    shares with the one before.
    """
    found = [
        ([*prompt, *answer[:-1]], row, index)
        for row, (prompt, own) in enumerate(zip(prompts, answers, strict=True))
        for index, answer in enumerate(own)
    ]
    if not found or not all(prompts) or not all(any(own) for own in answers):
        raise ValueError("every prompt needs a token, and an answer of at least one token")
    return sorted(found)


def trunk_batch(
    trees: Sequence[Sequence[int]], prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]], pad_token_id: int
) -> BranchBatch:
    """Lay out rows for one forward pass, some of them as one tree.

    Args:
        trees: the rows of each tree; every row once.
        prompts: token ids of each row's prompt.
        answers: the answers to each prompt, EOS at the end of each.
        pad_token_id: any token id, as padding is masked.

    Returns:
        A batch of one line per tree, padded on the left; its ``rows`` are those of ``prompts``.
    """
    grown = [TokenTree.of([prompts[row] for row in tree], [answers[row] for row in tree]) for tree in trees]
    width = max(len(tree.tokens) for tree in grown)
    shape = (len(grown), width)
    input_ids, positions = np.full(shape, pad_token_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    entries: list[tuple[int, int, int, int, int]] = []
    for line, (tree, rows) in enumerate(zip(grown, trees, strict=True)):
        start = width - len(tree.tokens)
        input_ids[line, start:], positions[line, start:], mask[line, start:] = tree.tokens, tree.positions, 1
        entries += [(line, start + before, token, rows[row], index) for row, index, before, token in tree.predictions]
    lines, columns, targets, own_rows, indices = torch.tensor(entries).unbind(dim=1)
    slots, queries = torch.unique(torch.stack([lines, columns]), dim=1, return_inverse=True)
    asked = (slots[0], slots[1], queries, targets, own_rows, indices)
    tensors = torch.from_numpy(input_ids), torch.from_numpy(positions)
    runs = [
        (line, width - len(tree.tokens) + start, width - len(tree.tokens) + end, _column(width, tree, parent))
        for line, tree in enumerate(grown)
        for start, end, parent in tree.runs
    ]
    paths = hash_paths(input_ids, positions, mask, runs)
    if all(tree.is_chain for tree in grown):
        return BranchBatch(tensors[0], torch.from_numpy(mask), tensors[1], *asked, paths)
    seen = np.zeros((*shape, width), dtype=bool)
    seen[:, np.arange(width), np.arange(width)] = True  # padding sees itself, never nothing
    for line, tree in enumerate(grown):
        start = width - len(tree.tokens)
        seen[line, start:, start:] = tree.seen()
    return BranchBatch(tensors[0], torch.from_numpy(seen[:, None]), tensors[1], *asked, paths)


def _column(width: int, tree: TokenTree, slot: int) -> int:
    """The index of a tree's token in its line; -1 for the start of the sequence."""
    return width - len(tree.tokens) + slot if slot >= 0 else -1


class TrunkScorer(BranchScorer):
    """Log-probabilities of answers to prompts that share trunks; a row apart is a tree of one.

    Whether the model computes trees as it computes separate rows is found out by comparing both
    (:mod:`~recbole_llm.llm.capabilities`); what to do where it does not is the caller's choice.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> scorer = TrunkScorer(LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes)), pad_token_id=0)
        >>> prompts, answers = [[1, 7, 9], [1, 7, 8, 9]], [[[5, 2]], [[6, 2]]]
        >>> together, apart = (scorer.tree_log_probs(trees, prompts, answers) for trees in ([[0, 1]], [[0], [1]]))
        >>> torch.allclose(together.values.sort().values, apart.values.sort().values, atol=1e-5)
        True
    """

    def tree_log_probs(
        self, trees: Sequence[Sequence[int]], prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]]
    ) -> AnswerLogProbs:
        """Score every answer token given its prompt and the answer before it, in one forward pass.

        Args:
            trees: the rows of each tree; every row once.
            prompts: token ids of each row's prompt.
            answers: the answers to each prompt.
        """
        batch = trunk_batch(trees, prompts, answers, self.pad_token_id)
        values = self.run(batch, [NOBODY] * len(trees))
        return AnswerLogProbs(values, batch.rows.to(self.device), batch.answers.to(self.device))

    def takes_trunks(self, n_tokens: int = MIN_TOKENS) -> bool:
        """Whether the model computes trees as it computes separate rows; the log says if it does not.

        Args:
            n_tokens: number of tokens of the longest prompt with its longest answer: no token sees more.
        """
        finding = find(self.model, FastPath.TRUNKS, n_tokens, trunk_scores, masks_of_pairs)
        return self._tells(finding, "Computing every row by itself, not together with its user's others")


def trunk_scores(model: nn.Module, sample: Sample) -> Tensor:
    """Log-probabilities of a sample's answers at the end of trunks. Returns: float32 [prompts, answers].

    The trunks have branches at half their length as well, and others before the answers, as many as show that they are
    counted.
    """
    fillers = sample.filler(N_FILLERS)
    halves = [prompt[: len(prompt) // 2] for prompt in sample.prompts]
    prompts, n_prompts, n_answers = [*sample.prompts, *halves], len(sample.prompts), len(sample.answers)
    answers = [[*fillers, *sample.answers]] * n_prompts + [fillers] * n_prompts
    trees = [[row, row + n_prompts] for row in range(n_prompts)]
    batch = trunk_batch(trees, prompts, answers, sample.pad_token_id)
    batch = only(batch, (batch.rows < n_prompts) & (batch.answers >= N_FILLERS))
    values = BranchScorer(model, sample.pad_token_id).run(batch)
    slots = (batch.rows * n_answers + batch.answers - N_FILLERS).to(values.device)
    return values.new_zeros(n_prompts * n_answers).index_add(0, slots, values).view(n_prompts, n_answers)

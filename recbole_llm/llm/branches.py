"""Several answers to one prompt in one forward pass.

A prompt is computed once and its answers are branches behind it: a branch sees the prompt and itself, never another
answer, and its positions go on from the prompt's end. What answers begin with in common is computed once as well, so k
answers form a tree whose root is the last prompt token, and equal answers cost one. A token that nothing follows, such
as EOS, predicts nothing and is no input at all.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llm.adapter.dropout import TokenDraws, path_terms
from recbole_llm.llm.capabilities import KERNEL, FastPath, Finding, find, masks_of_pairs, recall
from recbole_llm.llm.loss import logits_at, positions_from_mask, token_log_probs
from recbole_llm.llm.parts import text_config
from recbole_llm.llm.sample import MIN_TOKENS, Sample

Tokens = Sequence[int]
SixTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
N_FILLERS = 8  # further answers where both ways of computing are compared
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerTree:
    """The answers to one prompt as a tree of tokens.

    Attributes:
        tokens: the tokens that something follows, each once; a token comes after the one before it.
        parents: index in ``tokens`` of the token before each; -1 is the last prompt token.
        predictions: (answer, index of the token before, token) of every answer token, answer by answer.
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
        paths: int64 [rows, tokens], hashes of the tokens that each sees, for what is drawn by token.
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

    def to(self, device: str | torch.device) -> BranchBatch:
        """The same batch on another device."""
        return BranchBatch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


def branch_batch(prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]], pad_token_id: int) -> BranchBatch:
    """Lay out prompts and their answers for one forward pass.

    Args:
        prompts: token ids of each prompt.
        answers: the answers to each prompt, EOS at the end of each.
        pad_token_id: any token id: padding is told apart by the mask.

    Raises:
        ValueError: no prompt, an empty prompt, or a prompt without an answer token.
    """
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


@dataclass(frozen=True)
class AnswerLogProbs:
    """Log-probability of every answer token.

    Attributes:
        values: float32 [n].
        rows: int64 [n], its prompt.
        answers: int64 [n], which of that prompt's answers.
    """

    values: Tensor
    rows: Tensor
    answers: Tensor

    def losses(self, n_answers: int) -> Tensor:
        """Negative log-likelihood summed by the kind of answer. Returns: float32 [n_answers]."""
        return self.values.new_zeros(n_answers).index_add(0, self.answers, -self.values)


class BranchScorer:
    """Log-probabilities of the tokens of k answers to each prompt.

    One forward pass where the model takes a mask per pair of tokens; otherwise one per answer. Which of the two is
    found out by comparing both (:mod:`~recbole_llm.llm.capabilities`); a model with local attention layers narrower
    than the sequences gets one pass per answer, because a ready mask would take the place of the window.

    Args:
        model: a causal LM, bare or wrapped.
        pad_token_id: any token id.
        draws: is told which tokens a pass has, where dropout is drawn by them.
    """

    def __init__(self, model: nn.Module, pad_token_id: int, draws: TokenDraws | None = None) -> None:
        self.model, self.pad_token_id, self.draws = model, pad_token_id, draws
        self._said: set[str] = set()

    def log_probs(self, prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]]) -> AnswerLogProbs:
        """Score every answer token given its prompt and the answer before it.

        Args:
            prompts: token ids of each prompt.
            answers: the answers to each prompt, as many for each; all but one of a prompt may be empty.
        """
        batch = branch_batch(prompts, answers, self.pad_token_id)
        if batch.attention_mask.ndim == 2 or self.takes_branches(batch.input_ids.shape[1]):
            return AnswerLogProbs(self.run(batch), batch.rows.to(self.device), batch.answers.to(self.device))
        values, rows, indices = [], [], []
        for index in range(len(answers[0])):
            having = [row for row, own in enumerate(answers) if own[index]]
            if not having:
                continue
            own_prompts = [prompts[row] for row in having]
            alone = branch_batch(own_prompts, [[answers[row][index]] for row in having], self.pad_token_id)
            values.append(self.run(alone, having))
            rows.append(torch.tensor(having)[alone.rows].to(self.device))
            indices.append(torch.full_like(rows[-1], index))
        return AnswerLogProbs(torch.cat(values), torch.cat(rows), torch.cat(indices))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def knows(self, n_tokens: int) -> bool:
        """Whether :meth:`takes_branches` need not be found out any more for sequences of up to `n_tokens`."""
        return recall(self.model, FastPath.BRANCHES, n_tokens) is not None

    def takes_branches(self, n_tokens: int = MIN_TOKENS) -> bool:
        """Whether the model computes branches as it computes separate sequences; says once if it does not.

        Args:
            n_tokens: of the longest prompt with all its answers; windows may count them all.
        """
        finding = find(self.model, FastPath.BRANCHES, n_tokens, branch_scores, masks_of_pairs)
        return self._tells(finding, "Using one forward pass per answer")

    def _tells(self, finding: Finding, instead: str) -> bool:
        """Whether a path works; the log says once what is done instead, and why."""
        if not finding.works and instead not in self._said:
            log.warning("%s: %s", instead, _obstacle(finding))
            self._said.add(instead)
        return finding.works

    def run(self, batch: BranchBatch, lines: Sequence[int] | None = None) -> Tensor:
        """Log-probabilities of a batch's answer tokens by :meth:`logits`, in one pass. Returns: float32 [n]."""
        batch = batch.to(self.device)
        return token_log_probs(self.logits(batch, lines), batch.queries, batch.targets)

    def logits(self, batch: BranchBatch, lines: Sequence[int] | None = None) -> Tensor:
        """Next-token logits at the positions that a batch on the model's device asks for.

        Args:
            batch: the batch.
            lines: whose line each is, for what is drawn by row (:meth:`TokenDraws.use_tokens`).

        Returns:
            [q, vocabulary].
        """
        if self.draws is not None:
            self.draws.use_tokens(batch.paths, lines)
        return logits_at(
            self.model,
            batch.query_rows,
            batch.query_columns,
            batch.input_ids,
            self._ready(batch.attention_mask),
            batch.position_ids,
        )

    def _ready(self, mask: Tensor) -> Tensor:
        """The mask as the attention in use takes it: the eager one adds it to its scores."""
        if mask.ndim == 2 or text_config(self.model)._attn_implementation != "eager":
            return mask
        dtype = next(self.model.parameters()).dtype
        dtype = dtype if dtype.is_floating_point else torch.float32
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _obstacle(finding: Finding) -> str:
    """What keeps a model from computing branches, in words."""
    if finding.kind == "layers":
        if finding.reason.startswith(KERNEL):
            return f"{finding.reason}; set {KERNEL}: sdpa for one"
        return "the model has layers that do not attend to the whole context"
    verb = "does not take" if finding.kind == "error" else "does not keep to"
    return f"its attention {verb} a mask per pair of tokens ({finding.reason})"


def branch_scores(model: nn.Module, sample: Sample) -> Tensor:
    """Log-probabilities of a sample's answers as branches behind its prompts. Returns: float32 [prompts, answers].

    Other branches stand before them, as many as show that they are counted.
    """
    n_prompts, n_answers = len(sample.prompts), len(sample.answers)
    answers = [*sample.answers, *sample.filler(N_FILLERS)]
    batch = branch_batch(sample.prompts, [answers[::-1]] * n_prompts, sample.pad_token_id)
    batch = only(batch, batch.answers >= N_FILLERS)
    values = BranchScorer(model, sample.pad_token_id).run(batch)
    indices = (batch.rows * n_answers + len(answers) - 1 - batch.answers).to(values.device)
    return values.new_zeros(n_prompts * n_answers).index_add(0, indices, values).view(n_prompts, n_answers)


def only(batch: BranchBatch, asked: Tensor) -> BranchBatch:
    """The same batch of which only some answer tokens [n] are asked for."""
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

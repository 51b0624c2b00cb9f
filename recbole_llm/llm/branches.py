"""Several answers to one prompt in one forward pass.

A prompt is computed once and its answers are branches behind it: a branch sees the prompt and itself, never another
answer, and its positions go on from the prompt's end. What answers begin with in common is computed once as well, so k
answers form a tree whose root is the last prompt token, and equal answers cost one. A token that nothing follows, such
as EOS, predicts nothing and is no input at all.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llm.llm.loss import logits_at, positions_from_mask, token_log_probs
from recbole_llm.modes import evaluating

Tokens = Sequence[int]
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # of log-probabilities; half precision: 0.2
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerTree:
    """The answers to one prompt as a tree of tokens.

    Attributes:
        tokens: the tokens that something follows, each once; a token comes after the one before it.
        parents: place in ``tokens`` of the token before each; -1 is the last prompt token.
        predictions: (answer, place of the token before, token) of every answer token, answer by answer.
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
        places: dict[tuple[int, int], int] = {}
        for index, answer in enumerate(answers):
            before = -1
            for step, token in enumerate(answer, start=1):
                predictions.append((index, before, token))
                if step == len(answer):
                    break
                if (before, token) not in places:
                    places[before, token] = len(tokens)
                    tokens.append(token)
                    parents.append(before)
                before = places[before, token]
        return cls(tokens, parents, predictions)

    @property
    def is_chain(self) -> bool:
        """Whether there is a single branch, for which a causal mask will do."""
        return all(parent == place - 1 for place, parent in enumerate(self.parents))


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
        positions = positions_from_mask(torch.from_numpy(mask))
        return BranchBatch(torch.from_numpy(input_ids), torch.from_numpy(mask), positions, *_queries(trees, starts))
    seen = np.stack([_seen(own, start, tree) for own, start, tree in zip(mask, starts, trees, strict=True)])
    # A token sees as many others, itself included, as stand before it plus one: the count is its position.
    positions = torch.from_numpy(np.where(mask, seen.sum(axis=2) - 1, 0))
    return BranchBatch(
        torch.from_numpy(input_ids), torch.from_numpy(seen[:, None]), positions, *_queries(trees, starts)
    )


def _seen(mask: np.ndarray, start: int, tree: AnswerTree) -> np.ndarray:
    """Which tokens each token of a row sees. Returns: bool [tokens, tokens]; padding sees itself, never nothing."""
    width = len(mask)
    seen = np.tri(width, dtype=bool) & (mask == 1)
    np.fill_diagonal(seen, True)
    for place, parent in enumerate(tree.parents):
        column = start + place
        seen[column] = seen[start + parent]
        seen[column, column] = True
    return seen


def _queries(trees: Sequence[AnswerTree], starts: Sequence[int]) -> list[Tensor]:
    """The six index tensors of a batch."""
    entries = [
        (row, starts[row] + before, token, answer)
        for row, tree in enumerate(trees)
        for answer, before, token in tree.predictions
    ]
    rows, columns, targets, answers = (torch.tensor(values) for values in zip(*entries, strict=True))
    places, queries = torch.unique(torch.stack([rows, columns]), dim=1, return_inverse=True)
    return [places[0], places[1], queries, targets, rows, answers]


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


class BranchScorer:
    """Log-probabilities of the tokens of k answers to each prompt.

    One forward pass where the model takes a mask per pair of tokens; otherwise one per answer. Which of the two is
    found out once, by comparing both on a few tokens; a model with local attention layers gets one pass per answer,
    because a ready mask would take the place of the window.

    Args:
        model: a causal LM, bare or wrapped.
        pad_token_id: any token id.
    """

    def __init__(self, model: nn.Module, pad_token_id: int) -> None:
        self.model, self.pad_token_id = model, pad_token_id
        self._one_pass: bool | None = None

    def log_probs(self, prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]]) -> AnswerLogProbs:
        """Score every answer token given its prompt and the answer before it.

        Args:
            prompts: token ids of each prompt.
            answers: the answers to each prompt, as many for each.
        """
        batch = branch_batch(prompts, answers, self.pad_token_id)
        if batch.attention_mask.ndim == 2 or self.takes_branches():
            return AnswerLogProbs(self._run(batch), batch.rows.to(self.device), batch.answers.to(self.device))
        values, rows, places = [], [], []
        for index in range(len(answers[0])):
            alone = branch_batch(prompts, [[own[index]] for own in answers], self.pad_token_id)
            values.append(self._run(alone))
            rows.append(alone.rows.to(self.device))
            places.append(torch.full_like(rows[-1], index))
        return AnswerLogProbs(torch.cat(values), torch.cat(rows), torch.cat(places))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def is_probed(self) -> bool:
        """Whether :meth:`takes_branches` knows its answer already."""
        return self._one_pass is not None

    def takes_branches(self) -> bool:
        """Whether the model computes branches as it computes separate sequences; says once if it does not."""
        if self._one_pass is None:
            reason = self._find_obstacle()
            self._one_pass = reason is None
            if reason:
                log.warning("Several answers to a prompt take one forward pass each: %s.", reason)
        return self._one_pass

    def _run(self, batch: BranchBatch) -> Tensor:
        """Log-probabilities [n] in one forward pass."""
        batch = batch.to(self.device)
        logits = logits_at(
            self.model,
            batch.query_rows,
            batch.query_columns,
            batch.input_ids,
            self._ready(batch.attention_mask),
            batch.position_ids,
        )
        return token_log_probs(logits, batch.queries, batch.targets)

    def _ready(self, mask: Tensor) -> Tensor:
        """The mask as the attention in use takes it: the eager one adds it to its scores."""
        if mask.ndim == 2 or self._config._attn_implementation != "eager":
            return mask
        dtype = next(self.model.parameters()).dtype
        dtype = dtype if dtype.is_floating_point else torch.float32
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)

    @property
    def _config(self) -> object:
        inner = getattr(self.model, "module", self.model)
        return inner.config.get_text_config()

    def _find_obstacle(self) -> str | None:
        """What keeps the model from computing branches, in words."""
        config = self._config
        layers = getattr(config, "layer_types", None) or []
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        if set(layers) - {"full_attention"} or (window and not layers):
            return "the model has layers that do not attend to the whole context"
        prompt, answers = [1, 2, 3, 4], [[5, 6, 7, 8], [9, 10, 11]]
        try:
            # Under autocast the tolerance of the weights' number type would be too small.
            exact = torch.autocast(self.device.type, enabled=False)
            with evaluating(self.model), torch.no_grad(), exact:
                together = self._run(branch_batch([prompt], [answers], self.pad_token_id))
                apart = torch.cat([self._run(branch_batch([prompt], [[own]], self.pad_token_id)) for own in answers])
        except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError) as error:
            return f"its attention does not take a mask per pair of tokens ({str(error).splitlines()[0]})"
        tolerance = PROBE_TOLERANCE.get(next(self.model.parameters()).dtype, 0.2)
        if not torch.allclose(together, apart, rtol=0, atol=tolerance):
            return "its attention does not keep to a mask per pair of tokens"
        return None

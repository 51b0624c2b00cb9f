"""Log-probabilities of answers as branches after their prompts, where the LLM computes branches correctly."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from recbole_llm.adapter.dropout import TokenDraws
from recbole_llm.adapter.gates import gates_of
from recbole_llm.llm.beam_passes import LastLogits, compute_prefix, find_prefix
from recbole_llm.llm.branch_batch import BranchBatch, Tokens, branch_batch, only
from recbole_llm.llm.capabilities import (
    KERNEL,
    FastPath,
    Finding,
    find,
    masks_of_pairs,
    recall,
    slot_counting_layers,
)
from recbole_llm.llm.loss import logits_at, token_log_probs
from recbole_llm.llm.parts import checkpoints_gradients, text_config
from recbole_llm.llm.rows import common_prefix, row_sizes
from recbole_llm.llm.sample import MIN_TOKENS, Sample
from recbole_llm.llm.shared_head import head_size

N_FILLERS = 8  # further answers where both ways of computing are compared
log = logging.getLogger(__name__)


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
        draws: gets the tokens of a pass, for dropout that is drawn by them.
        shares_heads: whether what prompts begin with is the same to the model whoever's they are, so that it may be
            computed once.
    """

    def __init__(
        self, model: nn.Module, pad_token_id: int, draws: TokenDraws | None = None, shares_heads: bool = False
    ) -> None:
        self.model, self.pad_token_id, self.draws, self.shares_heads = model, pad_token_id, draws, shares_heads
        self._said: set[str] = set()

    def log_probs(
        self, prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]], lines_are_rows: bool = True
    ) -> AnswerLogProbs:
        """Score every answer token given its prompt and the answer before it.

        Args:
            prompts: token ids of each prompt.
            answers: the answers to each prompt, as many for each; all but one of a prompt may be empty.
            lines_are_rows: whether each line of the forward pass is to be a row with all its tokens, which gradient
                norms of rows need; else what all prompts begin with may be computed once.
        """
        n_head = 0 if lines_are_rows else self.head_size(prompts, answers)
        batch = branch_batch(prompts, answers, self.pad_token_id, n_head)
        if batch.attention_mask.ndim == 2 or self.takes_branches(batch.attention_mask.shape[-1]):
            return AnswerLogProbs(self.run(batch), batch.rows.to(self.device), batch.answers.to(self.device))
        values, rows, indices = [], [], []
        for index in range(len(answers[0])):
            having = [row for row, own in enumerate(answers) if own[index]]
            if not having:
                continue
            own_prompts = [prompts[row] for row in having]
            alone = branch_batch(own_prompts, [[answers[row][index]] for row in having], self.pad_token_id)
            with gates_of(self.model, having, len(prompts)):
                values.append(self.run(alone, having))
            rows.append(torch.tensor(having)[alone.rows].to(self.device))
            indices.append(torch.full_like(rows[-1], index))
        return AnswerLogProbs(torch.cat(values), torch.cat(rows), torch.cat(indices))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def head_size(self, prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]]) -> int:
        """Tokens that all prompts begin with, where the model may compute them once for all; 0 where it may not.

        Dropout that is drawn by row differs there from row to row, and gradient checkpointing keeps no cache.

        Args:
            prompts: token ids of each prompt.
            answers: the answers to each prompt.
        """
        size = head_size(prompts, answers) if self.shares_heads else 0
        drawn = self.draws is not None and self.draws.is_drawing
        if not size or drawn or (self.model.training and checkpoints_gradients(self.model)):
            return 0
        n_tokens = max(row_sizes(prompts, answers))
        return size if find_heads(self.model, n_tokens, len(answers[0]) > 1).works else 0

    def knows(self, n_tokens: int) -> bool:
        """Whether :meth:`takes_branches` need not be found out any more for sequences of up to `n_tokens`."""
        return recall(self.model, FastPath.BRANCHES, n_tokens) is not None

    def takes_branches(self, n_tokens: int = MIN_TOKENS) -> bool:
        """Whether the model computes branches as it computes separate sequences; says once if it does not.

        Args:
            n_tokens: number of tokens of the longest prompt with all its answers; windows may count them all.
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
            lines: line that each row belongs to, for what is drawn by row (:meth:`TokenDraws.use_tokens`).

        Returns:
            [q, vocabulary].
        """
        if self.draws is not None:
            self.draws.use_tokens(batch.paths, lines)
        before = None
        if len(batch.head):
            cache = compute_prefix(LastLogits(self.model), batch.head)
            cache.batch_repeat_interleave(len(batch.input_ids))
            before = {"past_key_values": cache}
        return logits_at(
            self.model,
            batch.query_rows,
            batch.query_columns,
            batch.input_ids,
            self._ready(batch.attention_mask),
            batch.position_ids,
            before,
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


def find_heads(model: nn.Module, n_tokens: int, branches: bool) -> Finding:
    """Whether rows may continue from a beginning that is computed once.

    Args:
        model: a causal LM, bare or wrapped.
        n_tokens: number of tokens of the longest prompt with all its answers.
        branches: whether the rows have several answers.
    """
    return find(model, FastPath.HEADS, n_tokens, head_scores, cut_heads) if branches else find_prefix(model, n_tokens)


def cut_heads(config: PretrainedConfig, n_tokens: int) -> str | None:
    """What stands against branches that continue from a cache, in words."""
    return slot_counting_layers(config, n_tokens) or masks_of_pairs(config, n_tokens)


def branch_scores(model: nn.Module, sample: Sample) -> Tensor:
    """Log-probabilities of a sample's answers as branches behind its prompts. Returns: float32 [prompts, answers].

    Other branches stand before them, as many as show that they are counted.
    """
    return _branch_scores(model, sample, 0)


def head_scores(model: nn.Module, sample: Sample) -> Tensor:
    """As :func:`branch_scores`, with the prompts' common beginning computed once."""
    return _branch_scores(model, sample, len(common_prefix(sample.prompts)))


def _branch_scores(model: nn.Module, sample: Sample, n_head: int) -> Tensor:
    n_prompts, n_answers = len(sample.prompts), len(sample.answers)
    answers = [*sample.answers, *sample.filler(N_FILLERS)]
    batch = branch_batch(sample.prompts, [answers[::-1]] * n_prompts, sample.pad_token_id, n_head)
    batch = only(batch, batch.answers >= N_FILLERS)
    values = BranchScorer(model, sample.pad_token_id).run(batch)
    indices = (batch.rows * n_answers + len(answers) - 1 - batch.answers).to(values.device)
    return values.new_zeros(n_prompts * n_answers).index_add(0, indices, values).view(n_prompts, n_answers)

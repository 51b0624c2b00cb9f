"""State of a beam search between steps: the beams of each row and their best extensions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_llm.llm.beam_passes import Passes

TIED_ROWS = 64  # at a time, for which numbers of all tokens are made
FINISHED_SHARE = 0.25  # of the rows that passes compute: then they are dropped, which copies the cache of the others


@dataclass
class Live:
    """The rows of a batch that are still searched, and their beams.

    Before the first selection a row has one beam, its prompt; afterwards `num_beams`, the best first. The passes may
    have more rows than are searched: finished ones, whose sequences go on unread until enough of them can be dropped.
    """

    rows: Tensor  # [rows] index among all prompts of the call
    tokens: Tensor  # [rows, beams, generated]
    scores: Tensor  # [rows, beams] sums of log-probabilities; -inf: no such beam
    finished_scores: Tensor  # [rows, num_beams] scores of the best hypotheses, the best first; -inf: none yet
    passes: Passes
    slots: Tensor  # [rows] which of the passes' rows each is
    slot_rows: Tensor  # [slots] index among all prompts of the call, of the passes' rows

    @classmethod
    def start(cls, rows: Tensor, num_beams: int, passes: Passes) -> Live:
        """The state before the first selection, of rows [rows]."""
        n_rows, device = len(rows), rows.device
        return cls(
            rows=rows,
            tokens=torch.empty(n_rows, 1, 0, dtype=torch.long, device=device),
            scores=torch.zeros(n_rows, 1, device=device),
            finished_scores=torch.full((n_rows, num_beams), -math.inf, device=device),
            passes=passes,
            slots=torch.arange(n_rows, device=device),
            slot_rows=rows,
        )

    def select(self, keep: Tensor, parents: Tensor, tokens: Tensor, scores: Tensor, finished_scores: Tensor) -> None:
        """Continues with the rows `keep` [kept], whose beams [kept, num_beams] descend from the beams `parents`."""
        n_slots, width = len(self.slot_rows), self.tokens.shape[1]
        of_kept = self.slots[keep][:, None] * width + parents
        self.rows, self.tokens, self.scores, self.finished_scores = self.rows[keep], tokens, scores, finished_scores
        unmoved = torch.arange(n_slots * width, device=keep.device)
        if parents.shape[1] != width or len(keep) <= (1 - FINISHED_SHARE) * n_slots:
            self.slots, self.slot_rows = torch.arange(len(keep), device=keep.device), self.rows
            source = of_kept.flatten()
        else:  # as many sequences as before: those of finished rows stay what they are
            self.slots = self.slots[keep]
            source = unmoved.view(n_slots, width).index_copy(0, self.slots, of_kept).flatten()
        if not torch.equal(source, unmoved):
            self.passes.select(source)

    def next_logits(self) -> Tensor:
        """Logits [sequences, vocabulary] after the last token of each beam."""
        n_slots, (n_rows, width, length) = len(self.slot_rows), self.tokens.shape
        of_sequences = self.slot_rows.repeat_interleave(width)
        if n_rows == n_slots:
            return self.passes.behind(self.tokens.flatten(0, 1), of_sequences)
        tokens = self.tokens.new_zeros(n_slots, width, length).index_copy(0, self.slots, self.tokens)
        logits = self.passes.behind(tokens.flatten(0, 1), of_sequences)
        return logits.view(n_slots, width, -1)[self.slots].flatten(0, 1)


@dataclass
class Extensions:
    """The 2 * num_beams best one-token extensions of each row's beams, the best first."""

    scores: Tensor  # [rows, candidates] sums of log-probabilities
    parents: Tensor  # [rows, candidates] beam that is extended
    tokens: Tensor  # [rows, candidates, generated]
    ended: Tensor  # [rows, candidates] bool: EOS, or the token limit


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Like ``values.topk(k)`` for [rows, n], but with equal values by lower index; at most n of them."""
    k = min(k, values.shape[1])
    top, index = values.topk(min(k + 1, values.shape[1]), dim=1)
    if top.shape[1] > k:
        # topk is free in which of several equal values it takes: that matters only if a tie runs across the cut
        tied = (top[:, k - 1] == top[:, k]) & top[:, k].isfinite()
        if tied.any():
            index[tied, :k] = _lowest_of_equals(values[tied], top[tied, :k], index[tied, :k])
    index, order = index[:, :k].sort(dim=1)
    top, order = top.gather(1, order).sort(dim=1, descending=True, stable=True)
    return top, index.gather(1, order)


def _lowest_of_equals(values: Tensor, top: Tensor, index: Tensor) -> Tensor:
    """The lower indices where equal values run across the cut; there is no need to order the others.

    Args:
        values: [rows, n].
        top: [rows, k], the largest values.
        index: int64 [rows, k], where some of them stand.

    Returns:
        int64 [rows, k], where they stand, of the least among them the lowest indices.
    """
    k, n = top.shape[1], values.shape[1]
    order = torch.arange(n, 0, -1, dtype=torch.int32, device=values.device)  # the lower the index, the larger
    parts = zip(values.split(TIED_ROWS), top[:, -1:].split(TIED_ROWS), strict=True)
    lowest = n - torch.cat([torch.where(own == cut, order, 0).topk(k, dim=1).values for own, cut in parts]).long()
    n_above = (top > top[:, -1:]).sum(dim=1, keepdim=True)
    behind = torch.arange(k, device=values.device) - n_above
    return torch.where(behind < 0, index, lowest.gather(1, behind.clamp(min=0)))

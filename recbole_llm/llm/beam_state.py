"""What a beam search holds between its steps: the beams of each row, and their best extensions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_llm.llm.beam_passes import Passes


@dataclass
class Live:
    """The rows of a batch that are still searched, and their beams.

    Before the first selection a row has one beam, its prompt; afterwards `num_beams`, the best first.
    """

    rows: Tensor  # [rows] index among all prompts of the call
    tokens: Tensor  # [rows, beams, generated]
    scores: Tensor  # [rows, beams] sums of log-probabilities; -inf: no such beam
    finished_scores: Tensor  # [rows, num_beams] scores of the best hypotheses, the best first; -inf: none yet
    passes: Passes

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
        )

    def select(self, keep: Tensor, parents: Tensor, tokens: Tensor, scores: Tensor, finished_scores: Tensor) -> None:
        """Continues with the rows `keep` [kept], whose beams [kept, num_beams] descend from the beams `parents`."""
        n_sequences, width = self.tokens.shape[0] * self.tokens.shape[1], self.tokens.shape[1]
        source = (keep[:, None] * width + parents).flatten()
        self.rows, self.tokens, self.scores, self.finished_scores = self.rows[keep], tokens, scores, finished_scores
        if len(source) != n_sequences or not torch.equal(source, torch.arange(n_sequences, device=source.device)):
            self.passes.select(source)

    def next_logits(self) -> Tensor:
        """Logits [sequences, vocabulary] behind the last token of each beam."""
        return self.passes.behind(self.tokens.flatten(0, 1), self.rows.repeat_interleave(self.tokens.shape[1]))


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
            exact = values[tied].sort(dim=1, descending=True, stable=True)
            top[tied], index[tied] = exact.values[:, : k + 1], exact.indices[:, : k + 1]
    index, order = index[:, :k].sort(dim=1)
    top, order = top.gather(1, order).sort(dim=1, descending=True, stable=True)
    return top, index.gather(1, order)

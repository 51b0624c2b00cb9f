"""State of a beam search between steps: the beams of each row and their best extensions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_llm.llm.beam_passes import BeamPasses

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
    passes: BeamPasses
    slots: Tensor  # [rows] which of the passes' rows each is
    slot_rows: Tensor  # [slots] index among all prompts of the call, of the passes' rows

    @classmethod
    def start(cls, rows: Tensor, num_beams: int, passes: BeamPasses) -> Live:
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

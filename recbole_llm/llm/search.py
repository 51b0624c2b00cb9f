"""Beam search of one batch of prompts: how beams are extended, finished and gone on with.

Score of a hypothesis: the sum of its log-probabilities divided by ``length ** length_penalty``, where length counts the
generated tokens with EOS. A row is finished once its best open beam, scored at the present length, cannot enter the
row's ``num_beams`` best hypotheses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LogitsProcessorList

from recbole_llm.llm.beam_passes import BeamPasses
from recbole_llm.llm.beam_state import Extensions, Live
from recbole_llm.llm.loss import LOGSUMEXP_ROWS
from recbole_llm.top_k import top_k


@dataclass
class Generation:
    """The best hypothesis for one prompt.

    Attributes:
        token_ids: Generated tokens, without prompt and without EOS.
        score: Sum of log-probabilities (EOS included) / number of generated tokens (EOS included) ** length penalty.
            ``-inf`` if a logits processor left no continuation at all; ``token_ids`` is empty then.
        finished: Whether EOS was generated; if not, the token limit was reached.
        beams: The best hypotheses, this one first, at most `num_beams`; empty unless asked for.
    """

    token_ids: list[int]
    score: float
    finished: bool
    beams: list[Generation] = field(default_factory=list)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Generation:
        """The generation that :func:`dataclasses.asdict` turned into plain data."""
        return cls(**{**values, "beams": [cls.from_dict(beam) for beam in values["beams"]]})


class TokenConstraint(Protocol):
    """Decides which tokens may follow, and what they score."""

    def candidates(self, generated: Tensor, logits: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and ids [sequences, k] of the allowed tokens, ids ascending; -inf where a sequence has fewer than k.

        Args:
            generated: int64 [sequences, generated], the tokens so far, without the prompt.
            logits: [sequences, vocabulary].
            prompts: int64 [sequences], index of the sequence's prompt in the call.
        """
        ...

    def facts(self) -> Mapping[str, Any]:
        """What it decides by, as plain data; asked for where answers are kept."""
        ...


@dataclass
class BeamSearch:
    """Settings of one call, and the steps of the search."""

    eos_token_id: int
    num_beams: int
    max_new_tokens: int
    length_penalty: float
    forbidden_token_ids: Sequence[int]
    logits_processor: LogitsProcessorList | None
    constraint: TokenConstraint | None
    return_beams: bool

    def facts(self) -> dict[str, Any]:
        """What the answers depend on besides model and prompts, as plain data; not with a logits processor."""
        numbers = (self.eos_token_id, self.num_beams, self.max_new_tokens, self.length_penalty, self.return_beams)
        return {
            "search": [*numbers, sorted(self.forbidden_token_ids)],
            "constraint": None if self.constraint is None else self.constraint.facts(),
        }

    def run(self, prompts: Mapping[int, Sequence[int]], passes: BeamPasses) -> dict[int, Generation]:
        """Searches one batch; prompts and answers by their index in the call."""
        rows = torch.tensor(list(prompts), device=passes.llm.device)
        logits = passes.behind_prompts(list(prompts.values()), rows)
        live = Live.start(rows, self.num_beams, passes)
        answers = {index: Generation([], -math.inf, False) for index in prompts}
        for length in range(1, self.max_new_tokens + 1):
            candidates = self.extend(live, logits, is_last=length == self.max_new_tokens)
            finished_scores = self.finish(live, candidates, length**self.length_penalty, answers)
            if length == self.max_new_tokens:
                break
            self.proceed(live, candidates, finished_scores, length**self.length_penalty)
            if len(live.rows) == 0:
                break
            logits = live.next_logits()
        return answers

    def extend(self, live: Live, logits: Tensor, is_last: bool) -> Extensions:
        """Selects the extensions: twice as many as beams, as each beam may offer one that ends in EOS."""
        n_rows, width, _ = live.tokens.shape
        n_candidates = 2 * self.num_beams
        log_probs, tokens = self.best_tokens(logits, live, n_candidates)
        per_beam = tokens.shape[1]
        scores = (live.scores[:, :, None] + log_probs.view(n_rows, width, per_beam)).flatten(1)
        if (missing := n_candidates - scores.shape[1]) > 0:  # a vocabulary this small, at the first token
            scores, tokens = F.pad(scores, (0, missing), value=-math.inf), F.pad(tokens, (0, missing))
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, :n_candidates], order[:, :n_candidates]
        parents = (order // per_beam).clamp(max=width - 1)
        last = tokens.view(n_rows, -1).gather(1, order)
        ended = torch.ones_like(last, dtype=torch.bool) if is_last else last == self.eos_token_id
        sequences = torch.cat((live.tokens.take_along_dim(parents[:, :, None], dim=1), last[:, :, None]), dim=2)
        return Extensions(scores, parents, sequences, ended)

    def best_tokens(self, logits: Tensor, live: Live, k: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities and ids [sequences, <= k] of the most probable allowed tokens."""
        generated = live.tokens.flatten(0, 1)
        if self.constraint is not None:
            prompts = live.rows.repeat_interleave(live.tokens.shape[1])
            values, tokens = self.constraint.candidates(generated, logits, prompts)
            if (missing := 2 - values.shape[1]) > 0:  # there are to be twice as many candidates as beams
                values, tokens = F.pad(values, (0, missing), value=-math.inf), F.pad(tokens, (0, missing))
            if values.shape[1] <= k:  # the beams' candidates are sorted together anyway
                return values, tokens
            values, index = top_k(values, k)
            return values, tokens.gather(1, index)
        # softmax keeps the order of a row's logits, so only the selected ones are normalised
        normaliser = torch.cat([part.logsumexp(dim=1, keepdim=True) for part in logits.split(LOGSUMEXP_ROWS)])
        if self.logits_processor is not None:
            logits = self.logits_processor(generated, logits - normaliser)
            normaliser = torch.zeros_like(normaliser)
        forbidden = torch.tensor(self.forbidden_token_ids, dtype=torch.long, device=logits.device)
        values, tokens = top_k(logits.index_fill_(1, forbidden, -math.inf), k)
        return values - normaliser, tokens

    def finish(self, live: Live, candidates: Extensions, divisor: float, answers: dict[int, Generation]) -> Tensor:
        """Writes each new best hypothesis into `answers`; returns the new scores of the best hypotheses.

        Only a candidate among the first `num_beams` can become a hypothesis; the rest are there to be continued.
        """
        scores = candidates.scores[:, : self.num_beams] / divisor
        scores = scores.masked_fill(~candidates.ended[:, : self.num_beams], -math.inf)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        better = (scores[:, 0] > live.finished_scores[:, 0]).nonzero().squeeze(1)
        sequences = candidates.tokens[better, order[better, 0]]
        columns = live.rows[better].tolist(), sequences.tolist(), scores[better, 0].tolist()
        for row, tokens, score in zip(*columns, strict=True):
            answers[row] = replace(self.hypothesis(tokens, score), beams=answers[row].beams)
        if self.return_beams:
            self.collect_beams(live, candidates, scores, order, answers)
        return torch.cat((live.finished_scores, scores), dim=1).topk(self.num_beams, dim=1).values

    def hypothesis(self, tokens: list[int], score: float) -> Generation:
        """A finished sequence, its EOS taken off."""
        has_eos = tokens[-1] == self.eos_token_id
        return Generation(tokens[:-1] if has_eos else tokens, score, has_eos)

    def collect_beams(
        self, live: Live, candidates: Extensions, scores: Tensor, order: Tensor, answers: dict[int, Generation]
    ) -> None:
        """Adds the new hypotheses to each row's best ones; among equal scores the earlier stays first."""
        indices, beams = scores.isfinite().nonzero(as_tuple=True)
        rows, sequences = live.rows[indices].tolist(), candidates.tokens[indices, order[indices, beams]].tolist()
        for row, tokens, score in zip(rows, sequences, scores[indices, beams].tolist(), strict=True):
            answers[row].beams.append(self.hypothesis(tokens, score))
        for row in set(rows):
            answers[row].beams.sort(key=lambda beam: -beam.score)
            del answers[row].beams[self.num_beams :]

    def proceed(self, live: Live, candidates: Extensions, finished_scores: Tensor, divisor: float) -> None:
        """Continues the best candidates that have not ended, in the rows where they can still change the result."""
        order = candidates.ended.long().argsort(dim=1, stable=True)[:, : self.num_beams]
        # A constraint may leave fewer open candidates than beams: what has ended fills up, but is not continued.
        scores = candidates.scores.masked_fill(candidates.ended, -math.inf).gather(1, order)
        is_open = scores[:, 0] / divisor > finished_scores[:, -1]
        keep = is_open.nonzero().squeeze(1)
        parents = candidates.parents.gather(1, order)[keep]
        tokens = candidates.tokens.take_along_dim(order[:, :, None], dim=1)[keep]
        live.select(keep, parents, tokens, scores[keep], finished_scores[keep])

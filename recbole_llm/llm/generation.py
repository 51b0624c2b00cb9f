"""Beam search that computes every prompt once.

The key-value cache is filled with one pass over the prompts; the first selection of beams then repeats it per beam, and
every later one reorders the answers in it. Rows that are finished leave it a quarter of them at a time: to drop one row
moves all the others. What all prompts of a call begin with is computed once and expanded. None of this changes the
result: it is the sequence that ``model.generate(num_beams=..., do_sample=False, early_stopping=False)`` returns first,
in fp32.

Score of a hypothesis: the sum of its log-probabilities divided by ``length ** length_penalty``, where length counts the
generated tokens with EOS. A row is finished once its best open beam, scored at the present length, cannot enter the
row's ``num_beams`` best hypotheses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LogitsProcessorList

from recbole_llm.distributed import process
from recbole_llm.errors import InputError, NonFiniteError
from recbole_llm.hashing import hash_tensors
from recbole_llm.kept import Keep, KeptRows, keep_nothing
from recbole_llm.llm.beam_passes import Passes, choose_passes
from recbole_llm.llm.beam_state import Extensions, Live, largest
from recbole_llm.llm.budget import TokenBudget, run_batches
from recbole_llm.llm.loss import LOGSUMEXP_ROWS
from recbole_llm.modes import evaluating
from recbole_llm.progress import Bar


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
        """Of what :func:`dataclasses.asdict` gave."""
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


def beam_search(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    eos_token_id: int,
    pad_token_id: int,
    num_beams: int = 4,
    max_new_tokens: int = 64,
    length_penalty: float = 1.0,
    forbidden_token_ids: Sequence[int] = (),
    logits_processor: LogitsProcessorList | None = None,
    constraint: TokenConstraint | None = None,
    max_batch_tokens: int | TokenBudget = 8192,
    share_prefix: bool = True,
    return_beams: bool = False,
    row_inputs: Mapping[str, Tensor] | None = None,
    progress: bool = False,
    keep: Keep = keep_nothing,
) -> list[Generation]:
    """Continues every prompt by beam search and returns the best continuation of each.

    Equal scores are ordered by lower beam, then lower token id. Batching changes no result in fp32; in half precision
    rounding can flip near-ties. The model is run in eval mode without gradients and keeps its previous mode. Several
    processes share the batches.

    Args:
        model: A decoder of Hugging Face, bare or wrapped by peft (of a DistributedDataParallel, its `module`).
        prompts: Token ids of each prompt, without padding, of any lengths.
        eos_token_id: Token that ends an answer.
        pad_token_id: Token that fills up shorter prompts; it is masked, so its value has no effect.
        num_beams: Beams per prompt; 1 is greedy search.
        max_new_tokens: Most tokens to generate, EOS included.
        length_penalty: Exponent of the length in the score.
        forbidden_token_ids: Tokens that are never generated. The other probabilities are not renormalised.
        logits_processor: Changes log-probabilities before selection, as in ``generate``, with two differences: it is
            given the tokens generated so far without the prompt, and must treat rows independently of their order.
        constraint: Scores the allowed tokens; takes the place of `forbidden_token_ids` and `logits_processor`. Cheaper
            than a processor, since nothing has to be written to, or selected from, the whole vocabulary.
        max_batch_tokens: Limit of beams x (prompt + new tokens) per batch; a single row may exceed it. Where memory
            runs out, batches are halved.
        share_prefix: Computes the longest common beginning of all prompts once. Turn it off where the hidden states
            depend on more than the tokens (an adapter conditioned on the user).
        return_beams: Whether each answer's `beams` are filled.
        row_inputs: Further inputs of the model's forward, tensors [prompts, ...]: each pass is given those of its rows.
            Nothing is shared between prompts then.
        progress: Shows a progress bar.
        keep: Where finished batches are kept, so that a killed run continues after them; it is asked by everything the
            answers depend on besides the model. Nothing is kept with a `logits_processor`, which has no fingerprint.

    Returns:
        One `Generation` per prompt, in the order of the prompts.

    Raises:
        InputError: `num_beams` or `max_new_tokens` below 1.
        ValueError: A prompt is empty.
        NonFiniteError: The model's logits are not a number.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)).eval()
        >>> (answer,) = beam_search(model, [[1, 5, 6]], eos_token_id=2, pad_token_id=0, num_beams=2, max_new_tokens=3)
        >>> len(answer.token_ids) <= 3, answer.score < 0
        (True, True)
    """
    _check_arguments(prompts, num_beams, max_new_tokens)
    search = _Search(
        eos_token_id,
        num_beams,
        max_new_tokens,
        length_penalty,
        forbidden_token_ids,
        logits_processor,
        constraint,
        return_beams,
    )

    def facts() -> dict[str, object]:
        numbers = (eos_token_id, num_beams, max_new_tokens, length_penalty, return_beams)
        return {
            "prompts": [list(prompt) for prompt in prompts],
            "search": [*numbers, sorted(forbidden_token_ids)],
            "constraint": None if constraint is None else constraint.facts(),
            "row_inputs": hash_tensors(row_inputs or {}),
        }

    costs = [num_beams * (len(prompt) + max_new_tokens) for prompt in prompts]
    answers: dict[int, Generation] = {}
    share = -(-len(prompts) // process().count)
    bar = Bar(total=share, desc="generate", unit="prompt", disable=not progress)
    with evaluating(model), torch.no_grad(), bar:
        start = choose_passes(model, prompts, pad_token_id, max_new_tokens, share_prefix, row_inputs)

        def answer(batch: Sequence[int]) -> dict[int, Generation]:
            return search.run({i: prompts[i] for i in batch}, start())

        kept = KeptRows() if logits_processor is not None else keep("answers", facts)

        def run(batch: list[int]) -> None:
            answers.update(kept.batch(batch, answer, asdict, Generation.from_dict))
            bar.update(len(batch))

        run_batches(costs, TokenBudget.of(max_batch_tokens), run, together=True)
    answers = process().gather_rows(answers)
    generations = [answers[i] for i in range(len(prompts))]
    if logits_processor is None:  # which may forbid every token
        _check_scores(generations)
    return generations


def _check_scores(generations: Sequence[Generation]) -> None:
    if broken := [index for index, one in enumerate(generations) if one.score == -math.inf]:
        raise NonFiniteError(
            f"no continuation has a finite score (prompt {broken[0]}, {len(broken)} of {len(generations)} prompts): "
            "the logits of the LLM are NaN; check its weights, or use llm_dtype float32 or bfloat16"
        )


@dataclass
class _Search:
    """Settings of one call, and the steps of the search."""

    eos_token_id: int
    num_beams: int
    max_new_tokens: int
    length_penalty: float
    forbidden_token_ids: Sequence[int]
    logits_processor: LogitsProcessorList | None
    constraint: TokenConstraint | None
    return_beams: bool

    def run(self, prompts: Mapping[int, Sequence[int]], passes: Passes) -> dict[int, Generation]:
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
            values, index = largest(values, k)
            return values, tokens.gather(1, index)
        # softmax keeps the order of a row's logits, so only the selected ones are normalised
        normaliser = torch.cat([part.logsumexp(dim=1, keepdim=True) for part in logits.split(LOGSUMEXP_ROWS)])
        if self.logits_processor is not None:
            logits = self.logits_processor(generated, logits - normaliser)
            normaliser = torch.zeros_like(normaliser)
        forbidden = torch.tensor(self.forbidden_token_ids, dtype=torch.long, device=logits.device)
        values, tokens = largest(logits.index_fill_(1, forbidden, -math.inf), k)
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


def _check_arguments(prompts: Sequence[Sequence[int]], num_beams: int, max_new_tokens: int) -> None:
    for name, value in (("num_beams", num_beams), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise InputError(name, f"{value} is not allowed; give an integer >= 1")
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {index} is empty: a decoder needs at least one token to continue")

"""The sample that capabilities are tested on: two prompts and three answers of random tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llm.llm.loss import logits_at
from recbole_llm.llm.parts import device_of, input_embedding, text_config, unwrapped
from recbole_llm.llm.rows import pad_batch

EXACT_TOLERANCE = 1e-3
"""Of an answer's log-probability in float32 and float64."""
WRONG_SHARE = 0.25
"""In half precision, the share of a wrong mask's effect that rounding may have."""
MIN_TOKENS = 16
N_SHARED = 3  # tokens that the two prompts begin with
SHORT_PROMPT = 8
N_TOKENS = 7  # different ones in the answers


class VocabularyError(ValueError):
    """A vocabulary of so few tokens that nothing can be compared."""


@dataclass
class Sample:
    """Two prompts and three answers, with the log-probabilities that plain passes give them.

    The prompts begin alike and differ in length as much as they can; two answers begin alike, and each ends in EOS.

    Attributes:
        model: the LLM.
        prompts: token ids of the long and the short prompt.
        answers: token ids of each answer.
        row_inputs: further inputs of the model's forward, [1, ...] each, the same for all rows.
        pad_token_id: fills batches.
        number_type: number type of the logits, once there are any.
        largest_logit: the largest absolute one seen.
    """

    model: nn.Module
    prompts: list[list[int]]
    answers: list[list[int]]
    row_inputs: Mapping[str, Tensor] = field(default_factory=dict)
    pad_token_id: int = 0
    number_type: torch.dtype = field(default=torch.float32, init=False)
    largest_logit: float = field(default=0.0, init=False)

    @classmethod
    def draw(cls, model: nn.Module, n_tokens: int, row_inputs: Mapping[str, Tensor] | None = None) -> Sample:
        """Random tokens of the vocabulary, always the same ones.

        Args:
            model: the LLM.
            n_tokens: number of tokens of the long prompt and the longest answer together.
            row_inputs: further inputs of the model's forward, one row each.

        Raises:
            VocabularyError: the vocabulary is too small.
        """
        vocabulary = ordinary_tokens(model)
        if len(vocabulary) < N_TOKENS:
            raise VocabularyError(f"{len(vocabulary)} tokens are too few to draw {N_TOKENS} from")
        generator = np.random.default_rng(0)
        eos, *own = generator.permutation(vocabulary)[:N_TOKENS].tolist()
        own.sort(reverse=True)  # a trie has its titles by token: those of a filler go before the answers
        answers = [[own[0], *own[2:5], eos], [own[0], own[2], own[3], eos], [own[1], eos]]
        long = generator.choice(vocabulary, max(n_tokens, MIN_TOKENS) - len(answers[0])).tolist()
        short = [*long[:N_SHARED], *generator.choice(vocabulary, SHORT_PROMPT - N_SHARED).tolist()]
        return cls(model, [long, short], answers, dict(row_inputs or {}))

    @property
    def n_tokens(self) -> int:
        """Tokens of the longest sequence."""
        return max(map(len, self.prompts)) + max(map(len, self.answers))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return device_of(self.model)

    def filler(self, n_titles: int) -> list[list[int]]:
        """Titles that stand before the answers in a trie of both, as long as the longest answer."""
        vocabulary = sorted(set(ordinary_tokens(self.model)) - {self.answers[0][-1]})
        generator, first = np.random.default_rng(1), min(map(min, (answer[:1] for answer in self.answers)))
        before = [token for token in vocabulary if token < first]
        width = len(self.answers[0]) - 2
        rows = zip(generator.choice(before, n_titles), generator.choice(vocabulary, (n_titles, width)), strict=True)
        return [[int(token), *rest.tolist(), self.answers[0][-1]] for token, rest in rows]

    def inputs_of(self, n_rows: int) -> dict[str, Tensor]:
        """The row inputs for a batch of rows."""
        return {name: values.expand(n_rows, *values.shape[1:]) for name, values in self.row_inputs.items()}

    @cached_property
    def plain(self) -> Tensor:
        """Log-probability of each answer by a pass of its own. Returns: float64 [prompts, answers], on the CPU."""
        return self._scores(lambda answer: [])

    @cached_property
    def wrong(self) -> Tensor:
        """Log-probabilities as :attr:`plain`, each answer behind another one: what an ignored mask would give."""
        return self._scores(lambda index: self.answers[index - 1][:-1])

    @cached_property
    def wrong_effect(self) -> float:
        """Root mean square of what a wrong mask changes; over all answers, as a single one may change by chance."""
        return self._effect(self.wrong)

    @cached_property
    def rows(self) -> Tensor:
        """Log-probability of the first answer, the prompts in one batch. Returns: float64 [prompts, 1], on the CPU."""
        return row_scores(self.model, self).cpu()

    @property
    def eps(self) -> float:
        """Relative rounding of weights and logits; that of bfloat16 where weights are quantised."""
        quantised = getattr(self.model, "is_quantized", False)
        weights = torch.bfloat16 if quantised else next(self.model.parameters()).dtype
        return max(torch.finfo(self.number_type).eps, torch.finfo(weights).eps)

    @property
    def is_exact(self) -> bool:
        """Whether rounding stays below what a comparison needs."""
        return self.eps < 1e-4

    def deviation(self, found: Tensor) -> float:
        """Largest difference of log-probabilities [prompts, the first answers] from those of plain passes."""
        difference = (found.double().cpu() - self.plain[:, : found.shape[1]]).abs()
        return math.inf if difference.isnan().any() else float(difference.max())

    def accepts(self, found: Tensor) -> bool:
        """Whether log-probabilities [prompts, the first answers] are those of plain passes except for rounding.

        In half precision they may differ, on average, by what rounding of the logits makes, or by three times the
        effect of padding if that is more, and by no more than a quarter of the effect of a wrong mask.
        """
        if self.deviation(found) <= EXACT_TOLERANCE:
            return True
        if self.is_exact or not found.isfinite().all():
            return False
        rounding = max(self.eps * self.largest_logit, 3 * self.deviation(self.rows))
        return self._effect(found) <= min(rounding, WRONG_SHARE * self.wrong_effect)

    def accepts_rows(self, found: Tensor) -> bool:
        """As :meth:`accepts`, for rows padded into one batch: the effect of padding is not known yet."""
        if self.is_exact or not found.isfinite().all():
            return self.deviation(found) <= EXACT_TOLERANCE
        rounding = 5 * self.eps * self.largest_logit
        return self._effect(found) <= min(rounding, WRONG_SHARE * self.wrong_effect)

    def _effect(self, found: Tensor) -> float:
        """Root mean square of the differences from plain passes."""
        return float((found.double().cpu() - self.plain[:, : found.shape[1]]).square().mean().sqrt())

    def _scores(self, between: Callable[[int], list[int]]) -> Tensor:
        """Plain log-probabilities of the answers, with the tokens `between` put before each."""
        rows = [
            [self._score([*prompt, *between(index)], answer) for index, answer in enumerate(self.answers)]
            for prompt in self.prompts
        ]
        return torch.tensor(rows, dtype=torch.float64)

    def _score(self, prompt: list[int], answer: list[int]) -> float:
        logits = self._logits([*prompt, *answer], len(answer) + 1)[:-1]
        tokens = torch.tensor(answer, device=logits.device)[:, None]
        return float(logits.double().log_softmax(dim=-1).gather(1, tokens).sum())

    def _logits(self, tokens: list[int], n_last: int) -> Tensor:
        """Logits [n_last, vocabulary] after the last tokens of a row."""
        ids = torch.tensor([tokens], device=self.device)
        mask, inputs = torch.ones_like(ids), self.inputs_of(1)
        output = self.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=n_last, **inputs)
        logits: Tensor = output.logits[0, -n_last:]
        self.number_type, self.largest_logit = logits.dtype, max(self.largest_logit, float(logits.abs().max()))
        return logits


def row_scores(model: nn.Module, sample: Sample) -> Tensor:
    """Log-probabilities of a sample's first answer, padded into one batch. Returns: float64 [prompts, 1]."""
    answer = sample.answers[0]
    sequences = [[*prompt, *answer[:-1]] for prompt in sample.prompts]
    ids, mask = pad_batch(sequences, sample.pad_token_id, sample.device, left=True)
    n_rows, n_tokens = len(ids), len(answer)
    rows = torch.arange(n_rows, device=ids.device).repeat_interleave(n_tokens)
    columns = torch.arange(ids.shape[1] - n_tokens, ids.shape[1], device=ids.device).repeat(n_rows)
    logits = logits_at(model, rows, columns, ids, mask, inputs=sample.inputs_of(n_rows))
    tokens = torch.tensor(answer, device=ids.device).repeat(n_rows)[:, None]
    return logits.double().log_softmax(dim=-1).gather(1, tokens).view(n_rows, n_tokens).sum(dim=1, keepdim=True)


def ordinary_tokens(model: nn.Module) -> list[int]:
    """Token ids of the vocabulary without those that the config gives a meaning, such as EOS or an image's token."""
    config = text_config(model)
    size = min(int(config.vocab_size), input_embedding(model).num_embeddings)
    settings = {**unwrapped(model).config.to_dict(), **config.to_dict()}
    special: set[int] = set()
    for name, value in settings.items():
        if name.endswith(("token_id", "token_index", "token_ids")):
            special.update(number for number in (value if isinstance(value, list) else [value]) if number is not None)
    return [token for token in range(size) if token not in special]

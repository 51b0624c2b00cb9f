"""Log-probabilities of one answer per prompt, computing only the necessary part of the last layer.

Of the last layer's work on a prompt, the answer sees its keys and values alone. The prompt without its last token
therefore goes first, up to these; the last prompt token and the answer follow. In a model of few layers this is a large
part of a forward pass, and of the backward pass after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from recbole_llm.llm.branch_batch import Tokens
from recbole_llm.llm.branches import AnswerLogProbs, BranchScorer
from recbole_llm.llm.capabilities import FastPath, recall, slot_counting_layers
from recbole_llm.llm.loss import logits_at, positions_from_mask, token_log_probs
from recbole_llm.llm.parts import device_of, text_config
from recbole_llm.llm.rows import pad_batch
from recbole_llm.llm.sample import Sample


class PrefillScorer:
    """The log-probabilities of :class:`BranchScorer` for a single answer, at less cost, with the same gradients.

    Models that do not continue from a cache as in one pass, and rows whose prompt is a single token, are given to that
    class.

    Args:
        model: a causal LM, bare or wrapped, in eval mode when it is asked.
        pad_token_id: any token id.
    """

    def __init__(self, model: nn.Module, pad_token_id: int) -> None:
        self.model, self.pad_token_id = model, pad_token_id
        self._whole = BranchScorer(model, pad_token_id)
        self._config = text_config(model)

    def log_probs(self, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> AnswerLogProbs:
        """Score every answer token given its prompt and the answer before it.

        Args:
            prompts: token ids of each prompt.
            answers: token ids of the one answer to each, EOS at the end.

        Raises:
            ValueError: no prompt, an empty one, or an answer without tokens.
        """
        if not prompts or not all(prompts) or not all(answers):
            raise ValueError("every prompt needs a token, and an answer of at least one token")
        n_tokens = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
        known = recall(self.model, FastPath.PREFILL, n_tokens)
        works = not slot_counting_layers(self._config, n_tokens) if known is None else known.works
        if min(map(len, prompts)) < 2 or not works:
            return self._whole.log_probs(prompts, [[answer] for answer in answers])
        return self.run(prompts, answers)

    def run(self, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> AnswerLogProbs:
        """See :meth:`log_probs`, with prompts of at least two tokens: always the prompts first."""
        first, first_mask = pad_batch([prompt[:-1] for prompt in prompts], self.pad_token_id, self.device, left=True)
        ends = [[prompt[-1], *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
        then, then_mask = pad_batch(ends, self.pad_token_id, self.device, left=False)
        cache = self._prefilled(first, first_mask)
        mask = torch.cat([first_mask, then_mask], dim=1)
        targets = torch.tensor([token for answer in answers for token in answer], device=self.device)
        asked = targets >= 0  # an item slot is an input, and no token of the vocabulary
        rows, columns = (index[asked] for index in then_mask.nonzero(as_tuple=True))
        positions = positions_from_mask(mask)[:, first.shape[1] :]
        logits = logits_at(self.model, rows, columns, then, mask, positions, inputs={"past_key_values": cache})
        values = token_log_probs(logits, torch.arange(len(rows), device=self.device), targets[asked])
        return AnswerLogProbs(values, rows, torch.zeros_like(rows))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return device_of(self.model)

    def _prefilled(self, input_ids: Tensor, mask: Tensor) -> DynamicCache:
        """Keys and values of all layers for tokens [b, t]."""
        cache = _Prefill(self._config.num_hidden_layers)
        try:
            self.model(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=positions_from_mask(mask),
                past_key_values=cache,
                use_cache=True,
            )
        except _Complete:
            pass
        return cache.close()


def prefill_scores(model: nn.Module, sample: Sample) -> Tensor:
    """Log-probabilities of a sample's first answer, the prompts first. Returns: float32 [prompts, 1]."""
    n_prompts = len(sample.prompts)
    found = PrefillScorer(model, sample.pad_token_id).run(sample.prompts, [sample.answers[0]] * n_prompts)
    return found.values.new_zeros(n_prompts).index_add(0, found.rows, found.values)[:, None]


class _Complete(Exception):
    """All keys and values are computed; the rest of the pass is not needed."""


class _Prefill(DynamicCache):  # type: ignore[misc]  # transformers declares no types
    """A cache that ends the forward pass once the last layer has written to it, until it is closed."""

    def __init__(self, n_layers: int) -> None:
        super().__init__()
        self._last: int | None = n_layers - 1

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object) -> Any:
        found = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == self._last:
            raise _Complete
        return found

    def close(self) -> DynamicCache:
        """Make this an ordinary cache."""
        self._last = None
        return self

"""Forward passes of a beam search: from a cache, or in full at every step for LLMs that need it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache

from recbole_llm.llm.beam_cache import make_room
from recbole_llm.llm.capabilities import FastPath, Finding, find, slot_counting_layers
from recbole_llm.llm.loss import positions_from_mask
from recbole_llm.llm.parts import device_of, text_config
from recbole_llm.llm.rows import common_prefix, pad_batch, shared_size
from recbole_llm.llm.sample import Sample

Tokens = Sequence[int]


@dataclass(frozen=True)
class LastLogits:
    """One forward pass, of which the logits after the last tokens are wanted.

    Attributes:
        model: a causal LM, bare or wrapped.
        row_inputs: further inputs of its forward, tensors [prompts of the call, ...].
    """

    model: nn.Module
    row_inputs: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return device_of(self.model)

    def new_cache(self) -> DynamicCache:
        """An empty cache with the layers that the model has."""
        return DynamicCache(config=text_config(self.model))

    def __call__(
        self, ids: Tensor, mask: Tensor, positions: Tensor, rows: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Logits float32 [sequences, vocabulary] at the last position; the tokens go into the cache, if there is one.

        Args:
            ids: int64 [sequences, new].
            mask: int64 [sequences, cached + new].
            positions: int64 [sequences, new].
            rows: int64 [sequences], which prompts of the call the sequences continue; None: no row inputs.
            cache: cache of what stands before the new tokens.
        """
        inputs = {} if rows is None else {name: values[rows] for name, values in self.row_inputs.items()}
        if cache is not None:
            inputs["past_key_values"] = cache
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=cache is not None,
            logits_to_keep=1,
            **inputs,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits


class BeamPasses(ABC):
    """The forward passes for one batch of prompts and their beams.

    Args:
        llm: the forward pass.
        pad_token_id: fills up shorter prompts.
        max_new_tokens: most tokens to generate.
    """

    def __init__(self, llm: LastLogits, pad_token_id: int, max_new_tokens: int) -> None:
        self.llm, self.pad_token_id, self.max_new_tokens = llm, pad_token_id, max_new_tokens

    @abstractmethod
    def behind_prompts(self, prompts: Sequence[Tokens], rows: Tensor) -> Tensor:
        """Logits [prompts, vocabulary] of the first new token; `rows` [prompts] are their indices in the call."""

    @abstractmethod
    def select(self, source: Tensor) -> None:
        """Continue with the sequences `source` [selected] of those there are."""

    @abstractmethod
    def behind(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Logits [sequences, vocabulary] behind the generated tokens [sequences, generated]."""


class CachedPasses(BeamPasses):
    """Each prompt is computed once; a step computes one token per beam.

    Args:
        llm: see :class:`BeamPasses`, as for the next two.
        pad_token_id: fills up shorter prompts.
        max_new_tokens: most tokens to generate.
        prefix: cache of what all prompts begin with, if it was computed.
    """

    def __init__(self, llm: LastLogits, pad_token_id: int, max_new_tokens: int, prefix: Cache | None = None) -> None:
        super().__init__(llm, pad_token_id, max_new_tokens)
        self._prefix = prefix
        self._is_first_step = True

    def behind_prompts(self, prompts: Sequence[Tokens], rows: Tensor) -> Tensor:
        """See :class:`BeamPasses`; fills the cache with each prompt once."""
        self._cache, n_shared = self.llm.new_cache(), 0
        if self._prefix is not None:
            self._cache, n_shared = copy.deepcopy(self._prefix), self._prefix.get_seq_length()
            self._cache.batch_repeat_interleave(len(prompts))
        own = [prompt[n_shared:] for prompt in prompts]
        ids, mask = pad_batch(own, self.pad_token_id, self.llm.device, left=True)
        self._mask = F.pad(mask, (n_shared, self.max_new_tokens), value=1)  # [sequences, prompt + new tokens]
        self._positions = positions_from_mask(self._mask)
        end = n_shared + ids.shape[1]
        return self.llm(ids, self._mask[:, :end], self._positions[:, n_shared:end], rows, self._cache)

    def select(self, source: Tensor) -> None:
        """See :class:`BeamPasses`."""
        self._mask, self._positions = self._mask[source], self._positions[source]
        self._cache.reorder_cache(source)

    def behind(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """See :class:`BeamPasses`; adds the last token to the cache."""
        if self._is_first_step:  # the cache has one copy of its prompt per beam now
            make_room(self._cache, self.max_new_tokens - 1)
            self._is_first_step = False
        past = self._cache.get_seq_length()
        mask, positions = self._mask[:, : past + 1], self._positions[:, past : past + 1]
        return self.llm(tokens[:, -1:], mask, positions, rows, self._cache)


class FullPasses(BeamPasses):
    """Prompt and answer are computed whole at every step: for states that cannot be selected from."""

    def behind_prompts(self, prompts: Sequence[Tokens], rows: Tensor) -> Tensor:
        """See :class:`BeamPasses`."""
        self._ids, self._mask = pad_batch(prompts, self.pad_token_id, self.llm.device, left=True)
        return self.llm(self._ids, self._mask, positions_from_mask(self._mask), rows)

    def select(self, source: Tensor) -> None:
        """See :class:`BeamPasses`."""
        self._ids, self._mask = self._ids[source], self._mask[source]

    def behind(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """See :class:`BeamPasses`."""
        mask = F.pad(self._mask, (0, tokens.shape[1]), value=1)
        return self.llm(torch.cat((self._ids, tokens), dim=1), mask, positions_from_mask(mask), rows)


def choose_passes(
    model: nn.Module,
    prompts: Sequence[Tokens],
    pad_token_id: int,
    max_new_tokens: int,
    share_prefix: bool,
    row_inputs: Mapping[str, Tensor] | None,
) -> Callable[[], BeamPasses]:
    """The cheapest passes that the LLM computes as it computes separate sequences; one call makes those of a batch.

    Args:
        model: a causal LM, bare or wrapped.
        prompts: token ids of all prompts of the call.
        pad_token_id: fills up shorter prompts.
        max_new_tokens: most tokens to generate.
        share_prefix: whether what all prompts begin with may be computed once.
        row_inputs: further inputs of the model's forward, [prompts, ...]; nothing is shared then.
    """
    llm = LastLogits(model, row_inputs or {})
    n_tokens = max(map(len, prompts), default=0) + max_new_tokens
    if max_new_tokens > 1 and not find_beams(model, n_tokens, row_inputs).works:
        return lambda: FullPasses(llm, pad_token_id, max_new_tokens)
    n_shared = shared_size(prompts)
    if share_prefix and not row_inputs and n_shared and find_prefix(model, n_tokens).works:
        prefix = compute_prefix(llm, prompts[0][:n_shared])
        return lambda: CachedPasses(llm, pad_token_id, max_new_tokens, prefix)
    return lambda: CachedPasses(llm, pad_token_id, max_new_tokens)


def compute_prefix(llm: LastLogits, tokens: Tokens | Tensor) -> Cache:
    """Cache of tokens that all prompts of a call begin with; with its gradient where that is wanted."""
    cache = llm.new_cache()
    ids = torch.as_tensor(tokens, device=llm.device)[None]
    llm(ids, torch.ones_like(ids), torch.arange(len(tokens), device=llm.device)[None], cache=cache)
    return cache


def find_beams(model: nn.Module, n_tokens: int, row_inputs: Mapping[str, Tensor] | None = None) -> Finding:
    """Whether beams can continue from a cache that is repeated and reordered."""
    return find(model, FastPath.BEAMS, n_tokens, beam_scores, row_inputs=row_inputs)


def find_prefix(model: nn.Module, n_tokens: int) -> Finding:
    """Whether padding may stand between a beginning that is computed once and the rest of a prompt."""
    return find(model, FastPath.PREFIX, n_tokens, prefix_scores, slot_counting_layers)


def beam_scores(model: nn.Module, sample: Sample) -> Tensor:
    """Log-probabilities of a sample's answers as beams from a cache. Returns: float64 [prompts, answers]."""
    llm = LastLogits(model, sample.inputs_of(len(sample.prompts)))
    return _forced(CachedPasses(llm, sample.pad_token_id, max(map(len, sample.answers))), sample)


def prefix_scores(model: nn.Module, sample: Sample) -> Tensor:
    """As :func:`beam_scores`, with the prompts' common beginning computed once. Returns: float64 [prompts, answers]."""
    llm = LastLogits(model)
    prefix = compute_prefix(llm, common_prefix(sample.prompts))
    return _forced(CachedPasses(llm, sample.pad_token_id, max(map(len, sample.answers)), prefix), sample)


def _forced(passes: BeamPasses, sample: Sample) -> Tensor:
    """A search in which each prompt's beams are the sample's answers, and change places at every step."""
    device, n_prompts, n_answers = passes.llm.device, len(sample.prompts), len(sample.answers)
    tokens, given = pad_batch(sample.answers, sample.pad_token_id, device, left=False)
    rows = torch.arange(n_prompts, device=device)
    logits = passes.behind_prompts(sample.prompts, rows)
    scores = logits.log_softmax(dim=-1)[:, tokens[:, 0]].double()
    rows = rows.repeat_interleave(n_answers)  # of each beam, as are the next two
    beams = torch.arange(n_answers, device=device).repeat(n_prompts)  # the answer that it is
    turned = rows * n_answers + beams.roll(1)  # the beam that takes its place
    passes.select(rows)
    for step in range(1, tokens.shape[1]):
        logits = passes.behind(tokens[beams, :step], rows)
        gained = logits.log_softmax(dim=-1).gather(1, tokens[beams, step, None])[:, 0]
        scores[rows, beams] += gained.double() * given[beams, step]
        passes.select(turned)
        beams = beams[turned]
    return scores

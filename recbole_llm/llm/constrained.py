"""Decoding restricted to titles of the catalogue, as in D3 (arXiv 2406.14900).

Score of a title ``y = y_1 ... y_n`` (EOS included) for a prompt ``x``, with ``S(y) = sum_t log p(y_t | x, y_<t)``:

* ``S(y) / n ** length_penalty``. D3 takes ``length_penalty = 0``: a *ghost token*, nearly certain once the catalogue is
  known, adds nothing to ``S`` and 1 to ``n``, so that dividing lifts the titles that have many of them.
* ``renormalize``: ``p`` among the allowed tokens only. Ghost tokens then cost exactly nothing, and the probabilities of
  all titles sum to 1. By default ``p`` is that of the whole vocabulary.
* With the *text-free assistant* every step counts ``a log p(t | x, v) + (1 - a) L(t | v)``, where
  ``L(t | v) = log(q(v t) / q(v))`` and ``q(v)`` is the probability, by another recommender, of the items whose titles
  begin with ``v``. Over a whole title the ``L`` add up to the log-probability of its items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from recbole_llm.hashing import hash_arrays, hash_tensors
from recbole_llm.llm.assistant import Assistant, mixed
from recbole_llm.llm.generation import Generation, beam_search
from recbole_llm.llm.parts import input_embedding
from recbole_llm.llm.trie import PrefixIndex, TitleTrie

_ASSISTED = 64  # prompts whose assistant is computed at once, in float64
_CACHED = 2**18  # numbers of a log-softmax that stay in the cache of a CPU's core


def log_probs_at(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities, among the whole vocabulary, of some tokens of each row.

    On a CPU writing a log-softmax of rows x vocabulary to memory, to read a few numbers of it, costs more than
    computing it: it is computed for as many rows at once as the caches hold, always in the same buffer.

    Args:
        logits: [rows, vocabulary], without gradients.
        tokens: int64 [rows, k].

    Returns:
        float32 [rows, k].
    """
    n_rows = max(1, len(logits))
    if logits.device.type == "cpu":
        n_rows = max(1, torch.get_num_threads() * _CACHED // logits.shape[1])
    buffer = torch.empty(min(n_rows, len(logits)), logits.shape[1], device=logits.device)
    found = torch.empty(tokens.shape, device=logits.device)
    for own, wanted, values in zip(*(rows.split(n_rows) for rows in (logits, tokens, found)), strict=True):
        log_probs = torch.log_softmax(own, dim=1, dtype=torch.float32, out=buffer[: len(own)])
        torch.gather(log_probs, 1, wanted, out=values)
    return found


def search_titles(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    trie: TitleTrie,
    *,
    pad_token_id: int,
    num_beams: int = 20,
    length_penalty: float = 0.0,
    renormalize: bool = False,
    assistant: Assistant | None = None,
    **options: Any,
) -> list[list[Generation]]:
    """Beam search over titles: the best ones found for each prompt, the best first, no title twice.

    A beam search is no exact ranking: a short title that ends outside the best `num_beams` is lost
    (:func:`~recbole_llm.llm.likelihood.title_likelihoods` is exact).

    Args:
        model: A decoder of Hugging Face, bare or wrapped by peft.
        prompts: Token ids of each prompt.
        trie: The titles.
        pad_token_id: Any token id: padding is masked.
        num_beams: Beams per prompt.
        length_penalty: 0 as in D3; 1 is the mean over tokens.
        renormalize: Whether probabilities are taken among the allowed tokens.
        assistant: The text-free assistant's scores of each prompt, if any; prompts x trie nodes numbers are kept.
        **options: Further arguments of :func:`~recbole_llm.llm.generation.beam_search`.

    Returns:
        At most `num_beams` titles of each prompt; `trie.items` turns their `token_ids` into items.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)).eval()
        >>> trie = TitleTrie([None, [5, 6], [5, 7], [8]], eos_token_id=2)
        >>> (beams,) = search_titles(model, [[1, 9]], trie, pad_token_id=0, num_beams=3)
        >>> sorted(item for beam in beams for item in trie.items(beam.token_ids))
        [1, 2, 3]
    """
    if assistant is not None:
        assistant.check(len(prompts))
    device = input_embedding(model).weight.device
    found = beam_search(
        model,
        prompts,
        eos_token_id=trie.eos_token_id,
        pad_token_id=pad_token_id,
        num_beams=num_beams,
        max_new_tokens=trie.max_length,
        length_penalty=length_penalty,
        constraint=TitleConstraint(trie, renormalize=renormalize, assistant=assistant, device=device),
        return_beams=True,
        **options,
    )
    return [answer.beams for answer in found]


def beam_item_scores(trie: TitleTrie, beams: Sequence[Sequence[Generation]]) -> Tensor:
    """Item scores from :func:`search_titles`: those of the beams, -inf for every item that was not found.

    Ranks beyond the number of beams mean nothing.

    Returns:
        float64 [prompts, items]; items of one title have equal scores.

    Example:
        >>> from recbole_llm.llm.generation import Generation
        >>> trie = TitleTrie([None, [5, 6], [8]], eos_token_id=2)
        >>> beam_item_scores(trie, [[Generation([8], -1.5, finished=True)]]).tolist()
        [[-inf, -inf, -1.5]]
    """
    scores = torch.full((len(beams), trie.n_items), -math.inf, dtype=torch.float64)
    for row, found in enumerate(beams):
        for beam in found:
            scores[row, trie.items(beam.token_ids)] = beam.score
    return scores


class TitleConstraint(LogitsProcessor):  # type: ignore[misc]  # transformers declares no types
    """Lets a search generate titles of the catalogue only, whatever the tokenizer.

    It remembers nothing between steps: the generated tokens say where in the trie a row is. All rows are looked up at
    once, and a row's allowed tokens are one slice of an array.

    Used two ways. As a logits processor it sets the scores of all other tokens to -inf. :meth:`candidates` scores the
    allowed tokens alone, without a pass over rows x vocabulary, and is the only way with an assistant, for which the
    prompt of each row must be known.

    Args:
        trie: The titles.
        renormalize: Whether probabilities are taken among the allowed tokens.
        assistant: The text-free assistant's scores of each prompt, if any.
        n_prompt_tokens: As a processor, leading tokens of each row that are prompt: 0 in `beam_search`, the padded
            prompt's length in ``generate``.
        device: Where the model is.

    Example:
        >>> constraint = TitleConstraint(TitleTrie([None, [5], [3]], eos_token_id=2))
        >>> scores, tokens = constraint.candidates(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 16))
        >>> tokens.tolist()
        [[3, 5]]
    """

    def __init__(
        self,
        trie: TitleTrie,
        *,
        renormalize: bool = False,
        assistant: Assistant | None = None,
        n_prompt_tokens: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.trie, self.renormalize, self.n_prompt_tokens = trie, renormalize, n_prompt_tokens
        self._assistant = assistant
        self._index = PrefixIndex(trie, device)
        n_children = torch.from_numpy(trie.n_children)
        # Whoever has ended, or left the trie, may only end: one more slice, holding EOS.
        starts = torch.from_numpy(trie.child_starts[:-1]).masked_fill(n_children == 0, len(trie.children))
        self._starts = torch.cat((starts, torch.tensor([len(trie.children)]))).to(device)
        self._sizes = torch.cat((n_children.clamp(min=1), torch.tensor([1]))).to(device)
        children = torch.from_numpy(trie.children)
        self._children = torch.cat((children, torch.zeros(1, dtype=torch.long))).to(device)
        tokens = torch.from_numpy(trie.tokens)[children]
        self._tokens = torch.cat((tokens, torch.tensor([trie.eos_token_id]))).to(device)
        depths = torch.from_numpy(trie.depths)
        widest = torch.zeros(trie.max_length + 1, dtype=torch.long).scatter_reduce(0, depths, n_children, "amax")
        self._widest = widest.clamp(min=1).tolist()  # on the host, so that no step waits for the device
        self._lm_weight, self._ratios = 1.0, None
        if assistant is not None and assistant.lm_weight < 1:
            blocks = (Assistant(rows, assistant.lm_weight) for rows in assistant.item_scores.split(_ASSISTED))
            self._lm_weight = assistant.lm_weight
            self._ratios = torch.cat([block.node_log_ratios(trie).float().to(device) for block in blocks])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [rows, vocabulary] after the tokens `input_ids` [rows, prompt + generated]; -inf if not allowed."""
        if self._ratios is not None:
            raise ValueError("an assistant needs to know the prompt of each row: use `candidates`")
        entries, repeated = self._allowed(input_ids[:, self.n_prompt_tokens :])
        tokens = self._tokens.take(entries)
        values = scores.gather(1, tokens)
        if self.renormalize:
            values = values - values.masked_fill(repeated, -math.inf).logsumexp(dim=1, keepdim=True)
        # Behind a row's last allowed token that token is repeated, with the same value.
        return torch.full_like(scores, -math.inf).scatter_(1, tokens, values)

    def facts(self) -> dict[str, Any]:
        """See :class:`~recbole_llm.llm.generation.TokenConstraint`."""
        trie, own = self.trie, self._assistant
        opinion = None if own is None else [own.lm_weight, hash_tensors({"scores": own.item_scores})]
        return {
            "titles": hash_arrays(trie.tokens, trie.parents, trie.title_of_item),
            "renormalize": self.renormalize,
            "assistant": opinion,
        }

    def candidates(self, generated: Tensor, logits: Tensor, prompts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores of the allowed tokens after each row.

        Args:
            generated: int64 [rows, tokens], without prompts.
            logits: [rows, vocabulary].
            prompts: int64 [rows], which prompt a row answers; only an assistant needs it.

        Returns:
            Scores and token ids, both [rows, k], token ids ascending; -inf where a row has fewer than k.
        """
        entries, repeated = self._allowed(generated)
        tokens = self._tokens.take(entries)
        if self.renormalize:
            values = logits.gather(1, tokens).float().masked_fill(repeated, -math.inf).log_softmax(dim=1)
        else:
            values = log_probs_at(logits, tokens)
        if self._ratios is not None:
            if prompts is None:
                raise ValueError("an assistant needs to know the prompt of each row")
            ratios = self._ratios[prompts[:, None], self._children.take(entries)]
            values = mixed(values, ratios, self._lm_weight)
        return values.masked_fill_(repeated, -math.inf), tokens

    def _allowed(self, generated: Tensor) -> tuple[Tensor, Tensor]:
        """Entries of the allowed tokens, and whether they repeat the row's last one to fill it up; both [rows, k]."""
        nodes = self._index.find(generated, missing=len(self._starts) - 1)
        length = generated.shape[1]
        columns = torch.arange(self._widest[length] if length < len(self._widest) else 1, device=generated.device)
        last = self._sizes[nodes][:, None] - 1
        return columns.minimum(last).add_(self._starts[nodes][:, None]), columns > last

"""``TextEncoder``: texts to vectors by the hidden states of a causal LM, for grounding and coresets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from recbole_llm.distributed import process
from recbole_llm.errors import InputError
from recbole_llm.llm.budget import TokenBudget, run_batches
from recbole_llm.llm.capabilities import at_most
from recbole_llm.llm.loss import positions_from_mask
from recbole_llm.llm.parts import input_embedding, unwrapped
from recbole_llm.llm.rows import pad_batch
from recbole_llm.modes import evaluating
from recbole_llm.progress import Bar

POOLINGS = ("last", "mean")
SIDES = ("left", "right")
_SHOWN = 80  # characters of a text in a message
log = logging.getLogger(__name__)


class TextEncoder:
    """Texts to vectors: the last token's hidden state in the last layer, after its norm (BIGRec, arXiv 2308.08434).

    A text is tokenised by the tokenizer's default call, BOS included and EOS not. Only the decoder stack runs, never
    the vocabulary projection. A vector does not depend, up to rounding, on the texts that share its batch; equal texts
    have equal vectors.

    Args:
        model: a causal LM, bare or with a peft adapter.
        tokenizer: its tokenizer.
        pooling: "last" (the papers') or "mean" over all tokens of the text.
        max_batch_tokens: limit of (texts x longest text) of a batch; decides memory and speed only.
        max_tokens: a longer text is cut; lowered to the number of positions the model has.
        truncation_side: what a text that is too long loses: its end (``right``), or (``left``) its beginning without
            BOS, which in a row is the wording and the oldest items.
        untuned: opens a context inside which the untuned LLM computes. It yields the model to call, or None where
            `model` itself becomes the untuned one.

    Example:
        >>> from tokenizers import Tokenizer
        >>> from tokenizers.models import WordLevel
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> words = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, "Babe": 2}, unk_token="<unk>"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=3, **sizes)).eval()
        >>> TextEncoder(model, tokenizer).encode(["Babe", "Heat"]).shape
        (2, 8)
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        pooling: str = "last",
        max_batch_tokens: int | TokenBudget = 8192,
        max_tokens: int = 512,
        untuned: Callable[[], AbstractContextManager[nn.Module | None]] | None = None,
        truncation_side: str = "right",
    ) -> None:
        for key, value, known in (("pooling", pooling, POOLINGS), ("truncation_side", truncation_side, SIDES)):
            if value not in known:
                raise InputError(key, f"{value!r} is unknown; choose one of {', '.join(known)}", kind="unknown")
        self.budget = TokenBudget.of(max_batch_tokens)
        if max_tokens < 1 or self.budget.tokens < 1:
            raise InputError(f"max_tokens {max_tokens} and max_batch_tokens {self.budget.tokens} must be at least 1")
        self.model = model
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_tokens = at_most(model, max_tokens)
        self.untuned, self.truncation_side = untuned or nullcontext, truncation_side
        # Some tokenizers close every sequence with EOS, after which the last position would say little about the text.
        self._adds_eos = tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]

    def encode(self, texts: Sequence[str], progress: bool = False) -> np.ndarray:
        """Vectors of texts, in their order.

        Args:
            texts: any strings; an empty one is BOS alone (EOS where the family has no BOS).
            progress: show a bar.

        Returns:
            float32 [texts, d].

        Raises:
            InputError: a text's vector is not finite; names the text.
        """
        width = input_embedding(self.model).embedding_dim
        with self.untuned() as untuned:
            model = self.model if untuned is None else untuned
            with evaluating(model):
                pool = partial(pooled_states, model, padding_id=self.tokenizer.eos_token_id, pooling=self.pooling)
                return encode_in_batches(texts, self.tokenize, pool, width, self.budget, progress)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as it is embedded; at least one, at most `max_tokens`."""
        token_ids = self._whole(texts)
        bos = self.tokenizer.bos_token_id
        empty = [self.tokenizer.eos_token_id if bos is None else bos]
        too_long = sum(len(ids) > self.max_tokens for ids in token_ids)
        if too_long:
            lost = "end" if self.truncation_side == "right" else "beginning"
            counts = (too_long, len(texts), lost, self.max_tokens)
            log.warning("%d of %d texts lost their %s: longer than %d tokens.", *counts)
        return [self._cut(ids) or empty for ids in token_ids]

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, however many."""
        token_ids: list[list[int]] = self.tokenizer(list(texts))["input_ids"] if texts else []
        return [ids[:-1] for ids in token_ids] if self._adds_eos else token_ids

    def _cut(self, token_ids: list[int]) -> list[int]:
        """At most `max_tokens` of them."""
        surplus = len(token_ids) - self.max_tokens
        if surplus <= 0 or self.truncation_side == "right":
            return token_ids[: self.max_tokens]
        start = int(token_ids[0] == self.tokenizer.bos_token_id)
        return token_ids[:start] + token_ids[start + surplus :]

    def fingerprint_facts(self, texts: Sequence[str] = ()) -> dict[str, Any]:
        """What vectors depend on besides the texts and the LLM's own fingerprint, as JSON values.

        Args:
            texts: what is embedded; where one of them loses its beginning, that is a fact, too.
        """
        loses = self.truncation_side == "left" and any(len(ids) > self.max_tokens for ids in self._whole(texts))
        quant = [bits for bits in ("8bit", "4bit") if getattr(self.model, f"is_loaded_in_{bits}", False)]
        return {
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "quant": quant[0] if quant else None,
            **({"truncation_side": self.truncation_side} if loses else {}),
        }


def encode_in_batches(
    texts: Sequence[str],
    tokenize: Callable[[Sequence[str]], list[list[int]]],
    pool: Callable[[Sequence[Sequence[int]]], Tensor],
    width: int,
    max_batch_tokens: int | TokenBudget,
    progress: bool = False,
) -> np.ndarray:
    """Vectors of texts, every different text computed once, those of similar length together.

    Several processes share the batches.

    Args:
        texts: any strings.
        tokenize: token ids of each text, at least one.
        pool: vectors [texts, width] of the token ids of one batch.
        width: width of a vector.
        max_batch_tokens: limit of (texts x longest text) of a batch; where memory runs out, batches are halved.
        progress: show a bar.

    Returns:
        float32 [texts, width], in the order of the texts.

    Raises:
        InputError: a text's vector is not finite; names the text.
    """
    distinct = list(dict.fromkeys(texts))
    token_ids = tokenize(distinct)
    vectors = np.empty((len(distinct), width), dtype=np.float32)
    share = -(-len(distinct) // process().count)
    bar = Bar(total=share, desc="embed", unit="text", disable=not progress)

    def run(batch: list[int]) -> None:
        vectors[batch] = pool([token_ids[i] for i in batch]).cpu().numpy()
        bar.update(len(batch))

    with bar, torch.no_grad():
        batches = run_batches([len(ids) for ids in token_ids], TokenBudget.of(max_batch_tokens), run, together=True)
    process().complete(vectors, batches)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        first = distinct[broken[0]][:_SHOWN]
        raise InputError(
            f"the embedding of {first!r} is not finite ({len(broken)} of {len(distinct)} texts); "
            "check the weights, or, where the LLM embeds, use llm_dtype float32 or bfloat16",
            kind="numeric",
        )
    if len(distinct) == len(texts):  # tables may be large: no copy where none is needed
        return vectors
    row_of = {text: i for i, text in enumerate(distinct)}
    return vectors[[row_of[text] for text in texts]]


def pooled_states(model: nn.Module, token_ids: Sequence[Sequence[int]], *, padding_id: int, pooling: str) -> Tensor:
    """Vectors of one batch of texts by an LLM's last layer, after its norm; one pass of the decoder stack.

    Args:
        model: a causal LM, bare or with a peft adapter.
        token_ids: token ids of each text, at least one.
        padding_id: fills up shorter texts; any id of the vocabulary will do, as the mask hides it.
        pooling: ``last`` or ``mean`` over all tokens of a text.

    Returns:
        float32 [texts, d].
    """
    padded, mask = pad_batch(token_ids, padding_id, input_embedding(model).weight.device, left=True)
    output = unwrapped(model).get_decoder()(
        input_ids=padded, attention_mask=mask, position_ids=positions_from_mask(mask), use_cache=False
    )
    hidden = output.last_hidden_state.float()
    return hidden[:, -1] if pooling == "last" else mean_state(hidden, mask)


def mean_state(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over a text's own tokens: states [texts, tokens, d] and their mask to [texts, d]."""
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True)

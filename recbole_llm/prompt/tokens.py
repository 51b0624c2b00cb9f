"""Text to token ids, in the three ways that prompts need."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[str], list[int]]


def text_encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Encode text as text: no BOS or EOS is added, and a title that spells a special token stays ordinary text.

    Example:
        >>> from tokenizers import Tokenizer
        >>> from tokenizers.models import WordLevel
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, "Babe": 2}, unk_token="<unk>"))
        >>> text_encoder(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>"))("Babe")
        [2]
    """
    # Where special tokens are pieces of the vocabulary (Unigram), splitting them is not enough. Added tokens that are
    # not special, such as runs of blanks, are text.
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    added |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    special = {*added.values()} - {tokenizer.unk_token_id}
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} & special
    spelled = re.compile("|".join(re.escape(token) for token in sorted(added, key=len, reverse=True) if len(token) > 1))

    def encode_text(text: str) -> list[int]:
        token_ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if special.isdisjoint(token_ids) or len(text) < 2:
            return token_ids
        found = spelled.search(text)
        if found is None and ends.isdisjoint(token_ids):  # bytes are special tokens, too, in some vocabularies
            return token_ids
        # Where nothing is spelled, a normaliser makes one of other letters.
        middle = found.start() + 1 if found else len(text) // 2
        return encode_text(text[:middle]) + encode_text(text[middle:])

    return encode_text


def special_encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Encode a text that may spell special tokens, as chat templates do; none is added."""
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Texts that a tokenizer reads as one special token each."""
    return tuple(sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}))


def inside_encoder(encode: Encode) -> Encode:
    """An encoder like the given one, for texts that do not open the prompt.

    Some tokenizers put a blank before any text they are given (Llama's SentencePiece among them). Encoding after a line
    break and dropping the line break's own ids avoids it; where the line break merges with the text this is no use,
    and tokenizers that merge there add no blank either.
    """
    anchor = encode("\n")

    def encode_inside(text: str) -> list[int]:
        token_ids = encode("\n" + text)
        return token_ids[len(anchor) :] if token_ids[: len(anchor)] == anchor else encode(text)

    return encode_inside

"""Tokens that occur in no text: one for padding, one as a neutral placeholder."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

# Tokens that exist in a vocabulary but in no text: <pad>, [PAD], <|finetune_right_pad_id|>, <unused7>,
# <|reserved_special_token_0|>. The brackets keep ordinary words such as "reserved" out.
_PAD_LIKE = re.compile(r"[<\[]\|?\w*pad\w*\|?[>\]]", re.IGNORECASE)
_ENDS = re.compile(r"[<\[]\|?/?(end\w*|eo[sdt]\w*|im_end|s)\|?[>\]]", re.IGNORECASE)  # <|endoftext|>, <|eot_id|>, </s>
_UNUSED = re.compile(r"[<\[]\|?\w*(reserved|unused|extra_id)\w*\|?[>\]]", re.IGNORECASE)


def find_pad_token(tokenizer: PreTrainedTokenizerBase, n_embeddings: int) -> int:
    """A token id for padding that needs no new row in the embedding matrix.

    The tokenizer's own padding token, else a reserved or unused token of the vocabulary, else EOS.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id < n_embeddings:
        return int(tokenizer.pad_token_id)
    taken = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    free = {token: i for token, i in tokenizer.get_vocab().items() if i < n_embeddings and i not in taken}
    for pattern in (_PAD_LIKE, _UNUSED):
        if matches := [token_id for token, token_id in free.items() if pattern.fullmatch(token)]:
            return int(min(matches))
    return int(tokenizer.eos_token_id)


def find_spare_token(tokenizer: PreTrainedTokenizerBase, n_embeddings: int) -> int | None:
    """A token id that has a row in the embedding matrix and occurs in no text: not even at its end.

    The unknown token, else a reserved, unused or padding token of the vocabulary, else a row of the matrix behind the
    last token; never BOS, EOS or another token that by its name ends a text, whichever part a family gives it.

    Returns:
        The id; None where the vocabulary has none to spare. No row is added to the matrix.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    ends: set[int | None] = {tokenizer.bos_token_id, tokenizer.eos_token_id, None}
    ends |= {token_id for token, token_id in vocabulary.items() if _ENDS.fullmatch(token)}
    found = [tokenizer.unk_token_id]
    for pattern in (_UNUSED, _PAD_LIKE):
        found += sorted(token_id for token, token_id in vocabulary.items() if pattern.fullmatch(token))
    found += [max(vocabulary.values(), default=-1) + 1, tokenizer.pad_token_id]
    return next((token_id for token_id in found if token_id not in ends and token_id < n_embeddings), None)

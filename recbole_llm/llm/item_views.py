"""Texts of items from their attributes, complete or with some left out (LLMEmb, arXiv 2409.19925)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from recbole_llm.llm.contrastive import thin_attributes

Attributes = Sequence[tuple[str, str]]
"""Names and values of one item."""


def item_text(instruction: str, attributes: Attributes) -> str:
    r"""The text of an item: the instruction, and a line of ``name is value;`` per attribute.

    Example:
        >>> item_text("A movie:", [("title", "Heat"), ("genre", "Crime")])
        'A movie:\ntitle is Heat; genre is Crime;'
    """
    return instruction + "\n" + " ".join(f"{name} is {value};" for name, value in attributes)


def draw_view(attributes: Attributes, ratio: float, generator: np.random.Generator) -> list[tuple[str, str]]:
    """One thinned view: attributes in a random order, the last share of them left out, at least one kept.

    An item with a single attribute has only one such view, so words of its value are left out instead, their order
    kept.

    Args:
        attributes: attributes of an item.
        ratio: share that is left out.
        generator: source of chance.

    Example:
        >>> draw_view([("title", "A Long Way Home")], 0.5, np.random.default_rng(0))
        [('title', 'A Way')]
    """
    if len(attributes) != 1:
        return thin_attributes(attributes, ratio, generator.permutation(len(attributes)).tolist())
    ((name, value),) = attributes
    words = value.split()
    kept = thin_attributes(range(len(words)), ratio, generator.permutation(len(words)).tolist())
    return [(name, " ".join(words[position] for position in sorted(kept)))]


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Token ids of texts without BOS, cut, and ended by EOS.

    Args:
        tokenizer: tokenizer of the LLM.
        texts: any strings.
        max_tokens: most tokens of a text, EOS included.
    """
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [[*own[: max_tokens - 1], tokenizer.eos_token_id] for own in ids]

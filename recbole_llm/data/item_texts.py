"""Attributes of items and users as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recbole_llm.data.catalog import read_words, words_of

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

Attribute = tuple[str, str]
"""Name and value, such as ``("release year", "1995")``."""


def read_attributes(
    dataset: Dataset, fields: Sequence[str], lists: Sequence[str] = (), max_chars: int = 100
) -> list[list[Attribute]]:
    """The attributes of every internal item id, those that it has, in the order of the fields; the padding has none.

    A value is cut, and holds no line break and no ";", which separates attributes.

    Args:
        dataset: A RecBole data set with these fields loaded.
        fields: Item fields, `token` or `token_seq`.
        lists: Those of them whose words are values of their own, joined by commas.
        max_chars: Letters of a value, at most.

    Raises:
        InputError: A field does not exist or is not text.
    """
    columns = {name: read_words(dataset, name, "item_text_fields") for name in fields}
    found: list[list[Attribute]] = []
    for item in range(dataset.item_num):
        values = ((name, (", " if name in lists else " ").join(words[item])) for name, words in columns.items())
        cleaned = ((name.replace("_", " "), clean_value(value, max_chars)) for name, value in values)
        found.append([(name, value) for name, value in cleaned if value] if item else [])
    return found


def read_user_texts(dataset: Dataset, fields: Sequence[str]) -> list[str]:
    """What is known of every internal user id in words, the values of its fields in their order; "" for the padding.

    Args:
        dataset: A RecBole data set with these fields loaded.
        fields: User fields, `token` or `token_seq`; checked before.
    """
    columns = [words_of(dataset, dataset.user_feat, field) for field in fields]
    return [" ".join(sum(words, [])) for words in zip(*columns, strict=True)]


def clean_value(value: str, max_chars: int) -> str:
    r"""A value on one line, without ";", cut to so many letters.

    Example:
        >>> clean_value("Long; and\nwinding", 8)
        'Long. an'
    """
    return " ".join(value.replace(";", ".").split())[:max_chars]

"""Texts of public files as values of atomic files, without tabs and line breaks."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

from recbole_llm.prompt.titles import clean_title

NO_CATEGORY = "Unknown"  # RecBole trips over an empty token_seq
# What tables write for a missing value, as pandas knows it: no name of a product.
READ_AS_MISSING = frozenset(
    "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
)
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def one_line(value: Any) -> str:
    r"""A value as a text on one line, without control characters and outer blanks; "" if there is none.

    Example:
        >>> one_line(" Two\nlines and a\ttab "), one_line(None), one_line(7), one_line(["several", "texts"])
        ('Two lines and a tab', '', '7', 'several, texts')
    """
    if value is None or isinstance(value, float) and value != value:
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return ", ".join(text for text in map(one_line, value) if text)
    text = _CONTROL_CHARACTERS.sub(" ", str(value))
    return clean_title(text.encode("utf-8", "replace").decode("utf-8"))  # half a character cannot be written


def has_object(value: Any) -> bool:
    """Whether a value is an object, or a list with one: no text tells which of its entries is meant.

    Example:
        >>> has_object({"en": "Heat"}), has_object(["Heat", {"en": "Heat"}]), has_object(["Heat"])
        (True, True, False)
    """
    if isinstance(value, str):
        return False
    return isinstance(value, dict) or isinstance(value, list) and any(map(has_object, value))


def without_entities(value: Any) -> str:
    """:func:`one_line` with HTML entities such as ``&amp;`` resolved.

    Example:
        >>> without_entities("Tom &amp; Jerry")
        'Tom & Jerry'
    """
    return one_line(html.unescape(value)) if isinstance(value, str) else one_line(value)


def clean_text(value: Any) -> str:
    """A text of a shop's metadata: only texts count, and none that stands for a missing value, such as ``nan``."""
    text = without_entities(value) if isinstance(value, str) else ""
    return "" if text in READ_AS_MISSING else text


def words(names: Iterable[Any]) -> str:
    """Names as a ``token_seq``, each once; blanks inside a name become ``_``, since a blank ends a token.

    Example:
        >>> words(["Video Games", "PC", "PC"]), words([])
        ('Video_Games PC', 'Unknown')
    """
    found = ("_".join(one_line(name).split()) for name in names)
    return " ".join(dict.fromkeys(name for name in found if name)) or NO_CATEGORY


def category_words(categories: Any) -> str:
    """A list of categories from a shop's metadata as a ``token_seq``; anything else gives an empty one."""
    return words(clean_text(name) for name in categories) if isinstance(categories, list) else NO_CATEGORY


def listed(value: Any, separator: str = "|") -> str:
    """Names in one text as a ``token_seq``: ``Action|Sci-Fi``."""
    return words(one_line(value).split(separator))

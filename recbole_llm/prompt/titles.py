"""Titles as text: cleaning, and equality."""

from __future__ import annotations

import re
import unicodedata

_LINE_BREAKS_AND_TABS = re.compile(r"[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]+")


def clean_title(text: str) -> str:
    """Put a text on one line without outer blanks.

    Catalogue titles and generated texts both pass through here, so that a title that was generated exactly equals the
    title in the catalogue. Inner quotes, inner blanks and the case are kept. Cleaning twice changes nothing.
    """
    return _LINE_BREAKS_AND_TABS.sub(" ", text).strip()


def clean_answer(text: str) -> str:
    """Turn a generated answer into the title it names: one outer double quote on each side is taken off.

    The answer to a prompt is the title in double quotes, so exactly one quote belongs to the format and any further
    one to the title (`""Heroes""` answers with the title `"Heroes"`). An answer that was cut before its closing
    quote loses the opening one only.
    """
    return clean_title(clean_title(text).removeprefix('"').removesuffix('"'))


def normalize_title(text: str) -> str:
    """The form in which titles count as the same: NFKC, case folded, blanks collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())

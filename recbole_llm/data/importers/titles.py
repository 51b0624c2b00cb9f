"""Titles of items, and what else describes them, gathered from lines of which several may be of one item."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
Clean = Callable[[Any], str]


class Titles(Generic[Item]):
    """Title and features of each item, as atomic files have them.

    Of several lines for one item, the first value of each column that is not empty counts.

    Args:
        clean: a value of a table as the value of the atomic file, for the title and each feature.

    Attributes:
        found: by item; the title is empty where no line has one.

    Example:
        >>> from recbole_llm.data.importers.text import one_line
        >>> titles = Titles([one_line, one_line])
        >>> for values in [(" ", "Acme"), ("Soap", None), ("Other", "Ltd")]:
        ...     titles.add("i", values)
        >>> titles.found, titles.notes()
        ({'i': ('Soap', 'Acme')}, ["items with more than one title: 1 (such as 'i'); the first counts"])
    """

    def __init__(self, clean: Sequence[Clean]) -> None:
        self.found: dict[Item, tuple[str, ...]] = {}
        self._clean = tuple(clean)
        self._nothing = tuple(clean(None) for clean in self._clean)
        self._retitled: dict[Item, None] = {}

    def add(self, item: Item, values: tuple[Any, ...]) -> None:
        """Take over what a line says of an item."""
        known = self.found.get(item, self._nothing)
        if known == values:  # as most lines of an item are
            return
        new = tuple(clean(value) for clean, value in zip(self._clean, values, strict=True))
        if new[0] and known[0] and new[0] != known[0]:
            self._retitled[item] = None
        merged = zip(known, new, self._nothing, strict=True)
        self.found[item] = tuple(other if own == nothing else own for own, other, nothing in merged)

    def notes(self, shown: Callable[[Item], str] = str) -> list[str]:
        """What a reader should know; ``shown`` gives an item's id."""
        if not self._retitled:
            return []
        first = shown(next(iter(self._retitled)))
        return [f"items with more than one title: {len(self._retitled):,} (such as '{first}'); the first counts"]

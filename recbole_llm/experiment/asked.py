"""What recommendations are asked for: ids of users, or histories of item ids and titles."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from recbole_llm.errors import InputError
from recbole_llm.experiment.trained import Trained
from recbole_llm.registry import suggestion

Histories = Sequence[str] | Sequence[Sequence[str]]
log = logging.getLogger(__name__)


def as_users(users: Any) -> list[str]:
    """Ids of users as text, of one id or several.

    Raises:
        InputError: it is neither.
    """
    if _is_name(users):
        return [str(users)]
    return [_name("users", user, f"user {place}", "an id") for place, user in enumerate(_several("users", users))]


def as_histories(histories: Any) -> list[list[str]]:
    """Histories of item ids or titles as text, of one history or several.

    Raises:
        InputError: it is neither; or single items stand among histories.
    """
    if isinstance(histories, str):
        message = f"{histories!r} is one text, not a list of item ids or titles; write [{histories!r}]"
        raise InputError("histories", message)
    given = _several("histories", histories)
    if given and all(map(_is_name, given)):
        return [[str(item) for item in given]]
    found = []
    for number, own in enumerate(given):
        if _is_name(own):
            message = f"history {number} is {own!r}, not a list of item ids or titles; write [{own!r}]"
            raise InputError("histories", message)
        items = _several("histories", own, f"history {number} is ")
        found.append([_name("histories", item, f"history {number}", "an item id or title") for item in items])
    return found


def _is_name(value: object) -> bool:
    return isinstance(value, str | int | np.integer) and not isinstance(value, bool)


def _name(key: str, value: object, where: str, what: str) -> str:
    if not _is_name(value):
        raise InputError(key, f"{where}: {value!r} is not {what}; give text or a whole number")
    return str(value)


def _several(key: str, value: Any, where: str = "") -> list[Any]:
    if isinstance(value, str | bytes | Mapping | pd.DataFrame) or not isinstance(value, Iterable):
        raise InputError(key, f"{where}a {type(value).__name__}, not a list; give a list")
    return list(value)


def item_lists(trained: Trained, histories: Histories, places: Sequence[str] = ()) -> list[list[int]]:
    """RecBole's ids of the items of each history.

    Args:
        trained: the model.
        histories: see :func:`as_histories`.
        places: what each is called in a message; by default its 0-based number.

    Raises:
        InputError: an unknown item, an empty history, a title of several items that the model tells apart, or a history
            that reads as ids and as titles of different items.
    """
    given = as_histories(histories)
    names = _Names(trained)
    told = places or [f"history {number}" for number in range(len(given))]
    return [names.read(own, place) for own, place in zip(given, told, strict=True)]


class _Names:
    """Items by their ids and titles.

    Args:
        trained: the model whose data they are of.
    """

    def __init__(self, trained: Trained) -> None:
        dataset, self._catalog = trained.rows.whole, trained.catalog
        self._ids = {token: item for token, item in dataset.field2token_id[dataset.iid_field].items() if item}
        self._reads_titles = trained.config.is_llm
        self._warned: set[str] = set()

    def read(self, given: Sequence[str], place: str) -> list[int]:
        """Items of one history; ``place`` is what it is called in a message."""
        if not given:
            raise InputError("histories", f"{place} is empty; give at least one item")
        by_id = [self._ids.get(item) for item in given]
        by_title = [self._catalog.lookup(item) if self._catalog else None for item in given]
        if None not in by_id:
            if None not in by_title and by_title != by_id:
                raise InputError(
                    "histories",
                    f"{place} reads as item ids and as titles of other items; name one item the other way",
                    kind="conflict",
                )
            return [item for item in by_id if item is not None]
        prefers_titles = None not in by_title
        return [
            self._item(item, own, titled, place, prefers_titles)
            for item, own, titled in zip(given, by_id, by_title, strict=True)
        ]

    def _item(self, item: str, own: int | None, titled: int | None, place: str, prefers_titles: bool) -> int:
        if own is None and titled is None:
            titles = [title for title in self._catalog.titles if title] if self._catalog else []
            kind = "item has this id or title" if self._catalog else "item has this id, and the data have no titles"
            hint = suggestion(item, [*self._ids, *titles])
            raise InputError("histories", f"{place}: '{item}': no {kind}{hint}", kind="unknown")
        if titled is None or (own is not None and own == titled):
            assert own is not None
            return own
        if own is not None and not prefers_titles:
            raise InputError(
                "histories",
                f"{place}: '{item}' is the id of one item and the title of another; name it the other way",
                kind="conflict",
            )
        self._check_shared(item, titled, place)
        return titled

    def _check_shared(self, title: str, item: int, place: str) -> None:
        """Refuse a title of several items, which only what reads titles alone takes for one."""
        assert self._catalog is not None
        alike = np.flatnonzero(self._catalog.representative == item)
        if len(alike) < 2:
            return
        ids = ", ".join(f"'{self._catalog.tokens[one]}'" for one in alike[:3]) + (", ..." if len(alike) > 3 else "")
        if not self._reads_titles:
            message = f"{place}: '{title}' is the title of {len(alike)} items ({ids}); name one by its id"
            raise InputError("histories", message, kind="conflict")
        if title not in self._warned:
            self._warned.add(title)
            log.warning("'%s' is the title of %d items (%s); the first is taken.", title, len(alike), ids)

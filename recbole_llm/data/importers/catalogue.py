"""Titles of the items that are imported, and what else describes them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

from recbole_llm.data.importers.interactions import NO_ID, OBJECT, Interactions, id_text, shown_items, wrong_id
from recbole_llm.data.importers.plan import Feature, ImportPlan
from recbole_llm.data.importers.text import has_object, one_line
from recbole_llm.data.importers.titles import Titles
from recbole_llm.errors import InputError

log = logging.getLogger(__name__)
_UNSOLD = "with items of no interaction (--keep-items keeps these)"


def features_of(plan: ImportPlan) -> tuple[Feature, ...]:
    """The columns of the ``.item`` file beside id and title."""
    if plan.items:
        return plan.items[0].features
    return tuple(Feature(name, name) for name in plan.columns.texts)


def read_titles(
    plan: ImportPlan, found: Interactions, progress: bool = False, keep_items: bool = False
) -> dict[str, tuple[str, ...]]:
    """Title and features of every imported item that has a title, each as an atomic file has it.

    Args:
        plan: where they stand.
        found: the interactions; notes are added to theirs.
        progress: whether to show progress bars.
        keep_items: whether to return items of the tables that are in no interaction, too.

    Returns:
        By the item's id; see :class:`recbole_llm.data.importers.titles.Titles` for an item on several lines.

    Raises:
        InputError: a line cannot be read, or no item has a title although the files hold some.
    """
    if not plan.items:
        return {found.items[number]: row for number, row in found.titles.items() if row[0]}
    wanted, other = set(found.items), ""
    near = _Near(wanted)
    cleans = [plan.items[0].clean, *(feature.clean for feature in plan.items[0].features)]
    titles: Titles[str] = Titles(cleans)
    for source in plan.items:
        table, unsold = source.table, 0
        at_item = table.index(source.item)
        about = [table.index(name) for name in (source.title, *(feature.column for feature in source.features))]
        for number, row in table.rows(progress):
            item = id_text(row[at_item])
            other = other or item
            problem = wrong_id(source.item, item)
            if not item or item == NO_ID:
                table.bad(number, problem if item else f"{problem}; give the file of the items")
                continue
            if item not in wanted:
                unsold += 1
                near.look_at(item, table.file.name)
                if not keep_items:
                    continue
            if any(clean is one_line and has_object(row[at]) for clean, at in zip(cleans, about, strict=True)):
                problem = OBJECT
            if problem:
                table.bad(number, problem)
            else:
                titles.add(item, tuple(row[at] for at in about))
        dropped = table.dropped + Counter({_UNSOLD: 0 if keep_items else unsold})
        log.info("%s: %s lines%s", table.file.name, f"{table.lines:,}", _left_out(dropped))
        found.notes += table.notes()
    found.notes += titles.notes() + near.notes()
    titled = {item: row for item, row in titles.found.items() if row[0]}
    if wanted.isdisjoint(titled):
        names = ", ".join(source.table.file.name for source in plan.items)
        source = plan.items[0]
        there = f"{names} has the title of no item that is in the interactions"
        ids = f"ids are '{other}' in its column '{source.item}', '{found.items[0]}' in '{plan.columns.item}' there"
        message = (
            f"{there} ({ids}; titles are in '{source.title}'); give files that belong together, or name the columns"
        )
        raise InputError("items", message, kind="data")
    found.notes += _add_own(plan, found, titled)
    return titled


def _add_own(plan: ImportPlan, found: Interactions, titled: dict[str, tuple[str, ...]]) -> list[str]:
    """Add the titles that the interactions hold of items that have none in the tables of items. Returns: notes."""
    nothing = {feature.name: feature.clean(None) for feature in features_of(plan)}
    added = []
    for number, (title, *texts) in found.titles.items():
        if title and (item := found.items[number]) not in titled:
            own = {**nothing, **dict(zip(plan.columns.texts, texts, strict=True))}
            titled[item] = (title, *own.values())
            added.append(item)
    if not added:
        return []
    names = ", ".join(source.table.file.name for source in plan.items)
    where = f"column '{plan.columns.title}' of {plan.interactions[0].file.name}"
    return [f"titles of {shown_items(added)} are from {where}, as {names} has none"]


class _Near:
    """Ids of the tables of items that differ by blanks alone from ids of interactions."""

    def __init__(self, wanted: set[str]) -> None:
        self._wanted = wanted
        self._padded = {item.strip(): item for item in wanted if item != item.strip()}
        self._found: dict[str, tuple[str, str]] = {}

    def look_at(self, item: str, file: str) -> None:
        """Take note of an id that is in no interaction."""
        bare = item.strip()
        own = self._padded.get(bare, bare)
        if own in self._wanted:
            self._found.setdefault(own, (item, file))

    def notes(self) -> list[str]:
        """The first such id."""
        first = [
            f"'{own}' differs from '{item}' of {file} by blanks alone" for own, (item, file) in self._found.items()
        ]
        more = f" (so do {len(first) - 1:,} more items)" if len(first) > 1 else ""
        return [first[0] + more] if first else []


def _left_out(dropped: Mapping[str, int]) -> str:
    return "; left out: " + ", ".join(f"{n:,} {why}" for why, n in dropped.items()) if dropped else ""

"""Titles of the items that are imported, and what else describes them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from recbole_llm.data.importers.interactions import NO_ID, Interactions, id_text
from recbole_llm.data.importers.plan import Feature, ImportPlan
from recbole_llm.data.importers.titles import Titles
from recbole_llm.errors import InputError

log = logging.getLogger(__name__)


def features_of(plan: ImportPlan) -> tuple[Feature, ...]:
    """The columns of the ``.item`` file beside id and title."""
    if plan.items:
        return plan.items[0].features
    return tuple(Feature(name, name) for name in plan.columns.texts)


def read_titles(plan: ImportPlan, found: Interactions, progress: bool = False) -> dict[str, tuple[str, ...]]:
    """Title and features of every imported item that has a title, each as an atomic file has it.

    Args:
        plan: where they stand.
        found: the interactions; what else the tables of items hold is not kept.
        progress: whether to show progress bars.

    Returns:
        By the item's id; see :class:`recbole_llm.data.importers.titles.Titles` for an item on several lines.

    Raises:
        InputError: a line cannot be read, or no item has a title although the files hold some.
    """
    if not plan.items:
        return {found.items[number]: row for number, row in found.titles.items() if row[0]}
    wanted, other = set(found.items), ""
    titles: Titles[str] = Titles([plan.items[0].clean, *(feature.clean for feature in plan.items[0].features)])
    for source in plan.items:
        table = source.table
        at_item = table.index(source.item)
        about = [table.index(name) for name in (source.title, *(feature.column for feature in source.features))]
        for number, row in table.rows(progress):
            item = id_text(row[at_item])
            other = other or item
            if item == NO_ID:
                table.bad(number, f"has a list or an object in the place of {source.item}")
            elif not item:
                table.bad(number, f"has no {source.item}; give the file of the items")
            elif item in wanted:
                titles.add(item, tuple(row[index] for index in about))
        lines = f"{table.file.name}: {table.lines:,} lines"
        log.info("%s%s", lines, _left_out(table.dropped))
        found.notes += table.notes()
    found.notes += titles.notes()
    titled = {item: row for item, row in titles.found.items() if row[0]}
    if not titled:
        names = ", ".join(source.table.file.name for source in plan.items)
        source = plan.items[0]
        there = f"{names} has the title of no item that is in the interactions"
        ids = f"ids are '{other}' in its column '{source.item}', '{found.items[0]}' in '{plan.columns.item}' there"
        message = (
            f"{there} ({ids}; titles are in '{source.title}'); give files that belong together, or name the columns"
        )
        raise InputError("items", message, kind="data")
    return titled


def _left_out(dropped: Mapping[str, int]) -> str:
    return "; left out: " + ", ".join(f"{n:,} {why}" for why, n in dropped.items()) if dropped else ""

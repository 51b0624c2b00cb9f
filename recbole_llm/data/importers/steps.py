"""Filters of an import: time range, repeats, untitled items, sample of users, k-core."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import date
from numbers import Integral, Real

import numpy as np

from recbole_llm.data.importers.clock import parse_moment, seconds_per_unit
from recbole_llm.data.importers.interactions import Interactions, shown_items
from recbole_llm.errors import InputError

REPEATS = ("keep", "first", "last")
UNTITLED = ("drop", "keep")


@dataclass(frozen=True)
class Filters:
    """What is left out, in this order.

    Attributes:
        repeats: among several interactions of a user with an item, ``keep`` all, the ``first`` or the ``last``; exact
            repeats, of the same time and rating, go in any case. None: as the layout asks.
        since: earliest time that stays, a date or a number in the unit of the file.
        until: first time that does not stay any more.
        untitled: interactions with items without a title, ``drop`` or ``keep``.
        sample_users: a share of the users (0.1) or a number of them (1000); None takes all.
        seed: seed of that draw.
        k_core: fewest interactions of a user and of an item that stay, until nothing changes.
        keep_items: whether titled items of which no interaction stays have a line in the ``.item`` file.

    Raises:
        InputError: a value out of its range.
    """

    repeats: str | None = None
    since: str | float | date | None = None
    until: str | float | date | None = None
    untitled: str = "drop"
    sample_users: float | None = None
    seed: int = 2020
    k_core: int = 1
    keep_items: bool = False

    def __post_init__(self) -> None:
        for key, allowed in (("repeats", REPEATS), ("untitled", UNTITLED)):
            value = getattr(self, key)
            if value is not None and value not in allowed:
                raise InputError(key, f"'{value}' is not allowed; choose one of {', '.join(allowed)}")
        for key, least in (("k_core", 1), ("seed", 0)):
            value = getattr(self, key)
            if not isinstance(value, Integral) or value < least:
                raise InputError(key, f"{value!r} is not allowed; give an integer >= {least}")
        for key in ("since", "until"):
            value = getattr(self, key)
            if value is not None and not isinstance(value, str | Real | date):
                raise InputError(key, f"{value!r} is no time; give a date like '2019-01-31', or a number")
        size = self.sample_users
        if isinstance(size, str):
            raise InputError("sample_users", f"'{size}' is text; give a share such as 0.1 or a number of users")
        if size is not None and not (size > 0 and (size < 1 or float(size).is_integer())):
            raise InputError("sample_users", f"{size} is not allowed; give a share such as 0.1 or a number of users")


def apply_filters(found: Interactions, filters: Filters, titled: Collection[str] | None, has_times: bool) -> None:
    """Leave out what is to be left out and put the rest in the order of time, equal times in the order of the files.

    Args:
        found: the interactions, changed in place.
        filters: what is left out.
        titled: ids of the items with a title; None where the files hold no titles.
        has_times: whether the files have times; there is no time range and no exact repeat otherwise.

    Raises:
        InputError: a bound that is no time, or nothing is left.
    """
    steps: list[Callable[[], None]] = [
        lambda: _keep_range(found, filters, has_times),
        lambda: _drop_repeats(found, filters.repeats or "keep", has_times),
        lambda: _drop_untitled(found, filters, titled),
        lambda: _sample_users(found, filters),
        lambda: found.keep(in_k_core(found.user, found.item, filters.k_core), f"outside the {filters.k_core}-core"),
    ]
    found.keep(np.argsort(found.time, kind="stable"), "")
    for step in steps:
        step()
        if not len(found):
            why = ", ".join(f"{count:,} {reason}" for reason, count in found.dropped.items())
            raise InputError("", f"no interaction is left (left out: {why}); ask for less to be left out", kind="data")


def _keep_range(found: Interactions, filters: Filters, has_times: bool) -> None:
    for key, given in (("since", filters.since), ("until", filters.until)):
        if given is None:
            continue
        text = str(given)
        if not has_times:
            raise InputError(key, "the files have no times; leave it out", kind="conflict")
        bound, is_date = parse_moment(key, text, found.dated)
        if is_date:  # in the unit of the file
            bound /= seconds_per_unit(found.time)
        chosen = found.time >= bound if key == "since" else found.time < bound
        if len(found) and chosen.all():
            extreme = "earliest" if key == "since" else "latest"
            time = found.time.min() if key == "since" else found.time.max()
            found.notes.append(f"--{key}={text} leaves out nothing: the {extreme} time is {time.item()!r}")
        found.keep(chosen, f"before {text}" if key == "since" else f"from {text} on")


def _drop_repeats(found: Interactions, repeats: str, has_times: bool) -> None:
    """Exact repeats, and, if asked for, all but the first or last of a user's interactions with an item."""
    if has_times:
        rating = np.zeros(len(found)) if found.rating is None else np.nan_to_num(found.rating, nan=-np.inf)
        found.keep(_first_of_each(found.user, found.item, found.time, rating), "exact repeats")
    if repeats != "keep":
        backwards = slice(None, None, -1 if repeats == "last" else 1)
        chosen = _first_of_each(found.user[backwards], found.item[backwards])[backwards]
        found.keep(chosen, f"not the {repeats} of a user and an item")


def _first_of_each(*columns: np.ndarray) -> np.ndarray:
    """Which rows are the first with their values. Returns: bool [rows]."""
    order = np.lexsort(columns[::-1])
    chosen = np.ones(len(order), dtype=bool)
    again = np.ones(len(order) - 1, dtype=bool)
    for column in columns:
        ordered = column[order]
        again &= ordered[1:] == ordered[:-1]
    chosen[order[1:][again]] = False
    return chosen


def _drop_untitled(found: Interactions, filters: Filters, titled: Collection[str] | None) -> None:
    if titled is None:
        return
    has_title = np.fromiter((item in titled for item in found.items), dtype=bool, count=len(found.items))
    untitled = [found.items[number] for number in np.unique(found.item[~has_title[found.item]]).tolist()]
    if untitled:
        found.notes.append(f"without a title: {shown_items(untitled)}")
    if filters.untitled == "drop":
        found.keep(has_title[found.item], "with an item without a title")


def _sample_users(found: Interactions, filters: Filters) -> None:
    if filters.sample_users is None:
        return
    present = np.unique(found.user)
    # By their ids, so that the draw does not depend on the order of the files.
    present = np.array(sorted(present.tolist(), key=found.users.__getitem__))
    share = filters.sample_users < 1
    size = max(1, round(filters.sample_users * len(present))) if share else int(filters.sample_users)
    if size < len(present):
        chosen = np.random.default_rng(filters.seed).choice(present, size, replace=False)
        found.keep(np.isin(found.user, chosen), f"of users outside the sample of {size:,}")


def in_k_core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Which interactions remain when users and items with fewer than ``k`` are dropped until nothing changes.

    Args:
        users: int [interactions], >= 0.
        items: int [interactions], >= 0.
        k: fewest interactions, repeated ones counted each.

    Returns:
        bool [interactions]. The k-core is unique: the order of dropping does not matter.
    """
    kept = np.ones(len(users), dtype=bool)
    while True:
        often = [np.bincount(ids[kept], minlength=ids.max(initial=0) + 1)[ids] >= k for ids in (users, items)]
        remain = kept & often[0] & often[1]
        if remain.sum() == kept.sum():
            return kept
        kept = remain

"""Steam: reviews and games of https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data.

``steam_reviews.json`` with ``steam_games.json`` (version 1), or ``australian_user_reviews.json`` (version 2), a Python
literal on each line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from recbole_llm.data.importers.interactions import Columns
from recbole_llm.data.importers.plan import Choices, Feature, ImportPlan, Items, Origin
from recbole_llm.data.importers.tables import JsonTable
from recbole_llm.data.importers.text import without_entities, words

_POSTED = re.compile(r"Posted (\w+) (\d{1,2}), (\d{4})")


def find(origin: Origin, choices: Choices) -> ImportPlan | None:
    """The plan for Steam's reviews; None if these files are not of this kind."""
    encoding = choices.encoding or "utf-8"
    games = [
        Items(
            JsonTable(path, ("id", "app_name", "genres"), _game, choices.drop, encoding),
            "id",
            "app_name",
            (Feature("genres", "genres", "token_seq", lambda genres: words(genres or ())),),
            without_entities,
        )
        for path in origin.beside("steam_games.json")
    ]
    for file in origin.given("steam_reviews.json", "steam_new.json"):
        table = JsonTable(file, ("user", "item", "date", "hours"), _review, choices.drop, encoding)
        return ImportPlan("Steam reviews", [table], Columns("user", "item", "date"), games[:1], "game")
    for file in origin.given("australian_user_reviews.json"):
        table = JsonTable(file, ("user", "item", "date"), _australian, choices.drop, encoding)
        return ImportPlan("Steam reviews, version 2", [table], Columns("user", "item", "date"), games[:1], "game")
    return None


def _game(about: Mapping[str, Any]) -> list[list[Any]]:
    return [[about.get("id"), about.get("app_name") or about.get("title"), about.get("genres")]]


def _review(review: Mapping[str, Any]) -> list[list[Any]]:
    """A review; its writer is known by name, and by number only where the profile has one."""
    names = (review.get("username") or review.get("user_id"), review.get("product_id"))
    return [[*names, review.get("date"), review.get("hours")]]


def _australian(user: Mapping[str, Any]) -> list[list[Any]]:
    """All reviews of a user; those of the year in which the data were collected do not say which year that is."""
    found = []
    for review in user.get("reviews") or ():
        date = _POSTED.match(str(review.get("posted")))
        found.append([user.get("user_id"), review.get("item_id"), _iso(date) if date else None])
    return found


_MONTHS = "January February March April May June July August September October November December".split()


def _iso(date: re.Match[str]) -> str | None:
    month, day, year = date.groups()
    return f"{year}-{_MONTHS.index(month) + 1:02}-{int(day):02}" if month in _MONTHS else None

"""Goodreads: interactions or reviews, with the books, of https://cseweb.ucsd.edu/~jmcauley/datasets/goodreads.html.

``goodreads_interactions*.json`` or ``goodreads_reviews*.json`` with ``goodreads_books*.json``, a JSON object on each
line. The summary ``goodreads_interactions.csv`` has no times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_llm.data.importers.files import plain_name
from recbole_llm.data.importers.interactions import Columns
from recbole_llm.data.importers.plan import Choices, ImportPlan, Items, Origin
from recbole_llm.data.importers.tables import JsonTable
from recbole_llm.data.importers.text import without_entities
from recbole_llm.errors import InputError

DATE = "%a %b %d %H:%M:%S %z %Y"  # Fri Aug 25 13:55:02 -0700 2017
_KINDS = ("goodreads_interactions", "goodreads_reviews")


def find(origin: Origin, choices: Choices) -> ImportPlan | None:
    """The plan for Goodreads' interactions; None if these files are not of this kind."""
    encoding = choices.encoding or "utf-8"
    for file in origin.given(*(f"{kind}*.json" for kind in _KINDS)):
        names = ("user_id", "book_id", "rating", "date_added")
        table = JsonTable(file, names, _interaction, choices.drop, encoding)
        genre = plain_name(file).removesuffix(".json").removeprefix(_KINDS[0]).removeprefix(_KINDS[1])
        paths = origin.beside(f"goodreads_books{genre}.json") or origin.beside("goodreads_books.json")
        books = [
            Items(
                JsonTable(path, ("book_id", "title"), drop=choices.drop, encoding=encoding),
                "book_id",
                "title",
                clean=without_entities,
            )
            for path in paths[:1]
        ]
        columns = Columns("user_id", "book_id", "date_added", "rating", time_format=DATE)
        return ImportPlan("Goodreads", [table], columns, books, "book")
    if files := origin.given("goodreads_interactions.csv"):
        message = f"{files[0].name} has no times; give goodreads_interactions_dedup.json, or a genre's .json file"
        raise InputError("", message, kind="data")
    return None


def _interaction(about: Mapping[str, Any]) -> list[list[Any]]:
    """An interaction; a rating of 0 means no rating."""
    ids = (about.get("user_id"), about.get("book_id"))
    return [[*ids, about.get("rating") or None, about.get("date_added")]]

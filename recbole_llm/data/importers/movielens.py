"""MovieLens: 100K (``u.data``, ``u.item``), 1M and 10M (``ratings.dat``), 20M and later (``ratings.csv``).

The formats are those of the README files of https://grouplens.org/datasets/movielens.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from recbole_llm.data.importers.any_table import has_own_titles
from recbole_llm.data.importers.delimited import DelimitedTable
from recbole_llm.data.importers.interactions import Columns
from recbole_llm.data.importers.plan import Choices, Feature, ImportPlan, Items, Origin
from recbole_llm.data.importers.table import Row
from recbole_llm.data.importers.text import listed

GENRES = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical "
    "Mystery Romance Sci-Fi Thriller War Western"
).split()
_RATINGS = ("user_id", "item_id", "rating", "timestamp")
_READ = Columns("user_id", "item_id", "timestamp", "rating")
_KINDS = (Feature("genres", "genres", "token_seq", listed),)


def find(origin: Origin, choices: Choices) -> ImportPlan | None:
    """The plan for a MovieLens release; None if these files are not of this kind."""
    for file in origin.given("u.data"):
        table = DelimitedTable(file, choices.form("\t"), _RATINGS, choices.drop)
        movies = [Items(_Flags(path, choices), "item_id", "title", _KINDS) for path in origin.beside("u.item")]
        return ImportPlan("MovieLens 100K", [table], _READ, movies[:1], "movie")
    for file in origin.given("ratings.dat"):
        table = DelimitedTable(file, choices.form("::"), _RATINGS, choices.drop)
        movies = []
        for path in origin.beside("movies.dat"):
            form = choices.form("::", "utf-8" if _is_utf8(path) else "latin-1")
            listing = DelimitedTable(path, form, ("item_id", "title", "genres"), choices.drop)
            movies.append(Items(listing, "item_id", "title", _KINDS))
        return ImportPlan("MovieLens 1M or 10M", [table], _READ, movies[:1], "movie")
    for file in origin.given("ratings.csv"):
        form = choices.form(",", quoting="auto")
        table = DelimitedTable(file, form, drop=choices.drop)
        listed = origin.beside("movies.csv")
        is_public = {"userId", "movieId", "rating", "timestamp"} <= set(table.columns)
        if not is_public:
            continue
        listings = [DelimitedTable(path, form, drop=choices.drop) for path in listed]
        public = [one for one in listings if {"movieId", "title"} <= set(one.columns)]
        if has_own_titles(table.columns, public):
            continue
        movies = [Items(listing, "movieId", "title", _KINDS) for listing in listings]
        columns = Columns("userId", "movieId", "timestamp", "rating")
        return ImportPlan("MovieLens 20M or later", [table], columns, movies[:1], "movie")
    return None


class _Flags(DelimitedTable):
    """``u.item``: id, title, two dates, an address, and a flag for each of 19 genres."""

    def __init__(self, file: Path, choices: Choices) -> None:
        form = choices.form("|", "utf-8" if _is_utf8(file) else "latin-1")
        super().__init__(file, form, ("item_id", "title", "genres"), choices.drop, width=5 + len(GENRES))

    def rows(self, progress: bool = False) -> Generator[Row, None, None]:
        """Id, title and names of genres."""
        for number, row in super().rows(progress):
            yield number, (row[0], row[1], _named(row[5:]))


def _named(flags: Any) -> str:
    return "|".join(name for name, flag in zip(GENRES, flags, strict=True) if flag == "1")


def _is_utf8(file: Path) -> bool:
    """Whether a small file is UTF-8; the lists of movies up to 1M are Latin-1."""
    from recbole_llm.data.importers.files import opened

    with opened(file) as (source, _):
        try:
            source.read().decode("utf-8")
        except UnicodeDecodeError:
            return False
    return True

"""Book-Crossing: ``BX-Book-Ratings.csv`` and ``BX-Books.csv``, or the same as ``Ratings.csv`` and ``Books.csv``.

The first are semicolon-separated, Latin-1, every field in quotes, with a backslash before a quote inside; the second
are plain CSV in UTF-8. There are no times: the order of the lines stands for them.
"""

from __future__ import annotations

from pathlib import Path

from recbole_llm.data.importers.delimited import DelimitedTable
from recbole_llm.data.importers.files import text_lines
from recbole_llm.data.importers.interactions import Columns
from recbole_llm.data.importers.plan import Choices, Feature, ImportPlan, Items, Origin
from recbole_llm.data.importers.text import without_entities

_NO_TIMES = "Book-Crossing has no times: the order of the lines stands for them, within and across users"


def find(origin: Origin, choices: Choices) -> ImportPlan | None:
    """The plan for Book-Crossing; None if these files are not of this kind."""
    for file in origin.given("bx-book-ratings.csv", "bx_book_ratings.csv", "ratings.csv", "book-ratings.csv"):
        table = _table(file, choices)
        if not {"User-ID", "ISBN", "Book-Rating"} <= set(table.columns):
            continue
        books = []
        for path in origin.beside("bx-books.csv", "bx_books.csv", "books.csv")[:1]:
            features = (
                Feature("author", "Book-Author", clean=without_entities),
                Feature("year", "Year-Of-Publication"),
            )
            books.append(Items(_table(path, choices), "ISBN", "Book-Title", features, without_entities))
        columns = Columns("User-ID", "ISBN", rating="Book-Rating")
        return ImportPlan("Book-Crossing", [table], columns, books, "book", notes=[_NO_TIMES])
    return None


def _table(file: Path, choices: Choices) -> DelimitedTable:
    """A file of either form, told apart by its header."""
    header = next((line for _, line in text_lines(file, "latin-1")), "")
    if ";" in header:
        return DelimitedTable(file, choices.form(";", "latin-1", "csv", "\\"), drop=choices.drop)
    return DelimitedTable(file, choices.form(",", quoting="auto"), drop=choices.drop)

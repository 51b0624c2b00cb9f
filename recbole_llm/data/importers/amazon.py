"""Amazon Reviews: 2023 (ratings or reviews, the official 0- and 5-core files and their splits), 2018 and 2014.

The formats are those of https://amazon-reviews-2023.github.io and https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_llm.data.importers.any_table import has_own_titles
from recbole_llm.data.importers.delimited import DelimitedTable
from recbole_llm.data.importers.files import plain_name, text_lines
from recbole_llm.data.importers.interactions import Columns
from recbole_llm.data.importers.plan import Choices, Feature, ImportPlan, Items, Origin
from recbole_llm.data.importers.table import Table
from recbole_llm.data.importers.tables import JsonTable, records
from recbole_llm.data.importers.text import category_words, clean_text
from recbole_llm.errors import InputError

PARTS = ("train", "valid", "test")
_DOMAINS = {"video_games": "game", "books": "book", "kindle": "book", "movies": "movie", "digital_music": "product"}
_OF_REVIEWS = {"text", "helpful_vote", "verified_purchase"}  # beside these, a title is a review's
_ASIN = re.compile(r"[A-Z0-9]{10}")
_NAMES = ("title", "brand", "categories", "main_category")
_FEATURES = (
    Feature("brand", "brand", clean=clean_text),
    Feature("categories", "categories", "token_seq", category_words),
    Feature("main_category", "main_category", clean=clean_text),
)


def find(origin: Origin, choices: Choices) -> ImportPlan | None:
    """The plan for files of Amazon Reviews; None if these files are not of this kind.

    Raises:
        InputError: a folder holds several categories, or a part of a split without the others.
    """
    plans: dict[str, ImportPlan] = {}
    for file in origin.given("*.csv", "*.jsonl", "*.json"):
        if plain_name(file).startswith("meta_") or _category(file) in plans:
            continue
        found = (_csv if plain_name(file).endswith(".csv") else _json)(origin, file, choices)
        if found is not None:
            plans[_category(file)] = found
    if len(plans) > 1:
        message = (
            f"{origin.path} holds several categories ({', '.join(plans)}); give the file of one, or its own folder"
        )
        raise InputError("", message, kind="conflict")
    return next(iter(plans.values()), None)


def _listings(origin: Origin, file: Path) -> list[Path]:
    """The files of the category's items."""
    return origin.beside(*(f"meta_{_category(file)}.{ending}" for ending in ("jsonl", "json")))


def _category(file: Path) -> str:
    """``Video_Games`` of ``Video_Games_5.json``, ``ratings_Video_Games.csv``, ``Video_Games.train.csv.gz``."""
    name = re.sub(r"(\.(train|valid|test))?\.(csv|jsonl?)$", "", plain_name(file))
    return re.sub(r"^(ratings_|reviews_)|_5$", "", name)


def _csv(origin: Origin, file: Path, choices: Choices) -> ImportPlan | None:
    first = next((line for _, line in text_lines(file, choices.encoding or "utf-8")), "").strip()
    fields = first.split(",")
    is_public = {"user_id", "parent_asin", "rating", "timestamp"} <= set(fields)
    if is_public and (_OF_REVIEWS & set(fields) or not has_own_titles(fields, _listings(origin, file))):
        files = _split_files(origin, file)
        tables = [DelimitedTable(path, choices.form(","), drop=choices.drop) for path in files]
        parts = PARTS if len(files) == len(PARTS) else ()
        columns = Columns("user_id", "parent_asin", "timestamp", "rating")
        return _plan("Amazon Reviews 2023", origin, file, choices, tables, columns, parts)
    if len(fields) == 4 and choices.columns == () and fields[2].replace(".", "").isdigit() and fields[3].isdigit():
        order = _ids_in(fields[:2])
        if order is None:
            return None
        table = DelimitedTable(file, choices.form(","), (*order, "rating", "timestamp"), choices.drop)
        columns = Columns("user", "item", "timestamp", "rating")
        return _plan("Amazon Reviews 2018 or 2014, ratings only", origin, file, choices, [table], columns)
    return None


def _ids_in(pair: Sequence[str]) -> tuple[str, str] | None:
    """Which of two fields is the item, an ASIN of ten characters; None if that does not show."""
    items = [bool(_ASIN.fullmatch(text)) for text in pair]
    if items == [True, False]:
        return "item", "user"
    return ("user", "item") if items == [False, True] else None


def _json(origin: Origin, file: Path, choices: Choices) -> ImportPlan | None:
    first = next((record for _, record in records(file, choices.encoding or "utf-8")), None)
    if not isinstance(first, Mapping):
        return None
    for layout, columns in (
        ("Amazon Reviews 2023, reviews", Columns("user_id", "parent_asin", "timestamp", "rating")),
        ("Amazon Reviews 2018 or 2014, reviews", Columns("reviewerID", "asin", "unixReviewTime", "overall")),
    ):
        names = (columns.user, columns.item, columns.rating or "", columns.time)
        if set(names) <= set(first):
            table = JsonTable(file, names, drop=choices.drop, encoding=choices.encoding or "utf-8")
            return _plan(layout, origin, file, choices, [table], columns)
    return None


def _split_files(origin: Origin, file: Path) -> list[Path]:
    """The three files of an official split, in their order; a file that belongs to none alone."""
    base = re.sub(r"\.(train|valid|test)\.csv$", "", plain_name(file))
    if base == plain_name(file):
        return [file]
    # The given file's name says only where the other two are, whichever it is.
    found = {plain_name(path): path for path in origin.neighbours(file)}
    missing = [f"{base}.{part}.csv" for part in PARTS if f"{base}.{part}.csv" not in found]
    if missing:
        message = f"{file.name} is a part of a split, and {', '.join(missing)} is not beside it"
        raise InputError("", message, kind="file")
    return [found[f"{base}.{part}.csv"] for part in PARTS]


def _plan(
    layout: str,
    origin: Origin,
    file: Path,
    choices: Choices,
    tables: Sequence[Table],
    columns: Columns,
    parts: tuple[str, ...] = (),
) -> ImportPlan:
    category = _category(file)
    items = [
        Items(_metadata(path, choices), "item", "title", _FEATURES, clean_text) for path in _listings(origin, file)[:1]
    ]
    domain = next((word for name, word in _DOMAINS.items() if name in category), "product")
    return ImportPlan(layout, tables, columns, items, domain, parts)


def _metadata(file: Path, choices: Choices) -> JsonTable:
    """The items: of 2023 under ``parent_asin``, ``store`` and ``main_category``, before under other names."""

    def pick(about: Mapping[str, Any]) -> list[list[Any]]:
        item = about.get("parent_asin", about.get("asin"))
        categories = about.get("categories", about.get("category"))
        if isinstance(categories, list) and categories and isinstance(categories[0], list):  # 2014: lists of lists
            categories = [name for part in categories for name in part]
        brand, main = about.get("store", about.get("brand")), about.get("main_category", about.get("main_cat"))
        return [[item, about.get("title"), brand, categories, main]]

    return JsonTable(file, ("item", *_NAMES), pick, choices.drop, choices.encoding or "utf-8")

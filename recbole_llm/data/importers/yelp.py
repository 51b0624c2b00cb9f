"""Yelp Open Dataset: ``yelp_academic_dataset_review.json`` and ``yelp_academic_dataset_business.json``.

The format is that of https://www.yelp.com/dataset/documentation/main: a JSON object on each line.
"""

from __future__ import annotations

from recbole_llm.data.importers.interactions import Columns
from recbole_llm.data.importers.plan import Choices, Feature, ImportPlan, Items, Origin
from recbole_llm.data.importers.tables import JsonTable
from recbole_llm.data.importers.text import listed


def find(origin: Origin, choices: Choices) -> ImportPlan | None:
    """The plan for Yelp's reviews; None if these files are not of this kind."""
    encoding = choices.encoding or "utf-8"
    for file in origin.given("yelp*review.json", "review.json"):
        names = ("user_id", "business_id", "stars", "date")
        table = JsonTable(file, names, drop=choices.drop, encoding=encoding)
        columns = Columns("user_id", "business_id", "date", "stars")
        return ImportPlan("Yelp reviews", [table], columns, _businesses(origin, choices, encoding), "item")
    return None


def _businesses(origin: Origin, choices: Choices, encoding: str) -> list[Items]:
    features = (
        Feature("city", "city"),
        Feature("categories", "categories", "token_seq", lambda names: listed(names, ",")),
    )
    names = ("business_id", "name", "city", "categories")
    return [
        Items(JsonTable(path, names, drop=choices.drop, encoding=encoding), "business_id", "name", features)
        for path in origin.beside("yelp*business.json", "business.json")[:1]
    ]

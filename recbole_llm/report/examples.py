"""A few evaluated rows as a report shows them: history, answer, best items, target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Listed:
    """An item of a list.

    Attributes:
        item_id: in the data set's own ids.
        title: title of the item, or its id where the data have no titles.
        score: the model's own, larger is better; None where the list has no scores.
        is_target: whether it is what the user turned to.
    """

    item_id: str
    title: str
    score: float | None
    is_target: bool


@dataclass(frozen=True)
class Shown:
    """What one model said of one row.

    Attributes:
        model: name in the table.
        answer: the text that the model wrote; None for a model that writes none.
        outcome: how the row went, in words: ``rank 3``, ``hit``, ``0.71``.
        items: the best items, or the candidates that were listed.
    """

    model: str
    answer: str | None
    outcome: str
    items: tuple[Listed, ...] = ()


@dataclass(frozen=True)
class ExampleUser:
    """One row with what each model said of it.

    Attributes:
        user: id of the user.
        history: titles, the oldest first.
        target: title of the item that the row asks for.
        shown: one for each model.
    """

    user: str
    history: tuple[str, ...]
    target: str
    shown: tuple[Shown, ...]


def example_users(by_model: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[ExampleUser]:
    """Rows of several models side by side.

    Args:
        by_model: name in the table to the records of ``examples.json``: ``user_id``, ``item_id``, ``history``,
            ``target``, ``answer``, ``outcome``, and ``items``, each as :class:`Listed` has it.

    Returns:
        One for each row that all models have, in the order of the first model.

    Example:
        >>> record = {"user_id": "7", "item_id": "b", "history": ["A"], "target": "B", "answer": None}
        >>> record |= {"outcome": "rank 1", "items": [{"item_id": "b", "title": "B", "score": 2.0, "is_target": True}]}
        >>> example_users({"Pop": [record]})[0].shown[0].items[0].title
        'B'
    """
    keyed = {model: {_key(record): record for record in records} for model, records in by_model.items()}
    if not keyed:
        return []
    first = next(iter(keyed.values()))
    return [
        ExampleUser(
            user=record["user_id"],
            history=tuple(record["history"]),
            target=record["target"],
            shown=tuple(_shown(model, own[key]) for model, own in keyed.items()),
        )
        for key, record in first.items()
        if all(key in own for own in keyed.values())
    ]


def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["user_id"], record["item_id"], len(record["history"])


def _shown(model: str, record: Mapping[str, Any]) -> Shown:
    items = tuple(Listed(**item) for item in record["items"])
    return Shown(model, record["answer"], record["outcome"], items)

"""``Example``: one row, in item ids, from which a prompt is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A user's history, the item that an answer is about, and what else a prompt may show.

    Every kind of prompt is made from it and reads what it needs; item 0 is padding, "no item".

    Attributes:
        history: Item ids, oldest first; padding and items without a title are not shown.
        target: The item that the response names, or that a yes/no question is about.
        likes: Whether the user liked each item of the history, for yes/no questions.
        candidates: The item ids that the prompt lists to choose from, in their order.
        liked: Whether the user liked the target: the answer to a yes/no question, and no part of any prompt.

        user: Token ids of the users that a prompt names, where users have codes.

    Example:
        >>> Example(history=[3, 1], target=2)
        Example(history=[3, 1], target=2, likes=None, candidates=(), liked=None, user=())
    """

    history: Sequence[int]
    target: int = 0
    likes: Sequence[bool] | None = None
    candidates: Sequence[int] = ()
    liked: bool | None = None
    user: Sequence[int] = ()

"""Which items of a history a prompt shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recbole_llm.history.similar import similar_positions

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ShownItems:
    """At most so many items of a history: the newest, or those most similar to the item that a prompt asks about.

    Attributes:
        count: most items that are shown.
        vectors: gives the items' vectors, [items, d], by which they are compared; None shows the newest items.
        source: what the vectors are, for the facts of a prompt.

    Example:
        >>> ShownItems(2).positions([5, 6, 7], target=1)
        [1, 2]
        >>> ShownItems(1, lambda: [[0, 0], [1, 0], [1, 1], [0, 1]]).positions([2, 3, 3], target=1)
        [0]
    """

    count: int
    vectors: Callable[[], np.ndarray] | None = None
    source: str = ""

    def positions(self, history: Sequence[int], target: int) -> list[int]:
        """Indices of the items that are shown, in their order.

        Args:
            history: item ids that can be shown, oldest first.
            target: the item that a prompt asks about.
        """
        if len(history) <= self.count or self.vectors is None:
            return list(range(max(len(history) - self.count, 0), len(history)))
        found: list[int] = similar_positions(history, target, self.vectors(), self.count).tolist()
        return found

    def facts(self) -> dict[str, Any]:
        """What decides the choice besides the vectors' own facts, as JSON values."""
        return {"items": self.count, "by": "recent" if self.vectors is None else f"similar {self.source}".strip()}

"""The interface of all selectors: settings, the inputs they need, and rows out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from recbole_llm.arrays import Array
from recbole_llm.coreset.checks import (
    check_length,
    checked_budget,
    checked_counts,
    checked_ids,
    checked_repeats,
    checked_scores,
    checked_size,
    checked_texts,
    checked_vectors,
    first_of,
)
from recbole_llm.declare import Declared
from recbole_llm.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Input:
    """Something that a selector needs to know about the rows; whoever calls it provides it under this name.

    Attributes:
        name: name of the keyword argument.
        meaning: shape and contents, in words.
        check: called with the value and the ids; gives the value to compute with, or raises InputError.
        per_row: whether there is one entry per row to select from.
        default: gives the value where none is given; called with the ids. None where one is needed.

    Example:
        >>> Input("length", "[n]: tokens of a row's prompt", lambda values, ids: np.asarray(values)).per_row
        True
    """

    name: str
    meaning: str
    check: Callable[[Any, np.ndarray], Any]
    per_row: bool = True
    default: Callable[[np.ndarray], Any] | None = None


def _input(name: str, meaning: str, check: Callable[[str, Any, np.ndarray], Any]) -> Input:
    return Input(name, meaning, partial(check, name))


INFLUENCE = _input("influence", "[n]: influence on the recommender's loss, larger is more useful", checked_scores)
EFFORT = _input("effort", "[n]: norm of the gradient of the LLM's loss", checked_scores)
EL2N = _input("el2n", "[n] or [n, seeds]: length of the error vector of the recommender, or the LLM", checked_repeats)
GRAND = _input(
    "grand", "[n] or [n, seeds]: norm of the gradient of the loss of the recommender, or the LLM", checked_repeats
)
VECTORS = _input("vectors", "[n, d]: a vector per row, of the recommender or of the LLM", checked_vectors)
RECOMMENDER_VECTORS = _input(
    "recommender_vectors", "[n, d]: the recommender's state after the history", checked_vectors
)
LLM_VECTORS = _input("llm_vectors", "[n, d]: the LLM's embedding of the history's text", checked_vectors)
HISTORY_LENGTHS = _input("history_lengths", "[n]: interactions of the row's user", checked_counts)
TEXTS = _input("texts", "n texts: titles of each row's history and target", checked_texts)
TARGET_TEXTS = Input(
    "target_texts",
    "texts of the rows that the selected ones shall resemble: those of validation",
    lambda values, ids: checked_texts("target_texts", values),
    per_row=False,
)


@dataclass(frozen=True, eq=False)
class Selection:
    """What a selector gives; it unpacks as a pair, ``ids, scores = selection``.

    Attributes:
        ids: ``[budget]``, ids of the selected rows, ascending; int64 where they are integers.
        scores: float64 ``[n]``, what the selector ranked the rows by, in the order of the ids it was given.
        outcome: how the choice came about, as JSON values, where the selector tells; no part of the pair.

    Example:
        >>> ids, scores = Selection(np.array([3, 7]), np.array([0.1, 0.9, 0.4]))
        >>> ids.tolist(), len(scores)
        ([3, 7], 3)
    """

    ids: np.ndarray
    scores: np.ndarray
    outcome: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Ids and scores."""
        return iter((self.ids, self.scores))

    def __repr__(self) -> str:
        """One line, however many rows there are."""
        scores = f"; scores {self.scores.min():.4g} to {self.scores.max():.4g}" if len(self.scores) else ""
        shown = f": {first_of(self.ids)}" if len(self.ids) else ""
        return f"Selection({len(self.ids):,} of {len(self.scores):,} rows{shown}{scores})"


@dataclass(frozen=True, repr=False)
class Selector(Declared, ABC):
    """Chooses rows. The result depends on the ids and what belongs to them, not on the order of the rows.

    The settings of a selector are the fields of its frozen dataclass: field ``n_groups`` of selector ``ccs``, annotated
    with a :class:`~recbole_llm.declare.Setting`, is the key ``ccs_n_groups``.

    Example:
        >>> from recbole_llm.coreset import CCSSelector
        >>> selector, difficulty = CCSSelector(n_groups=5), np.linspace(0, 1, 40)
        >>> selector.select(np.arange(40), 0.1, el2n=difficulty)
        Selection(4 of 40 rows: 12, 18, 24, 30; scores 0 to 1)
        >>> ids, scores = selector.select([f"row {i}" for i in range(40)], 3, el2n=difficulty)
        >>> len(ids), len(scores), selector
        (3, 40, CCSSelector(n_groups=5))
    """

    name: ClassVar[str]
    """Value of the config key `coreset`."""
    needs: ClassVar[tuple[Input, ...]] = ()
    """The inputs of :meth:`select`."""

    def facts(self) -> dict[str, Any]:
        """Kind and settings, as JSON values: what the result depends on beside ids, budget, seed and inputs."""
        return {"coreset": self.name, **{own.name: getattr(self, own.name) for own in fields(self)}}

    def select(self, ids: ArrayLike, budget: int | float, seed: int = 0, **inputs: Array | None) -> Selection:
        """Choose rows.

        Args:
            ids: ``[n]``, each once: the rows that can be selected; integers, texts or anything else that has an order.
                Rows are considered in that order, texts in the order of their characters' code points.
            budget: how many: an integer >= 0 is a count, a decimal a share of at most 1.0, rounded down. Where there
                are fewer rows all of them are selected, with a warning.
            seed: seed of everything drawn; no other random state has a part in it.
            **inputs: what :attr:`needs` names, one entry per row in the order of ``ids`` where it says so.

        Raises:
            InputError: an input is missing, unknown, of other rows, or holds NaN; an id occurs twice; or a share is
                less than one row.
        """
        known = checked_ids(ids)
        wanted = checked_budget(checked_size("budget", budget, len(known)), len(known))
        ready = self._checked(known, inputs)
        if not len(known):
            return Selection(known, np.zeros(0))
        order = np.argsort(known)
        if (np.diff(order) != 1).any():  # tables may be large: no copy where the rows are in order
            for need in self.needs:
                if need.per_row:
                    ready[need.name] = _take(ready[need.name], order)
        whole = self.uncut() if wanted >= len(known) else self
        found = Selection(*whole._select(len(known), wanted, seed, **ready))
        scores = np.empty(len(known))
        scores[order] = found.scores
        return Selection(np.sort(known[order[found.ids]]), scores, found.outcome)

    def unused(self) -> frozenset[str]:
        """Names of inputs that have no part in the choice under these settings, and may be left out."""
        return frozenset()

    def uncut(self) -> Selector:
        """This selector without a cut of rows before the choice, for a budget that covers them all."""
        return self

    @abstractmethod
    def _select(self, n_rows: int, budget: int, seed: int, *args: Any, **inputs: Any) -> tuple[Any, ...]:
        """``budget`` different indices, a score per row, and an outcome if there is one to tell of.

        Rows are in the order of their ids, 0 <= budget <= n.
        """

    def _checked(self, ids: np.ndarray, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs as values to compute with."""
        if unknown := sorted(inputs.keys() - {need.name for need in self.needs}):
            raise InputError(f"coreset {self.name} takes no {', '.join(unknown)}", kind="unknown", about=unknown[0])
        ready = {}
        for need in self.needs:
            value = inputs.get(need.name)
            if value is None and need.default is not None:
                value = need.default(ids)
            if value is None:
                raise InputError(
                    f"coreset {self.name} needs {need.name}, {need.meaning}", kind="missing", about=need.name
                )
            ready[need.name] = need.check(value, ids)
            if need.per_row:
                check_length(need.name, len(ready[need.name]), len(ids))
        return ready


def _take(values: Any, order: np.ndarray) -> Any:
    return [values[index] for index in order] if isinstance(values, list) else values[order]


def highest(scores: np.ndarray, budget: int) -> np.ndarray:
    """Indices of the ``budget`` highest scores; of equal ones the first."""
    return np.argsort(-scores, kind="stable")[:budget]


def gumbel_top(log_weights: np.ndarray, budget: int, rng: np.random.Generator) -> np.ndarray:
    """Indices drawn without replacement, each time in proportion to the weights of what is left.

    Rows of weight 0 (-inf here) come last, in equal shares (the Gumbel-top-k trick, arXiv 1903.06059).
    """
    noise = rng.gumbel(size=len(log_weights))
    possible = np.isfinite(log_weights)
    keys = np.where(possible, log_weights + noise, noise)
    drawn: np.ndarray = np.lexsort((-keys, ~possible))[:budget]
    return drawn

"""What every selector is: settings, the inputs it needs, and rows out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np

from recbole_llm.coreset.checks import (
    check_length,
    checked_budget,
    checked_counts,
    checked_ids,
    checked_repeats,
    checked_scores,
    checked_texts,
    checked_vectors,
)
from recbole_llm.declare import Declared
from recbole_llm.errors import InputError


@dataclass(frozen=True)
class Input:
    """Something that a selector needs to know about the rows; whoever calls it provides it under this name.

    Attributes:
        name: of the keyword argument.
        meaning: shape and contents, in words.
        check: called with the value and the ids; gives the value to compute with, or raises InputError.
        per_row: whether there is one entry per row to select from.
    """

    name: str
    meaning: str
    check: Callable[[Any, np.ndarray], Any]
    per_row: bool = True


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


class _Pair(NamedTuple):
    ids: np.ndarray
    scores: np.ndarray


class Selection(_Pair):
    """What a selector gives: a pair, and what else is known of it.

    Attributes:
        ids: int64 ``[budget]``, ids of the selected rows, ascending.
        scores: float64 ``[n]``, what the selector ranked the rows by, in the order of the ids it was given.
        outcome: how the choice came about, as JSON values, where the selector tells; no part of the pair.
    """

    outcome: Mapping[str, Any]

    def __new__(cls, ids: np.ndarray, scores: np.ndarray, outcome: Mapping[str, Any] | None = None) -> Selection:
        """The pair, with the outcome beside it."""
        self = super().__new__(cls, ids, scores)
        self.outcome = dict(outcome or {})
        return self


class Selector(Declared, ABC):
    """Chooses rows. The result depends on the ids and what belongs to them, not on the order of the rows.

    The settings of a selector are the fields of its frozen dataclass: field ``n_groups`` of selector ``ccs``, annotated
    with a :class:`~recbole_llm.declare.Setting`, is the key ``ccs_n_groups``.
    """

    name: ClassVar[str]
    """Value of the config key `coreset`."""
    needs: ClassVar[tuple[Input, ...]] = ()
    """The inputs of :meth:`select`."""

    def facts(self) -> dict[str, Any]:
        """Kind and settings, as JSON values: what the result depends on beside ids, budget, seed and inputs."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)} if is_dataclass(self) else {}
        return {"coreset": self.name, **settings}

    def select(self, ids: Any, budget: int, seed: int = 0, **inputs: Any) -> Selection:
        """Choose rows.

        Args:
            ids: int ``[n]``, each once: the rows that can be selected.
            budget: how many, >= 0; where there are fewer rows all of them are selected, with a warning.
            seed: of everything drawn; no other random state has a part in it.
            **inputs: what :attr:`needs` names, one entry per row in the order of ``ids`` where it says so.

        Raises:
            InputError: an input is missing, unknown, of other rows, or holds NaN.
        """
        ids = checked_ids(ids)
        budget = checked_budget(budget, len(ids))
        ready = self._checked(ids, inputs)
        if not len(ids):
            return Selection(ids, np.zeros(0))
        order = np.argsort(ids)
        if (np.diff(order) != 1).any():  # tables may be large: no copy where the rows are in order
            for need in self.needs:
                if need.per_row:
                    ready[need.name] = _take(ready[need.name], order)
        found = Selection(*self._select(len(ids), budget, seed, **ready))
        scores = np.empty(len(ids))
        scores[order] = found.scores
        return Selection(np.sort(ids[order[found.ids]]), scores, found.outcome)

    def unused(self) -> frozenset[str]:
        """Names of inputs that have no part in the choice under these settings, and may be left out."""
        return frozenset()

    @abstractmethod
    def _select(self, n_rows: int, budget: int, seed: int, *args: Any, **inputs: Any) -> tuple[Any, ...]:
        """``budget`` different indices, a score per row, and an outcome if there is one to tell of.

        Rows are in the order of their ids, 0 <= budget <= n.
        """

    def _checked(self, ids: np.ndarray, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs as values to compute with."""
        if unknown := sorted(inputs.keys() - {need.name for need in self.needs}):
            raise InputError(f"coreset {self.name} takes no {', '.join(unknown)}")
        ready = {}
        for need in self.needs:
            if inputs.get(need.name) is None:
                raise InputError(f"coreset {self.name} needs {need.name}, {need.meaning}")
            ready[need.name] = need.check(inputs[need.name], ids)
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

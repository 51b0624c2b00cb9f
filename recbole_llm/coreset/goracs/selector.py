"""The selector ``goracs``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from recbole_llm.arrays import to_numpy
from recbole_llm.coreset.checks import checked_counts, checked_vectors
from recbole_llm.coreset.goracs.select import GoracsInfo, Labels, checked_norms, checked_pair, select_rows
from recbole_llm.coreset.goracs.settings import GoracsSettings
from recbole_llm.coreset.labels import LABELS, checked_labels
from recbole_llm.coreset.selector import Input, Selector
from recbole_llm.errors import InputError

EMBEDDINGS = Input(
    "embeddings", "[n, d]: the text encoder's vectors of the rows", partial(checked_vectors, "embeddings")
)
GRADIENT_NORMS = Input(
    "gradient_norms", "[n]: norm of the gradient of the LLM's loss", partial(checked_counts, "gradient_norms")
)
VALID_EMBEDDINGS = Input(
    "valid_embeddings",
    "[n_valid, d]: the same encoder's vectors of the validation rows",
    lambda values, ids: checked_vectors("valid_embeddings", values, np.arange(len(values))),
    per_row=False,
)
VALID_LABELS = Input(
    "valid_labels",
    "[n_valid]: classes of the validation rows",
    lambda values, ids: to_numpy(values),
    per_row=False,
)


def outcome_of(info: GoracsInfo) -> dict[str, Any]:
    """A :class:`GoracsInfo` as JSON values, without the scores: classes are text."""

    def plain(value: object) -> Any:
        if isinstance(value, Mapping):
            return {str(name): plain(own) for name, own in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in vars(info).items() if name != "scores"}


@dataclass(frozen=True, repr=False)
class GoracsSelector(GoracsSettings, Selector):
    """:func:`goracs_select` as a selector; its scores are minus the marginal costs of the rows in the end.

    ``labels`` and ``valid_labels`` may be left out, together; ``gradient_norms`` where ``gradient_weight`` is 0.

    Example:
        >>> selector = GoracsSelector(gradient_weight=0.0)
        >>> rows, valid = [[0.0], [0.1], [5.0], [9.0]], [[0.0], [5.0]]
        >>> selector.select(np.arange(4), 2, embeddings=rows, valid_embeddings=valid).ids.tolist()
        [0, 2]
    """

    name = "goracs"
    needs = (EMBEDDINGS, VALID_EMBEDDINGS, GRADIENT_NORMS, LABELS, VALID_LABELS)

    def unused(self) -> frozenset[str]:
        """Gradient norms where they have no weight."""
        return frozenset() if self.gradient_weight else frozenset({GRADIENT_NORMS.name})

    def _checked(self, ids: np.ndarray, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if (inputs.get("labels") is None) != (inputs.get("valid_labels") is None):
            raise InputError("coreset goracs needs labels and valid_labels, or neither", kind="missing", about="labels")
        given = dict(inputs)
        if given.get("valid_labels") is None and given.get("valid_embeddings") is not None:
            given["valid_labels"] = np.zeros(len(given["valid_embeddings"]), dtype=np.int64)
        if given.get("gradient_norms") is None and self.unused():
            given["gradient_norms"] = np.zeros(len(ids))
        return super()._checked(ids, given)

    def _select(
        self,
        n_rows: int,
        budget: int,
        seed: int,
        *,
        embeddings: np.ndarray,
        gradient_norms: np.ndarray,
        valid_embeddings: np.ndarray,
        labels: np.ndarray,
        valid_labels: np.ndarray,
    ) -> tuple[Any, ...]:
        train, valid = checked_pair(embeddings, valid_embeddings)
        classes = Labels(labels, checked_labels("valid_labels", valid_labels, np.arange(len(valid))))
        norms = checked_norms(gradient_norms, n_rows, self)
        if not budget:
            return np.zeros(0, dtype=np.int64), np.zeros(n_rows)
        chosen, info = select_rows(train, valid, norms, budget, self, classes, seed)
        return chosen, info.scores, outcome_of(info)

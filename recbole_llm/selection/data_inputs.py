"""Inputs of selectors that no model has to compute."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.errors import InputError
from recbole_llm.model.base import LLMRecommender, TokenPair
from recbole_llm.selection.pool import Pool
from recbole_llm.selection.provider import Provider, row_input
from recbole_llm.settings.config import Config

if TYPE_CHECKING:
    from recbole_llm.selection.row_inputs import RowInputs


class ValidRows(NamedTuple):
    """Validation rows that can be read.

    Attributes:
        rows: themselves.
        examples: prompt and response of each.
    """

    rows: Interaction
    examples: list[TokenPair]


class DataInputs(Provider):
    """What the rows themselves say, for rows without labels.

    Args:
        model: the recommender, which knows the items' titles.
        config: the resolved config.
        pool: the rows to choose from.
    """

    is_kept: ClassVar[bool] = False

    def __init__(self, model: LLMRecommender, config: Config, pool: Pool) -> None:
        super().__init__()
        self.model, self.config, self.pool = model, config, pool

    @classmethod
    def of(cls, rows: RowInputs) -> DataInputs:
        """See :class:`Provider`."""
        return cls(rows.model, rows.config, rows.pool)

    @row_input()
    def labels(self) -> np.ndarray | None:
        """Whether each row is a like; None where rows have no labels. Returns: int64 [n]."""
        return None

    @row_input()
    def valid_labels(self) -> np.ndarray | None:
        """Whether each validation row that can be read is a like; None where rows have no labels."""
        return None

    @row_input()
    def texts(self) -> list[str]:
        """Titles of each row's history and target; the words of the prompt, which all rows share, tell none apart."""
        return self._texts(self.pool.histories, self.pool.rows)

    @row_input()
    def target_texts(self) -> list[str]:
        """Titles of each validation row's history and target."""
        rows = self.pool.valid_rows
        return self._texts(self.model.histories(rows), rows)

    @row_input()
    def history_lengths(self) -> np.ndarray:
        """Training interactions of each row's user, as far as the training rows tell of them. Returns: int64 [n]."""
        data = self.pool.data
        users, lengths = (data.inter_feat[name].numpy() for name in (data.uid_field, data.item_list_length_field))
        longest = np.zeros(users.max() + 1, dtype=np.int64)
        np.maximum.at(longest, users, lengths)
        mine = self.pool.rows[data.uid_field].numpy()
        found: np.ndarray = np.maximum(longest, np.bincount(users))[mine] + 1  # a user's first one is no row's target
        return found

    @cached_property
    def valid(self) -> ValidRows:
        """The validation rows that can be read.

        Raises:
            InputError: there is none.
        """
        rows = self.pool.valid_rows
        examples = self.model.token_pairs(rows)
        readable = {row: example for row, example in enumerate(examples) if example is not None}
        if not readable:
            field = self.config["title_field"]
            raise InputError("coreset", f"no validation row has titles in field '{field}'", kind="data")
        return ValidRows(rows[torch.tensor(list(readable))], list(readable.values()))

    def titles(self, items: Sequence[int]) -> str:
        """Titles of items as one text; those without one are left out."""
        titles = self.model.catalog.titles
        return "; ".join(title for item in items if (title := titles[item]))

    def _texts(self, histories: Sequence[Sequence[int]], rows: Interaction) -> list[str]:
        targets = rows[self.model.ITEM_ID].tolist()
        return [self.titles([*history, item]) for history, item in zip(histories, targets, strict=True)]


class ClickDataInputs(DataInputs):
    """What the rows themselves say, labels included."""

    @row_input()
    def labels(self) -> np.ndarray:
        """Whether each row is a like. Returns: int64 [n]."""
        return self._labels(self.pool.rows)

    @row_input()
    def valid_labels(self) -> np.ndarray:
        """Whether each validation row that can be read is a like. Returns: int64 [m]."""
        return self._labels(self.valid.rows)

    def _labels(self, rows: Interaction) -> np.ndarray:
        labels: np.ndarray = (rows[self.config["LABEL_FIELD"]] > 0).long().numpy()
        return labels

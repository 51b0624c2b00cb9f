"""The training rows that a selector chooses from."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.data.rows import SAMPLE_ID, row_histories, rows_digest
from recbole_llm.hashing import hash_arrays

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset


class Pool:
    """Some of the training rows, beside all of them and those of validation.

    Args:
        data: the training rows, a RecBole data set.
        indices: int64 [n], the rows to choose from among these.
        valid_data: the validation rows, a RecBole data set, or None.

    Attributes:
        rows: the rows to choose from.
        ids: int64 [n], of these.
    """

    def __init__(self, data: Dataset, indices: np.ndarray, valid_data: Dataset | None = None) -> None:
        self.data, self.indices, self.valid_data = data, indices, valid_data
        self.rows: Interaction = data.inter_feat[torch.from_numpy(indices)]
        self.ids: np.ndarray = self.rows[SAMPLE_ID].numpy()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def valid_rows(self) -> Interaction:
        """The validation rows; only asked for where there are some."""
        assert self.valid_data is not None
        return self.valid_data.inter_feat

    @cached_property
    def histories(self) -> list[list[int]]:
        """Items before each row's target, oldest first."""
        items, lengths = row_histories(self.data.copy(self.rows))
        return [own[:length] for own, length in zip(items.tolist(), lengths.tolist(), strict=True)]

    @cached_property
    def digests(self) -> dict[str, str]:
        """What tells all training rows, and those to choose from, from others."""
        return {"rows": rows_digest(self.data), "pool": hash_arrays(self.ids)}

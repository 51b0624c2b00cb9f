"""The training rows of a model, as token ids."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llm.errors import InputError
from recbole_llm.model.base import LLMRecommender, TokenPair
from recbole_llm.prompt.trunk import Trunks
from recbole_llm.selection.trunk_rows import trunks_of

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRows:
    """Rows that a model is trained on.

    Attributes:
        data: all of them, a RecBole data set; what the result of training depends on.
        readable: rows that have a prompt and a response.
        examples: token ids of prompt and response of each readable row.
        histories: item ids of each readable row's history, oldest first.
        trunks: trunks of the readable rows, where those of a user are computed together; else None.
    """

    data: Any
    readable: Interaction
    examples: list[TokenPair]
    histories: list[list[int]]
    trunks: Trunks | None = None

    def __len__(self) -> int:
        return len(self.data)

    def beside(self, more: Sequence[TokenPair]) -> tuple[list[TokenPair], list[list[int]], Trunks | None]:
        """Examples, histories and trunks of the readable rows and of further examples, which have no history."""
        if not more:
            return self.examples, self.histories, self.trunks
        n_rows = len(self.examples)
        alone = [np.array([n_rows + index]) for index in range(len(more))]
        trunks = None if self.trunks is None else Trunks([*self.trunks.rows, *alone])
        return [*self.examples, *more], [*self.histories, *([] for _ in more)], trunks

    @classmethod
    def of(cls, model: LLMRecommender, rows: Dataset, examples: Sequence[TokenPair | None]) -> TrainingRows:
        """The rows with their examples, None for those that cannot be read; the log says how many these are.

        Raises:
            InputError: no row can be read.
        """
        readable = [example for example in examples if example is not None]
        if len(readable) < len(examples):
            log.warning("%d training rows have no titled history or target; skipped.", len(examples) - len(readable))
        check_any(readable, model)
        kept = rows.inter_feat[torch.tensor([example is not None for example in examples])]
        histories = model.histories(kept)
        trunks = trunks_of(model, kept, histories) if model.config["train_unit"] == "user" else None
        return cls(rows, kept, readable, histories, trunks)


def read_examples(model: LLMRecommender, rows: Dataset) -> list[TokenPair | None]:
    """Token ids of prompt and response of each row of a data set; the log says how many prompts were cut."""
    before, cut_before = model.prompts.n_shortened, model.n_cut
    examples = model.token_pairs(rows.inter_feat)
    if shortened := model.prompts.n_shortened - before:
        log.warning("%d prompts exceed max_prompt_tokens and lost their oldest items.", shortened)
    if cut := model.n_cut - cut_before:
        log.warning("%d titles to learn lost their end: the LLM has no positions for more behind their prompts.", cut)
    return examples


def check_any(readable: Sequence[object], model: LLMRecommender) -> None:
    """Refuse training rows of which the model can read none.

    Raises:
        InputError: with the field whose titles are missing.
    """
    if not len(readable):
        raise InputError(f"no training row has titles in field '{model.config['title_field']}'", kind="data")


def subset(rows: Dataset, indices: np.ndarray) -> Any:
    """Some rows of a data set, in the order given."""
    return rows.copy(rows.inter_feat[torch.from_numpy(indices)])

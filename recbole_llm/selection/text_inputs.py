"""Inputs of selectors from a text encoder: vectors of the prompt and answer of rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from recbole_llm.hashing import hash_json
from recbole_llm.model.base import LLMRecommender, TokenPair
from recbole_llm.selection.data_inputs import DataInputs
from recbole_llm.selection.provider import Provider, RowInput, row_input
from recbole_llm.selection.text_vectors import TextVectors
from recbole_llm.settings.config import Config

if TYPE_CHECKING:
    from recbole_llm.selection.row_inputs import RowInputs


class TextInputs(Provider):
    """What an encoder of texts computes from rows: of prompt and answer.

    Args:
        model: the recommender, untuned.
        config: the resolved config.
        data: the rows.
        examples: prompt and response of each row to choose from.
    """

    is_joint: ClassVar[bool] = True

    def __init__(self, model: LLMRecommender, config: Config, data: DataInputs, examples: Sequence[TokenPair]) -> None:
        super().__init__()
        self.model, self.data, self.examples = model, data, examples
        self.encoder = TextVectors(model, config)

    @classmethod
    def of(cls, rows: RowInputs) -> TextInputs:
        """See :class:`Provider`."""
        return cls(rows.model, rows.config, rows.data, rows.examples)

    def facts(self, declared: RowInput) -> dict[str, Any]:
        """See :class:`Provider`; the texts themselves, of any model."""
        texts = self.valid_embedded if declared.name == "valid_embeddings" else self.embedded
        return {"texts": hash_json(texts), "encoder": self.encoder.facts(texts)}

    @row_input()
    def embeddings(self) -> np.ndarray:
        """Vectors of the rows' texts. Returns: float32 [n, d]."""
        return self.encoder.embed(self.embedded)

    @row_input()
    def valid_embeddings(self) -> np.ndarray:
        """Vectors of the texts of the validation rows that can be read. Returns: float32 [n_valid, d]."""
        return self.encoder.embed(self.valid_embedded)

    @cached_property
    def embedded(self) -> list[str]:
        """What is embedded of each row."""
        return self._texts(self.examples)

    @cached_property
    def valid_embedded(self) -> list[str]:
        """What is embedded of each validation row that can be read."""
        return self._texts(self.data.valid.examples)

    def _texts(self, examples: Sequence[TokenPair]) -> list[str]:
        # Ids below 0 are slots of vectors.
        shown = [[token for token in self._shown(*example) if token >= 0] for example in examples]
        return [self.model.backbone.decode(tokens) for tokens in shown]

    def _shown(self, prompt: list[int], response: list[int]) -> list[int]:
        """What of a row is embedded, as token ids."""
        return prompt + response


class ClickTextInputs(TextInputs):
    """What an encoder of texts computes from rows whose labels are classes: of the prompt alone."""

    def _shown(self, prompt: list[int], response: list[int]) -> list[int]:
        return prompt

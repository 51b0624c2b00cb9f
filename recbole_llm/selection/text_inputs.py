"""What selectors need to know of rows from an encoder of texts: vectors of what the LLM reads in them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from recbole_llm.evaluation import protocol_of
from recbole_llm.hashing import hash_json
from recbole_llm.model.base import LLMRecommender, TokenPair
from recbole_llm.selection.data_inputs import DataInputs
from recbole_llm.selection.text_vectors import TextVectors


class TextInputs:
    """One method per input, of its name.

    Args:
        model: the recommender, untuned.
        config: the resolved config.
        data: the rows.
        examples: prompt and response of each row to choose from.
    """

    def __init__(self, model: LLMRecommender, config: Any, data: DataInputs, examples: Sequence[TokenPair]) -> None:
        self.model, self.config, self.data, self.examples = model, config, data, examples
        self.encoder = TextVectors(model, config)

    def facts(self, name: str) -> dict[str, Any]:
        """What an input depends on, as JSON values."""
        texts = self.embedded if name == "embeddings" else self.valid_embedded
        return {"texts": hash_json(texts), "encoder": self.encoder.facts()}

    def embeddings(self) -> np.ndarray:
        """Vectors of the rows' texts. Returns: float32 [n, d]."""
        return self.encoder.embed(self.embedded)

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
        """Prompt and answer of each row; the prompt alone for clicks, whose labels are classes instead."""
        is_click = protocol_of(self.config).has_labels
        whole = [prompt if is_click else prompt + response for prompt, response in examples]
        # Ids below 0 are slots of vectors.
        return [self.model.backbone.decode([token for token in tokens if token >= 0]) for tokens in whole]

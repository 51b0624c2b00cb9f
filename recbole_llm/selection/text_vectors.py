"""Vectors of texts, by the LLM itself or by an encoder of texts (GORACS, arXiv 2506.04015)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from recbole_llm.llm.settings import OWN_LLM
from recbole_llm.llm.text_encoders import EncoderRecipe, find_text_encoder, load_text_encoder
from recbole_llm.model.backbones import number_facts
from recbole_llm.model.base import LLMRecommender
from recbole_llm.settings.config import Config

MAX_TOKENS = 4096  # longest text that is embedded
ROWS: dict[str, Any] = {"max_tokens": MAX_TOKENS, "truncation_side": "left"}  # how rows and histories are embedded
LLM_ENCODER: dict[str, Any] = {"pooling": "mean", **ROWS}


class TextVectors:
    """Vectors of texts, as the key ``coreset_encoder`` says: by default means over the untuned LLM's states.

    Args:
        model: the recommender.
        config: the resolved config.
    """

    def __init__(self, model: LLMRecommender, config: Config) -> None:
        self.model, self.config = model, config

    @cached_property
    def _recipe(self) -> EncoderRecipe | None:
        """None where the LLM is the encoder."""
        name = self.config["coreset_encoder"]
        return None if name == OWN_LLM else find_text_encoder(name, self.config["trust_remote_code"])

    def facts(self, texts: Sequence[str] = ()) -> dict[str, Any]:
        """What vectors of texts depend on besides these, as JSON values."""
        if self._recipe:
            return self._recipe.facts() | {"max_tokens": min(MAX_TOKENS, self._recipe.max_tokens or MAX_TOKENS)}
        facts = self.model.text_encoder(self.model.llm, **LLM_ENCODER).fingerprint_facts(texts)
        return {"llm": self.model.backbone.fingerprint, **number_facts(self.config), **facts}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts. Returns: float32 [texts, d]."""
        if not self._recipe:
            return self.model.embed(texts, self.model.show_progress, **LLM_ENCODER)
        encoder = load_text_encoder(
            self._recipe,
            device=self.model.device,
            max_batch_tokens=self.model.generation_budget,
            max_tokens=MAX_TOKENS,
            trust_remote_code=self.config["trust_remote_code"],
        )
        return encoder.encode(texts, progress=self.model.show_progress)

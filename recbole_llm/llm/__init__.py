"""Causal language models: loading, loss, text encoding, generation, and a small one made on the spot."""

from recbole_llm.llm.backbone import Backbone, load_backbone, make_backbone
from recbole_llm.llm.encoder import TextEncoder
from recbole_llm.llm.generation import Generation, beam_search
from recbole_llm.llm.loss import answer_log_probs, answer_loss, logits_at, positions_from_mask
from recbole_llm.llm.tiny import TinyLLMConfig, build_tiny_llm

__all__ = [
    "Backbone",
    "Generation",
    "TextEncoder",
    "TinyLLMConfig",
    "answer_log_probs",
    "answer_loss",
    "beam_search",
    "build_tiny_llm",
    "load_backbone",
    "logits_at",
    "make_backbone",
    "positions_from_mask",
]

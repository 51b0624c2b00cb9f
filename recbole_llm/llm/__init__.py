"""Causal language models: loading, loss, text encoding, generation, and a small one made on the spot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recbole_llm.lazy import lazy_exports

if TYPE_CHECKING:
    from recbole_llm.llm.assistant import Assistant
    from recbole_llm.llm.backbone import Backbone, load_backbone, make_backbone
    from recbole_llm.llm.capabilities import FastPath, Finding
    from recbole_llm.llm.constrained import TitleConstraint, beam_item_scores, search_titles
    from recbole_llm.llm.contrastive import all_item_loss, infonce_loss, soft_target_loss, soft_targets, thin_attributes
    from recbole_llm.llm.encoder import TextEncoder
    from recbole_llm.llm.generation import Generation, beam_search
    from recbole_llm.llm.likelihood import choose_way, title_likelihoods, title_scores
    from recbole_llm.llm.loss import answer_log_probs, answer_loss, logits_at, positions_from_mask
    from recbole_llm.llm.probe import probe_llm
    from recbole_llm.llm.settings import TinyLLMConfig
    from recbole_llm.llm.text_encoders import EncoderRecipe, SentenceEncoder, find_text_encoder, load_text_encoder
    from recbole_llm.llm.tiny import build_tiny_llm
    from recbole_llm.llm.trie import TitleTrie

__all__ = [
    "Assistant",
    "Backbone",
    "EncoderRecipe",
    "FastPath",
    "Finding",
    "Generation",
    "SentenceEncoder",
    "TextEncoder",
    "TinyLLMConfig",
    "TitleConstraint",
    "TitleTrie",
    "all_item_loss",
    "answer_log_probs",
    "answer_loss",
    "beam_item_scores",
    "beam_search",
    "build_tiny_llm",
    "choose_way",
    "find_text_encoder",
    "infonce_loss",
    "load_backbone",
    "load_text_encoder",
    "logits_at",
    "make_backbone",
    "positions_from_mask",
    "probe_llm",
    "search_titles",
    "soft_target_loss",
    "soft_targets",
    "thin_attributes",
    "title_likelihoods",
    "title_scores",
]

__getattr__ = lazy_exports(__name__, __file__)

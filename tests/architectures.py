"""Small causal LMs of many architectures with random weights, made from their configs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 97
WINDOW = 16

_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_ROTARY = {**_SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 256}
_GPT = {"vocab_size": VOCABULARY, "n_layer": 2, "n_head": 4}

# name: class of transformers without its ending, settings
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _ROTARY),
    "qwen2": ("Qwen2", _ROTARY),
    "qwen3": ("Qwen3", {**_ROTARY, "head_dim": 8}),
    "mistral": ("Mistral", {**_ROTARY, "sliding_window": None}),
    "mistral, window": ("Mistral", {**_ROTARY, "sliding_window": WINDOW}),
    "gemma2": ("Gemma2", {**_ROTARY, "head_dim": 8, "sliding_window": WINDOW}),
    "gemma3": ("Gemma3", {**_ROTARY, "head_dim": 8, "sliding_window": WINDOW}),
    "gpt2": ("GPT2", {**_GPT, "n_embd": 32, "n_positions": 256}),
    "gpt_neox": ("GPTNeoX", {**_SIZES, "intermediate_size": 64, "max_position_embeddings": 256}),
    "opt": ("OPT", {**_SIZES, "word_embed_proj_dim": 32, "ffn_dim": 64, "max_position_embeddings": 256}),
    "gpt_neo": (
        "GPTNeo",
        {
            **{"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": WINDOW},
            **{"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 256},
        },
    ),
    "mpt": ("Mpt", {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
    "bloom": ("Bloom", {**_GPT, "hidden_size": 32}),
    "falcon, alibi": ("Falcon", {**_SIZES, "alibi": True}),
    "falcon, rotary": ("Falcon", {**_SIZES, "alibi": False}),
    "phi": ("Phi", _ROTARY),
    "phi3": ("Phi3", {**_ROTARY, "pad_token_id": 0}),
    "smollm3": ("SmolLM3", {**_ROTARY, "pad_token_id": 0}),
    "mixtral": ("Mixtral", {**_ROTARY, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            **{**_ROTARY, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
            **{"num_experts": 4, "num_experts_per_tok": 2},
        },
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {**_ROTARY, "head_dim": 8, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "mamba": ("Mamba", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "lfm2": ("Lfm2", {**_ROTARY, "layer_types": ["conv", "full_attention"]}),
    "recurrent_gemma": (
        "RecurrentGemma",
        {
            **{**_SIZES, "num_hidden_layers": 3, "num_key_value_heads": 1, "intermediate_size": 96, "lru_width": 32},
            **{"attention_window_size": WINDOW, "block_types": ["recurrent", "recurrent", "attention"]},
        },
    ),
}

# One of each kind of attention, positions and states: those that fast tests try where the probe has tried all.
COMMON = ("llama", "gemma3", "gpt2", "gpt_neo", "bloom", "mamba", "lfm2", "qwen3_moe")
COMMON_FIRST = [pytest.param(name, marks=[] if name in COMMON else pytest.mark.slow) for name in ARCHITECTURES]


def make_architecture(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A randomly initialised float32 model in eval mode, its answers far from uniform; `changes` are of its config."""
    family, settings = ARCHITECTURES[name]
    config_name = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    model_name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    make: Callable[[Any], PreTrainedModel] = getattr(transformers, model_name)
    torch.manual_seed(seed)
    model = make(getattr(transformers, config_name)(**{**settings, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0) if parameter.ndim == 2 else None
    return model.eval()

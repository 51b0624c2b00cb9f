"""Small causal LMs of three families, made from their configs: what the tests run instead of downloaded weights.

``llama`` has a BOS token and rotary positions, ``qwen2`` has no BOS and tied embeddings, ``gpt2`` has learned absolute
positions and one token that is BOS, EOS and padding at once.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

FAMILIES = ("llama", "qwen2", "gpt2")
# For tests that are made of both: a fast case varies one of them.
WITH_ATTENTION = [
    pytest.param(family, attention, marks=[] if family == "llama" or attention == "sdpa" else pytest.mark.slow)
    for family in FAMILIES
    for attention in ("sdpa", "eager")
]
TEXTS = [
    'The user has watched these movies: "Toy Story", "GoldenEye", "Four Rooms", "Get Shorty", "Copycat".',
    "### Instruction: name one movie.\n### Response:\n",
    "Shanghai Triad Twelve Monkeys Babe Dead Man Walking Richard III Seven Usual Suspects Mighty Aphrodite Postino",
]


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the special tokens of the family."""
    specials = {
        "llama": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        "qwen2": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    }[family]
    raw = Tokenizer.from_str(_trained(tuple(sorted(set(specials.values())))))
    if family == "llama":
        bos = specials["bos_token"]
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, raw.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False, **specials)


@cache
def _trained(special_tokens: tuple[str, ...]) -> str:
    """The tokenizer's vocabulary and merges as JSON: training takes longer than most tests of a tokenizer."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=list(special_tokens), initial_alphabet=alphabet)
    )
    return raw.to_str()


def make_model(
    family: str, vocab_size: int, hidden_size: int = 32, n_layers: int = 2, seed: int = 0
) -> PreTrainedModel:
    """A randomly initialised fp32 model in eval mode; the same seed gives the same weights."""
    torch.manual_seed(seed)
    shape = {"num_hidden_layers": n_layers, "num_attention_heads": 4, "hidden_size": hidden_size}
    rotary = dict(shape, intermediate_size=2 * hidden_size, num_key_value_heads=2, max_position_embeddings=512)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, tie_word_embeddings=False, **rotary))
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=vocab_size, tie_word_embeddings=True, **rotary))
    else:
        config = GPT2Config(vocab_size=vocab_size, n_layer=n_layers, n_head=4, n_embd=hidden_size, n_positions=512)
        model = GPT2LMHeadModel(config)
    with torch.no_grad():  # spread the logits: a fresh model is so close to uniform that every comparison is a near-tie
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.ndim > 1 else None
    return model.eval()


def make_family(family: str, **kwargs: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of one family, with their special token ids agreed."""
    tokenizer = make_tokenizer(family)
    model = make_model(family, len(tokenizer), **kwargs)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, name, getattr(tokenizer, name))
        setattr(model.generation_config, name, getattr(tokenizer, name))
    return model, tokenizer


def save_family(family: str, folder: Path, **kwargs: int) -> Path:
    """The same as an ordinary Hugging Face folder."""
    model, tokenizer = make_family(family, **kwargs)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

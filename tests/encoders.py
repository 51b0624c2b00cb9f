"""Small text encoders with random weights, saved as sentence-transformers or plain Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *"abc", *"River Empire Garden Station Mirror Harbor Signal".split()]


def save_encoder(folder: Path, kind: str = "bert", max_tokens: int = 12, **files: object) -> Path:
    """A small encoder with random weights, and the JSON files given; of a nested file `__` stands for `/`."""
    raw = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config_class, model_class = {"bert": (BertConfig, BertModel), "roberta": (RobertaConfig, RobertaModel)}[kind]
    config = config_class(vocab_size=len(WORDS), max_position_embeddings=max_tokens, pad_token_id=0, **shape)
    model_class(config).save_pretrained(folder)
    for name, value in files.items():
        file = folder / f"{name.replace('__', '/')}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(value) if not isinstance(value, str) else value)
    return folder

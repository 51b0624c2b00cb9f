"""GGUF files written by the package ``gguf`` from models in memory, in the layout of llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

CHAT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(
    file: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    kind: str = "F32",
    pre: str | None = "gpt-2",
    architecture: str = "llama",
    without: str = "",
) -> Path:
    """Write a Llama and its byte-level tokenizer; matrices in the number type `kind`, such as ``Q8_0``.

    `pre` is what the file says of how texts are cut, None for nothing; `without` is a weight that it lacks.
    """
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _add_tokenizer(writer, tokenizer, pre)
    for name, weight in model.state_dict().items():
        if name == without or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        values = in_llama_cpp_order(name, weight.numpy(), config.num_attention_heads, config.num_key_value_heads)
        number_type = gguf.GGMLQuantizationType[kind] if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(_name(name), gguf.quants.quantize(values, number_type), raw_dtype=number_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, pre: str | None) -> None:
    raw: Tokenizer = tokenizer.backend_tokenizer
    tokens = sorted(raw.get_vocab(), key=raw.get_vocab().get)
    control = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in control else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(raw.to_str())["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)


def _name(name: str) -> str:
    """llama.cpp's name of a weight of transformers."""
    if name in _WHOLE:
        return _WHOLE[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def in_llama_cpp_order(name: str, values: np.ndarray, heads: int, key_value_heads: int) -> np.ndarray:
    """llama.cpp turns neighbouring coordinates of queries and keys, transformers those half a head apart."""
    own = heads if "q_proj" in name else key_value_heads if "k_proj" in name else 0
    if not own:
        return values
    return values.reshape(own, 2, len(values) // own // 2, -1).swapaxes(1, 2).reshape(values.shape)

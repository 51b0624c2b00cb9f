"""Backbones: any causal language model of the Hugging Face hub or of a folder, loaded, checked and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from recbole_llm.errors import InputError
from recbole_llm.llm.folders import find_llm, folder_fingerprint
from recbole_llm.llm.gguf import write_folder
from recbole_llm.llm.precision import use_tensor_cores
from recbole_llm.llm.pretrained import (
    check_causal,
    check_eos,
    check_finite,
    check_kernel,
    check_vocabulary,
    load_config,
    load_model,
    load_tokenizer,
    placement,
)
from recbole_llm.llm.special_tokens import find_pad_token


@dataclass(frozen=True)
class Backbone:
    """A causal language model with its tokenizer and the token ids everything else needs.

    Attributes:
        model: the LLM in eval mode.
        tokenizer: its tokenizer, as loaded.
        bos_token_id: first token of every sequence; None where the family has none.
        eos_token_id: ends an answer.
        pad_token_id: fills batches, always behind an attention mask; an id the vocabulary already has.
        forbidden_token_ids: never to be generated: padding and BOS, unless one of them is EOS; rows without a token.
        fingerprint: changes when weights or tokenizer change.
        name: hub name, or name of the folder.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int
    forbidden_token_ids: tuple[int, ...]
    fingerprint: str
    name: str

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids` without special tokens, every blank as generated ("Foo !" stays "Foo !")."""
        text: str = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def check_llm(llm_path: str | Path, *, trust_remote_code: bool = False, revision: str | None = None) -> None:
    """Refuse what is no causal LM with a tokenizer, before its weights are loaded; see :func:`load_backbone`.

    Raises:
        InputError: the path, the type of the model or its tokenizer cannot be used.
    """
    source, hub = find_llm(llm_path), {"revision": revision, "trust_remote_code": trust_remote_code}
    if isinstance(source, Path) and source.is_file():  # a GGUF file says so only after a minute of reading
        return
    check_causal(load_config(source, hub), source)
    check_eos(load_tokenizer(source, hub), source)


def load_backbone(
    llm_path: str | Path,
    *,
    dtype: str = "float32",
    quant: str | None = None,
    device: str | torch.device = "cpu",
    gradient_checkpointing: bool = False,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Backbone:
    """Load a causal language model, by hub name or from a folder, and check that it can be used.

    Args:
        llm_path: folder with `config.json`, weights and tokenizer; a GGUF file, which is read at every call (a run
            keeps what was read); `smollm2`; or a name on the Hugging Face hub.
        dtype: "float32", "bfloat16", "float16", "saved" for the type the weights are stored in, or "auto" for bfloat16
            on a GPU that has it and float32 elsewhere.
        quant: None, "8bit" or "4bit" (bitsandbytes).
        device: where the model goes.
        gradient_checkpointing: recompute activations in the backward pass; takes effect in training mode only.
        attn_implementation: "sdpa", "eager", "flash_attention_2", ...; None lets transformers choose.
        trust_remote_code: allow model code from the hub or the folder.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: the path, the model, its tokenizer or an option cannot be used; one line that says what to do.

    Example:
        >>> load_backbone("./nowhere")
        Traceback (most recent call last):
        ...
        recbole_llm.errors.InputError: llm_path: ./nowhere: ...
    """
    source = find_llm(llm_path)
    use_tensor_cores(device)
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    options = placement(dtype, quant, torch.device(device)) | hub
    if attn_implementation is not None:
        check_kernel(attn_implementation, torch.device(device))
        options["attn_implementation"] = attn_implementation
    if isinstance(source, Path) and source.is_file():
        with TemporaryDirectory() as folder:
            write_folder(source, Path(folder))
            backbone = _load(Path(folder), hub, options, device, gradient_checkpointing)
        return replace(backbone, name=source.stem)
    return _load(source, hub, options, device, gradient_checkpointing)


def _load(
    source: Path | str,
    hub: dict[str, Any],
    options: dict[str, Any],
    device: str | torch.device,
    gradient_checkpointing: bool,
) -> Backbone:
    """Load what :func:`find_llm` found, unless it is a file; `options` are those of `from_pretrained`."""
    config = load_config(source, hub)
    check_causal(config, source)
    tokenizer = load_tokenizer(source, hub)
    check_eos(tokenizer, source)
    model = load_model(source, options)
    check_finite(model, source)
    if "quantization_config" not in options:
        model = model.to(device)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if isinstance(source, Path):
        return make_backbone(model, tokenizer, name=source.name, fingerprint=folder_fingerprint(source))
    return make_backbone(model, tokenizer, name=source, fingerprint=model.config._commit_hash or source)


def make_backbone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str = "", fingerprint: str = ""
) -> Backbone:
    """Put a model and a tokenizer that are already in memory together; see :func:`load_backbone`.

    The model goes to eval mode and loses the sampling defaults of its `generation_config`.

    Raises:
        InputError: the tokenizer has no EOS token, or a special token lies outside the model's embedding matrix.

    Example:
        >>> from tokenizers import Tokenizer
        >>> from tokenizers.models import WordLevel
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> words = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, "Babe": 2}, unk_token="<unk>"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=3, **sizes))
        >>> backbone = make_backbone(model, tokenizer)
        >>> backbone.eos_token_id, backbone.decode([2, 1])
        (1, 'Babe')
    """
    rows = model.get_input_embeddings().weight.shape[0]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    check_eos(tokenizer, name)
    if max(eos, bos or 0) >= rows:
        raise InputError(
            "llm_path",
            f"{name}: BOS {bos} or EOS {eos} is none of its {rows} embeddings; use the tokenizer made for it",
            kind="file",
        )
    check_vocabulary(tokenizer, rows, name)
    pad = find_pad_token(tokenizer, rows)
    model.generation_config = GenerationConfig(bos_token_id=bos, eos_token_id=eos, pad_token_id=pad, do_sample=False)
    output = model.get_output_embeddings()
    width = rows if output is None else output.weight.shape[0]
    empty = {*range(width)}.difference(tokenizer.get_vocab().values())  # rows that make the matrix wider
    forbidden = tuple(sorted(({pad, bos} | empty) - {eos, None}))
    return Backbone(model.eval(), tokenizer, bos, eos, pad, forbidden, fingerprint, name)

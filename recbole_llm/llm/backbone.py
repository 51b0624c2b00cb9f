"""Backbones: any causal language model of the Hugging Face hub or of a folder, loaded, checked and named."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from recbole_llm.errors import InputError
from recbole_llm.llm.folders import find_llm
from recbole_llm.llm.gguf import write_folder
from recbole_llm.llm.precision import SAVED, resolve_dtype, use_tensor_cores
from recbole_llm.llm.settings import AUTO, check_quantisation

DTYPES = (AUTO, "float32", "bfloat16", "float16", SAVED)
QUANTISATIONS = (None, "8bit", "4bit")

_IDENTITY_FILES = ("config.json", "*token*", "vocab*", "merges.txt", "*.model", "chat_template*", "*.py")
_WEIGHT_FILES = ("*.safetensors", "*.bin")
_HASHED_WHOLE = 256 * 2**20  # bytes; of a larger weight file only head, tail and size are hashed
_HASHED_END = 16 * 2**20  # bytes of each end

# Tokens that exist in a vocabulary but in no text: <pad>, [PAD], <|finetune_right_pad_id|>, <unused7>,
# <|reserved_special_token_0|>. The brackets keep ordinary words such as "reserved" out.
_PAD_LIKE = re.compile(r"[<\[]\|?\w*pad\w*\|?[>\]]", re.IGNORECASE)
_ENDS = re.compile(r"[<\[]\|?/?(end\w*|eo[sdt]\w*|im_end|s)\|?[>\]]", re.IGNORECASE)  # <|endoftext|>, <|eot_id|>, </s>
_UNUSED = re.compile(r"[<\[]\|?\w*(reserved|unused|extra_id)\w*\|?[>\]]", re.IGNORECASE)


@dataclass(frozen=True)
class Backbone:
    """A causal language model with its tokenizer and the token ids everything else needs.

    Attributes:
        model: the LLM in eval mode.
        tokenizer: its tokenizer, as loaded.
        bos_token_id: first token of every sequence; None where the family has none.
        eos_token_id: ends an answer.
        pad_token_id: fills batches, always behind an attention mask; an id the vocabulary already has.
        forbidden_token_ids: never to be generated (padding and BOS, unless one of them is EOS).
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
    _check_causal(_load_config(source, hub), source)
    _check_eos(_load_tokenizer(source, hub), source)


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
        llm_path: folder with `config.json`, weights and tokenizer; a GGUF file, which is read anew at every call (a run
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
    options = _placement(dtype, quant, torch.device(device)) | hub
    if attn_implementation is not None:
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
    config = _load_config(source, hub)
    _check_causal(config, source)
    tokenizer = _load_tokenizer(source, hub)
    _check_eos(tokenizer, source)
    model = _load_model(source, options)
    _check_finite(model, source)
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
    _check_eos(tokenizer, name)
    if max(eos, bos or 0) >= rows:
        raise InputError(
            "llm_path",
            f"{name}: BOS {bos} or EOS {eos} is none of its {rows} embeddings; use the tokenizer made for it",
            kind="file",
        )
    _check_vocabulary(tokenizer, rows, name)
    pad = find_pad_token(tokenizer, rows)
    model.generation_config = GenerationConfig(bos_token_id=bos, eos_token_id=eos, pad_token_id=pad, do_sample=False)
    forbidden = tuple(sorted({pad, bos} - {eos, None}))
    return Backbone(model.eval(), tokenizer, bos, eos, pad, forbidden, fingerprint, name)


def find_pad_token(tokenizer: PreTrainedTokenizerBase, n_embeddings: int) -> int:
    """A token id for padding that needs no new row in the embedding matrix.

    The tokenizer's own padding token, else a reserved or unused token of the vocabulary, else EOS.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id < n_embeddings:
        return int(tokenizer.pad_token_id)
    taken = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    free = {token: i for token, i in tokenizer.get_vocab().items() if i < n_embeddings and i not in taken}
    for pattern in (_PAD_LIKE, _UNUSED):
        if matches := [token_id for token, token_id in free.items() if pattern.fullmatch(token)]:
            return int(min(matches))
    return int(tokenizer.eos_token_id)


def find_spare_token(tokenizer: PreTrainedTokenizerBase, n_embeddings: int) -> int | None:
    """A token id that has a row in the embedding matrix and stands in no text: not even at its end.

    The unknown token, else a reserved, unused or padding token of the vocabulary, else a row of the matrix behind the
    last token; never BOS, EOS or another token that by its name ends a text, whichever part a family gives it.

    Returns:
        The id; None where the vocabulary has none to spare. No row is added to the matrix.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    ends: set[int | None] = {tokenizer.bos_token_id, tokenizer.eos_token_id, None}
    ends |= {token_id for token, token_id in vocabulary.items() if _ENDS.fullmatch(token)}
    found = [tokenizer.unk_token_id]
    for pattern in (_UNUSED, _PAD_LIKE):
        found += sorted(token_id for token, token_id in vocabulary.items() if pattern.fullmatch(token))
    found += [max(vocabulary.values(), default=-1) + 1, tokenizer.pad_token_id]
    return next((token_id for token_id in found if token_id not in ends and token_id < n_embeddings), None)


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over names, sizes and contents of the configuration, tokenizer and weight files of a folder.

    Of a weight file above 256 MiB only the first and last 16 MiB are read.
    """
    digest = hashlib.sha256()
    patterns = _IDENTITY_FILES + _WEIGHT_FILES
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size > _HASHED_WHOLE:
                digest.update(file.read(_HASHED_END))
                file.seek(-_HASHED_END, os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()


def _load_config(source: Path | str, hub: dict[str, Any]) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(source, **hub)
    except Exception as error:  # an entry of the wrong type raises whatever the code that reads it does
        if isinstance(source, Path):
            raise InputError(
                "llm_path", f"{source}: config.json cannot be used: {_first_line(error)}", kind="file"
            ) from error
        raise InputError(
            "llm_path",
            f"{source}: neither a folder under {Path.cwd()} nor a model the Hugging Face hub gave "
            f"({_first_line(error)}); check name and connection, give a folder, or use 'tiny'",
            kind="file",
        ) from error


def _check_causal(config: PretrainedConfig, source: Path | str) -> None:
    """Stop at encoder-only and sequence-to-sequence models; AutoModelForCausalLM would load some of them."""
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    causal = remote or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if not causal or encoder or config.is_encoder_decoder:
        raise InputError(
            "llm_path",
            f"{source}: model type '{config.model_type}' is not a causal language model; "
            "give one that AutoModelForCausalLM loads, such as Llama, Qwen or GPT-2",
            kind="file",
        )


def _load_tokenizer(source: Path | str, hub: dict[str, Any]) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source, padding_side="left", **hub)
    except Exception as error:  # the tokenizers library raises bare Exceptions for a broken tokenizer.json
        raise InputError(
            "llm_path", f"{source}: the tokenizer cannot be loaded: {_first_line(error)}", kind="file"
        ) from error


def _check_eos(tokenizer: PreTrainedTokenizerBase, source: Path | str) -> None:
    if tokenizer.eos_token_id is None:
        raise InputError(
            "llm_path",
            f"{source}: the tokenizer has no EOS token, so no answer could end; name one in tokenizer_config.json",
            kind="file",
        )


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, name: str) -> None:
    """Stop at tokens without a row of the embedding matrix; special ones may lack theirs, as no text is read as one."""
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows and i not in special)
    if found:
        raise InputError(
            "llm_path",
            f"{name}: token {found[0][0]} ({found[0][1]!r}) of the tokenizer is none of the model's {rows} embeddings "
            f"({len(found)} such tokens); use the tokenizer made for it",
            kind="file",
        )


def _placement(dtype: str, quant: str | None, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained` for number type, quantisation and device."""
    if dtype not in DTYPES:
        raise InputError("llm_dtype", f"{dtype!r} is unknown; choose one of {', '.join(DTYPES)}", kind="unknown")
    if quant not in QUANTISATIONS:
        raise InputError("quant", f"{quant!r} is unknown; choose 8bit, 4bit, or leave it empty", kind="unknown")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device",
            f"{device}: torch sees no CUDA device; use cpu or install a CUDA build of torch",
            kind="environment",
        )
    dtype = resolve_dtype(dtype, device)
    dtype = "auto" if dtype == SAVED else dtype  # the library's word for it
    if quant is None:
        return {"dtype": dtype}
    check_quantisation(quant, on_cpu=device.type == "cpu")
    compute = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    settings = (
        BitsAndBytesConfig(load_in_8bit=True)
        if quant == "8bit"
        else BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
        )
    )
    return {"dtype": dtype, "quantization_config": settings, "device_map": {"": device}}


def _load_model(source: Path | str, options: dict[str, Any]) -> PreTrainedModel:
    try:
        model, info = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # damaged files, and entries of config.json that no model can be built by
        if "attention" in str(error).lower() and options.get("attn_implementation"):
            raise InputError(
                f"attn_implementation: {_first_line(error)}; give another one, such as sdpa, or install it",
                kind="environment",
            ) from error
        raise InputError(
            "llm_path",
            f"{source}: the weights cannot be loaded: {_first_line(error)}; fetch or save the model again",
            kind="file",
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            "llm_path",
            f"{source}: {len(missing)} weights are missing from the files, first {missing[0]}; "
            "fetch or save the whole causal language model again",
            kind="file",
        )
    return model


def _check_finite(model: PreTrainedModel, source: Path | str) -> None:
    """Stop at weights that hold NaN or infinity: every answer would be wrong, and ranks would not show it."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise InputError(
                "llm_path",
                f"{source}: the weights {name} hold NaN or infinity; fetch or save the model again, or load it in "
                "another llm_dtype",
                kind="numeric",
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":. ")

"""Loading by transformers, with a one-line error for each part that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from recbole_llm.errors import InputError, first_line
from recbole_llm.llm.folders import AN_ADAPTER
from recbole_llm.llm.precision import SAVED, resolve_dtype
from recbole_llm.llm.settings import AUTO, check_quantisation

DTYPES = (AUTO, "float32", "bfloat16", "float16", SAVED)
QUANTISATIONS = (None, "8bit", "4bit")


def placement(dtype: str, quant: str | None, device: torch.device) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for number type, quantisation and device.

    Raises:
        InputError: one is unknown, or this machine cannot do it.
    """
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


def check_kernel(attn_implementation: str, device: torch.device) -> None:
    """Refuse an attention that torch gives no gradient on this device, and says so only after minutes of compiling.

    Raises:
        InputError: which would do.
    """
    if attn_implementation == "flex_attention" and device.type == "cpu":
        raise InputError(
            "attn_implementation",
            "flex_attention has no gradient on a CPU; give another one, such as sdpa",
            kind="environment",
        )


def load_config(source: Path | str, hub: dict[str, Any]) -> PretrainedConfig:
    """The configuration of an LLM.

    Args:
        source: a folder, or a name on the hub.
        hub: ``revision`` and ``trust_remote_code``.

    Raises:
        InputError: it cannot be read, or the hub gave none.
    """
    try:
        return AutoConfig.from_pretrained(source, **hub)
    except Exception as error:  # an entry of the wrong type raises whatever the code that reads it does
        if isinstance(source, Path):
            hint = "; with its own code: --trust_remote_code=True" if "trust_remote_code" in str(error) else ""
            raise InputError(
                "llm_path", f"{source}: config.json cannot be used: {first_line(error)}{hint}", kind="file"
            ) from error
        raise InputError(
            "llm_path",
            f"{source}: neither a folder under {Path.cwd()} nor a model the Hugging Face hub gave "
            f"({first_line(error)}); check name and connection, give a folder, or use 'tiny'",
            kind="file",
        ) from error


def check_causal(config: PretrainedConfig, source: Path | str) -> None:
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


def load_tokenizer(source: Path | str, hub: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of an LLM, padding on the left; arguments as for :func:`load_config`."""
    try:
        return AutoTokenizer.from_pretrained(source, padding_side="left", **hub)
    except Exception as error:  # the tokenizers library raises bare Exceptions for a broken tokenizer.json
        if isinstance(source, Path) and not any(source.glob("*token*")) and not any(source.glob("vocab*")):
            raise InputError(
                "llm_path", f"{source}: the folder has no tokenizer; save it there, too (save_pretrained)", kind="file"
            ) from error
        raise InputError(
            "llm_path", f"{source}: the tokenizer cannot be loaded: {first_line(error)}", kind="file"
        ) from error


def check_eos(tokenizer: PreTrainedTokenizerBase, source: Path | str) -> None:
    """Stop at a tokenizer without an EOS token."""
    if tokenizer.eos_token_id is None:
        raise InputError(
            "llm_path",
            f"{source}: the tokenizer has no EOS token, so no answer could end; name one in tokenizer_config.json",
            kind="file",
        )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, name: str) -> None:
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


def load_model(source: Path | str, options: dict[str, Any]) -> PreTrainedModel:
    """The LLM itself, whole.

    Args:
        source: a folder, or a name on the hub.
        options: options of ``from_pretrained``.

    Raises:
        InputError: weights are damaged or missing, or the attention asked for is not there.
    """
    try:
        model, info = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # damaged files, and entries of config.json that no model can be built by
        if "attention" in str(error).lower() and options.get("attn_implementation"):
            raise InputError(
                f"attn_implementation: {first_line(error)}; give another one, such as sdpa, or install it",
                kind="environment",
            ) from error
        if isinstance(error, ImportError):  # of a package that reads quantised weights
            raise InputError(
                "llm_path", f"{source}: the weights cannot be loaded: {first_line(error)}", kind="environment"
            ) from error
        reason = first_line(error)
        if "ignore_mismatched_sizes" in str(error):
            reason = "they are of other shapes than config.json says"
        raise InputError(
            "llm_path", f"{source}: the weights cannot be loaded: {reason}; fetch or save the model again", kind="file"
        ) from error
    if getattr(model, "_hf_peft_config_loaded", False):  # of the hub; a folder is refused before it is loaded
        raise InputError("llm_path", f"{source} holds {AN_ADAPTER}", kind="file")
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            "llm_path",
            f"{source}: {len(missing)} weights are missing from the files, first {missing[0]}; "
            "fetch or save the whole causal language model again",
            kind="file",
        )
    return model


def check_finite(model: PreTrainedModel, source: Path | str) -> None:
    """Stop at weights that hold NaN or infinity: every answer would be wrong, and ranks would not show it."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise InputError(
                "llm_path",
                f"{source}: the weights {name} hold NaN or infinity; fetch or save the model again, or load it in "
                "another llm_dtype",
                kind="numeric",
            )

"""LLMs in GGUF files: read by transformers with the package ``gguf``, written once as an ordinary folder.

Weights that a file keeps in few bits are spelled out in float32, so that everything that trains and answers sees a
model like any other. Reading takes about a minute, nearly all of it for the vocabulary, so the folder is a stage.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from recbole_llm.errors import InputError, first_line
from recbole_llm.hashing import hash_file
from recbole_llm.llm.folders import check_gguf
from recbole_llm.stages import Stage

log = logging.getLogger(__name__)

_SINGLE_DIGITS = ("smollm",)
"""Values of ``tokenizer.ggml.pre`` whose vocabularies were learned on digits one by one; transformers does not know."""


class GGUFStage(Stage[Path]):
    """The LLM of a GGUF file as a folder of Hugging Face; its result is that folder.

    Args:
        file: the GGUF file.

    Raises:
        InputError: it is no GGUF file.
    """

    name = "gguf"

    def __init__(self, file: Path) -> None:
        check_gguf(file)
        self.file = file

    def facts(self) -> Mapping[str, Any]:
        """See :class:`Stage`; the same file under another name is the same."""
        return {"file": hash_file(self.file)}

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`."""
        log.info("Reading %s: its weights become float32; this takes about a minute.", self.file.name)
        write_folder(self.file, folder)

    def load(self, folder: Path) -> Path:
        """See :class:`Stage`."""
        return folder


def write_folder(file: Path, folder: Path) -> None:
    """Write the LLM of a GGUF file as an ordinary folder: config, float32 weights and tokenizer.

    Args:
        file: the GGUF file.
        folder: where to write; loads with ``AutoModelForCausalLM`` and ``AutoTokenizer``.

    Raises:
        InputError: the file is damaged, or transformers knows no such model or tokenizer.
    """
    check_gguf(file)
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        config = AutoConfig.from_pretrained(**source)
        tokenizer = AutoTokenizer.from_pretrained(**source, config=config)
        model, missing = _read_model(source, config)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the readers raise whatever a damaged file leads them to
        raise InputError(
            "llm_path",
            f"{file} cannot be read as a language model ({type(error).__name__}: {first_line(error)}); fetch it again, "
            "or give a model that transformers reads from GGUF, such as Llama or Qwen",
            kind="file",
        ) from error
    if missing:
        raise InputError(
            "llm_path", f"{file} lacks {len(missing)} weights, first {missing[0]}; fetch it again", kind="file"
        )
    _split_digits(tokenizer, file)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read_model(source: Mapping[str, Any], config: PretrainedConfig) -> tuple[Any, list[str]]:
    """The model with its weights spelled out, and the names of those that the file lacks.

    What ``from_pretrained`` gives calls itself quantised and refuses to be saved, so its weights go into a model that
    never was.
    """
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    if hasattr(transformers, "GgufConfig"):  # newer versions may leave weights in their blocks unless told
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    read, info = AutoModelForCausalLM.from_pretrained(**source, config=config, **options)
    plain = type(config).from_dict(
        {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    )
    plain._name_or_path = ""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(plain)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    return model, sorted(info["missing_keys"])


def _split_digits(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Cut numbers into digits where the vocabulary was learned so: it shows where two blanks precede a digit."""
    if _text_value(file, "tokenizer.ggml.pre") in _SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def _text_value(file: Path, key: str) -> str | None:
    """A text of a file's metadata; the package's reader would go through the whole vocabulary for it.

    A value of type 8 is a text: its length in eight bytes, then its bytes.
    """
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        head = key.encode() + (8).to_bytes(4, "little")
        if (found := content.find(head)) < 0:
            return None
        start = found + len(head) + 8
        return content[start : start + int.from_bytes(content[start - 8 : start], "little")].decode()

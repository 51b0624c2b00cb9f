"""Where an LLM and an encoder of texts are, by the settings that name them: decided before anything is loaded."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from recbole_llm.errors import InputError

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def find_llm(llm_path: str | Path) -> Path | str:
    """The folder of an LLM, if there is one, else its name on the Hugging Face hub.

    Raises:
        InputError: a folder that does not exist, or has no ``config.json``.
    """
    path = Path(llm_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                "llm_path", f"{path}: the folder has no config.json; give a folder made by save_pretrained", kind="file"
            )
        return path
    text = str(llm_path)
    if not _HUB_NAME.fullmatch(text):
        raise InputError(
            "llm_path", f"{text}: there is no such folder; give an existing folder, a hub name, or 'tiny'", kind="file"
        )
    return text


def check_installed(encoder: str | Path) -> None:
    """Refuse an encoder of texts while sentence-transformers, which reads it, is not installed.

    Raises:
        InputError: what to install.
    """
    if find_spec("sentence_transformers") is None:
        raise InputError(
            "coreset_encoder",
            f"{encoder} needs sentence-transformers, which is not installed; run "
            "`pip install 'recbole-llm[text-encoders]'`, or give llm",
            kind="environment",
        )


def find_encoder(name: str | Path) -> str:
    """The folder of an encoder of texts, or its name on the hub.

    Raises:
        InputError: a folder that does not exist.
    """
    source = str(Path(name).expanduser())
    if not Path(source).is_dir() and not _HUB_NAME.fullmatch(source):
        raise InputError(
            "coreset_encoder", f"there is no folder {name}; give an existing one, a hub name, or llm", kind="file"
        )
    return source

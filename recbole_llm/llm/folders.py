"""Where an LLM and an encoder of texts are, by the settings that name them: decided before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from recbole_llm.errors import InputError


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
    if path.is_absolute() or text.startswith((".", "~")) or "\\" in text or text.count("/") > 1:
        raise InputError(
            "llm_path", f"{text}: there is no such folder; give an existing folder, a hub name, or 'tiny'", kind="file"
        )
    return text


def find_encoder(name: str | Path) -> str:
    """The folder of an encoder of texts, or its name on the hub.

    Raises:
        InputError: a folder that does not exist.
    """
    source = str(Path(name).expanduser())
    if not Path(source).is_dir() and (source.count("/") > 1 or source.startswith((".", "/"))):
        raise InputError(
            "coreset_encoder", f"there is no folder {name}; give an existing one, a hub name, or llm", kind="file"
        )
    return source

"""A stage's folder: complete, damaged or of another format, and the partial folder beside it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from recbole_llm.disk import write_json
from recbole_llm.hashing import find_change, hash_file
from recbole_llm.stages.stage import Stage

MANIFEST = "stage.json"
UNFINISHED = "unfinished"
"""Folder in a stage's folder for what is of use until the stage is whole, and is removed then."""
log = logging.getLogger(__name__)


def find_damage(folder: Path) -> str | None:
    """Say what is wrong with a stage's folder, or None when every file is as it was written."""
    try:
        files: dict[str, str] = {**read_manifest(folder)["files"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is missing or unreadable"
    return find_change(folder, files)


def refusal_of(folder: Path, format_number: int) -> str:
    """Why a stage's folder cannot be used as it is, as what a sentence says of it; empty where it can."""
    damage = find_damage(folder)
    if damage is not None:
        return f"is damaged ({damage})"
    found = read_manifest(folder)
    if (number := found.get("format", 1)) != format_number:
        writer = found.get("versions", {}).get("recbole_llm")
        told = f"was written in format {number}" + (f" by recbole_llm {writer}" if writer else "")
        return f"{told}, and this version writes format {format_number}"
    return ""


def partial_of(folder: Path, format_number: int) -> Path:
    """Where a stage is written until it is whole; what an older format has left there is removed."""
    own = folder.with_name(f"{folder.name}.partial" + (f"-{format_number}" if format_number > 1 else ""))
    for other in folder.parent.glob(f"{folder.name}.partial*"):
        if other != own:
            log.warning("Stage %s: an unfinished one of another format is removed", folder.name)
            shutil.rmtree(other)
    return own


def clear(partial: Path) -> None:
    """Remove what a killed run left, but for what is made to be gone on from."""
    for path in partial.iterdir():
        if path.is_dir() and path.name != UNFINISHED:
            shutil.rmtree(path)
        elif path.name != UNFINISHED:
            path.unlink()


def write_manifest(folder: Path, stage: Stage[Any], facts: Mapping[str, Any], seconds: float) -> None:
    """Write what a stage that has been computed is: its facts, its files, and who wrote it.

    Args:
        folder: folder of the stage's files.
        stage: the computed stage.
        facts: facts that it depends on.
        seconds: wall time of its computation.
    """
    files = {path.relative_to(folder).as_posix(): hash_file(path) for path in _files(folder)}
    record = {"stage": stage.name, "format": stage.format_number, "versions": _writers(), "seconds": round(seconds, 3)}
    write_json(folder / MANIFEST, {**record, "facts": dict(facts), "files": files})


def read_manifest(folder: Path) -> dict[str, Any]:
    """What :func:`write_manifest` has written: stage, format, versions, seconds, facts and digests of files."""
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return found


def _files(folder: Path) -> list[Path]:
    """The files of a stage's result."""
    unfinished = folder / UNFINISHED
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST and not path.is_relative_to(unfinished)
    )


@cache
def _writers() -> dict[str, str]:
    """Versions of the packages that decide what a stage holds."""
    return {
        "recbole_llm": str(import_module("recbole_llm").__version__),
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
    }

"""Files written completely or not at all; a full or read-only disk as one line."""

from __future__ import annotations

import errno
import json
import os
import re
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recbole_llm.errors import InputError

UNFINISHED_IMPORT = ".unfinished-import"  # in the folder of a data set whose files are being replaced
FULL = {errno.ENOSPC, errno.EDQUOT}
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}
BROKEN = {errno.EFBIG, errno.EIO, errno.ESTALE}
NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
# Libraries that write by themselves tell the number in words, or that fewer bytes were written than asked for.
_NUMBER = re.compile(r"os error (\d+)|\bcode: (\d+)")
_INSTALLED = (str(Path(__file__).parent), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
_CUT_SHORT = re.compile(r"\d+ requested and \d+ written|PytorchStreamWriter failed|unexpected pos \d+")


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part, even after a power cut."""
    aside = path.with_name(path.name + ".new")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


@contextmanager
def explained(folder: Path, what: str, key: str = "checkpoint_dir") -> Iterator[None]:
    """A context in which an error of the disk becomes the one line of a user's mistake; others pass.

    Args:
        folder: what is written to.
        what: is written, in words: ``stage fine-tune``.
        key: the setting that names the folder.

    Raises:
        InputError: the disk is full, the folder is read-only, or a write was cut short.

    Example:
        >>> with explained(Path("saved"), "stage distil"):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        ...
        recbole_llm.errors.InputError: checkpoint_dir: no space is left in saved for stage distil; what was whole ...
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = _reason(error, folder)
        if reason is None:
            raise
        raise InputError(key, reason.format(folder=folder, what=what), kind="environment") from error


def told_by_system(error: Exception) -> InputError | None:
    """The line for what the system refuses of a file or folder, wherever that was noticed; None for other errors.

    A file of Python or of an installed package that is missing is no mistake of the user, whose files lie elsewhere.

    Example:
        >>> print(told_by_system(PermissionError(errno.EACCES, "Permission denied", "/root/a.inter")))
        /root/a.inter cannot be read or written (Permission denied); give it the permission, or name another place
        >>> told_by_system(ValueError("a fault of ours"))
    """
    number = getattr(error, "errno", None)
    if not isinstance(error, OSError) and (found := _NUMBER.search(str(error))):
        number = int(found.group(1) or found.group(2))
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    place = os.fsdecode(name) if isinstance(name, str | bytes) else ""
    if number in FULL:
        where = f" for {place}" if place else " on the disk that is written to"
        message = f"no space is left{where} ({os.strerror(number)}); make room and run the same command again"
        return InputError("", f"{message}: what is finished is kept", kind="environment")
    if not place or any(Path(os.path.abspath(place)).is_relative_to(folder) for folder in _INSTALLED):
        return None
    if number in CLOSED:
        message = f"{place} cannot be read or written ({os.strerror(number)})"
        return InputError("", f"{message}; give it the permission, or name another place", kind="file")
    if number in NOT_THERE:
        message = f"{place} is not as it has to be ({os.strerror(number)})"
        return InputError("", f"{message}; put it in its place, or name another one", kind="file")
    return None


def _reason(error: Exception, folder: Path) -> str | None:
    """What the disk says, in words with two gaps; None where the error is another's."""
    number = getattr(error, "errno", None)
    text = str(error)
    if not isinstance(error, OSError) and (found := _NUMBER.search(text)):
        number = int(found.group(1) or found.group(2))
    kept = "what was whole before is kept: {cure} and run the same command again"
    if number in FULL:
        return "no space is left in {folder} for {what}; " + kept.format(cure="make room")
    if number in CLOSED and _lies_in(error, folder):
        told = os.strerror(number or errno.EACCES)
        return f"cannot write {{what}} to {{folder}} ({told}); " + kept.format(cure="make it writable")
    if number in BROKEN or (number is None and _CUT_SHORT.search(text)):
        told = os.strerror(number) if number else "fewer bytes were written than there are"
        return f"cannot write {{what}} to {{folder}} ({told}); " + kept.format(cure="check the disk")
    return None


def _lies_in(error: Exception, folder: Path) -> bool:
    """Whether the file of an error lies in a folder; one that names none may."""
    name = getattr(error, "filename", None)
    return name is None or Path(os.path.abspath(name)).is_relative_to(os.path.abspath(folder))

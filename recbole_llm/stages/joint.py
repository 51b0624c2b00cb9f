"""One stage and several processes: the main one finds and writes, the others take part or wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from recbole_llm.distributed import alone, hear, process, tell
from recbole_llm.errors import InputError

_THERE, _WHOLE = "there", "/whole"


@contextmanager
def leading(folder: Path, compute: Callable[[Path], None], joint: bool) -> Iterator[Callable[[Path], None]]:
    """A context in which the main process finds or computes a stage, and after which the others know that it is there.

    Its words wait for those who ask later, as it may have asked for the stage while it worked alone.

    Args:
        folder: folder of the stage, once it is whole.
        compute: writes the stage into the folder that it is given.
        joint: whether all processes take part in it.

    Yields:
        The function that computes the stage, with the other processes or alone.
    """
    key, is_together = _key(folder), joint and process().count > 1
    word = _THERE

    def led(partial: Path) -> None:
        nonlocal word
        if is_together:
            word = str(partial.resolve())
            tell(key, word)
            compute(partial)
            return
        with alone():
            compute(partial)

    yield led
    if word == _THERE:
        tell(key, word)
    tell(key + _WHOLE, _THERE)


def follow(folder: Path, compute: Callable[[Path], None]) -> None:
    """Take part in computing a joint stage, where it has to be computed, and wait until it is whole.

    Raises:
        InputError: the main process writes to a disk that is not this one's.
    """
    key = _key(folder)
    if (word := hear(key)) != _THERE:
        compute(Path(word))
    hear(key + _WHOLE)
    if not folder.is_dir():
        message = f"{folder.parent} is not the main process's; set a folder on a disk that all machines share"
        raise InputError("checkpoint_dir", message, kind="environment")


def _key(folder: Path) -> str:
    return f"stage/{folder.resolve()}"

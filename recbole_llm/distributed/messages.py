"""Messages that one process leaves for others, who may read them later."""

from __future__ import annotations

from datetime import timedelta

from recbole_llm.distributed.connection import OtherProcessEnded, is_connected, store, talking
from recbole_llm.distributed.processes import launched

LOOK = timedelta(seconds=2)  # how often one that waits for a word looks whether another has failed
_PREFIX, _FAILED = "recbole-llm/", "failed"


def tell(key: str, word: str) -> None:
    """Leave a word for the other processes; nothing if there are none."""
    if launched().count > 1:
        with talking():
            store().set(_PREFIX + key, word)


def hear(key: str) -> str:
    """The word that another process leaves under a key, once it is there.

    Raises:
        OtherProcessEnded: one has failed meanwhile.
    """
    words = store()
    while True:
        try:
            words.wait([_PREFIX + key], LOOK)
        except RuntimeError as error:
            with talking():
                if words.check([_PREFIX + _FAILED]):
                    raise OtherProcessEnded(str(error)) from error
            continue
        return str(words.get(_PREFIX + key).decode())


def is_first_to_fail() -> bool:
    """Whether no other process has failed before this one: the one that says why."""
    if launched().count == 1:
        return True
    if not is_connected():
        return launched().is_main  # so far all processes have done the same
    try:
        return int(store().add(_PREFIX + _FAILED, 1)) == 1
    except RuntimeError:  # the store has gone with its process
        return False

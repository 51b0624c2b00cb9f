"""What a refusal must be: the setting it is about, and what is wrong with it.

A message's wording is asserted once: of refused commands in :mod:`tests.test_wordings`, of what only running code finds
in the test that provokes it. Every other test names key and kind, which say the same in fewer words that last longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from recbole_llm.errors import InputError, Kind


@contextmanager
def refused(key: str, kind: Kind, words: str = "") -> Iterator[pytest.ExceptionInfo[InputError]]:
    """The block must end in an :class:`InputError` of one line.

    Args:
        key: of the error; empty for one that is about no setting.
        kind: of the error.
        words: what its message must hold, as a regular expression.

    Yields:
        The exception's information, filled once the block has ended.
    """
    with pytest.raises(InputError) as caught:
        yield caught
    error = caught.value
    assert (error.key, error.kind) == (key, kind), f"{error.key!r}, {error.kind!r}: {error}"
    assert "\n" not in str(error)
    assert re.search(words, str(error)), str(error)

"""The one exception that stands for a mistake in what the user gave."""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["unknown", "value", "missing", "conflict", "file", "data", "environment"]
"""What is wrong: a name that nothing knows; a value of the wrong type or out of range; something that is not given; two
settings that exclude each other; a file that cannot be used; data that lack what a setting names; the machine."""

_KEY = re.compile(r"(?:--)?([A-Za-z_][\w.-]*): ")


class InputError(ValueError):
    """A wrong setting, file or value.

    Its text is one line that names the thing, says what was found and what to do about it. The command prints it
    without a traceback and ends with exit status 2; code that uses the package as a library can catch it.

    Attributes:
        key: the setting as the user typed it, without dashes; empty where there is none.
        kind: what is wrong.

    Args:
        key: the setting; or the whole text, whose first word is then the key where a colon follows it.
        message: what is wrong and what to do; the text is ``<key>: <message>``.
        kind: what is wrong.

    Example:
        >>> error = InputError("topk", "0 is not allowed; give an integer >= 1")
        >>> str(error), error.key, error.kind
        ('topk: 0 is not allowed; give an integer >= 1', 'topk', 'value')
        >>> InputError("topk: 0 is not allowed").key
        'topk'
    """

    def __init__(self, key: str, message: str | None = None, *, kind: Kind = "value") -> None:
        if message is None:
            text, found = key, _KEY.match(key)
            key = found.group(1) if found else ""
        else:
            text = f"{key}: {message}" if key else message
        super().__init__(text)
        self.key = key
        self.kind: Kind = kind

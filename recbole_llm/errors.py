"""``InputError``, a mistake in what the user gave, and ``NonFiniteError``, a computation that gave NaN or infinity."""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["unknown", "value", "missing", "conflict", "file", "data", "numeric", "environment"]
"""What is wrong; the list is closed:

- ``unknown``: a name that nothing knows: a model, a key, a metric, a user.
- ``value``: a value of the wrong type or out of range.
- ``missing``: something that must be given and is not.
- ``conflict``: two things, each right alone, that exclude each other: two settings, a setting and the model, an adapter
  and the LLM it is loaded into.
- ``file``: a file or folder that is not there, cannot be read, or is not what it should be.
- ``data``: rows, columns or titles of the data set that are not as the run needs them.
- ``numeric``: a computation that gave NaN or infinity, or does not converge.
- ``environment``: a package, device or process that is not as the run needs it.
"""

_KEY = re.compile(r"(?:--)?([A-Za-z_][\w.-]*): ")
_LONGEST = 2000  # characters of a message; lists of names keep within it, values such as a title may not
_END = 600  # characters of the end of a longer one: what to do stands there


def one_line(text: str) -> str:
    r"""A text as it can be printed on one line of any terminal, whatever a value in it holds.

    Line breaks, control characters, marks that turn the direction of writing and halves of surrogate pairs are
    escaped; of more than 2,000 characters the middle is left out.

    Example:
        >>> one_line("no title 'a\nb\u202e'"), len(one_line("x" * 100_000))
        ("no title 'a\\nb\\u202e'", 2000)
    """
    if not text.isprintable():
        text = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - _END - 5]} ... {text[-_END:]}"


def first_line(error: BaseException) -> str:
    """An exception's message, its first line; its name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":. ")


class InputError(ValueError):
    """A wrong setting, file or value.

    Its text is one line that names the thing, says what was found and what to do about it. The command prints it
    without a traceback and ends with exit status 2; code that uses the package as a library can catch it.

    Attributes:
        key: the setting as the user typed it, without dashes; or empty.
        kind: what is wrong.

    Args:
        key: the setting; or the whole text, whose first word is then the key where a colon follows it.
        message: what is wrong and what to do; the text is ``<key>: <message>``.
        kind: what is wrong.
        about: the key of a text that does not begin with it.

    Example:
        >>> error = InputError("topk", "0 is not allowed; give an integer >= 1")
        >>> str(error), error.key, error.kind
        ('topk: 0 is not allowed; give an integer >= 1', 'topk', 'value')
        >>> InputError("topk: 0 is not allowed").key
        'topk'
    """

    def __init__(self, key: str, message: str | None = None, *, kind: Kind = "value", about: str = "") -> None:
        if message is None:
            text, found = key, _KEY.match(key)
            key = found.group(1) if found else ""
        else:
            text = f"{key}: {message}" if key else message
        super().__init__(one_line(text))
        self.key = one_line(about or key)
        self.kind: Kind = kind


class NonFiniteError(InputError, FloatingPointError):
    """A loss, a score or a vector is NaN or infinite where every value has to be a number.

    It is a line to print like any :class:`InputError`; code that can say more of it, such as the epoch it came after,
    catches it as a :class:`FloatingPointError`.

    Args:
        message: what is not finite, of which rows, and what to do.

    Example:
        >>> NonFiniteError("the loss of row 3 is nan").kind
        'numeric'
    """

    def __init__(self, message: str) -> None:
        super().__init__("", message, kind="numeric")

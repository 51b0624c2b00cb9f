"""The one exception that stands for a mistake in what the user gave."""

from __future__ import annotations


class InputError(ValueError):
    """A wrong setting, file or value.

    The message is one line that names the thing, says where it came from and what to do about it. The command prints it
    without a traceback and ends with exit status 2; code that uses the package as a library can catch it.
    """

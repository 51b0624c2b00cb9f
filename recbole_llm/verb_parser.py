"""Arguments of the command's verbs: argparse, with errors as one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from recbole_llm.errors import InputError
from recbole_llm.registry import suggestion

# How argparse says what is wrong.
_UNKNOWN = re.compile(r"unrecognized arguments: (.+)")
_NO_NUMBER = re.compile(r"argument --(\S+): invalid (?:int|float) value: (.+)")
_NO_VALUE = re.compile(r"argument --(\S+): expected one argument")
_MISSING = re.compile(r"the following arguments are required: .+|one of the arguments .+ is required")


class VerbParser(argparse.ArgumentParser):
    """argparse's parser, which refuses by an :class:`InputError` instead of ending the process."""

    def parse_words(self, words: Sequence[str]) -> argparse.Namespace:
        """The words of a command line behind its verb; ``--k_core`` is ``--k-core``.

        Raises:
            InputError: a wrong word.
        """
        return self.parse_args([_dashed(word) for word in words])

    def error(self, message: str) -> NoReturn:
        """Refuse the words.

        Raises:
            InputError: always.
        """
        verb, more = self.prog.rpartition(" ")[2], "; --help shows all words"
        if found := _UNKNOWN.fullmatch(message):
            word = found.group(1).split()[0].partition("=")[0]
            if not word.startswith("-"):
                text = f"{verb}: '{found.group(1)}' is not part of a flag; quote a value that holds spaces"
                raise InputError(text, kind="unknown", about=verb)
            name, names = word.lstrip("-"), [flag.lstrip("-") for flag in self._option_string_actions]
            hint = suggestion(name, names, more)
            raise InputError(f"{word} is not a flag of {verb}{hint}", kind="unknown", about=name)
        if found := _NO_NUMBER.fullmatch(message):
            raise InputError(found.group(1), f"{found.group(2)} is not allowed; give a number")
        if found := _NO_VALUE.fullmatch(message):
            key = found.group(1)
            raise InputError(f"--{key} has no value; write --{key}=value", kind="missing", about=key)
        raise InputError("", f"{verb}: {message}{more}", kind="missing" if _MISSING.fullmatch(message) else "value")


def _dashed(word: str) -> str:
    if not word.startswith("--"):
        return word
    key, equals, value = word.partition("=")
    return key.replace("_", "-") + equals + value

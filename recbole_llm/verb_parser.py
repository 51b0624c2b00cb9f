"""How the verbs of the command read their words: as argparse does, with errors as one line of the command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from recbole_llm.errors import InputError


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
        raise InputError("", f"{self.prog.rpartition(' ')[2]}: {message}; --help shows all words")


def _dashed(word: str) -> str:
    if not word.startswith("--"):
        return word
    key, equals, value = word.partition("=")
    return key.replace("_", "-") + equals + value

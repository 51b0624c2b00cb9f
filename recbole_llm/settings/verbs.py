"""How the verbs of the command read their words: as argparse does, with errors as one line of the command."""

from __future__ import annotations

import argparse
from typing import NoReturn

from recbole_llm.errors import InputError


class VerbParser(argparse.ArgumentParser):
    """argparse's parser, which refuses by an :class:`InputError` instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Refuse the words.

        Raises:
            InputError: always.
        """
        raise InputError("", f"{self.prog.rpartition(' ')[2]}: {message}; --help shows all words")

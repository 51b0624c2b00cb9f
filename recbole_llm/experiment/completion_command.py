"""The command ``recbole-llm completion``: a script that lets a shell complete models, settings and their values."""

from __future__ import annotations

from collections.abc import Sequence

from recbole_llm.errors import InputError
from recbole_llm.experiment.command import VERBS
from recbole_llm.settings.completion import SHELLS, completion

USAGE = f"""\
usage: recbole-llm completion {"|".join(SHELLS)}

Print a script that completes commands, models, settings and their values; in ~/.bashrc:

  eval "$(recbole-llm completion bash)\""""


def main(words: Sequence[str]) -> None:
    """Print the script.

    Args:
        words: the shell.

    Raises:
        InputError: no shell, or another one.
    """
    if {"--help", "-h"} & {*words}:
        print(USAGE)
        return
    if len(words) != 1:
        raise InputError("completion", f"name one shell: {', '.join(SHELLS)}", kind="missing")
    print(completion(words[0], VERBS), end="")

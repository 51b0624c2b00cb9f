"""The refused commands of ``refused_commands.txt``."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import NamedTuple, cast

from recbole_llm.errors import Kind


class Refused(NamedTuple):
    """One refused command.

    Attributes:
        line: as it is typed.
        key: the setting that is refused; empty where it is none.
        kind: what is wrong.
        text: what is said, ``...`` for any text.
    """

    line: str
    key: str
    kind: Kind
    text: str

    @property
    def words(self) -> list[str]:
        """The words of the command line; the data set is ml-100k where it names none."""
        given = shlex.split(self.line)
        return given if any(word.startswith("--dataset") for word in given) else [*given, "--dataset=ml-100k"]

    @property
    def pattern(self) -> str:
        """What is said, as a regular expression of the whole."""
        return "^" + ".*".join(map(re.escape, self.text.split("..."))) + "$"


@cache
def refused_commands() -> tuple[Refused, ...]:
    """All of them, in the order of the file."""
    found, kind, line = [], "", ""
    for row in Path(__file__).with_name("refused_commands.txt").read_text(encoding="utf-8").splitlines():
        if row.startswith("["):
            kind = row[1:].partition("]")[0]
        elif row.startswith(" "):
            key, _, text = row.strip().partition(" | ")
            found.append(Refused(line, "" if key == "-" else key, cast(Kind, kind), text))
        else:
            line = row
    return tuple(found)

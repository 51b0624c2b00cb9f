"""The command ``recbole-llm import``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from recbole_llm.data.importers.importing import LAYOUTS, imported
from recbole_llm.data.importers.plan import ROLES, Choices
from recbole_llm.data.importers.steps import REPEATS, UNTITLED, Filters
from recbole_llm.errors import InputError
from recbole_llm.logs import console_log
from recbole_llm.verb_parser import VerbParser


def parser() -> VerbParser:
    """The words of the command."""
    found = VerbParser(
        prog="recbole-llm import",
        description="Convert your own table, or a public data set, to a data set that --dataset=NAME runs on.",
        allow_abbrev=False,
    )
    found.add_argument("path", type=Path, help="a file, or the unpacked folder of a public data set")
    found.add_argument("--name", required=True, help="name of the data set: --dataset=NAME runs on it")
    found.add_argument("--out", default="dataset", type=Path, help="folder of data sets (default: dataset)")
    found.add_argument("--layout", help=f"one of {', '.join(LAYOUTS)}; detected by default")
    found.add_argument("--overwrite", action="store_true", help="replace an existing data set of this name")
    files = found.add_argument_group("the files")
    for role in ROLES:
        files.add_argument(f"--{role}", metavar="COLUMN", help=f"column of the {role}; recognised by name by default")
    files.add_argument("--text", metavar="COLUMNS", default="", help="further columns that describe an item")
    files.add_argument("--columns", default="", help="names of the columns of a file without a header: user,item,time")
    files.add_argument("--items", type=Path, help="file of the items: their ids and titles")
    files.add_argument("--separator", help="separator of the fields; detected by default")
    files.add_argument("--quoting", default="auto", help="auto (default), csv or none")
    files.add_argument("--encoding", help="text encoding (default: utf-8, or the layout's)")
    files.add_argument("--time-format", help="number, iso, or like '%%d.%%m.%%Y'; detected by default")
    files.add_argument("--bad-lines", default="error", help="error (default): refuse the file; drop: skip and count")
    files.add_argument(
        "--split", default="official", help="official (default): keep the split of the files; join: ignore it"
    )
    files.add_argument("--domain", help="words of the prompt: movie, book, game, product, ...")
    parts = found.add_argument_group("what is left out")
    parts.add_argument("--k-core", type=int, default=1, help="fewest interactions of a user and of an item")
    parts.add_argument("--since", help="earliest time: a date, or a number in the unit of the file")
    parts.add_argument("--until", help="end of the time range, exclusive")
    parts.add_argument("--sample-users", type=float, help="share or number of users to draw")
    parts.add_argument("--seed", type=int, default=2020, help="seed of --sample-users (default: 2020)")
    parts.add_argument("--repeats", help=f"which interactions of a user with one item stay: {', '.join(REPEATS)}")
    parts.add_argument("--untitled", default="drop", help=f"interactions of untitled items: {', '.join(UNTITLED)}")
    parts.add_argument("--keep-items", action="store_true", help="keep titled items without interactions in .item")
    return found


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The words of a command line.

    Raises:
        InputError: a wrong word.
    """
    return parser().parse_words(words)


def main(words: Sequence[str], progress: bool = True) -> None:
    """Import what a command line says.

    Args:
        words: behind ``import``; ``--k_core`` is ``--k-core``.
        progress: whether to show progress bars.

    Raises:
        InputError: a mistake in the words or in the files.
    """
    given = parse(words)
    if given.bad_lines not in ("error", "drop"):
        raise InputError("bad_lines", f"'{given.bad_lines}' is not allowed; choose one of error, drop")
    choices = Choices(
        {role: getattr(given, role) for role in ROLES if getattr(given, role) is not None},
        _names(given.text),
        _names(given.columns),
        given.items,
        None if given.separator is None else given.separator.replace("\\t", "\t"),
        given.encoding,
        given.quoting,
        given.time_format,
        given.bad_lines == "drop",
    )
    size = {"sample_users": given.sample_users, "seed": given.seed, "k_core": given.k_core}
    size["keep_items"] = given.keep_items
    filters = Filters(given.repeats, given.since, given.until, given.untitled, **size)
    with console_log():
        made = imported(
            given.path,
            given.name,
            given.out,
            layout=given.layout,
            choices=choices,
            filters=filters,
            domain=given.domain,
            split=given.split,
            overwrite=given.overwrite,
            progress=progress,
            command=shlex.join(["recbole-llm", "import", *words]),
        )
    if made.can_run:
        where = "" if given.out == Path("dataset") else f" --data_path={shlex.quote(str(given.out))}"
        models = "Pop,SASRec,BIGRec" if made.has_titles else "Pop,SASRec"  # LLMs need titles
        print(f"{made.folder}: run it with recbole-llm --model={models} --dataset={shlex.quote(given.name)}{where}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())

"""The command ``recbole-llm recommend``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm.errors import InputError
from recbole_llm.experiment.recommend_file import check_out, parse_history, read_queries, write_recommendations
from recbole_llm.logs import console_log
from recbole_llm.verb_parser import VerbParser

if TYPE_CHECKING:
    import pandas as pd

    from recbole_llm.experiment.run_record import Run

log = logging.getLogger(__name__)


def parser() -> VerbParser:
    """The words of the command."""
    found = VerbParser(
        prog="recbole-llm recommend",
        description="Recommend items with a finished run: to users of its data set, or for histories of your own.",
        allow_abbrev=False,
    )
    found.add_argument("run", type=Path, help="folder of the run: saved/<model>-<data set>-<time>")
    asked = found.add_mutually_exclusive_group(required=True)
    asked.add_argument("--users", help="all; or ids separated by commas; or a file with one id per line")
    asked.add_argument(
        "--history",
        action="append",
        help="ids or titles, oldest first, separated by ';', or as a JSON list; may be repeated",
    )
    asked.add_argument("--histories", type=Path, help="file with a JSON list of ids or titles per line")
    found.add_argument("--k", type=int, default=10, help="items per user or history (default: 10)")
    found.add_argument("--exclude-seen", action="store_true", help="leave out the items of the history")
    found.add_argument("--out", type=Path, help="file ending in .csv, .jsonl or .parquet; printed by default")
    found.add_argument("--overwrite", action="store_true", help="replace the file")
    found.add_argument("--batch-size", type=int, default=256, help="users or histories at a time (default: 256)")
    found.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the run's LLM, if the run did"
    )
    found.add_argument("--data-path", type=Path, help="where the data set is now, if it was moved")
    found.add_argument("--quiet", action="store_true", help="no progress bar")
    return found


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The words of a command line.

    Raises:
        InputError: a wrong word.
    """
    return parser().parse_words(words)


def main(words: Sequence[str]) -> None:
    """Write or print the recommendations that the words of a command line ask for.

    Raises:
        InputError: a wrong word, run, user or history.
    """
    options = parse(words)
    if options.k < 1 or options.batch_size < 1:
        key, value = ("k", options.k) if options.k < 1 else ("batch-size", options.batch_size)
        raise InputError(key, f"{value} is not allowed; give an integer >= 1")
    if options.out is not None:
        check_out(options.out)
        if options.out.exists() and not options.overwrite:
            raise InputError("out", f"{options.out} exists; give another file, or --overwrite", kind="file")
    histories = _histories(options)
    if options.users is not None and not options.users.strip(", "):
        raise InputError("users", "there are none; give all, ids with commas between them, or a file", kind="missing")
    listed = None if options.users is None else _listed_users(options.users)
    from transformers.utils import logging as transformers_logging

    from recbole_llm.experiment.load import load_run  # RecBole and torch are loaded once the words are right

    transformers_logging.disable_progress_bar()
    with console_log():
        run = load_run(options.run, trust_remote_code=options.trust_remote_code, data_path=options.data_path)
        _answer(options, run, histories, listed)


def _answer(
    options: argparse.Namespace, run: Run, histories: list[tuple[str, list[str]]] | None, listed: list[str] | None
) -> None:
    from recbole_llm.experiment.results import data_hash_of

    choice: dict[str, Any] = {"k": options.k, "exclude_seen": options.exclude_seen}
    kind = "users" if histories is None else "histories"
    asked: Sequence[Any]
    if histories is None:
        asked = _users(options.users, run, listed)
        run.check_asked(users=asked)
    else:
        asked = [own for _, own in histories]
        run.check_asked(asked, places=[place for place, _ in histories])
    empty = 0

    def recommend(some: Sequence[Any]) -> pd.DataFrame:
        nonlocal empty
        found = run.recommend(users=some, **choice) if histories is None else run.recommend(some, **choice)
        empty += len(set(some) if histories is None else some) - found.iloc[:, 0].nunique()
        return found

    if options.out is None:
        print(recommend(asked).to_string(index=False))
    else:
        write_recommendations(
            options.out,
            asked,
            recommend,
            # Where the data have changed, an answer is another one; so is that of a run of the same name elsewhere.
            {"run": str(run.folder.resolve()), "data": data_hash_of(run.config), "kind": kind, **choice},
            batch=options.batch_size,
            show_progress=not options.quiet and sys.stderr.isatty(),
        )
        print(f"recommendations for {len(asked):,} {kind}: {options.out}")
    if empty:
        log.warning("No item is left to recommend to %d of the %s.", empty, kind)


def _histories(options: argparse.Namespace) -> list[tuple[str, list[str]]] | None:
    """The histories that are given, each with what it is called in a message; None where users are."""
    if options.histories is not None:
        try:
            return list(read_queries(options.histories))
        except OSError as error:
            raise InputError("histories", f"{options.histories}: {error.strerror}", kind="file") from error
        except UnicodeDecodeError as error:
            raise InputError(
                "histories", f"{options.histories} is no UTF-8 text; write it as UTF-8", kind="file"
            ) from error
    if options.history is None:
        return None
    found = [parse_history(text) for text in options.history]
    if not all(found):
        raise InputError("history", "is empty; give item ids or titles with ';' between them", kind="missing")
    return [(f"history {number}", own) for number, own in enumerate(found)]


def _listed_users(given: str) -> list[str] | None:
    """The lines of a file of users; None where ``given`` names no file.

    Raises:
        InputError: it cannot be read.
    """
    if given == "all" or not _is_file(given):
        return None
    try:
        text = Path(given).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("users", f"{given} is no UTF-8 text; write it as UTF-8", kind="file") from error
    except OSError as error:
        message = f"{given} cannot be read ({error.strerror}); make it readable, or give another file"
        raise InputError("users", message, kind="file") from error
    return [line.rstrip("\r") for line in text.split("\n")]


def _users(given: str, run: Run, lines: list[str] | None = None) -> list[str]:
    """Ids of the users that are asked for: all, those of the lines of a file, or those that are given themselves."""
    if given == "all":
        return run.users
    known = set(run.users)  # an id may begin or end in a blank, or hold a comma
    lines = _listed_users(given) if lines is None else lines
    if lines is None:
        if Path(given).suffix in (".txt", ".csv", ".tsv", ".jsonl") and "," not in given and given not in known:
            raise InputError("users", f"there is no file {given}, and no user has this id", kind="file")
        lines = [given] if given in known else given.split(",")
    return [line if line in known else line.strip() for line in lines if line.strip() or line in known]


def _is_file(name: str) -> bool:
    """Whether there is a file of this name; a long list of ids is not a file name.

    Raises:
        InputError: its folder may not be looked into.
    """
    try:
        return Path(name).is_file()
    except PermissionError as error:
        message = f"{name} cannot be looked up ({error.strerror}); make its folder readable, or give another file"
        raise InputError("users", message, kind="file") from error
    except OSError:
        return False

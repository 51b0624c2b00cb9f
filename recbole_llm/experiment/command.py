"""The command ``recbole-llm``: runs of models, or a verb such as ``recbole-llm import``."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from recbole_llm.disk import told_by_system
from recbole_llm.distributed import OtherProcessEnded, check_launch, is_first_to_fail, launched, refuse_several
from recbole_llm.errors import InputError
from recbole_llm.registry import nearest
from recbole_llm.settings.check import check_command
from recbole_llm.settings.command import Command, parse_command
from recbole_llm.settings.help import help_text

if TYPE_CHECKING:
    from recbole_llm.report import ResultTable

QUIET = "--quiet"  # without a value: only warnings and the table are shown
PAGE = "report.html"
NO_READER = 141  # the exit status of a program that SIGPIPE ended
# Modules with a function main, imported when asked for.
VERBS = {
    "audit": "recbole_llm.experiment.audit_command",
    "completion": "recbole_llm.experiment.completion_command",
    "import": "recbole_llm.data.importers.command",
    "recommend": "recbole_llm.experiment.recommend_command",
    "tune": "recbole_llm.experiment.tune_command",
}


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM, as clusters do before they kill."""


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """A context that SIGTERM ends as Ctrl-C does; without effect outside the main thread, which alone gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: print a table of all models, do what a verb says, or print one line of error.

    Args:
        argv: arguments without the program's name; the process's own by default.

    Returns:
        Exit status: 0; 1 if another process failed; 2 for a mistake in the input; 130 after Ctrl-C; 143 after SIGTERM;
        141 if the reader of the output has gone.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character, such as ±, shows a question mark
    try:
        status = _main(words)
        sys.stdout.flush()  # a reader that has gone shows here, and not when the interpreter ends
    except BrokenPipeError:  # such as `| head`, which has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    return status


def _main(words: list[str]) -> int:
    """Do what the words say. Mistakes, signals and failures of other processes end in one line and an exit status."""
    try:
        _do(words)
    except InputError as error:
        if is_first_to_fail():
            print(f"recbole-llm: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        again = shlex.join(["recbole-llm", *words])
        if launched().is_main:
            print(f"\nrecbole-llm: stopped; what is finished is kept. To go on: {again}", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130
    except OtherProcessEnded:
        if is_first_to_fail():
            told = f"another of the {launched().count} processes exited without an error message (out of memory?)"
            print(f"recbole-llm: error: {told}; what is finished is kept", file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise
    except Exception as error:
        if not is_first_to_fail():
            return 1
        line = told_by_system(error)
        if line is None:
            raise
        print(f"recbole-llm: error: {line}", file=sys.stderr)
        return 2
    return 0


def _do(words: list[str]) -> None:
    """Run a verb, print the version or help, or run models.

    Raises:
        InputError: a wrong word, setting or file.
    """
    check_launch()
    if words and words[0] in VERBS:
        refuse_several(words[0])
        import_module(VERBS[words[0]]).main(words[1:])
        return
    if words == ["--version"]:
        print(import_module("recbole_llm").__version__)
        return
    if words and not words[0].startswith("-") and (close := nearest(words[0], VERBS, count=1)):
        raise InputError(f"there is no command '{words[0]}'; did you mean {close[0]}?", kind="unknown")
    quiet = bool({QUIET, f"{QUIET}=True"} & {*words})
    command = parse_command([word for word in words if word not in (QUIET, f"{QUIET}=True")])
    if not command.help:
        _run_models(command, words, quiet)
    elif command.help_word in VERBS:
        import_module(VERBS[command.help_word]).main(["--help"])
    else:
        print(help_text(command.help_word))


def _run_models(command: Command, words: list[str], quiet: bool) -> None:
    """Check a command, run its models and print their table; of several processes the main one prints."""
    started = time.perf_counter()
    check_command(command)
    # Imported only now: a refused command answers before RecBole and the LLM libraries are loaded.
    from transformers.utils import logging as transformers_logging

    from recbole_llm.experiment.compare import run_models
    from recbole_llm.logs import console_log

    transformers_logging.disable_progress_bar()
    if quiet:
        command.shared["show_progress"] = False

    def show(table: ResultTable) -> None:
        print(table.text(bold=sys.stdout.isatty()), flush=True)

    with console_log(quiet), ended_by_sigterm():
        folder = run_models(command, words, show)[1]
    if launched().is_main:
        print(f"results: {folder}")
        print(f"report: {folder / PAGE}")
        print(f"time: {time.perf_counter() - started:.0f} s")

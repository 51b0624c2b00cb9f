"""Logging of a run: one console handler per process, one file per run."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recbole_llm.distributed import launched
from recbole_llm.errors import InputError

CONSOLE = "%(log_color)s%(asctime)s %(levelname)s  %(message)s"
FILE = "%(asctime)s %(levelname)s  %(message)s"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
CHATTER = ("Saving current",)  # lines of RecBole's that tell of every epoch what its end tells once
# Libraries whose chatter says nothing about the run.
CHATTY = ("httpx", "httpcore", "urllib3", "matplotlib", "faiss", "filelock", "fsspec", "absl")


SHOWN = {"shown": True}
"""``extra=SHOWN`` puts a message of several lines on the console too."""


@contextmanager
def console_log(quiet: bool = False) -> Iterator[None]:
    """Log to standard error, above any progress bar, for the duration of the context.

    What has several lines, such as a config or a tree of modules, is in the log of the run alone. Colours are for
    terminals.

    Args:
        quiet: whether only warnings and errors are shown.
    """
    from tqdm.contrib.logging import logging_redirect_tqdm

    if not launched().is_main:
        with _nothing():
            yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(sys.stderr.isatty()))
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    with _handled_by(handler, "INFO"), logging_redirect_tqdm():
        for own in logging.getLogger().handlers:
            if own.formatter is handler.formatter:  # tqdm's handler, which has taken the place of ours
                own.addFilter(_is_warning if quiet else _is_brief)
        yield


def _formatter(is_terminal: bool) -> logging.Formatter:
    if not is_terminal:
        return _Plain(FILE, "%d %b %H:%M:%S")
    from colorlog import ColoredFormatter

    formatter: logging.Formatter = ColoredFormatter(CONSOLE, "%d %b %H:%M:%S", reset=True)
    return formatter


class _Plain(logging.Formatter):
    """Without the colours that RecBole writes into its messages."""

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        return COLOUR.sub("", super().format(record))


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO


def _is_brief(record: logging.LogRecord) -> bool:
    """Whether a record belongs on the console: a warning, a line, or what asks for it."""
    if _is_warning(record) or getattr(record, "shown", False):
        return True
    text = COLOUR.sub("", record.getMessage())
    return "\n" not in text.strip("\n") and text.strip() != "" and not text.startswith(CHATTER)


def check_level(level: str) -> None:
    """Refuse what is no log level.

    Args:
        level: the config key ``state``, upper and lower case alike.

    Raises:
        InputError: there is no such level.
    """
    if str(level).upper() not in LEVELS:
        raise InputError("state", f"there is no log level '{level}'; choose one of {', '.join(LEVELS)}", kind="unknown")


@contextmanager
def run_log(path: Path, level: str = "INFO") -> Iterator[None]:
    """Log to a file of the run's own as well, without colours.

    Args:
        path: the file.
        level: the config key ``state``; what is less important is logged nowhere.

    Raises:
        InputError: there is no such level.
    """
    from recbole.utils.logger import RemoveColorFilter

    check_level(level)
    if not launched().is_main:
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(FILE))
    handler.addFilter(RemoveColorFilter())
    with _handled_by(handler, level.upper()):
        yield


@contextmanager
def silent() -> Iterator[None]:
    """Log nothing but errors for the duration of the context."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _nothing() -> Iterator[None]:
    """Log nothing and warn of nothing, as the main process of several does."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


@contextmanager
def _handled_by(handler: logging.Handler, level: str) -> Iterator[None]:
    """Add a handler to the root logger and set its level; the end of the context undoes both."""
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield
    finally:
        root.setLevel(before)
        root.removeHandler(handler)
        handler.close()

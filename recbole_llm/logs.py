"""Logging of a run: one console handler for the process, one file per run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colorlog import ColoredFormatter
from recbole.utils.logger import RemoveColorFilter
from tqdm.contrib.logging import logging_redirect_tqdm

CONSOLE = "%(log_color)s%(asctime)s %(levelname)s  %(message)s"
FILE = "%(asctime)s %(levelname)s  %(message)s"
# Chatter of libraries that says nothing about the run.
QUIET = ("httpx", "httpcore", "urllib3", "matplotlib", "faiss", "filelock", "fsspec", "absl")


@contextmanager
def console_log(level: str = "INFO") -> Iterator[None]:
    """Log to standard error, above any progress bar, for the duration of the context."""
    root = logging.getLogger()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ColoredFormatter(CONSOLE, "%d %b %H:%M:%S", reset=True))
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with logging_redirect_tqdm():
            yield
    finally:
        root.removeHandler(handler)


@contextmanager
def run_log(path: Path) -> Iterator[None]:
    """Log to a file of the run's own as well, without colours."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(FILE))
    handler.addFilter(RemoveColorFilter())
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()

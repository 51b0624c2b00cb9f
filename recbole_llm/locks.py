"""File locks that name their holder: a live holder is waited for, a dead one's lock is broken after a check.

The lock itself is filelock's, which the system takes back when its process ends. Two cases need more: a process that
was killed may live on in a child that still holds its open files, and a file system without such locks keeps a marker
forever. So a holder is noted beside the lock; a note of a process that is no longer there breaks it.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from filelock import FileLock, Timeout

CHANGES = ".locks"  # the lock under which the locks of its folder change hands
POLL = 0.1  # seconds between two looks at a lock that another process holds
SAME_START = 2.0  # seconds by which two readings of when one process started may differ
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        pid: id of its process.
        host: the machine's name.
        space: the process ids' name space, as containers on one machine have their own; empty where none is known.
        started: when it started, seconds since 1970.
        since: when it took the lock, seconds since 1970.
    """

    pid: int
    host: str
    space: str
    started: float
    since: float

    @classmethod
    def of_this_process(cls) -> Owner:
        """Who this process is."""
        own = os.getpid()
        return cls(own, socket.gethostname(), _space(), psutil.Process(own).create_time(), time.time())

    @classmethod
    def read(cls, file: Path) -> Owner | None:
        """The holder noted in a file; None if it is missing or unreadable."""
        try:
            found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return cls(**found)
        except (OSError, ValueError, TypeError):
            return None

    @property
    def is_gone(self) -> bool:
        """Whether the process is known to have ended: ids of another machine or container tell nothing."""
        if (self.host, self.space) != (socket.gethostname(), _space()):
            return False
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.started) <= SAME_START
            return not is_same or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False

    def __str__(self) -> str:
        since = time.strftime("%d %b %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {since}"


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


class OwnedLock:
    """A lock between processes, as a context.

    Args:
        path: the lock's file; ``<path>.owner`` beside it says who holds it.
        what: what it guards, as the log names it: ``Stage fine-tune-0123456789abcdef``.

    Example:
        >>> with OwnedLock(Path("stage.lock"), "Stage s"):
        ...     Owner.read(Path("stage.lock.owner")).pid == os.getpid()
        True
        >>> Owner.read(Path("stage.lock.owner")) is None
        True
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        self._note = path.with_name(path.name + ".owner")
        self._lock = FileLock(path)

    def __enter__(self) -> OwnedLock:
        if not self.take():
            log.info("%s is being computed by %s; waiting for it", self.what, Owner.read(self._note) or "another run")
            while not self.take():
                time.sleep(POLL)
        return self

    def take(self) -> bool:
        """Take the lock if it is free, or held by no living process. Returns: whether it is taken.

        The lock and the note change together, one process at a time: beside a lock that was just taken, the note of
        the holder before would look as if that one still had it.
        """
        with FileLock(self.path.with_name(CHANGES)):
            before = Owner.read(self._note)
            has_ended = before is not None and before.is_gone
            if not self._acquire():
                if not has_ended:
                    return False
                with suppress(FileNotFoundError):
                    self.path.unlink()  # whoever still has it open holds a lock without a name
                if not self._acquire():
                    return False
            self._write_note()
        if has_ended:
            log.info("%s: %s has ended without finishing it; resuming from what it left", self.what, before)
        return True

    def _acquire(self) -> bool:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._lock.is_locked:
            self._note.unlink(missing_ok=True)
            self._lock.release()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def _write_note(self) -> None:
        aside = self._note.with_name(f"{self._note.name}.new")  # nobody else writes it: we have the lock
        aside.write_text(json.dumps(asdict(Owner.of_this_process())), encoding="utf-8")
        os.replace(aside, self._note)

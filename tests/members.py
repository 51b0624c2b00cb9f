"""Processes of one command as threads of this one: what they deal out, without starting any."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeVar
from unittest import mock

from recbole_llm.distributed import Process
from recbole_llm.distributed.processes import all_done

Value = TypeVar("Value")
_own = threading.local()


@dataclass(frozen=True)
class Member(Process):
    """A process whose others are threads.

    Attributes:
        told: what each tells, by rank.
        meeting: where they wait for one another.
        turn: held by the one that computes: what torch sets for a whole process is no thread's.
    """

    told: list[Any] = field(default_factory=list)
    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    turn: Any = field(default_factory=threading.Lock)

    def gather(self, value: Value) -> list[Value]:
        """See :class:`Process`."""
        self.told[self.rank] = value
        self.turn.release()
        try:
            self.meeting.wait(60)
            found = list(self.told)
            self.meeting.wait(60)
        finally:
            self.turn.acquire()
        return all_done(found)

    def from_main(self, value: Value) -> Value:
        """See :class:`Process`."""
        return self.gather(value)[0]


def in_threads(count: int, modules: list[ModuleType], function: Callable[[], Value]) -> list[Value]:
    """Run a function by several processes, of which one computes at a time.

    Each must have models of its own, as what one leaves in them while it waits is there for the others.

    Args:
        count: of the processes; they are threads even if it is one, so that all run under the same circumstances.
        modules: those that ask :func:`recbole_llm.distributed.process` who they are.
        function: what each runs.

    Returns:
        What each gives, by rank.
    """
    told, meeting, turn = [None] * count, threading.Barrier(count), threading.Lock()

    def run(rank: int) -> Value:
        _own.process = Member(rank, count, told, meeting, turn)
        try:
            with turn:
                return function()
        except BaseException:
            meeting.abort()  # so that the others do not wait
            raise

    patches = [mock.patch.object(module, "process", lambda: _own.process) for module in modules]
    for patch in patches:
        patch.start()
    try:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(run, range(count)))
    finally:
        for patch in patches:
            patch.stop()
